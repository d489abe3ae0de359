"""Open one training step of your model: from a batch to better weights.

    python scripts/inspect_step.py --html data/step.html
    python scripts/inspect_step.py --checkpoint checkpoints/bpe --text --weight "head.weight[275,8]"

Reads   a checkpoint of a run with its tokenizer and token files (train.py, trainv2.py), or a finished model
Writes  with --html a page for a browser that follows the step; with --text (or without either) the short form to
        stdout: the batch, the loss of its tokens, gradients through the layers, single weights with their gradient as
        a sum over tokens, the update, and what it bought at this and at other learning rates
Next    open the page; or docs/how-a-gpt-works.md, which explains each number

It is the very next step of the run after its newest checkpoint, or the one that --step names, counted as training
prints them: the same batch, the same code, the same optimizer's memory. The files of the run are only read.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # also with python -I
import plumbing.start

from pathlib import Path

from config import CHAR
from plumbing import terminal
from plumbing.command_line import ScriptParser, add_flags, parse, refuse_no_page
from plumbing.errors import UsageError, UserError, run_script
from plumbing.text import bar, fitted, plural, shortened, shown_path

SHOWN = 5  # tokens that push hardest, and contributions to a gradient


def main(argv: list[str] | None = None) -> None:
    parser = ScriptParser(__doc__)
    text = f"a checkpoint, the folder of a run, or a model [{shown_path(CHAR.checkpoint_dir)}]"
    parser.add_argument("--checkpoint", type=Path, default=CHAR.checkpoint_dir, metavar="PATH", help=text)
    parser.add_argument("--step", type=int, metavar="N", help="the step to open, counted from 1 [the next one]")
    text = "the weight to follow, as NAME[ROW,COLUMN] [the strongest gradients]"
    parser.add_argument("--weight", metavar="WEIGHT", help=text)
    parser.add_argument("--html", type=Path, metavar="PAGE", help="write the page to this file")
    parser.add_argument("--text", action="store_true", help="show the short form in the terminal")
    add_flags(parser, CHAR, "tokenizer_file train_file val_file device")
    settings, args = parse(parser, CHAR, argv)
    if args.step is not None and args.step < 1:
        raise UsageError(f"--step counts from 1, and it is {args.step}.")
    refuse_no_page("--html", args.html)

    # What needs torch is imported here, so that --help answers at once.
    from model.device import memory_advice
    from model.interpretation.open_step import open_before
    from model.interpretation.step_page import step_data
    from model.interpretation.training_step import trace_training_step
    from train import train_step

    with memory_advice("The step needs as much as training does. Try --device cpu."):
        run, about = open_before(args.checkpoint, args.step, settings, train_step)
        try:
            data = step_data(trace_training_step(run, train_step), args.weight)
        except FloatingPointError as error:
            raise UserError(
                f"Step {run.step + 1} has no finite loss: {error}. Open an earlier one with --step."
            ) from None
    facts = [f"{about}.", title(data)]
    if args.text or not args.html:
        print("\n".join(facts))
        print_step(data)
    if args.html:
        write_html(args.html, facts, data)
    else:
        print("Next: add --html data/step.html to see everything as a page.")


def title(data: dict) -> str:
    rows, T = data["sequences"], data["shape"][1]
    return (
        f"Step {data['step']} of {data['max_steps']}, at {data['fraction']:.1%} of the peak learning rates: "
        f"{rows} sequences of {T} tokens, loss {data['loss']:.4f} nats per token."
    )


def write_html(path: Path, facts: list[str], data: dict) -> None:
    from plumbing.page import fill_page, packed, write_page

    arrays = {name: packed(data[name]) for name in ("inputs", "targets", "best", "losses", "push")}
    page = fill_page("inspect_step.html", facts, data | arrays)
    write_page(path, page, f"{plural(data['sequences'] * data['shape'][1], 'token')} of step {data['step']}")


# === the short form ===================================================================================================


def print_step(data: dict) -> None:
    print_batch(data)
    print_gradients(data)
    chosen = [weight for weight in data["weights"] if len(weight["nudges"]) > 1]
    for weight in chosen:
        print_weight(weight)
        (print_muon if weight["optimizer"] == "Muon" else print_adamw)(weight["update"])
    print_singular_values(data, chosen[-1]["name"])
    print_result(data)


def print_batch(data: dict) -> None:
    import numpy as np

    rows, T = data["shape"]
    texts, losses, push = data["texts"], data["losses"].flatten(), data["push"].flatten()
    print("\n1. The batch. Its first sequences begin with")
    for row in data["inputs"][:3]:
        print("   " + shortened("|".join(texts[token] for token in row[:60]), terminal.width() - 4))
    shares = np.sort(push)[::-1].cumsum() / push.sum()
    tenth = shares[max(0, len(shares) // 10 - 1)]
    print(f"\n2. The loss. A tenth of the tokens makes {tenth:.0%} of all pushes. The hardest of {rows * T:,}:")
    print(f"   {'loss':>6} {'p':>8} {'push':>6}  what came, after what")
    for i in np.argsort(-push)[:SHOWN]:
        b, t = divmod(int(i), T)
        before = "".join(texts[token] for token in data["inputs"][b, max(0, t - 7) : t + 1])
        came = f"{fitted(texts[data['targets'][b, t]], 10)} not {fitted(texts[data['best'][b, t]], 10)} after "
        room = max(10, terminal.width() - 28 - len(came))
        print(f"   {losses[i]:6.3f} {np.exp(-losses[i]):8.4f} {push[i]:6.2f}  {came}{last_of(before, room)}")


def last_of(text: str, cells: int) -> str:
    """The end of a text in at most so many columns."""
    return shortened(text[::-1], cells)[::-1]


def print_gradients(data: dict) -> None:
    clip = f", clipped by {data['clipped_to']:.3f}" if data["clipped_to"] < 1 else ""
    print(f"\n3. Backward. The whole gradient has a norm of {data['norm']:.4f}{clip}.")
    names = ["embedding", *(f"after {name}" for name in data["layers"])]
    largest = max(data["streams"])
    for name, norm in list(zip(names, data["streams"], strict=True))[::-1]:
        print(f"   stream {name:14} {norm:.5f} {bar(norm / largest if largest else 0)}".rstrip())
    print(f"   {'matrix':26} {'gradient':>9} {'weight':>9} {'update':>9} {'update / weight':>16}")
    for matrix in data["matrices"]:
        ratio = matrix["update"] / matrix["weight"] if matrix["weight"] else float("inf")
        sizes = f"{matrix['gradient']:9.5f} {matrix['weight']:9.3f} {matrix['update']:9.5f}"
        print(f"   {fitted(matrix['name'], 26)} {sizes} {ratio:9.3%} {bar(min(1, 10 * ratio), 6)}".rstrip())


def print_weight(weight: dict) -> None:
    from model.interpretation.training_step import agreeing_digits

    update, gradient = weight["update"], weight["update"]["gradient"]
    print(f"\n4. {weight['name']} = {update['weight']:.7f}")
    print(f"   {weight['meaning']}")
    print(f"   Its gradient, {gradient:+.7f}, is a sum over {plural(weight['nonzero'], 'token')}, the largest:")
    print(f"   {'x':>9} times {'dloss/dy':>11} = {'part':>11}  after, and what came")
    for token in weight["tokens"][:SHOWN]:
        room = max(8, terminal.width() - 56)
        where = f"{last_of(token['context'], room)} | {shortened(token['target'], 8)}"
        print(f"   {token['x']:9.4f}       {token['dy']:+11.7f} = {token['part']:+11.7f}  {where}")
    print(f"   all of them {' ' * 21}{weight['sum']:+11.7f}  {agreeing_digits(weight['sum'], gradient)} digits agree")
    for nudge, slope, agreeing in weight["nudges"]:
        print(f"   nudged by +-{nudge:<6g} the loss says {slope:+.7f}  {agreeing} digits agree")


def print_adamw(u: dict) -> None:
    print("   AdamW:")
    print(f"   mean of gradients      {u['mean_before']:+.7f} -> {u['mean']:+.7f}")
    print(f"   mean of their squares   {u['square_before']:.3e} ->  {u['square']:.3e}")
    print(f"   bias corrections       / {u['mean_scale']:.6f}, / {u['square_scale']:.6f}")
    print(f"   mean / root of the mean square: {u['direction']:+.7f}")
    print_move(u, u["direction"])


def print_muon(u: dict) -> None:
    print("   Muon:")
    print(f"   mean of gradients      {u['mean_before']:+.7f} -> {u['mean']:+.7f}")
    print(f"   with this gradient once more (Nesterov): {u['direction']:+.7f}")
    print(f"   orthogonalised with its matrix: {u['orthogonal']:+.7f}, times the scale {u['scale']:.4f}")
    print_move(u, u["scale"] * u["orthogonal"])


def print_move(u: dict, direction: float) -> None:
    print(f"   - rate {u['rate']:.7f} x {direction:+.7f}         = {-u['rate'] * direction:+.7f}")
    print(
        f"   - rate {u['rate']:.7f} x decay {u['decay']:g} x the weight = {-u['rate'] * u['decay'] * u['weight']:+.7f}"
    )
    print(f"   the weight becomes {u['after']:.7f}")


def print_singular_values(data: dict, weight: str) -> None:
    muons = [matrix for matrix in data["matrices"] if "singular" in matrix]
    matrix = next((matrix for matrix in muons if weight.startswith(matrix["name"] + ".")), muons[0])
    before, after = (stack[0] for stack in matrix["singular"])
    which = " (its first matrix)" if len(matrix["singular"][0]) > 1 else ""
    print(f"\n5. Muon on {matrix['name']}{which}, singular values:")
    shown = sorted({round(i * (len(before) - 1) / 4) for i in range(5)})
    for name, row in (("of the momentum", before), ("orthogonalised", after)):
        print(f"   {name:16}" + "".join(f"{row[i]:11.3g}" for i in shown))


def print_result(data: dict) -> None:
    print("\n6. What the step bought")
    for result in data["bought"]:
        change = result["after"] - result["before"]
        print(f"   loss of {result['of']:22} {result['before']:.4f} -> {result['after']:.4f} ({change:+.4f})")
        for one in result["changed"]:
            context = last_of(one["context"], max(10, terminal.width() - 44))
            print(f"     {one['before']:7.2%} -> {one['after']:7.2%}  {fitted(one['target'], 12)} after {context}")
    curve = data["curve"]
    finite = [loss for loss in curve["batch"] if loss is not None]
    low, high = min([*finite, data["loss"]]), max([*finite, data["loss"]])
    print("   The same step at other learning rates, and the loss of the batch after it:")
    for times, loss in list(zip(curve["multiples"], curve["batch"], strict=True))[::2]:
        shown = f"{loss:9.4f} {bar((loss - low) / (high - low or 1))}".rstrip() if loss is not None else "not finite"
        print(f"   {times:7.3g} times {shown}")


if __name__ == "__main__":
    run_script(main)
