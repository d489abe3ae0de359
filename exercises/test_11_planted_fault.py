"""11. Find the planted faults.

This training step runs, and its loss falls nicely, even on random tokens, where there is nothing to learn. That is the
first fault. The second is that after a while the loss jumps about.

    def broken_step(model, optimizer, tokens):
        logits = model(tokens)
        loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        loss.backward()
        optimizer.step()
        return loss.item()

Write it as it should be. tokens (B, T + 1) are ids, and the model predicts at each position the token that follows.

Where the project does it: train_step() in train.py, draw_batch() in dataset.py; what training warns of:
model/monitoring/diagnostics.py
"""

import math

import pytest
import torch

from model.gpt import GPT


def train_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, tokens: torch.Tensor) -> float:
    raise NotImplementedError


# === the test: it passes when you are done ============================================================================


def run(batches, learning_rate=0.003):
    torch.manual_seed(11)
    model = GPT(11, block_size=16, n_layer=1, n_head=2, n_embd=16)
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    return model, [train_step(model, optimizer, tokens) for tokens in batches]


def test_random_tokens_cannot_be_learned():
    generator = torch.Generator().manual_seed(1)
    _, losses = run([torch.randint(11, (16, 17), generator=generator) for _ in range(60)], learning_rate=0.5)
    assert losses[0] == pytest.approx(math.log(11), abs=0.01)
    assert min(losses) > math.log(11) - 0.15


def test_counting_can_be_learned():
    counting = (torch.arange(17) + torch.arange(16)[:, None]) % 11
    _, losses = run([counting] * 100, learning_rate=1.0)
    assert losses[-1] < 0.5


def test_a_step_follows_the_gradient_of_its_own_batch():
    generator = torch.Generator().manual_seed(2)
    batches = [torch.randint(11, (4, 17), generator=generator) for _ in range(3)]
    before, _ = run(batches[:2], learning_rate=0.1)
    after, _ = run(batches, learning_rate=0.1)
    loss = before.loss(batches[2][:, :-1], batches[2][:, 1:])
    (gradient,) = torch.autograd.grad(loss, [before.head.weight])
    torch.testing.assert_close(after.head.weight, before.head.weight - 0.1 * gradient)
