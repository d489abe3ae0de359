"""Warnings when something is off in a training: what people who have trained many models check first.

Each check uses figures that training has anyway: losses, evaluations, and the records of recorder.py. It gives its
warning once. The limits are between what healthy runs of these scripts show and what a planted fault does; the
tests check both.
"""

import math
import statistics

from model.metrics import uniform_loss

# The largest update of a step, relative to the norm of the weights. At the default learning rates healthy runs stay
# below a third of this; at ten times these rates they exceed it.
LARGEST_UPDATE = {"layer": 0.13, "embedding": 0.02, "embedding and head": 0.07}
SETTLED = 8  # the step from which updates are judged: before, weights that start near zero move by their own norm
FROZEN = 1e-4  # a gradient this small, relative to those of the other layers, counts as none
DEAD = 0.1  # fraction of an MLP's units that may be silent
MISSED = 0.02  # relative difference allowed between the first loss and ln(vocab_size)
HARMLESS_EPOCHS = 4  # so often, data is as good as new: Muennighoff et al. 2023 (arXiv:2305.16264), section 5
OVERFITTED = 0.01  # relative rise of the validation loss allowed while the training loss falls


class Diagnostics:
    """Takes the figures of a run in order; each method returns the new warnings, mostly none."""

    def __init__(self):
        self.said = set()
        self.best = {}  # tokens scored: (best validation loss, mean training loss at that time)
        self.losses = []  # training losses since the last evaluation

    def once(self, name: str, text: str) -> list[str]:
        if name in self.said:
            return []
        self.said.add(name)
        return [text]

    def planned(self, parameters: int, train_tokens: int, epochs: float = math.inf) -> list[str]:
        """The size of the model and of the training data, and how often a run reads the data, where that is known."""
        if parameters <= train_tokens or epochs <= HARMLESS_EPOCHS:
            return []
        often = f", read {epochs:,.0f} times" if math.isfinite(epochs) else ""
        return self.once(
            "by heart",
            f"the model has {parameters:,} parameters, and the training data only {train_tokens:,} tokens{often}, "
            "which it can memorise. Get more text, or make the model smaller (--n-embd, --n-layer, the tokenizer's "
            "--vocab-size).",
        )

    def trained(self, losses: list[float]) -> None:
        """The losses of training batches, each of one step."""
        self.losses += losses

    def evaluated(self, step: int, val_loss: float, tokens: int, vocab_size: int) -> list[str]:
        """The validation loss over so many tokens, in nats per token. It is compared with others over as many tokens,
        and before the first step with ln(vocab_size)."""
        expected = uniform_loss(vocab_size)
        if step == 0 and abs(val_loss / expected - 1) > MISSED:
            return self.once(
                "first loss",
                f"the untrained model's loss is {val_loss:.3f}, but uniform guessing among {vocab_size:,} tokens gives "
                f"{expected:.3f}. Check how the weights are initialised (GPT.initialise).",
            )
        if not self.losses and step:  # resumed here: what the steps before had is not known
            return []
        train_loss = statistics.fmean(self.losses) if self.losses else val_loss  # untrained, both are the same
        self.losses = []
        best, then = self.best.get(tokens, (math.inf, math.nan))
        if val_loss < best:
            self.best[tokens] = (val_loss, train_loss)
        if val_loss > best * (1 + OVERFITTED) and train_loss < then:
            return self.once(
                "overfitting",
                f"the validation loss has risen from {best:.3f} to {val_loss:.3f} while the training loss fell from "
                f"{then:.3f} to {train_loss:.3f}: the model is overfitting. Get more text, try --dropout 0.1, make the "
                "model smaller, or stop earlier.",
            )
        return []

    def recorded(self, step: int, record: dict | None) -> list[str]:
        """A record of recorder.py, or None."""
        record, found = record or {}, []
        silent = record.get("silent_units", {}).items()
        if dead := ", ".join(f"{fraction:.0%} of {name}" for name, fraction in silent if fraction > DEAD):
            found += self.once(
                "dead units",
                f"MLP units that are silent for every token: {dead}. They no longer learn and only cost time. Try a "
                "lower --muon-rate, with --fresh, or fewer channels (--n-embd).",
            )
        gradients, updates = record.get("gradient_norm", {}), record.get("update_to_weight", {})
        for name, norm in gradients.items():
            others = statistics.median(value for other, value in gradients.items() if other != name)
            if norm <= FROZEN * others or updates[name] == 0:
                found += self.once(
                    f"frozen {name}",
                    f"{name} does not learn: its gradient norm is {norm:.2g}, the median of the others {others:.2g}. "
                    "Is it frozen (requires_grad), or disconnected from the loss?",
                )
        for name, update in updates.items():
            limit = LARGEST_UPDATE.get("layer" if name.startswith("layer") else name, math.inf)
            if step >= SETTLED and update > limit:
                rate = "--muon-rate" if name.startswith("layer") else "--learning-rate"
                found += self.once(
                    f"rate {rate}",
                    f"one step changes {name} by {update:.1%} of its norm; healthy runs stay well below {limit:.0%}. "
                    f"What it learns is soon overwritten. Try a tenth of this {rate}, with --fresh.",
                )
        return found
