"""9. AdamW's step.

One update of a weight, with floats. `state` is {"mean": 0.0, "square": 0.0, "steps": 0} at first and is updated in
place. Return the new weight.

    mean   <- beta1 mean + (1 - beta1) gradient             both start at zero, hence the bias correction:
    square <- beta2 square + (1 - beta2) gradient^2         divide by 1 - beta^steps
    weight <- weight (1 - rate decay) - rate mean / (sqrt(square) + eps)

Where the project does it: Optimizer.adamw() in model/training/optimizer.py; your own steps: scripts/inspect_step.py
"""

import pytest
import torch

RATE, BETA1, BETA2, EPS, DECAY = 0.1, 0.9, 0.95, 1e-8, 0.2


def adamw(weight: float, gradient: float, state: dict) -> float:
    raise NotImplementedError


# === the test: it passes when you are done ============================================================================


def test_adamw_is_torchs():
    weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    theirs = torch.optim.AdamW([weight], lr=RATE, betas=(BETA1, BETA2), eps=EPS, weight_decay=DECAY)
    ours, state = 0.7, {"mean": 0.0, "square": 0.0, "steps": 0}
    for gradient in (0.5, -0.02, 3.0, 0.0, 0.001):
        weight.grad = torch.tensor(gradient, dtype=torch.float64)
        theirs.step()
        ours = adamw(ours, gradient, state)
        assert ours == pytest.approx(weight.item(), abs=1e-12)
    assert state["steps"] == 5
