"""scripts/check_device.py with a planted wrong operation: the "device" is the CPU, one of whose operations is wrong."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from model.layers import KeyValueCache
from model.training import device_check
from plumbing.errors import UsageError
from scripts import check_device

SMALL = "--device cpu --block-size 24 --n-layer 2 --n-head 2 --n-embd 32 --batch-size 4".split()
aten = torch.ops.aten


class Planted(TorchDispatchMode):
    """From here on, `operation` gives what `wrong` makes of its result and its arguments."""

    def __init__(self, operation, wrong):
        super().__init__()
        self.operation, self.wrong, self.calls = operation, wrong, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is not self.operation:
            return func(*args, **(kwargs or {}))
        self.calls += 1
        before = args[0].clone()
        return self.wrong(func(*args, **(kwargs or {})), before)


def check(monkeypatch, capsys, plant=None, *flags) -> tuple[int, str]:
    """Run the script, the second of its two devices within `plant`. Returns (exit code, output)."""
    really, runs = device_check.run_on, []

    def run_on(device, model, settings):
        runs.append(device)
        if plant is None or len(runs) == 1:
            return really(device, model, settings)
        with plant:
            return really(device, model, settings)

    monkeypatch.setattr(device_check, "run_on", run_on)
    code = check_device.main([*SMALL, *flags])
    return code, capsys.readouterr().out


def test_a_device_that_computes_alike_agrees(monkeypatch, capsys):
    code, out = check(monkeypatch, capsys)
    assert code == 0 and out.endswith("cpu: agrees\n")
    assert out.count("tokens/s") == 1 and "rounding explains" in out
    assert "Memory" not in out  # not looked for on a CPU
    assert len([line for line in out.splitlines() if line.split()[:1] == [str(device_check.STEPS - 1)]]) == 1


def test_another_way_to_round_agrees_too(monkeypatch, capsys):
    """The paths that a GPU takes, autograd through the fused attention kernel, in place of those by hand."""
    really, runs = device_check.run_on, []

    def run_on(device, model, settings):
        runs.append(device)
        if len(runs) == 2:
            monkeypatch.setattr("model.layers.by_hand", lambda x: False)
            monkeypatch.setattr("model.gpt.by_hand", lambda x: False)
            monkeypatch.setattr("model.layers.EXPLICIT_UP_TO", 0)
        return really(device, model, settings)

    monkeypatch.setattr(device_check, "run_on", run_on)
    assert check_device.main(["--device", "cpu", "--block-size", "64", "--batch-size", "4", "--n-layer", "2"]) == 0
    worst = [float(line.split()[-4]) for line in capsys.readouterr().out.splitlines() if "rounding explains" in line]
    assert len(worst) == 3 and 0 < max(worst) < 1e-4  # a tenth of what is allowed


WRONG = {
    "a product is a percent too large": (aten.mm.default, lambda y, x: y * 1.01),
    "a product has a wrong row": (aten.mm.default, lambda y, x: torch.cat([y[1:2], y[1:]])),
    "an operation in place does nothing": (aten.addcdiv_.default, lambda y, x: y.copy_(x)),  # as MPS once did
    "a mean forgets": (aten.lerp_.Scalar, lambda y, x: y.copy_(x)),
    "a sum is not a number": (aten._softmax.default, lambda y, x: y * math.nan),
    "a root is its square": (aten.sqrt.default, lambda y, x: x),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_planted_wrong_operation_is_caught(monkeypatch, capsys, name):
    plant = Planted(*WRONG[name])
    code, out = check(monkeypatch, capsys, plant)
    assert plant.calls > 0, "the operation is not used, so nothing was planted"
    assert code == 1 and "do not trust this device with this torch" in out and "agrees" not in out


def test_a_wrong_cache_is_caught_by_the_text(monkeypatch, capsys):
    class WrongCache:
        def __enter__(self):
            right = KeyValueCache.update

            def update(cache, layer, key, value):
                keys, values = right(cache, layer, key, value)
                return keys, values.roll(1, dims=2)

            monkeypatch.setattr(KeyValueCache, "update", update)

        def __exit__(self, *error):
            pass

    code, out = check(monkeypatch, capsys, WrongCache())
    assert code == 1 and "The first is the logits of token 1," in out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--learning-rate", "1e38"], "even the CPU computes numbers that are not finite.*--learning-rate"),
        (["--batch-size", "0"], "--batch-size must be above 0"),
        (["--seed", "-1"], "--seed must be from 0"),
    ],
)
def test_a_device_is_not_blamed_for_the_flags(flags, said):
    with pytest.raises(UsageError, match=said):
        check_device.main([*SMALL, *flags])
