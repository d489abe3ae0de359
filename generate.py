"""Let a character model write, and look over its shoulder.

    python generate.py --prompt "def " --readable
    python generate.py --prompt "import " --temperature 0 --tokens 100 --quiet > out.py

Reads   gpt_model.pt (train.py)
Writes  the text to stdout, everything else to stderr; with --output-file the text to a file as well

At every step the model gives each token of its vocabulary a probability, and one is drawn. Printed are the likeliest
candidates with two probabilities: the model's own, and the one it was drawn with, after temperature, top-k and top-p.
Surprise is -log2 of the model's own. The text is the prompt and what was drawn; it ends after --tokens tokens, before a
--stop text, or where the model writes <|endoftext|>.
"""

import time

from config import CHAR, Settings, UsageError, UserError, generation_flags, run, shown_path

if __name__ == "__main__":
    settings, args = generation_flags(CHAR, __doc__)  # before torch, which takes seconds to import

import math
import statistics
import sys

from dataset import whole_file
from model import insight
from model.checkpoint import load_model
from model.device import pick_device
from model.sampling import Step, generate, read
from model.tokenizer import Tokenizer


def say(line: str) -> None:
    """Print to stderr: stdout is for the text alone."""
    print(line, file=sys.stderr)


def check_settings(settings: Settings) -> None:
    """Refuse values that cannot be sampled with."""
    if not 0 <= settings.temperature < math.inf:
        raise UsageError(f"--temperature must be 0 (always the likeliest) or above, and it is {settings.temperature}.")
    if settings.top_k < 0 or settings.tokens < 0 or settings.show < 0:
        raise UsageError("--top-k, --tokens and --show must be 0 or above.")
    if not 0 <= settings.seed < 2**64:
        raise UsageError(f"--seed must be from 0 to 2**64 - 1, and it is {settings.seed}.")
    if not 0 < settings.top_p <= 1:
        raise UsageError(f"--top-p must be above 0 and at most 1, and it is {settings.top_p}.")


def encode_prompt(prompt: str, tokenizer: Tokenizer, block_size: int) -> list[int]:
    """The token ids to start from: those of the prompt, or <|endoftext|> for none, the last block_size at most."""
    try:
        prompt.encode()
    except UnicodeEncodeError:
        raise UserError("The prompt is not valid text: it holds bytes that are not UTF-8.") from None
    if not prompt:
        return [tokenizer.end_of_text_id]
    ids = tokenizer.encode(prompt)
    if unknown := tokenizer.unknown(prompt, ids):
        seen = ", ".join(map(repr, dict.fromkeys(unknown)))
        say(f"Never seen in training, so read as <|unk|>: {seen}")
    if len(ids) > block_size:
        say(f"The prompt has {len(ids):,} tokens. The model sees {block_size}: the last {block_size} count.")
    return ids[-block_size:].tolist()


def show_prompt(tokenizer: Tokenizer, ids: list[int], surprises: list[float], as_text: bool) -> None:
    """The prompt token by token: id, text, and how surprised the model was to read it."""
    if ids == [tokenizer.end_of_text_id]:
        say("No prompt: starting from <|endoftext|>, as at the beginning of a document.")
        return
    say(f"The prompt is cut into {len(ids)} token{'s'[: len(ids) > 1]}:")
    for i, token in enumerate(ids):
        known = "(the first: nothing to foresee it from)" if i == 0 else f"surprise {surprises[i - 1]:6.2f} bits"
        say(f"  id {token:>5}  {insight.token_text(tokenizer, token, as_text):14} {known}")


def show_step(tokenizer: Tokenizer, number: int, step: Step, show: int, as_text: bool) -> None:
    """One step: the candidates with both probabilities, an arrow at the chosen one."""
    say(
        f"step {number}: chose {insight.token_text(tokenizer, step.token, as_text)} (id {step.token}), "
        f"rank {step.rank}, surprise {insight.surprise(step.p):.2f} bits"
    )
    candidates = step.candidates(max(show, step.rank))
    for token, model_p, sampled_p in candidates[:show] + candidates[step.rank - 1 :][: step.rank > show]:
        mark, text = " >"[token == step.token], insight.token_text(tokenizer, token, as_text)
        percents = f"drawn with {sampled_p:7.2%}  model {model_p:7.2%}"
        say(f" {mark} id {token:>5}  {text:14} {insight.bar(sampled_p)} {percents}")


def cut_at(text: str, stops: list[str]) -> str | None:
    """The text before the earliest stop text in it, or None where there is none."""
    places = [text.find(stop) for stop in stops if stop in text]
    return text[: min(places)] if places else None


def main(settings: Settings, args, kind: str = "char") -> int:
    check_settings(settings)
    if any(not stop for stop in args.stop):
        raise UsageError("--stop needs a text that is not empty.")
    stops = args.stop + ["\n"] * args.stop_at_newline
    model, tokenizer, training = load_model(settings.model_file)
    if tokenizer.kind != kind:
        other = {"char": "generatev2.py", "bpe": "generate.py"}[kind]
        raise UserError(f"{shown_path(settings.model_file)} is a {tokenizer.kind} model: use {other} for it.")
    model.to(pick_device(settings.device))

    # === read the prompt ==============================================================================================
    ids = encode_prompt(args.prompt, tokenizer, model.block_size)
    cache = model.new_cache()
    begin = time.perf_counter()
    logits = read(model, ids, cache)  # (T, vocab_size): what the model expects after each token of the prompt
    if settings.debug:
        trained = (
            f"trained for {training['steps']:,} steps, validation {training['val_bits_per_byte']:.3f} bits per byte"
        )
        say(f"{shown_path(settings.model_file)}: {trained}")
        p = logits.softmax(dim=-1)[range(len(ids) - 1), ids[1:]].tolist()
        show_prompt(tokenizer, ids, [insight.surprise(x) for x in p], args.readable)

    # === one token after the other ====================================================================================
    surprises, new, text = [], [], None
    end = f"{settings.tokens} tokens were asked for"
    knobs = {name: getattr(settings, name) for name in ("tokens", "temperature", "top_k", "top_p", "seed")}
    steps = generate(model, ids, logits[-1], cache, **knobs)
    try:
        for number, step in enumerate(steps, 1):
            if settings.debug:
                show_step(tokenizer, number, step, settings.show, args.readable)
            surprises.append(insight.surprise(step.p))
            if step.token == tokenizer.end_of_text_id:
                end = "the model ended the document"
                break
            new.append(step.token)
            if stops and (text := cut_at(tokenizer.decode(new), stops)) is not None:
                end = "a stop text came up"
                break
        code = 0
    except KeyboardInterrupt:  # what is written so far is not lost
        end, code = "you stopped it", 130
    text = tokenizer.decode(new) if text is None else text
    seconds = time.perf_counter() - begin

    # === the text, and what it cost ===================================================================================
    data = (args.prompt + text).encode()
    if args.output_file:
        with whole_file(args.output_file) as file:
            file.write(data)
    sys.stdout.buffer.write(data + b"\n" * sys.stdout.isatty())  # exact for a file or a pipe
    sys.stdout.buffer.flush()
    if settings.debug and surprises:
        mean = statistics.fmean(surprises)
        loss = mean * insight.LN2
        written = len(tokenizer.decode(new).encode())
        per_byte = insight.bits_per_byte(loss, len(surprises) / written) if written else math.inf
        say(
            f"\nStopped after {len(surprises)} tokens: {end}. Mean surprise {mean:.2f} bits, "
            f"perplexity {insight.perplexity(loss):.2f}, {per_byte:.3f} bits per byte; "
            f"{insight.tokens_per_second(len(surprises), seconds):.0f} tokens/s"
        )
        if args.output_file:
            say(f"The text is in {shown_path(args.output_file)}.")
    return code


if __name__ == "__main__":
    run(lambda: main(settings, args))
