"""Text from a model: a Writer yields one step after another, a Completion collects the text of those steps, and its
TextStream holds back what is not certain yet."""

import codecs
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from config import Settings
from model import metrics
from model.device import free_memory
from model.generation.one_token import fast_one_token
from model.generation.sampling import Step, generate, read
from model.gpt import GPT
from model.tokenization.tokenizer import BareIds, Tokenizer, encode_prompt
from plumbing.errors import UserError

PER_SAMPLE = 20_000  # bytes of what Python keeps for each text, beside its keys, values and logits


class Writer:
    """A model that writes, with its tokenizer, its KV cache, and the fastest way to feed it one token.

        writer = Writer(model, tokenizer)
        writer.read("def ")
        for steps in writer.steps(settings): ...  # a list of settings.samples steps, settings.tokens times

    `stops` are texts that end what it writes.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer | BareIds, stops: Sequence[str] = ()):
        self.model, self.tokenizer, self.stops, self.cache = model, tokenizer, stops, model.new_cache()
        self.one_token = fast_one_token(model, self.cache)
        self.ids: list[int] = []  # of the prompt
        self.logits: Tensor | None = None  # (T, V): what the model expects after each token of the prompt

    def read(self, prompt: str, say: Callable[[str], None] = print) -> None:
        """Start a new text: encode the prompt and feed it to the model. `say` is told what the user should know."""
        self.ids = encode_prompt(self.tokenizer, prompt, self.model.block_size, say)
        self.cache.length = 0
        self.logits = read(self.model, self.ids, self.cache)

    def steps(self, settings: Settings) -> Iterator[list[Step]]:
        """Continue the prompt. Raises UserError if memory does not hold so many samples."""
        store = self.cache.store
        each = store.numel() * store.element_size() + 40 * self.model.vocab_size + PER_SAMPLE
        on_gpu = self.model.device.type == "cuda"
        free = torch.cuda.mem_get_info(self.model.device)[0] if on_gpu else free_memory()
        if settings.samples * each > free:
            raise UserError(
                f"{settings.samples:,} samples need {settings.samples * each / 1e9:,.1f} GB of memory, and "
                f"{free / 1e9:,.1f} GB are free. Give --samples {max(1, int(free / each / 2)):,} or fewer."
            )
        return generate(self.model, self.ids, self.logits[-1], self.cache, settings, self.one_token)


class TextStream:
    """Bytes go in, token by token; text comes out as soon as it is certain.

    A character whose bytes are in two tokens waits for the second one. The possible beginning of a stop text waits
    until it is one or is not: with the stop text "\\n\\n", a newline comes out together with what follows it.

        stream = TextStream(["</end>"])
        stream.feed(b"a <"), stream.feed(b"/b")     ->  "a ", "</b"

    All that comes out, with finish() at the end, equals decoding all bytes at once, up to the stop text that is
    complete first (of two that end together, the longer one). Bytes that are not UTF-8 become U+FFFD.
    """

    def __init__(self, stops: Sequence[str] = ()):
        self.stops = list(stops)
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.held = ""  # the end of the text, which may be the beginning of a stop text
        self.stopped = False  # a stop text has come up; nothing comes out any more

    def feed(self, data: bytes, final: bool = False) -> str:
        """Take bytes, and return the text that is certain now."""
        if self.stopped:
            return ""
        text = self.held + self.decoder.decode(data, final)
        found = [(text.find(stop) + len(stop), text.find(stop)) for stop in self.stops if stop in text]  # (end, start)
        self.stopped = bool(found)
        certain = min(found)[1] if found else len(text) - (0 if final else self.uncertain(text))
        self.held = text[certain:]
        return text[:certain]

    def finish(self) -> str:
        """The text that was held back, when nothing more comes."""
        return self.feed(b"", final=True)

    def uncertain(self, text: str) -> int:
        """How many characters at the end of the text may be the beginning of a stop text."""
        return max((n for stop in self.stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)


class Completion:
    """One text while it is written, without the prompt: the text so far, how surprising its tokens were, and why it
    ended. `sample` is its index among the texts of the same prompt."""

    def __init__(self, tokenizer: Tokenizer | BareIds, stops: Sequence[str], sample: int = 0):
        self.tokenizer, self.stream, self.sample = tokenizer, TextStream(stops), sample
        self.text, self.end = "", None
        self.surprises, self.bytes = [], 0  # of every chosen token, also those of a stop text

    def take(self, step: Step) -> str:
        """Add the token of a step. Returns the text that is certain by now."""
        if math.isnan(step.p):
            raise UserError(
                "The model's logits are not numbers (NaN): its weights are too large to compute with. "
                "Train it again with a lower --learning-rate."
            )
        self.surprises.append(metrics.surprise(step.p))
        if self.tokenizer.ends_document(step.token):
            self.end = "the model ended the document"
            return ""
        data = self.tokenizer.token_bytes(step.token)
        self.bytes += len(data)
        text = self.stream.feed(data)
        self.text += text
        if self.stream.stopped:
            self.end = "a stop text came up"
        return text

    def finish(self, end: str) -> None:
        """Add what was held back. `end` is the reason for the end if there was no other."""
        self.text += self.stream.finish()
        self.end = self.end or end


def sample_text(
    model: GPT, tokenizer: Tokenizer | BareIds, settings: Settings, check: Callable[[], None] = lambda: None
) -> str:
    """What training shows of a model: settings.sample_tokens tokens after <|endoftext|>, with the sampling settings and
    the seed. In fp32, as generate.py writes. check() is called before each token."""
    if not settings.sample_tokens:
        return ""
    settings = replace(settings, tokens=settings.sample_tokens, samples=1)
    dtype = model.head.compute
    model.eval().compute_in(torch.float32)
    try:
        prompt, cache, ids = [tokenizer.end_of_text_id], model.new_cache(), []
        one_token = fast_one_token(model, cache)
        logits = read(model, prompt, cache)
        for (step,) in generate(model, prompt, logits[-1], cache, settings, one_token):
            check()
            ids.append(step.token)
    finally:
        model.train().compute_in(dtype)
    return tokenizer.decode(ids)
