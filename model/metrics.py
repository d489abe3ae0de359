"""The figures that the scripts show, each defined once:

surprise        -log2 p of a token, in bits: 1 bit is a coin toss, 10 bits one chance in a thousand
loss            mean of -ln p, in nats per token
perplexity      exp(loss): as unsure as a choice among this many equally likely tokens
bits per byte   total surprise over the UTF-8 bytes of the text, comparable between tokenizers
"""

import math

LN2 = math.log(2)


def surprise(p: float) -> float:
    """-log2 p, in bits. Shannon 1948, A Mathematical Theory of Communication, section 6. surprise(0.25) is 2.0"""
    return max(0.0, -math.log2(p)) if p > 0 else math.inf  # max: no "-0.00" where p is 1, or 1 by rounding


def bits(nats: float) -> float:
    """A loss in nats as bits: mean surprise = loss / ln 2."""
    return nats / LN2


def bits_per_byte(loss: float, tokens_per_byte: float) -> float:
    """A loss in nats per token as bits per byte of text."""
    return bits(loss) * tokens_per_byte


def show_bits_per_byte(value: float | None) -> str:
    """1.61 as "1.610 bits per byte". None and NaN mean unknown: the token ids came without their text."""
    return "bits per byte unknown" if value is None or math.isnan(value) else f"{value:.3f} bits per byte"


def perplexity(loss: float) -> float:
    """exp(loss), or infinity where that is too large for a float."""
    return math.exp(loss) if loss < 700 else math.inf


def uniform_loss(vocab_size: int) -> float:
    """The loss of a model that gives each token the same probability, 1 / vocab_size: ln(vocab_size)."""
    return math.log(vocab_size)


def tokens_per_second(tokens: int, seconds: float) -> float:
    """tokens / seconds, or 0 if the clock has not moved."""
    return tokens / seconds if seconds > 0 else 0.0
