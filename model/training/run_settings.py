"""The settings of a run: which values are possible, and which may change when the run resumes."""

from config import CHAR, Model, Sampling, Settings, Training
from model.training import distributed
from model.training.schedule import learning_rate_at
from plumbing.command_line import check_limits
from plumbing.errors import UsageError, UserError
from plumbing.settings import field_names, values_of
from plumbing.text import printable, shown_path

# A checkpoint records the settings of Model and Training, because a resumed run must be the run that was started.
# These may change all the same. (max_steps too: the learning rate is a function of it, so a run can be extended.)
MAY_CHANGE = set(
    "max_steps minutes eval_every eval_tokens sample_tokens checkpoint_every keep_checkpoints log_every "
    "accumulate shard_model deterministic".split()
)
# These are not recorded as given: a checkpoint records what "auto" came to.
RESOLVED = {"device", "dtype", "compile"}


def check_settings(settings: Settings) -> None:
    """Raise UsageError for values that no run can use, or that do not fit the number of processes. GPT checks n_embd
    against n_head."""
    check_limits(settings, field_names(Model) + field_names(Training) + field_names(Sampling))
    if settings.minutes <= 0 and settings.max_steps <= 0:
        raise UsageError("Give the run a length: --max-steps or --minutes above 0.")
    processes = distributed.world_size()
    if settings.batch_size % (processes * settings.accumulate):
        raise UsageError(
            f"--batch-size {settings.batch_size} cannot be divided evenly: it must be a multiple of the number of "
            f"processes, {processes}, times --accumulate, {settings.accumulate}."
        )
    if settings.shard_model and processes == 1:
        raise UsageError("--shard-model needs several processes: torchrun --standalone --nproc_per_node=2 train.py ...")
    if settings.explain_step and processes > 1:
        raise UsageError("--explain-step looks at the whole batch, and here each process has some of it. Leave it out.")
    if settings.shard_model and settings.compile == "on":
        raise UsageError("--shard-model cannot be combined with --compile on.")


def recorded_settings(settings: Settings) -> dict:
    """The settings that a checkpoint records, by name."""
    values = values_of(settings, Model) | values_of(settings, Training)
    return {name: value for name, value in values.items() if name not in RESOLVED}


def settings_of_old(saved: dict) -> dict:
    """The settings that a file records, and those that are newer than the file: they had no effect then, which is what
    their defaults stand for. Only initial_weights has another default now: they were always random."""
    return recorded_settings(CHAR) | {"initial_weights": "random"} | saved


def check_resumable(saved: dict, settings: Settings, sources: dict) -> None:
    """Compare the content of a checkpoint with the settings and the SHA-256 sums of the inputs of today. Raises
    UserError if the result would change; prints the other changes."""
    now = recorded_settings(settings)
    then = settings_of_old({name: now[name] for name in MAY_CHANGE} | saved["settings"])
    changed = {name: f"{name} was {then[name]}, is {now[name]}" for name in now if then[name] != now[name]}
    harmful = [text for name, text in changed.items() if name not in MAY_CHANGE]
    compiled = "on" if saved["compiled"] else "off"
    if settings.compile not in ("auto", compiled):
        harmful.append(f"compile was {compiled}, is {settings.compile}")
    for name in {**saved["sources"], **sources}:
        was, is_now = (which.get(name, "of none") for which in (saved["sources"], sources))
        if was != is_now:
            harmful.append(f"the {name} has changed (SHA-256 was {was[:8]}..., is {is_now[:8]}...)")
    if harmful:
        raise UserError(
            f"The run in {shown_path(settings.checkpoint_dir)} used different settings: {'; '.join(harmful)}. Change "
            "that back to resume it, give --fresh to start over, or another --checkpoint-dir to start a second run."
        )
    for text in changed.values():
        print(f"  changed: {printable(text)}")
    if "max_steps" in changed:
        schedule = settings.warmup_steps, settings.decay_fraction
        was, is_now = (learning_rate_at(saved["step"], which["max_steps"], *schedule) for which in (then, now))
        print(f"  The learning rate follows the run's length: it goes from {was:.0%} to {is_now:.0%} of its peak here.")
    if "minutes" in changed and settings.minutes > 0:
        print(
            f"  The run has {settings.max_steps} steps since it began. --max-steps without --minutes extends it, "
            "--fresh starts over."
        )
