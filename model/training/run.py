"""A training run: everything it consists of, how it is opened or resumed, and what it saves."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from config import MODEL_NAME, Model, Settings
from dataset import TokenFile
from model import by_hand_c, metrics
from model.device import compute_deterministically, free_memory, keep_memory, pick_device, pick_dtype
from model.gpt import GPT
from model.storage.checkpoint import (
    checkpoint_path,
    move_aside,
    newest_checkpoint,
    only_training_in,
    save_checkpoint,
    stored_tokenizer,
)
from model.storage.checks import check_architecture
from model.storage.model_file import check_is_model, load_model, save_model, show_training
from model.tokenization.tokenizer import BareIds, Tokenizer
from model.training import distributed
from model.training.initial_weights import look_back, start_from_bigrams
from model.training.inputs import INIT_SOURCE, Batches, open_inputs, settings_begun_with, weights_of_folder
from model.training.optimizer import Optimizer
from model.training.run_settings import (
    MAY_CHANGE,
    check_resumable,
    check_settings,
    recorded_settings,
    settings_of_old,
)
from model.training.schedule import evaluation_interval
from model.training.stop import StopFlag
from plumbing.command_line import refuse_same
from plumbing.errors import UsageError, UserError
from plumbing.files import real_path
from plumbing.settings import values_of
from plumbing.text import printable, shown_path


@dataclass
class Run:
    """What open_run() makes. The training loop moves `step` on; choose_step() may set `compiled` and the length."""

    settings: Settings
    kind: str  # "char" or "bpe"
    sources: dict[str, str]  # SHA-256 of each input
    train_data: TokenFile
    val_data: TokenFile
    tokenizer: Tokenizer | BareIds
    model: GPT
    optimizer: Optimizer
    batches: Batches
    device: torch.device
    dtype: torch.dtype  # of matrix products
    stop: StopFlag | None  # None: of a run that is only looked at
    init_from: Path | None = None
    step: int = 0  # steps taken so far
    resumed_at: int | None = None  # the step of the checkpoint that the run resumed from; None: a new run
    checkpoint: Path | None = None  # the newest one
    model_step: int | None = None  # the step of the model in the run's folder, if this process wrote it
    compiled: bool = False
    in_c: bool = False  # whether the layers between the products are those of by_hand.c
    started: float = 0.0  # by time.perf_counter(); --minutes counts from here
    evaluation_seconds: float = 0.0  # of the first evaluation, which predicts the others
    record_seconds: float = 0.0  # of a repeated first record, with a sample of the model's text, likewise

    @property
    def max_steps(self) -> int:
        return self.settings.max_steps

    @property
    def timed(self) -> bool:
        """Whether --minutes decides on the number of steps: for a new run; a resumed one keeps its number."""
        return self.settings.minutes > 0 and self.resumed_at is None

    @property
    def starts_uniform(self) -> bool:
        """Whether the untrained model finds all tokens equally likely."""
        return self.init_from is None and not from_bigrams(self.settings)

    @property
    def tokens_per_step(self) -> int:
        return self.settings.batch_size * self.settings.block_size

    @property
    def eval_every(self) -> int:
        """Steps between evaluations; 0 for none before the end."""
        return evaluation_interval(self.settings.eval_every, self.max_steps)

    @property
    def eval_tokens(self) -> int:
        """Validation tokens to score at this step; 0 for all, as at the end."""
        return self.settings.eval_tokens if self.step < self.max_steps else 0

    def bits_per_byte(self, val_loss: float | None) -> float | None:
        """A validation loss in bits per byte; None for bare ids, whose bytes nobody has counted."""
        known = self.tokenizer.counts_bytes and val_loss is not None
        return metrics.bits_per_byte(val_loss, self.val_data.tokens_per_byte) if known else None

    def save_checkpoint(self) -> Path:
        """Write the checkpoint of this step. Raises UserError if the weights or the optimizer's state are not finite.
        All processes call this; the first one writes."""
        folder = self.settings.checkpoint_dir
        if distributed.is_first():
            self.check_data()
        weights, state = distributed.gather_weights(self.model), self.optimizer.state_dict()
        if distributed.is_first():
            if not all(tensor.isfinite().all() for tensor in (*weights.values(), *state.values())):
                raise self.failure("a weight, or a value in the optimizer's state, is not a finite number")
            content = {
                "settings": recorded_settings(self.settings),
                "sources": self.sources,
                "device": self.device.type,
                "dtype": str(self.dtype).removeprefix("torch."),
                "compiled": self.compiled,
                "in_c": self.in_c,
                "processes": distributed.world_size(),
                "model": weights,
                "tokenizer": stored_tokenizer(self.tokenizer),
                "optimizer": state,
                "rng": torch.get_rng_state(),
            }
            if self.device.type == "cuda":
                content["cuda_rng"] = torch.cuda.get_rng_state(self.device)
            save_checkpoint(folder, self.step, content, self.settings.keep_checkpoints)
        distributed.wait_for_all()
        self.checkpoint = checkpoint_path(folder, self.step)
        return self.checkpoint

    def check_data(self) -> None:
        """Raise UserError if somebody has changed a token file while this run reads it: nothing of that is saved."""
        try:
            self.train_data.check_unchanged()
            self.val_data.check_unchanged()
        except UserError as error:
            last = shown_path(self.checkpoint) if self.checkpoint else "none yet"
            raise UserError(f"{error} Steps after the last checkpoint ({last}) were not saved.") from None

    @property
    def own_model(self) -> Path:
        return self.settings.checkpoint_dir / MODEL_NAME

    def save_model(self, val_loss: float | None, finished: bool = False) -> None:
        """Write the model as it is into the run's folder, and a finished one also to --model-file, which holds the
        newest of all runs. All processes call this; the first one writes."""
        weights, training = distributed.gather_weights(self.model), self.summary(val_loss)
        if distributed.is_first():
            paths = [self.own_model, *([self.settings.model_file.absolute()] if finished else [])]
            for path in dict.fromkeys(paths):
                save_model(path, self.model, self.tokenizer, training, weights)
        self.model_step = self.step

    def summary(self, val_loss: float | None) -> dict:
        """What a model file says of its training."""
        return {
            "steps": self.step,
            "tokens_seen": self.step * self.tokens_per_step,
            "val_loss": val_loss,
            "val_bits_per_byte": self.bits_per_byte(val_loss),
            "settings": recorded_settings(self.settings),
            "data": {name: self.train_data.facts.get(name) for name in ("source", "documents", "utf8_bytes")},
            "init_from": self.init_from.resolve().name if self.init_from is not None else "",
        }

    def model_of_another_run(self) -> str | None:
        """What --model-file holds now, as text, if that is no earlier model of this run."""
        try:
            _, tokenizer, training = load_model(self.settings.model_file)
        except UserError:  # none, or a damaged one
            return None
        same = [
            {
                name: value
                for name, value in settings_of_old(facts.get("settings", {})).items()
                if name not in MAY_CHANGE
            }
            | {name: facts.get(name) for name in ("data", "init_from")}
            for facts in (training, self.summary(None))
        ]
        if tokenizer.sha256 == self.tokenizer.sha256 and same[0] == same[1] and training["steps"] <= self.max_steps:
            return None
        return f"a {tokenizer.kind} model of another run, {show_training(training)}"

    def failure(self, reason: object) -> UserError:
        """The error of a run whose numbers are not finite any more."""
        clip = "a lower --grad-clip" if self.settings.grad_clip else "--grad-clip 1"
        return UserError(
            f"Step {self.step} failed: {reason}. Nothing of it was saved. Try a lower --learning-rate or --muon-rate, "
            f"{clip} or more --warmup-steps, with --fresh. The last good checkpoint: "
            f"{shown_path(self.checkpoint) if self.checkpoint else 'none yet'}."
        )


# === opening a run ====================================================================================================


@contextmanager
def open_run(
    settings: Settings, fresh: bool, kind: str, init_from: Path | None, ids: int | None, plan: bool
) -> Iterator[Run]:
    """A new run, or the one in the checkpoint folder as its newest whole checkpoint left it. Holds the folder's lock
    while the block runs. For the arguments see model/training/command_line.py; with `plan`, the folder is not looked
    at. Raises UserError for whatever the person at the keyboard can put right."""
    check_settings(settings)
    if plan and settings.shard_model:
        raise UsageError(
            "--plan cannot be combined with --shard-model. Plan without it: each process then holds its shard of the "
            "weights, gradients and optimizer state that are planned."
        )
    if distributed.is_first() and not plan:
        inputs = settings.train_file, settings.val_file, settings.tokenizer_file
        refuse_same({"--model-file": settings.model_file}, *inputs)
        check_is_model(settings.model_file)
    folder = real_path(settings.checkpoint_dir)  # --fresh moves this, and neither "." nor a link
    settings = replace(settings, checkpoint_dir=folder)
    fresh = fresh and not distributed.any_process(distributed.restart_count() > 0)  # machines may count differently
    with nullcontext() if plan or not distributed.is_first() else only_training_in(folder) as lock:
        run = make_run(settings, kind, init_from, ids, look_for_checkpoint=not (fresh or plan))
        if fresh and distributed.is_first() and not plan:  # now that nothing is left to be refused
            move_aside(folder, lock)
        yield run


def make_run(settings: Settings, kind: str, init_from: Path | None, ids: int | None, look_for_checkpoint: bool) -> Run:
    stop = StopFlag()
    path, saved = find_checkpoint(settings) if look_for_checkpoint else (None, None)
    weights, init_source, stored = None, {}, None
    if init_from is not None and saved is not None and INIT_SOURCE in saved["sources"]:
        settings, stored = settings_begun_with(saved, settings, init_from, kind)
    elif init_from is not None:
        settings, weights, sha256 = weights_of_folder(settings, init_from, kind)
        init_source = {INIT_SOURCE: sha256}
    train, val, tokenizer = open_inputs(settings, kind, ids, stored)
    data = {"training data": train.facts["sha256"], "validation data": val.facts["sha256"]}
    sources = {"tokenizer": tokenizer.sha256, **data, **init_source}
    if distributed.broadcast(sources) != sources:
        raise UserError("The inputs differ from those of the first process. Copy them to every machine.")
    if saved is not None:
        if settings.minutes > 0:  # their number of steps was fixed when the run began
            settings = replace(settings, max_steps=saved["settings"]["max_steps"])
        began = settings_of_old(saved["settings"])["initial_weights"]
        if settings.initial_weights != began:
            print(f"  The run began with --initial-weights {printable(began)}. Others need --fresh.")
            settings = replace(settings, initial_weights=began)
        if tokenizer.is_named(saved["sources"]["tokenizer"]):
            sources["tokenizer"] = saved["sources"]["tokenizer"]
        if INIT_SOURCE in saved["sources"]:  # its weights are in the checkpoint, further trained
            sources[INIT_SOURCE] = saved["sources"][INIT_SOURCE]
        check_resumable(saved, settings, sources)
        weights = saved["model"]
    device, dtype = pick_device_and_dtype(settings, saved)
    check_weights_fit(settings, tokenizer.vocab_size, device)
    optimizer_class = Optimizer
    if settings.shard_model:
        from model.training.sharded_optimizer import ShardedOptimizer as optimizer_class  # takes a second to import

        with nullcontext() if distributed.is_first() else torch.device("meta"):
            whole = build_model(settings, tokenizer.vocab_size, weights if distributed.is_first() else None, train)
        model = distributed.shard_model(whole, device)
        del whole
    else:
        if saved is not None:
            weights = {name: distributed.from_first(tensor) for name, tensor in weights.items()}
        model = build_model(settings, tokenizer.vocab_size, weights, train if distributed.is_first() else None)
        for weight in model.parameters() if saved is None else []:
            weight.data = distributed.from_first(weight.data)
    model.to(device).compute_in(dtype).train()
    optimizer = optimizer_class(model, settings, dtype, distributed.orthogonalise_together)
    batches = Batches(train, settings, device)
    run = Run(settings, kind, sources, train, val, tokenizer, model, optimizer, batches, device, dtype, stop, init_from)
    run.in_c = use_c(saved, device, dtype)
    if saved is not None:
        state = saved["optimizer"]
        if not settings.shard_model:
            state = {name: distributed.from_first(tensor) for name, tensor in state.items()}
        optimizer.load_state_dict(state)
        torch.set_rng_state(saved["rng"])
        if device.type == "cuda" and "cuda_rng" in saved:
            torch.cuda.set_rng_state(saved["cuda_rng"], device)
        run.step = run.resumed_at = saved["step"]
        run.checkpoint, run.compiled = path, saved["compiled"]
    return run


def find_checkpoint(settings: Settings) -> tuple[Path | None, dict | None]:
    """The newest checkpoint that is whole, and its content, on all processes; only the first one needs the folder."""
    folder = settings.checkpoint_dir
    path, saved, problems = newest_checkpoint(folder) if distributed.is_first() else (None, None, [])
    for problem in problems:
        print(printable(problem))
    if problems and saved is None:
        raise UserError(f"No checkpoint in {shown_path(folder)} is whole. Start over with --fresh.")
    path, saved = distributed.broadcast(path), distributed.broadcast_checkpoint(saved)
    if saved is not None:
        print(f"Resuming from {shown_path(path)}")
    return path, saved


def pick_device_and_dtype(settings: Settings, saved: dict | None) -> tuple[torch.device, torch.dtype]:
    """Where to compute, and the precision of matrix products: a resumed run keeps the one that it had, unless --dtype
    names another. Says what has changed, and whether this device is slow in the precision that is kept."""
    if settings.deterministic:
        compute_deterministically()
    device = pick_device(distributed.own_device(settings.device))
    if device.type == "cpu":
        keep_memory()
    dtype = settings.dtype
    if saved is not None:
        dtype = saved["dtype"] if dtype == "auto" else dtype
        now = {"device": device.type, "dtype": dtype, "processes": distributed.world_size()}
        for name, value in now.items():
            if (was := saved.get(name, 1)) != value:
                print(f"  changed: {name} was {printable(str(was))}, is {value}: the last digits will differ")
        if dtype == "bfloat16" and pick_dtype("auto", device) != torch.bfloat16:
            print(
                "  This run computes in bfloat16, for which this device has no fast instructions. --dtype float32 is "
                "faster here; the last digits will differ."
            )
    return device, distributed.broadcast(pick_dtype(dtype, device))


def use_c(saved: dict | None, device: torch.device, dtype: torch.dtype) -> bool:
    """Switch on by_hand.c where it is faster, for fp32 on a CPU, and where a resumed run had it. Returns whether it is
    on: in all processes or in none."""
    had = saved is None or saved.get("in_c", False)  # missing in old checkpoints
    in_c = by_hand_c.use(had and device.type == "cpu" and dtype == torch.float32)
    if distributed.any_process(not in_c):
        in_c = by_hand_c.use(False)
    if saved is not None and had and not in_c:
        print(
            "  changed: its layers were computed in C, for which there is no compiler here: the last digits will differ"
        )
    return in_c


def from_bigrams(settings: Settings) -> bool:
    """Whether a new model starts from counting (initial_weights.py), which tied embeddings cannot."""
    return settings.initial_weights == "bigram" and not settings.tie_embeddings


def build_model(
    settings: Settings, vocab_size: int, weights: dict[str, Tensor] | None = None, train: TokenFile | None = None
) -> GPT:
    """The model on the CPU, with these weights or, from the seed and the training data, with new ones. Without either,
    new weights are random, whatever the settings say. Raises UsageError."""
    torch.manual_seed(settings.seed)
    architecture = {"vocab_size": vocab_size, **values_of(settings, Model)}
    try:
        check_architecture(architecture)
        model = GPT(**architecture)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if weights is not None:
        model.load_state_dict(weights)
    elif train is not None and settings.initial_weights != "random" and model.device.type != "meta":
        if from_bigrams(settings):
            start_from_bigrams(model, train.tokens)
        else:
            look_back(model)
    return model


def check_weights_fit(settings: Settings, vocab_size: int, device: torch.device) -> None:
    """Raise UsageError if the weights, on a CPU with their gradients and the optimizer's two means, are more than the
    memory that is left. Nothing is allocated for this. An architecture that is none is left to build_model()."""
    try:
        with torch.device("meta"):
            parameters = sum(w.numel() for w in GPT(vocab_size=vocab_size, **values_of(settings, Model)).parameters())
    except (ValueError, RuntimeError):
        return
    if (needed := parameters * (16 if device.type == "cpu" else 4)) > (free := free_memory()):
        raise UsageError(
            f"A model of {parameters:,} parameters needs about {needed / 1e9:,.1f} GB of memory to train, and "
            f"{free / 1e9:,.1f} GB are free. Try a smaller --n-layer or --n-embd."
        )
