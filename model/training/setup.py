"""What a training stands on: its settings, token files and tokenizer, which are checked before the first step and, when
a run goes on, compared with those that it was begun with; what it shows of them; and how it is stopped.

train.py is the story, this is the small print.
"""

import math
from dataclasses import asdict, replace
from pathlib import Path

from torch import Tensor

from config import BPE, CHAR, Model, Settings
from dataset import TokenFile, TokenFolder, draw_batch, open_bare_tokens, open_tokens
from model import metrics
from model.gpt import GPT
from model.tokenization.display import cut_line
from model.tokenization.tokenizer import BareIds, Tokenizer, load_tokenizer
from model.training import distributed
from plumbing.command_line import check_seed
from plumbing.errors import UsageError, UserError
from plumbing.settings import field_names
from plumbing.text import bar, shown_path

# A run that is resumed must be the run that was started. The result depends on the architecture and on these settings,
# so they must not change:
RECIPE = """batch_size learning_rate muon_rate warmup_steps decay_fraction weight_decay momentum beta1 beta2 grad_clip
    seed""".split()
# These may, and a change is named (max_steps, of which the learning rate is a function, so that a run can go on):
FREE = """max_steps minutes eval_every eval_tokens sample_tokens checkpoint_every keep_checkpoints log_every accumulate
    shard_model""".split()


# === what a run stands on =============================================================================================


def open_inputs(settings: Settings, kind: str, ids: int | None = None) -> tuple[TokenFile, TokenFile, Tokenizer]:
    """Open both token files and the tokenizer, and check that they belong together. Given a number of `ids`, the files
    are bare ones and there is no tokenizer."""
    paths = settings.train_file, settings.val_file
    if ids is not None:
        if ids < 2:
            raise UsageError(f"--vocab-size must be 2 or more, and it is {ids}: with one id there is nothing to learn.")
        tokenizer = BareIds(ids)
        train, val = (open_bare_tokens(path, ids) for path in paths)
    else:
        tokenizer = load_tokenizer(settings.tokenizer_file)
        train, val = (open_tokens(path, checksums=distributed.local_rank() == 0) for path in paths)
    other = {"char": "trainv2.py", "bpe": "train.py"}[kind]
    if tokenizer.kind not in (kind, "none"):
        raise UserError(f"{shown_path(settings.tokenizer_file)} is a {tokenizer.kind} tokenizer; {other} trains on it.")
    for data in (train, val):
        if ids is None and data.facts["tokenizer_sha256"] != tokenizer.sha256:
            raise UserError(
                f"{shown_path(data.path)} was made with another tokenizer than {shown_path(settings.tokenizer_file)}. "
                "Run the scripts/prepare_dataset script again, with this --tokenizer-file."
            )
    if settings.val_file.parent.samefile(settings.train_file):
        raise UserError(
            f"The folder to train on, {shown_path(settings.train_file)}, holds the file to validate on as well. "
            "Put one of them elsewhere."
        )
    if len(train) <= settings.block_size or len(val) < 2:
        raise UserError(
            f"{len(train):,} tokens to train on and {len(val):,} to validate on are too few for blocks "
            f"of {settings.block_size}. Use more text, or a smaller --block-size."
        )
    return train, val, tokenizer


def begin_from(settings: Settings, folder: Path, kind: str) -> tuple[Settings, dict[str, Tensor], str]:
    """What --init-from stands for: the settings with the architecture and the tokenizer of a folder in Hugging Face's
    layout, its weights, and their SHA-256. A flag that says otherwise is refused, unless it says the default, which
    looks like no flag."""
    from model.storage.huggingface import read_folder

    architecture, weights, sha256 = read_folder(folder, settings.block_size)
    own = {name: architecture[name] for name in field_names(Model) if name != "dropout"}
    for name, value in own.items():
        if getattr(settings, name) not in (value, getattr({"char": CHAR, "bpe": BPE}[kind], name)):
            raise UsageError(
                f"--{name.replace('_', '-')} is {getattr(settings, name)}, and the model in {shown_path(folder)} has "
                f"{value}. Leave the flag out: with --init-from, the folder decides."
            )
    settings = replace(settings, tokenizer_file=folder / "tokenizer.json", **own)
    ids = load_tokenizer(settings.tokenizer_file).vocab_size
    if ids != architecture["vocab_size"]:
        raise UserError(
            f"The tokenizer in {shown_path(folder)} has {ids:,} ids, and the model beside it "
            f"{architecture['vocab_size']:,}: they do not belong together."
        )
    return settings, weights, sha256


def check_settings(settings: Settings) -> None:
    """Refuse values that no run can use. n_embd and n_head are checked where they meet, in GPT."""
    for name, value in asdict(settings).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"--{name.replace('_', '-')} must be a finite number, and it is {value}.")
    positive = "block_size n_layer n_head n_embd rotary_base batch_size learning_rate muon_rate"
    for name in [*positive.split(), "checkpoint_every", "log_every", "accumulate"]:
        if getattr(settings, name) <= 0:
            raise UsageError(f"--{name.replace('_', '-')} must be above 0, and it is {getattr(settings, name)}.")
    if settings.minutes <= 0 and settings.max_steps <= 0:
        raise UsageError("Give the run a length: --max-steps or --minutes above 0.")
    if settings.minutes > 5_256_000:
        raise UsageError(f"--minutes must be at most 5,256,000, ten years, and it is {settings.minutes:g}.")
    for name in ("weight_decay", "warmup_steps", "sample_tokens", "eval_every", "eval_tokens", "grad_clip"):
        if getattr(settings, name) < 0:
            raise UsageError(f"--{name.replace('_', '-')} must be 0 or above, and it is {getattr(settings, name)}.")
    for name in ("dropout", "momentum", "beta1", "beta2"):
        if not 0 <= getattr(settings, name) < 1:
            raise UsageError(f"--{name} must be at least 0 and below 1, and it is {getattr(settings, name)}.")
    if not 0 <= settings.decay_fraction <= 1:
        raise UsageError(f"--decay-fraction must be from 0 to 1, and it is {settings.decay_fraction}.")
    if settings.compile not in ("auto", "on", "off"):
        raise UsageError(f"--compile is auto, on or off, not {settings.compile!r}.")
    check_seed(settings)
    if settings.keep_checkpoints < 2:
        raise UsageError("--keep-checkpoints must be at least 2: one to fall back to where the newest is damaged.")
    if settings.batch_size % (distributed.world_size() * settings.accumulate):
        raise UsageError(
            f"--batch-size {settings.batch_size} cannot be shared out evenly: it must be a multiple of the number of "
            f"processes, {distributed.world_size()}, times --accumulate, {settings.accumulate}."
        )
    if settings.shard_model and distributed.world_size() == 1:
        raise UsageError("--shard-model needs several processes: torchrun --standalone --nproc_per_node=2 train.py ...")
    if settings.shard_model and settings.compile == "on":
        raise UsageError("--shard-model goes without --compile on.")


def plain(settings: Settings) -> dict:
    """The settings that a checkpoint records, as plain values."""
    return {name: value for name, value in asdict(settings).items() if name in field_names(Model) + RECIPE + FREE}


def compare(saved: dict, settings: Settings, sources: dict) -> None:
    """Refuse to go on with a run whose settings or data have changed; name the changes that do no harm."""
    then, now = saved["settings"], plain(settings)
    then = {name: now[name] for name in FREE} | then  # one that was made before there was such a setting
    changed = {name: f"{name} was {then.get(name)}, is {now[name]}" for name in now if then.get(name) != now[name]}
    harmful = [changed[name] for name in changed if name not in FREE]
    if settings.dtype not in ("auto", saved["dtype"]):
        harmful.append(f"dtype was {saved['dtype']}, is {settings.dtype}")
    was = "on" if saved["compiled"] else "off"
    if settings.compile not in ("auto", was):
        harmful.append(f"compile was {was}, is {settings.compile}")
    for name in {**saved["sources"], **sources}:
        was, sha256 = (which.get(name, "of none") for which in (saved["sources"], sources))
        if was != sha256:
            harmful.append(f"the {name} is another one (SHA-256 was {was[:8]}..., is {sha256[:8]}...)")
    if harmful:
        raise UserError(
            f"The run in {shown_path(settings.checkpoint_dir)} was made otherwise: {'; '.join(harmful)}. Set that back "
            "to go on with the run, give --fresh to start over, or another --checkpoint-dir to begin a second run."
        )
    for name in changed:
        print(f"  changed since: {changed[name]}")
    if "minutes" in changed and settings.minutes > 0:
        print(
            f"  Its {settings.max_steps} steps were fixed when it began: --max-steps without --minutes goes further, "
            "--fresh starts over."
        )


# === what is printed before the first step ============================================================================


def show_plan(
    settings: Settings, model: GPT, train: TokenFile, val: TokenFile, tokenizer: Tokenizer, init_from: Path | None
) -> None:
    """Settings, parameters, what the first loss must be, and one training example as text."""
    print("Settings (config.py, or a flag for each):")
    for name, value in plain(settings).items():
        print(f"  {name:18} {value}")
    parts = model.parameters_by_part()
    total = sum(parts.values())
    print(f"The model has {total:,} parameters:")
    for name, count in parts.items():
        print(f"  {name:18} {count:>12,} {bar(count / total)} {count / total:6.1%}")
    for name, data in (("train", train), ("validation", val)):
        size = data.facts["utf8_bytes"]
        text = f"{size:,} bytes, {1 / data.tokens_per_byte:.2f} bytes a token" if size else "of unknown text"
        files = f", in {len(data.shards)} files" if isinstance(data, TokenFolder) else ""
        print(f"  {name:18} {len(data):>12,} tokens, {text}{files}")
    window = settings.batch_size * settings.block_size
    print(f"  {'each step':18} {window:>12,} tokens ({settings.batch_size} sequences of {settings.block_size})")

    idx, targets = draw_batch(train.tokens, settings.block_size, settings.batch_size, settings.seed, 0)
    print("One training example, cut into tokens. The targets are the inputs, one token later:")
    print(f"  inputs   {cut_line(tokenizer, idx[0, :24])} ...")
    print(f"  targets  {cut_line(tokenizer, targets[0, :24])} ...")
    if init_from is not None:
        print(f"Its weights come from {shown_path(init_from)}: it begins with what it has learned there.")
        return
    expected = metrics.uniform_loss(model.vocab_size)
    print(
        f"The untrained model finds all {model.vocab_size:,} tokens equally likely, so its loss must be "
        f"ln({model.vocab_size}) = {expected:.4f}, a surprise of {metrics.bits(expected):.2f} bits a token."
    )
