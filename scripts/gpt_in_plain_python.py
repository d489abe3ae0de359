"""The whole model once more, from top to bottom in one file, with nothing but Python's numbers and lists.

    python scripts/gpt_in_plain_python.py --prompt "def "
    python scripts/gpt_in_plain_python.py --train

Reads   gpt_model.pt (train.py, trainv2.py); with --train nothing
Writes  nothing: it prints the likeliest next tokens of the prompt, and how far they are from what the fast model says.
        With --train it builds a tiny model on a nursery rhyme with its own automatic differentiation, and compares a
        gradient with PyTorch's
Next    model/layers.py and model/gpt.py, which do the same for many tokens at once; model/by_hand.py for the gradients

Read it like a page of a book. A vector is a list of numbers, a matrix a list of rows. The numbers are floats where the
model only predicts, and of the class Number where it learns; the model does not see the difference.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # also with python -I
import plumbing.start

import math
from itertools import pairwise

from config import CHAR
from plumbing.command_line import ScriptParser, add_flags, at_least_one, model_flag, parse
from plumbing.errors import UserError, run_script
from plumbing.text import bar, fitted

# === a number that knows where it comes from ==========================================================================


class Number:
    """A number with its gradient. `parents` are the Numbers that it was computed from, each with the slope: by how much
    this one grows if that one grows by a little."""

    __slots__ = ("gradient", "parents", "value")

    def __init__(self, value, parents=()):
        self.value, self.parents, self.gradient = value, parents, 0.0

    def __add__(self, other):
        if isinstance(other, Number):
            return Number(self.value + other.value, ((self, 1.0), (other, 1.0)))
        return Number(self.value + other, ((self, 1.0),))

    def __mul__(self, other):
        if isinstance(other, Number):
            return Number(self.value * other.value, ((self, other.value), (other, self.value)))
        return Number(self.value * other, ((self, other),))

    def __pow__(self, power):
        return Number(self.value**power, ((self, power * self.value ** (power - 1)),))

    def exp(self):
        return Number(math.exp(self.value), ((self, math.exp(self.value)),))

    def log(self):
        return Number(math.log(self.value), ((self, 1 / self.value),))

    def __neg__(self):
        return self * -1.0

    def __sub__(self, other):
        return self + -other

    def __truediv__(self, other):
        return self * other**-1.0

    __radd__, __rmul__ = __add__, __mul__

    def backward(self):
        """Give every Number that this one was computed from its gradient: how much this one grows if that one grows by
        a little. Backwards, so each is complete before it is handed on to its parents: the chain rule."""
        order, seen, waiting = [], set(), [(self, False)]
        while waiting:
            number, parents_done = waiting.pop()
            if parents_done:
                order.append(number)
            elif id(number) not in seen:
                seen.add(id(number))
                waiting.append((number, True))
                waiting += [(parent, False) for parent, _ in number.parents]
        self.gradient = 1.0
        for number in reversed(order):
            for parent, slope in number.parents:
                parent.gradient += slope * number.gradient


def exp(x):
    return x.exp() if isinstance(x, Number) else math.exp(x)


# === the layers =======================================================================================================


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def times(matrix, x):
    """A matrix times a vector: each row says how much of each number to take."""
    return [dot(row, x) for row in matrix]


def add(a, b):
    return [x + y for x, y in zip(a, b, strict=True)]


def rms_norm(x, weight):
    """Scale a vector to a root mean square of 1, then each channel by its weight."""
    scale = (dot(x, x) * (1 / len(x)) + 1e-6) ** -0.5
    return [value * scale * w for value, w in zip(x, weight, strict=True)]


def softmax(scores):
    """Positive numbers that sum to 1. Subtracting the highest score first changes nothing but keeps exp() finite."""
    highest = max(score.value if isinstance(score, Number) else score for score in scores)
    powers = [exp(score - highest) for score in scores]
    total = sum(powers)
    return [power / total for power in powers]


def rotate_pairs(x, position, base):
    """Rotate the channels i and i + D / 2 of a head by an angle that grows with the position, fast for the first pairs
    and slowly for the last. The dot product of two rotated vectors then depends on how far apart they are."""
    half, rotated = len(x) // 2, list(x)
    for i in range(half):
        angle = position * base ** (-2 * i / len(x))
        cos, sin = math.cos(angle), math.sin(angle)
        rotated[i] = x[i] * cos - x[i + half] * sin
        rotated[i + half] = x[i + half] * cos + x[i] * sin
    return rotated


def attention(x, w, past, shape):
    """One token reads from those before it and from itself. `past` has the keys and values of the earlier tokens, per
    head, and gets those of this one: that is the KV cache."""
    heads, base = shape["n_head"], shape["rotary_base"]
    D = len(x) // heads
    qkv, read = times(w["attention.qkv.weight"], x), []
    for head in range(heads):
        q, k, v = (qkv[part * len(x) + head * D :][:D] for part in range(3))
        keys, values = past.setdefault(head, ([], []))
        position = len(keys)
        q = rotate_pairs(rms_norm(q, w["attention.query_norm.weight"]), position, base)
        keys.append(rotate_pairs(rms_norm(k, w["attention.key_norm.weight"]), position, base))
        values.append(v)
        looks = softmax([dot(q, key) * D**-0.5 for key in keys])  # how much to take from each token
        read += [dot(looks, channel) for channel in zip(*values, strict=True)]
    return times(w["attention.output.weight"], read)


def mlp(x, w):
    """SwiGLU: each unit has a gate, through which it lets a value pass."""
    both = times(w["mlp.gate_up.weight"], x)
    gates, values = both[: len(both) // 2], both[len(both) // 2 :]
    passed = [gate * value / (exp(-gate) + 1.0) for gate, value in zip(gates, values, strict=True)]
    return times(w["mlp.down.weight"], passed)


def logits_after(token, weights, past, shape):
    """The whole model for one token: how well each token of the vocabulary would fit next."""
    x = weights["embedding.weight"][token]
    for layer in range(shape["n_layer"]):
        prefix = f"blocks.{layer}."
        w = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        x = add(x, attention(rms_norm(x, w["attention_norm.weight"]), w, past.setdefault(layer, {}), shape))
        x = add(x, mlp(rms_norm(x, w["mlp_norm.weight"]), w))
    return times(weights["head.weight"], rms_norm(x, weights["norm.weight"]))


# === learning =========================================================================================================

TEXT = """Twinkle, twinkle, little star, how I wonder what you are!
Up above the world so high, like a diamond in the sky.
When the blazing sun is gone, when he nothing shines upon,
then you show your little light, twinkle, twinkle, all the night.
"""
SHAPE = {"n_layer": 1, "n_head": 2, "n_embd": 8, "block_size": 8, "rotary_base": 30.0}
BETAS, EPS = (0.9, 0.95), 1e-8


def numbers_of(value):
    """A list of floats, or of lists, with a Number for each float."""
    return [numbers_of(part) for part in value] if isinstance(value, list) else Number(value)


def floats_of(value):
    return [floats_of(part) for part in value] if isinstance(value, list) else value.value


def loss_of(tokens, weights, shape):
    """The mean of -ln p of each token but the first, predicted from those before it."""
    past, losses = {}, []
    for token, target in pairwise(tokens):
        losses.append(-softmax(logits_after(token, weights, past, shape))[target].log())
    return sum(losses) * (1 / len(losses))


def all_numbers(weights):
    """Every Number in the weights, which are vectors and matrices."""
    rows = [row for value in weights.values() for row in (value if isinstance(value[0], list) else [value])]
    return [number for row in rows for number in row]


def learn(tokens, weights, shape, steps, rate):
    """Adam, with pieces from all over the text. Returns the loss of each step."""
    numbers = all_numbers(weights)
    means, squares, losses = [0.0] * len(numbers), [0.0] * len(numbers), []
    for step in range(1, steps + 1):
        start = step * 61 % (len(tokens) - shape["block_size"])
        loss = loss_of(tokens[start : start + shape["block_size"] + 1], weights, shape)
        for number in numbers:
            number.gradient = 0.0
        loss.backward()
        for i, number in enumerate(numbers):
            means[i] = BETAS[0] * means[i] + (1 - BETAS[0]) * number.gradient  # which way, over the last few pieces
            squares[i] = BETAS[1] * squares[i] + (1 - BETAS[1]) * number.gradient**2  # and how large it usually is
            mean, square = means[i] / (1 - BETAS[0] ** step), squares[i] / (1 - BETAS[1] ** step)
            number.value -= rate * (1 - (step - 1) / steps) * mean / (square**0.5 + EPS)
        losses.append(loss.value)
        if step % 10 == 0 or step == steps:
            print(f"step {step:>3}  mean loss of the last ten {sum(losses[-10:]) / len(losses[-10:]):.4f}")
    return losses


# === comparing with the fast one ======================================================================================


MOST_WEIGHTS = 20_000_000  # as lists these take about a GB, and each token some seconds


def main(argv: list[str] | None = None) -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("--prompt", default="def ", help="the text to continue [def ]")
    parser.add_argument("--train", action="store_true", help="train a tiny model instead, and check a gradient")
    parser.add_argument("--steps", type=at_least_one, default=40, help="training steps of the tiny model [40]")
    model_flag(parser)
    add_flags(parser, CHAR, "show")
    settings, args = parse(parser, CHAR, argv)
    if args.train:
        train_and_compare(args.steps)
    else:
        predict_and_compare(settings, args.prompt)


def predict_and_compare(settings, prompt: str) -> None:
    import torch

    from model.storage.model_file import load_model
    from model.tokenization.display import token_text
    from model.tokenization.tokenizer import encode_prompt

    model, tokenizer, _ = load_model(settings.model_file)
    if (count := sum(model.parameter_counts().values())) > MOST_WEIGHTS:
        raise UserError(f"{count:,} weights are too many for lists. Use a model of at most {MOST_WEIGHTS:,}.")
    weights = {name: weight.tolist() for name, weight in model.state_dict().items()}
    ids, past = encode_prompt(tokenizer, prompt, model.block_size), {}
    for token in ids:
        logits = logits_after(token, weights, past, model.architecture)
    p = softmax(logits)
    with torch.inference_mode():
        fast = model(torch.tensor([ids]))[0, -1].softmax(-1).tolist()
    for token in sorted(range(len(p)), key=lambda token: -p[token])[: settings.show]:
        print(
            f"  {fitted(token_text(tokenizer, token), 14)} {bar(p[token])} {p[token]:8.4%}   fast: {fast[token]:8.4%}"
        )
    apart = max(abs(a - b) for a, b in zip(p, fast, strict=True))
    print(f"The largest difference among {len(p):,} tokens is {apart:.1e}.")


def train_and_compare(steps: int) -> None:
    import torch

    from model.gpt import GPT

    torch.manual_seed(1)
    vocabulary = sorted(set(TEXT))
    tokens = [vocabulary.index(character) for character in TEXT]
    model = GPT(len(vocabulary), **SHAPE)  # for its initial weights, and to compare with
    weights = {name: numbers_of(weight.tolist()) for name, weight in model.state_dict().items()}
    print(f"{len(TEXT)} characters of {len(vocabulary)} kinds, {len(all_numbers(weights)):,} weights")
    learn(tokens, weights, SHAPE, steps, rate=0.05)

    piece = tokens[: SHAPE["block_size"] + 1]
    for number in all_numbers(weights):
        number.gradient = 0.0
    loss = loss_of(piece, weights, SHAPE)
    loss.backward()
    model.load_state_dict({name: torch.tensor(floats_of(value)) for name, value in weights.items()})
    fast = model.loss(torch.tensor([piece[:-1]]), torch.tensor([piece[1:]]))
    fast.backward()
    print(f"loss of the first {len(piece) - 1} characters: {loss.value:.7f} here, {fast.item():.7f} by PyTorch")
    for name in ("head.weight", "blocks.0.attention.qkv.weight"):
        ours, theirs = weights[name][3][1].gradient, model.get_parameter(name).grad[3, 1].item()
        print(f"gradient of {name}[3][1]: {ours:+.8f} here, {theirs:+.8f} by PyTorch, {abs(ours - theirs):.0e} apart")


if __name__ == "__main__":
    run_script(main)
