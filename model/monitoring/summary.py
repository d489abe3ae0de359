"""What a run prints before its first step: settings, parameters, data, and one training example as text."""

import torch

from dataset import TokenFolder, draw_batch
from model import metrics
from model.tokenization.display import cut_line
from model.training import distributed
from model.training.run import Run
from model.training.run_settings import recorded_settings
from plumbing import terminal
from plumbing.text import bar, shortened, shown_path

SHOWN_TOKENS = 24  # of the training example


def print_device(run: Run) -> None:
    print(f"Computing on {run.device} in {str(run.dtype).removeprefix('torch.')}, torch {torch.__version__}")
    if (processes := distributed.world_size()) > 1:
        sequences = run.settings.batch_size
        print(
            f"This is the first of {processes} processes. Each computes {sequences // processes} of the {sequences} "
            "sequences of a step."
        )


def print_summary(run: Run) -> None:
    settings, model = run.settings, run.model
    print("Settings (config.py, or a flag for each):")
    for name, value in recorded_settings(settings).items():
        print(f"  {name:18} {value}")
    parts = model.parameter_counts()
    total = sum(parts.values())
    print(f"The model has {total:,} parameters:")
    for name, count in parts.items():
        print(f"  {name:18} {count:>12,} {bar(count / total)} {count / total:6.1%}")
    print("The data:")
    for name, data in (("train", run.train_data), ("validation", run.val_data)):
        size = data.facts["utf8_bytes"]
        text = f"{size:,} bytes, {1 / data.tokens_per_byte:.2f} bytes per token" if size else "number of bytes unknown"
        files = f", in {len(data.shards)} files" if isinstance(data, TokenFolder) else ""
        print(f"  {name:18} {len(data):>12,} tokens, {text}{files}")
    window = f"{settings.batch_size} sequences of {settings.block_size}"
    print(f"  {'each step':18} {run.tokens_per_step:>12,} tokens ({window})")

    inputs, targets = draw_batch(run.train_data.tokens, settings.block_size, settings.batch_size, settings.seed, step=0)
    print("One training example, cut into tokens. The targets are the inputs, shifted by one token:")
    for name, row in (("inputs", inputs[0]), ("targets", targets[0])):
        print(shortened(f"  {name:8} {cut_line(run.tokenizer, row[:SHOWN_TOKENS])}|…", max(40, terminal.width())))
    if run.init_from is not None:
        print(f"The initial weights come from {shown_path(run.init_from)}.")
        return
    if not run.starts_uniform:
        print(
            "The initial embedding and head come from counting which token follows which "
            "(model/training/initial_weights.py), so the untrained model's loss is near the bigram's."
        )
        return
    expected = metrics.uniform_loss(model.vocab_size)
    print(
        f"The untrained model gives all {model.vocab_size:,} tokens nearly the same probability, so its loss must be "
        f"near ln({model.vocab_size}) = {expected:.4f}, a surprise of {metrics.bits(expected):.2f} bits per token."
    )
