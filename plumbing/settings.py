"""The settings of config.py: names, types and limits. People edit that file by hand, so every script compares it with
these tables before it begins (plumbing/start.py). A new setting needs a word in TYPES."""

import difflib
import math
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path

import config
from config import Settings
from plumbing.errors import UsageError

TYPES = {
    Path: "parquet_dir corpus tokenizer_file train_file val_file checkpoint_dir model_file",
    int: "vocab_size workers block_size n_layer n_head n_embd batch_size accumulate max_steps warmup_steps seed "
    "eval_every eval_tokens sample_tokens checkpoint_every keep_checkpoints log_every top_k tokens samples show",
    float: "val_fraction tokenizer_megabytes rotary_base dropout minutes learning_rate muon_rate decay_fraction "
    "weight_decay momentum beta1 beta2 grad_clip temperature top_p min_p repetition_penalty",
    str: "device dtype compile initial_weights",
    bool: "tie_embeddings shard_model deterministic debug explain_step",
}
TYPE_OF = {name: kind for kind, names in TYPES.items() for name in names.split()}
KINDS = {Path: "a path", int: "a whole number", float: "a number", str: "a text in quotes", bool: "True or False"}

LIMITS = [  # names, what their values must satisfy, and how to say so
    ("block_size n_layer n_head n_embd rotary_base batch_size accumulate", lambda x: x > 0, "above 0"),
    ("learning_rate muon_rate checkpoint_every log_every tokenizer_megabytes", lambda x: x > 0, "above 0"),
    ("weight_decay warmup_steps sample_tokens eval_tokens grad_clip", lambda x: x >= 0, "0 or above"),
    ("eval_every", lambda x: x >= -1, "-1 (ten in a run) or above"),
    ("workers top_k tokens show", lambda x: x >= 0, "0 or above"),
    ("dropout momentum beta1 beta2", lambda x: 0 <= x < 1, "at least 0 and below 1"),
    ("decay_fraction min_p", lambda x: 0 <= x <= 1, "from 0 to 1"),
    ("minutes", lambda x: x <= 5_256_000, "at most 5,256,000, ten years"),
    ("keep_checkpoints", lambda x: x >= 2, "at least 2: one to fall back to if the newest is damaged"),
    ("vocab_size", lambda x: 257 <= x <= 2**16, "from 257 to 65,536: one for each byte and <|endoftext|>, as uint16"),
    ("val_fraction", lambda x: 0 < x < 1, "between 0 and 1"),
    ("temperature", lambda x: x >= 0, "0 (the most likely token) or above"),
    ("top_p", lambda x: 0 < x <= 1, "above 0 and at most 1"),
    ("repetition_penalty", lambda x: 0.01 <= x <= 100, "from 0.01 to 100"),
    ("samples", lambda x: x >= 1, "at least 1"),
    ("seed", lambda x: 0 <= x < 2**64, "from 0 to 2**64 - 1"),
    ("compile", lambda x: x in ("auto", "on", "off"), "auto, on or off"),
    ("initial_weights", lambda x: x in ("random", "previous", "bigram"), "random, previous or bigram"),
    ("dtype", lambda x: x in ("auto", "float32", "bfloat16"), "auto, float32 or bfloat16"),
]


def field_names(settings_class: type) -> list[str]:
    """The names of a class of config.py: field_names(config.Model) gives ["block_size", "n_layer", ...]."""
    return [field.name for field in fields(settings_class)]


def values_of(settings: Settings, settings_class: type) -> dict:
    """The settings that belong to a class of config.py: values_of(CHAR, Model) gives {"block_size": 128, ...}."""
    return {name: getattr(settings, name) for name in field_names(settings_class)}


def whole_number(text: str) -> int:
    """The int that a text means, "1e3" and "16.0" included. Raises ValueError."""
    try:
        return int(text)
    except ValueError:
        if (number := float(text)).is_integer():
            return int(number)
        raise


def problem_with(name: str, value: object) -> str:
    """Why a setting cannot have this value of its own type: "must be above 0, and it is -1"; or an empty text."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"must be a finite number, and it is {value}"
    for names, possible, wanted in LIMITS:
        if name in names.split() and not possible(value):
            return f"must be {wanted}, " + (f"not {value!r}" if isinstance(value, str) else f"and it is {value}")
    return ""


# === config.py ========================================================================================================


def checked(settings: Settings, called: str) -> Settings:
    """CHAR or BPE of config.py, as it is `called`, with each value in its type: whole floats become int, texts paths.
    Raises UsageError for a setting that is missing, unknown, of another type, or beyond its limits."""
    classes = [kind for kind in type(settings).__mro__ if kind.__module__ == Settings.__module__]
    written = {name for kind in classes for name in {**vars(kind), **kind.__annotations__} if name[0] != "_"}
    if unknown := sorted(written - TYPE_OF.keys()):
        raise UsageError(f"config.py has {unknown[0]}, which is no setting{meant(unknown[0])}.")
    if missing := [name for name in TYPE_OF if name not in field_names(type(settings))]:
        kind = TYPE_OF[missing[0]].__name__
        raise UsageError(f"config.py lacks the setting {missing[0]}. A line of it looks so: {missing[0]}: {kind} = ...")
    values = {}
    for name, kind in TYPE_OF.items():
        value = getattr(settings, name)
        where = name if value == getattr(config.CHAR, name) else f"{name} of {called}"
        try:
            values[name] = converted(value, kind)
        except TypeError:
            hint = ". Decimals have a point, not a comma" if isinstance(value, tuple) else ""
            raise UsageError(f"{where} in config.py must be {KINDS[kind]}, and it is {value!r}{hint}.") from None
        if problem := problem_with(name, values[name]):
            raise UsageError(f"{where} in config.py {problem}.")
    return replace(settings, **values)


def converted(value: object, kind: type) -> object:
    """A value of config.py in the type of its setting. Raises TypeError if it is of another one."""
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind is float and type(value) is int:
        return float(value)
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    if type(value) is not kind:
        raise TypeError
    return value


def meant(word: str, words: Iterable[str] = TYPE_OF) -> str:
    """A question to go behind a word that does not exist, or an empty text: meant("n_layers") gives
    " (did you mean n_layer?)"."""
    found = difflib.get_close_matches(word, words, 1)
    return f" (did you mean {found[0]}?)" if found else ""
