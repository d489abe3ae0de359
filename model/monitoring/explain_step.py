"""What --explain-step prints below a training step: the short form of scripts/inspect_step.py, as far as it is cheap.

It costs one more forward pass of the batch and a copy of the weights for each printed step. It draws no random number
and leaves weights and gradients as they are, so the run is the same with it and without.
"""

from model.interpretation.training_step import losses_of
from model.monitoring.recorder import copies_of, parameters_by_layer, update_sizes
from model.tokenization.display import token_text
from model.training.run import Run

HARDEST = 3  # tokens of the batch that are shown
CONTEXT = 6  # tokens before each


class StepExplainer:
    """before() and after() go around a training step that is printed."""

    def __init__(self, run: Run):
        self.run, self.layers, self.copies = run, parameters_by_layer(run.model), None

    def before(self) -> None:
        self.copies = copies_of(self.layers)

    def after(self, loss: float, norm: float) -> list[str]:
        """The lines to print below the step."""
        run = self.run
        sizes = update_sizes(self.layers, self.copies, norm, run.settings.grad_clip)
        self.copies = None
        gradients = ", ".join(f"{name} {value:.3g}" for name, value in sizes["gradient_norm"].items())
        updates = ", ".join(f"{name} {value:.2%}" for name, value in sizes["update_to_weight"].items())
        inputs, targets = run.batches(run.step - 1)  # those of this step: a pure function of the step
        run.model.eval()  # no dropout, which would draw random numbers
        losses, best = losses_of(run.model, inputs, targets)
        run.model.train()
        lines = [f"gradient norms: {gradients}", f"update / weight: {updates}"]
        lines += [f"this batch: loss {loss:.4f}, after the step {losses.mean():.4f}. Still hardest:"]
        for i in losses.flatten().topk(min(HARDEST, losses.numel())).indices.tolist():
            b, t = divmod(i, losses.size(1))
            context = "".join(self.text(token) for token in inputs[b, max(0, t + 1 - CONTEXT) : t + 1].tolist())
            target, expected = self.text(targets[b, t].item()), self.text(best[b, t].item())
            lines.append(f"  {losses[b, t]:.2f} nats: {target} after {context}, where {expected} was likeliest")
        return ["    " + line for line in lines]

    def text(self, token: int) -> str:
        return token_text(self.run.tokenizer, token)
