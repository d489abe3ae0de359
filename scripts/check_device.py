"""Check that a device computes the same as the CPU, before you train on it.

    python scripts/check_device.py
    python scripts/check_device.py --device mps --n-layer 6 --n-embd 384

Reads   nothing: the weights are random, the text is a source file of this project
Writes  nothing: it prints a table, then "agrees" or "do not trust this device with this torch"
Next    python train.py; add --device cpu if the two disagree

A wrong operation raises no error: with several versions of torch, models trained on Apple's MPS learned nothing, or
less than they should. So this script runs the same model with the same weights on the CPU and on the device, in fp32,
and compares the gradients of one batch, the losses of ten training steps, and the logits of a generated text. Rounding
changes the sixth digit; a wrong operation changes the first ones. Exit code 1 means that they disagree.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # also with python -I
import plumbing.start

from config import CHAR
from plumbing.command_line import ScriptParser, add_flags, parse
from plumbing.errors import UsageError, run_script


def main(argv: list[str] | None = None) -> int:
    parser = ScriptParser(__doc__)
    names = "block_size n_layer n_head n_embd rotary_base tie_embeddings batch_size learning_rate muon_rate seed device"
    add_flags(parser, CHAR, f"{names} debug")
    settings, _ = parse(parser, CHAR, argv)

    # What needs torch is imported here, so that --help answers at once.
    import torch

    from model.device import memory_advice, pick_device
    from model.training import device_check
    from model.training.run_settings import check_settings

    check_settings(settings)
    with memory_advice("Try a smaller --batch-size, --block-size, --n-layer or --n-embd."):
        device, model = pick_device(settings.device), device_check.model_to_check(settings)
        total = sum(weight.numel() for weight in model.parameters())
        print(f"{total:,} random weights on the CPU and on {device}, in fp32, torch {torch.__version__}")
        if device.type == "cpu":
            print("  This compares the CPU with itself: torch found no other device, or --device cpu was given.")
        reference = device_check.run_on(torch.device("cpu"), model, settings)
        if not reference.is_finite():
            raise UsageError(
                "With these flags, even the CPU computes numbers that are not finite, so there is nothing to compare "
                "with. Try a lower --learning-rate or --muon-rate."
            )
        run = device_check.run_on(device, model, settings)
        found = device_check.differences(run, reference)
        if settings.debug:
            print_losses(reference.losses, run.losses, device)
            print_largest(found, device_check.TOLERANCE)
        speeds = f"{reference.tokens_per_second:,.0f} tokens/s on the CPU, {run.tokens_per_second:,.0f} on {device}"
        print(f"Training: {speeds}")
    wrong = {name: by for name, by in found.items() if not by <= device_check.TOLERANCE}
    if wrong:
        name, by = next(iter(wrong.items()))
        print(f"{len(wrong)} of {len(found)} results are wrong. The first is the {name}, off by {by:.1e}.")
        print(f"{device}: do not trust this device with this torch ({torch.__version__}). Train with --device cpu.")
        return 1
    print(f"{device}: agrees")
    return 0


def print_losses(cpu_losses: list[float], losses: list[float], device) -> None:
    print(f"  {'step':>4}  {'loss, CPU':>12}  {'loss, ' + str(device):>12}")
    for step, (expected, loss) in enumerate(zip(cpu_losses, losses, strict=True)):
        print(f"  {step:>4}  {expected:12.6f}  {loss:12.6f}")


def print_largest(found: dict[str, float], tolerance: float) -> None:
    """The largest difference among the gradients, the losses and the logits."""
    print(f"Largest relative differences from the CPU, of {len(found)} compared:")
    for compared in ("gradient", "loss", "logits"):
        name = max((name for name in found if name.startswith(compared)), key=found.get)
        print(f"  {name:44} {found[name]:8.1e}  rounding explains {tolerance:.0e}")


if __name__ == "__main__":
    run_script(main)
