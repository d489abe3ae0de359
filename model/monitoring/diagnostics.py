"""Plain words when something is off in a training: what people who have trained many models look at first.

Each check looks at figures that training has anyway, at the recorded steps (recorder.py) and at evaluations, and says
its sentence once. The borders lie between what healthy runs of these scripts show and what a planted fault does; the
tests hold both.
"""

import math
import statistics

from model.metrics import uniform_loss

# By how much of its length a step may move a layer, or the embedding. At the default rates healthy runs stay below a
# third of this, at ten times these rates they exceed it.
LARGEST_UPDATE = {"layer": 0.13, "embedding": 0.02, "embedding and head": 0.07}
SETTLED = 8  # the step from which updates are judged: before, weights that began at zero or tiny move by their length
FROZEN = 1e-4  # a gradient this small, relative to that of the other parts, is none
DEAD = 0.1  # share of an MLP's units that may be silent
MISSED = 0.02  # by which share the first loss may miss ln(vocabulary)
OVERFITTED = 0.01  # by which share the validation loss may lie above its best while training falls


class Diagnostics:
    """Takes the figures of a run in their order; each method returns the new warnings, mostly none."""

    def __init__(self):
        self.said = set()
        self.best = {}  # by tokens scored: (validation loss, mean training loss at that time), the best so far
        self.losses = []  # of the training, since the last evaluation

    def once(self, name: str, text: str) -> list[str]:
        if name in self.said:
            return []
        self.said.add(name)
        return [text]

    def trained(self, loss: float) -> None:
        """The loss of a training batch."""
        self.losses.append(loss)

    def evaluated(self, step: int, val_loss: float, tokens: int, vocab_size: int) -> list[str]:
        """The validation loss over so many tokens, in nats a token. It is compared with others over as many, and before
        the first step with ln(vocab_size)."""
        expected = uniform_loss(vocab_size)
        if step == 0 and abs(val_loss / expected - 1) > MISSED:
            return self.once(
                "first loss",
                f"The untrained model's loss is {val_loss:.3f}, and guessing evenly among {vocab_size:,} tokens gives "
                f"{expected:.3f}: it starts out with opinions. Look at how its weights are drawn (GPT.initialise).",
            )
        train_loss = statistics.fmean(self.losses) if self.losses else val_loss  # untrained, both are the same
        self.losses = []
        best, then = self.best.get(tokens, (math.inf, math.nan))
        if val_loss < best:
            self.best[tokens] = (val_loss, train_loss)
        if val_loss > best * (1 + OVERFITTED) and train_loss < then:
            return self.once(
                "overfitting",
                f"The validation loss has risen from {best:.3f} to {val_loss:.3f} while the training loss fell from "
                f"{then:.3f} to {train_loss:.3f}: the model is learning its text by heart. Get more text, give it "
                "--dropout 0.1, make it smaller, or stop earlier.",
            )
        return []

    def recorded(self, step: int, record: dict | None) -> list[str]:
        """A record of recorder.py; None where there is none."""
        if record is None:
            return []
        found = []
        silent = record.get("silent_units", {})
        if bad := [name for name, share in silent.items() if share > DEAD]:
            shares = ", ".join(f"{silent[name]:.0%} of {name}" for name in bad)
            found += self.once(
                "dead units",
                f"Units of the MLP that are silent for every token: {shares}. They learn nothing any more and only "
                "cost time. A lower --muon-rate, with --fresh, or fewer channels (--n-embd).",
            )
        gradients, updates = record.get("gradient_norm", {}), record.get("update_to_weight", {})
        for name, norm in gradients.items():
            others = statistics.median(value for other, value in gradients.items() if other != name)
            if norm <= FROZEN * others or updates[name] == 0:
                found += self.once(
                    f"frozen {name}",
                    f"The {name} does not learn: its gradient's norm is {norm:.2g}, that of the others {others:.2g}. "
                    "Is it frozen (requires_grad), or does nothing lead to it?",
                )
        for name, update in updates.items():
            limit = LARGEST_UPDATE.get("layer" if name.startswith("layer") else name, math.inf)
            if step >= SETTLED and update > limit:
                rate = "--muon-rate" if name.startswith("layer") else "--learning-rate"
                found += self.once(
                    f"rate {rate}",
                    f"One step changes the {name} by {update:.1%} of its size, and healthy runs stay well below "
                    f"{limit:.0%}: what it learns is soon overwritten. Try a tenth of this {rate}, with --fresh.",
                )
        return found
