"""The run of a checkpoint, or of a finished model, as it was before one of its steps: to look at, not to train on."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from config import BPE, CHAR, Settings
from model.device import pick_device, pick_dtype
from model.storage.checkpoint import checkpoint_files, load_checkpoint
from model.storage.model_file import load_model
from model.tokenization.tokenizer import BareIds, Tokenizer, load_tokenizer
from model.training.inputs import Batches, open_inputs
from model.training.optimizer import Optimizer
from model.training.run import Run, build_model, use_c
from model.training.schedule import learning_rate_at
from plumbing.errors import UsageError, UserError
from plumbing.settings import field_names
from plumbing.text import shown_path

FILES = "tokenizer_file train_file val_file"


def read_before(path: Path, step: int | None) -> tuple[Path, dict]:
    """A checkpoint from before the training step `step`, counted from 1, or by default the newest one that the run
    has a next step for, if there is one. `path` is a checkpoint, the folder of a run, or a finished model. Raises
    UserError."""
    if path.is_file() and not path.stem.startswith("step_"):
        model, tokenizer, training = load_model(path)
        settings = training.get("settings", {}) | model.architecture
        saved = {"model": model.state_dict(), "settings": settings, "step": training["steps"], "dtype": "float32"}
        return path, saved | {"tokenizer": tokenizer, "sources": {"tokenizer": tokenizer.sha256}}
    found = [path] if path.is_file() else checkpoint_files(path) if path.is_dir() else []
    if not found:
        raise UserError(
            f"There is no checkpoint {shown_path(path)}. Train a model first (train.py, trainv2.py), or name a "
            "checkpoint, the folder of a run or a model with --checkpoint."
        )
    reason, last = f"It has none from before step {step}", None
    for file in found:
        try:
            saved = load_checkpoint(file)
            saved["tokenizer"] = tokenizer_in(saved)
        except ValueError as error:
            reason = f"{shown_path(file)} cannot be used: {error}"
            continue
        if saved["step"] < (saved["settings"]["max_steps"] if step is None else step):
            return file, saved
        last = last or (file, saved)
    if step is None and last:
        return last
    raise UserError(
        f"{shown_path(path)} has no checkpoint to begin with. {reason}. A run keeps its newest three "
        "(--keep-checkpoints); --checkpoint can also be a finished model."
    )


def tokenizer_in(saved: dict) -> Tokenizer | BareIds | None:
    """The tokenizer in a checkpoint; None in an old one, which has only its name. Raises ValueError."""
    if (stored := saved.get("tokenizer")) is None or stored.get("kind") == "none":
        bare = BareIds(len(saved["model"]["embedding.weight"]))
        return bare if bare.is_named(saved["sources"]["tokenizer"]) else None
    return Tokenizer(stored["json"])


def settings_of(saved: dict, given: Settings) -> Settings:
    """The settings of a run with the files that are there today, and its tokenizer in saved["tokenizer"]. `given` are
    those of the command line: CHAR, with other files where a person named them. Raises UserError."""
    if saved["tokenizer"] is None:
        files = dict.fromkeys((given.tokenizer_file, CHAR.tokenizer_file, BPE.tokenizer_file))
        known = [load_tokenizer(file) for file in files if file.is_file()]
        saved["tokenizer"] = next((one for one in known if one.is_named(saved["sources"]["tokenizer"])), None)
    if saved["tokenizer"] is None:
        raise UserError("This old checkpoint does not hold its tokenizer. Name it with --tokenizer-file.")
    base = BPE if saved["tokenizer"].kind == "bpe" else CHAR
    own = {name: value for name, value in saved["settings"].items() if name in field_names(Settings)}
    own.pop("vocab_size", None)  # of the model, and not a number of BPE ids to learn
    named = {name: getattr(given, name) for name in FILES.split() if getattr(given, name) != getattr(CHAR, name)}
    return replace(base, **own | named, device=given.device)


def open_before(path: Path, step: int | None, given: Settings, train_step: Callable) -> tuple[Run, str]:
    """The run at `path` before the training step `step` (see read_before()), and where it came from, in words. Steps
    between the checkpoint and that one are taken again: on a CPU they are those of the run."""
    file, saved = read_before(path, step)
    settings, tokenizer = settings_of(saved, given), saved["tokenizer"]
    kind, ids = ("char", tokenizer.vocab_size) if tokenizer.kind == "none" else (tokenizer.kind, None)
    train, val, tokenizer = open_inputs(settings, kind, ids, tokenizer)
    device = pick_device(settings.device)
    dtype = pick_dtype(saved["dtype"], device)
    model = build_model(settings, tokenizer.vocab_size, saved["model"]).to(device).compute_in(dtype).train()
    optimizer, batches = Optimizer(model, settings, dtype), Batches(train, settings, device)
    sources = saved["sources"]
    run = Run(settings, kind, sources, train, val, tokenizer, model, optimizer, batches, device, dtype, None)
    run.in_c = use_c(saved, device, dtype)
    run.step = run.resumed_at = saved["step"]
    about = shown_path(file)
    if "optimizer" not in saved:
        run.step = run.step if step is None else step - 1
        return run, f"{about}, a finished model: an optimizer without memory"
    optimizer.load_state_dict(saved["optimizer"])
    torch.set_rng_state(saved["rng"])
    if sources["training data"] != train.facts["sha256"]:
        about += " (the training data has changed since, so it draws other batches)"
    if step is not None and step - 1 > run.step:
        about += f", {step - 1 - run.step} steps taken again"
        if step > run.max_steps:
            raise UsageError(f"--step must be at most {run.max_steps}, the length of this run, and it is {step}.")
        while run.step < step - 1:
            fraction = learning_rate_at(run.step, run.max_steps, settings.warmup_steps, settings.decay_fraction)
            rate = torch.full((), fraction, device=device)
            train_step(run, model.loss, optimizer.step, *run.batches(run.step), rate)
            run.step += 1
    return run, about
