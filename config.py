"""Every setting of TinyLittleGPT, once. Edit the values here, or give any of them as a flag for one run.

A field `n_layer` is the flag `--n-layer` of every script that uses it, and the comment behind it is that flag's help.
`CHAR` holds the settings of the character pipeline (train.py, generate.py), `BPE` those of the byte-pair pipeline
(trainv2.py, generatev2.py): the same fields, a few other values. Relative paths on the command line count from where
you stand; the defaults lie in the project, wherever you run from.

The second half of the file is how a script takes settings from its command line and how it reports what goes wrong.
Nothing here imports torch, so `--help` answers at once.
"""

import argparse
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent
DATA = ROOT / "data"


@dataclass(frozen=True)
class Settings:
    # --- files -------------------------------------------------------------------------------------------------------
    parquet_dir: Path = DATA / "parquet"  # folder of parquet files: ingestion writes it, extraction reads it
    corpus: Path = DATA / "corpus.txt"  # the text to learn from, documents separated by a line <|endoftext|>
    tokenizer_file: Path = DATA / "tokenizer_char.json"  # a file of the tokenizers library
    train_file: Path = DATA / "train.bin"  # token ids to train on, uint16; or a folder of such files
    val_file: Path = DATA / "val.bin"  # token ids to validate on, uint16; or a folder of such files
    checkpoint_dir: Path = ROOT / "checkpoints" / "char"  # folder of step_*.pt and log.jsonl; a run resumes from here
    model_file: Path = ROOT / "gpt_model.pt"  # the trained model, all that generation needs

    # --- data --------------------------------------------------------------------------------------------------------
    val_fraction: float = 0.1  # share of the documents kept for validation, 0 to 1
    vocab_size: int = 4096  # number of BPE ids; more ids mean fewer tokens, but a larger model
    tokenizer_megabytes: float = 100.0  # BPE merges are learned from a sample of at most this much text, in MB

    # --- model -------------------------------------------------------------------------------------------------------
    block_size: int = 128  # tokens the model sees at once; try 256 with more time
    n_layer: int = 4  # transformer blocks; 6 to 12 on a GPU
    n_head: int = 4  # attention heads in each block; n_embd / n_head is even, usually 32 to 128
    n_embd: int = 128  # width of the residual stream, in channels; 384 to 768 on a GPU
    rotary_base: float = 30.0  # how slowly rotary positions turn: 10 to 100 for short blocks, 10000 for long ones
    dropout: float = 0.0  # share of activations dropped in training; 0.1 to 0.2 when the model sees its data many times
    tie_embeddings: bool = False  # use one matrix for the token embedding and the head: fewer parameters

    # --- training ----------------------------------------------------------------------------------------------------
    batch_size: int = 16  # sequences of block_size tokens in each step; 32 to 64 on a GPU
    accumulate: int = 1  # pieces in which a step's batch is computed, one after the other: less memory, the same step
    max_steps: int = 2000  # length of the run, in steps; the learning rate decays towards this end
    minutes: float = 0.0  # length of the run in minutes instead: steps are timed, then their number is fixed
    learning_rate: float = 0.01  # peak rate of AdamW: embedding, head and norms
    muon_rate: float = 0.02  # peak rate of Muon: the matrices in the blocks; halve it if the loss jumps about
    warmup_steps: int = 20  # steps over which the learning rate climbs to its peak
    decay_fraction: float = 0.9  # share of the run, at its end, over which the learning rate falls linearly to zero
    weight_decay: float = 0.1  # pull of the weight matrices towards zero
    momentum: float = 0.9  # Muon: memory of the mean gradient; 0.85 for 200 steps, 0.95 for many thousands
    beta1: float = 0.9  # AdamW: memory of the mean gradient
    beta2: float = 0.95  # AdamW: memory of the mean squared gradient; 0.99 for small batches
    grad_clip: float = 1.0  # gradients are scaled down to at most this norm (0: off)
    seed: int = 1337  # initial weights, data order, random numbers; a CPU repeats the run of a seed and dtype exactly
    eval_every: int = 500  # steps between evaluations (0: only at the end, where all validation tokens are scored)
    eval_tokens: int = 32_768  # validation tokens to score before the end, spread over the file (0: all of them)
    sample_tokens: int = 120  # tokens of generated text to print at each evaluation (0: none)
    checkpoint_every: int = 250  # steps between checkpoints
    keep_checkpoints: int = 3  # newest checkpoints to keep, at least 2
    log_every: int = 50  # steps between lines of output
    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps; auto takes the fastest that is there
    dtype: str = "auto"  # auto, float32 or bfloat16; auto takes bfloat16 where a short timing shows that it is faster
    shard_model: bool = False  # under torchrun: each process holds a part of the weights, for what no device can hold
    compile: str = "auto"  # auto, on or off: translate the model to machine code; auto does it where the run is long

    # --- generating --------------------------------------------------------------------------------------------------
    tokens: int = 200  # tokens to generate
    temperature: float = 0.8  # below 1: safer; above 1: wilder; 0: always the likeliest token
    top_k: int = 50  # sample only from the k likeliest tokens (0: all)
    top_p: float = 1.0  # sample only from the likeliest tokens that together reach this probability (1: all)
    min_p: float = 0.0  # sample only from tokens at least this share as likely as the likeliest (0: all); try 0.05
    repetition_penalty: float = 1.0  # above 1: tokens that the text already holds become less likely; try 1.2
    samples: int = 1  # texts to generate from the prompt, in one batch; text i is that of --seed SEED + i
    show: int = 5  # candidates to print at each step

    # --- everywhere --------------------------------------------------------------------------------------------------
    workers: int = 0  # pieces that a step of the data works on at once (0: one for each core)
    debug: bool = True  # show the work as it is done; --quiet turns it off


CHAR = Settings()

BPE = replace(
    CHAR,
    tokenizer_file=DATA / "tokenizer_bpe.json",
    train_file=DATA / "train_bpe.bin",
    val_file=DATA / "val_bpe.bin",
    checkpoint_dir=ROOT / "checkpoints" / "bpe",
    # A token of BPE is a rarer one, and says more: fewer of them in a step, and a higher rate for their embeddings.
    n_layer=3,
    batch_size=8,
    learning_rate=0.03,
)


# === from the command line to settings, and from errors to plain sentences ============================================


class UserError(Exception):
    """Something that the person at the keyboard can put right: its text says what is wrong and the way out."""


class UsageError(UserError):
    """A flag or setting that cannot be used."""


def add_flags(parser: argparse.ArgumentParser, settings: Settings, names: str) -> None:
    """Add a typed flag for each field in `names` (separated by spaces), its value in `settings` as the default."""
    comments = dict(re.findall(r"^    (\w+): .*?  # (.*)$", Path(__file__).read_text("utf-8"), re.MULTILINE))
    for field in fields(Settings):
        if field.name not in names.split():
            continue
        default, flag = getattr(settings, field.name), "--" + field.name.replace("_", "-")
        text = comments[field.name].replace("%", "%%")
        if field.name == "debug":
            parser.add_argument("--quiet", dest="debug", action="store_false", default=default, help="show no work")
        elif field.type is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=default, help=text)
        else:
            shown = shown_path(default) if isinstance(default, Path) else default
            parser.add_argument(
                flag, type=field.type, default=default, metavar=flag[2:].upper(), help=f"{text} [{shown}]"
            )


def parse(parser: argparse.ArgumentParser, settings: Settings, argv: Sequence[str] | None = None):
    """Parse the command line. Returns (settings with the flags applied, the namespace of all arguments)."""
    args = parser.parse_args(argv)
    own = {f.name: getattr(args, f.name) for f in fields(Settings) if hasattr(args, f.name)}
    return replace(settings, **own), args


TRAINING_FLAGS = """
    train_file val_file tokenizer_file checkpoint_dir model_file block_size n_layer n_head n_embd rotary_base dropout
    tie_embeddings batch_size accumulate max_steps minutes learning_rate muon_rate warmup_steps
    decay_fraction weight_decay momentum beta1 beta2 grad_clip seed eval_every eval_tokens sample_tokens
    checkpoint_every keep_checkpoints log_every device dtype shard_model compile debug"""


def training_flags(settings: Settings, description: str, argv: Sequence[str] | None = None):
    """The command line of train.py and trainv2.py. Here, so that both answer --help before they import torch."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fresh", action="store_true", help="start over; an earlier run is moved aside, not deleted")
    parser.add_argument(
        "--init-from",
        type=Path,
        metavar="DIR",
        help="begin with the weights, architecture and tokenizer of this folder in Hugging Face's layout (Qwen3)",
    )
    parser.add_argument(
        "--tokenizer",
        choices=["file", "none"],
        default="file",
        help="none: the token files are bare ids (uint16) without a description, such as nanoGPT's prepare.py writes",
    )
    parser.add_argument("--vocab-size", dest="ids", type=int, metavar="N", help="with --tokenizer none: number of ids")
    parser.add_argument("--plan", action="store_true", help="say what the run would take, and leave it at that")
    add_flags(parser, settings, TRAINING_FLAGS)
    settings, args = parse_before_torch(parser, settings, argv)
    if (args.tokenizer == "none") != (args.ids is not None):
        parser.error("--tokenizer none and --vocab-size N go together: bare ids do not say how many of them there are")
    if args.ids is not None and args.init_from is not None:
        parser.error("--init-from brings a tokenizer along: leave --tokenizer none out")
    return settings, args


GENERATION_FLAGS = "tokens temperature top_k top_p min_p repetition_penalty samples seed show device debug"


def model_flag(parser: argparse.ArgumentParser) -> None:
    """Add --model, as the scripts call it that read a model: training writes it with --model-file."""
    parser.add_argument(
        "--model", dest="model_file", type=Path, default=CHAR.model_file, help="the model [gpt_model.pt]"
    )


def generation_flags(settings: Settings, description: str, argv: Sequence[str] | None = None):
    """The command line of generate.py and generatev2.py. Here, so that both answer --help before they import torch."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", default="", help="text to go on from; without one, the beginning of a document")
    prompt.add_argument("--prompt-file", type=Path, help="take the prompt from this file, as it is")
    prompt.add_argument("--interactive", action="store_true", help="ask for one prompt after the other")
    model_flag(parser)
    parser.add_argument("--readable", action="store_true", help="show tokens as text, not as the tokenizer's pieces")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="stop before this text; repeatable")
    parser.add_argument("--stop-at-newline", action="store_true", help="stop before the first line end")
    parser.add_argument("--output-file", type=Path, help="write the text to this file as well")
    parser.add_argument("--explain", action="store_true", help="show at each step what every setting did, in one table")
    parser.add_argument("--trace", type=Path, metavar="FILE.jsonl", help="write the same to this file, a line a step")
    parser.add_argument(
        "--off", action="append", default=[], metavar="L2H3", help="write without this part; repeatable"
    )
    add_flags(parser, settings, GENERATION_FLAGS)
    return parse_before_torch(parser, settings, argv)


def parse_before_torch(parser: argparse.ArgumentParser, settings: Settings, argv: Sequence[str] | None):
    """parse(); then until run(), while torch is imported, Ctrl-C ends the process without a traceback from within."""
    parsed = parse(parser, settings, argv)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return parsed


def check_seed(settings: Settings) -> None:
    """Refuse a seed that torch's random numbers cannot start from."""
    if not 0 <= settings.seed < 2**64:
        raise UsageError(f"--seed must be from 0 to 2**64 - 1, and it is {settings.seed}.")


def file_flags(settings: Settings, default: Settings, names: str) -> str:
    """What to add to a command so that it works on the same files, such as " --corpus mine.txt": each field in `names`
    (separated by spaces) that names another file than its default."""
    text = ""
    for name in names.split():
        path = getattr(settings, name)
        if path.resolve() != getattr(default, name).resolve():
            flag = "model" if name == "model_file" else name.replace("_", "-")  # as those call it that read a model
            text += f" --{flag} {shlex.quote(shown_path(path))}"
    return text


def refuse_same(outputs: dict[str, Path | None], *inputs: Path | None) -> None:
    """Raise UsageError where a file to write, known by its flag, is one to read, or the one of another flag. None
    stands for a file that was not asked for."""
    taken = {path.resolve(): "is read here" for path in inputs if path}
    for flag, path in outputs.items():
        if path and path.resolve() in taken:
            use = taken[path.resolve()]
            raise UsageError(f"{flag} would replace {shown_path(path)}, which {use}. Name another file.")
        if path:
            taken[path.resolve()] = f"{flag} writes"


def shown_path(path: Path) -> str:
    """The path as short as it can be shown: relative to where the user stands if it lies below, else whole."""
    path = Path(path).absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def run(main: Callable[[], int | None]) -> None:
    """Run a script's main(). A UserError becomes a line on stderr and exit code 1 (2 for wrong usage), Ctrl-C 130."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started this (`>&-`)
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (until the end)
    for stream in (sys.stdout, sys.stderr):  # one that is not UTF-8 must not stop a run at some character
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    try:
        code = main() or 0
        sys.stdout.flush()
    except UserError as error:
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr)
        code = 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader of our output has left (`... | head`): nobody is there to be told
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:  # no permission, disk full, a folder where a file should be
        print(f"error: {error.strerror or error}" + (f": {error.filename}" if error.filename else ""), file=sys.stderr)
        code = 1
    sys.exit(code)
