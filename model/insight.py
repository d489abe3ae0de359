"""What the scripts show of a model's inside: figures and tokens in a form that people read.

Figures, each defined once:
    surprise        -log2 p of a token, in bits: 1 bit is a coin toss, 10 bits one chance in a thousand
    loss            mean of -ln p, in nats a token
    perplexity      exp(loss): as unsure as if choosing among so many equally likely tokens
    bits per byte   total surprise over the UTF-8 bytes of the text, comparable between tokenizers
"""

import math

LN2 = math.log(2)


def surprise(p: float) -> float:
    """-log2 p, in bits. Shannon 1948, A Mathematical Theory of Communication, section 6. p = 0.25 gives 2.0"""
    return max(0.0, -math.log2(p)) if p > 0 else math.inf  # max: no "-0.00" where p is 1, or 1 by rounding


def bits(nats: float) -> float:
    """A loss in nats as bits: mean surprise = loss / ln 2."""
    return nats / LN2


def bits_per_byte(loss: float, tokens_per_byte: float) -> float:
    """Loss in nats a token to bits per byte of text."""
    return bits(loss) * tokens_per_byte


def show_bits_per_byte(value: float | None) -> str:
    """1.61 as "1.610 bits per byte". None and NaN stand for ids without their text, whose bytes nobody has counted."""
    return "bits per byte unknown" if value is None or math.isnan(value) else f"{value:.3f} bits per byte"


def show_training(training: dict) -> str:
    """What a model's file says of its training: "trained for 830 steps, validation 1.650 bits per byte"."""
    per_byte = show_bits_per_byte(training["val_bits_per_byte"])
    return f"trained for {training['steps']:,} steps, validation {per_byte}"


def perplexity(loss: float) -> float:
    """exp(loss); infinite where that is too large for a float."""
    return math.exp(loss) if loss < 700 else math.inf


def first_loss(vocab_size: int) -> float:
    """Loss of a model that gives every token the same probability 1 / vocab_size: ln(vocab_size)."""
    return math.log(vocab_size)


def tokens_per_second(tokens: int, seconds: float) -> float:
    """How fast it went; 0 where no time has passed that a clock could tell."""
    return tokens / seconds if seconds > 0 else 0.0


def duration(seconds: float) -> str:
    """Seconds as people say them: 8.2 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def time_left(done: int, total: int, seconds: float) -> float:
    """Seconds still to go, if the rest takes as long a piece as what is done."""
    return seconds / done * (total - done) if done else math.nan


def bar(p: float, width: int = 20) -> str:
    """A probability as a bar of `width` cells at 1.0, in eighths of a cell: 0.5 at width 4 gives "██  "."""
    eighths = round(p * width * 8)
    full, part = divmod(eighths, 8)
    return ("█" * full + " ▏▎▍▌▋▊▉"[part]).ljust(width)[:width] if part else ("█" * full).ljust(width)


VISIBLE = {" ": "·", "\n": "↵", "\t": "→", "\r": "␍"}


def visible(text: str) -> str:
    """A text with its white space to be seen: "a b\\n" gives "a·b↵". Other unprintable characters are escaped."""
    return "".join(VISIBLE.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text)


def readable(data: bytes) -> str:
    """The bytes of a token as visible text; where they are not whole characters, as hex: b"\\xc3" gives <c3>."""
    try:
        return visible(data.decode("utf-8"))
    except UnicodeDecodeError:
        return "".join(f"<{byte:02x}>" for byte in data)


def token_text(tokenizer, token: int, as_text: bool = True) -> str:
    """How to show a token: as visible text, or as the tokenizer's raw piece in quotes."""
    return readable(tokenizer.token_bytes(token)) if as_text else repr(tokenizer.piece(token))


def cut_line(tokenizer, ids, as_text: bool = True) -> str:
    """Token ids as text with a bar between tokens: "def·|main|():"."""
    return "|".join(token_text(tokenizer, token, as_text) for token in ids)


def token_rows(tokenizer, ids, per_row: int = 10) -> list[str]:
    """Token ids as lines of pairs: the tokens above their ids, in columns."""
    rows = []
    for first in range(0, len(ids), per_row):
        part = [int(token) for token in ids[first : first + per_row]]
        texts = [token_text(tokenizer, token) for token in part]
        widths = [max(len(text), len(str(token))) for text, token in zip(texts, part, strict=True)]
        rows.append("  ".join(text.ljust(width) for text, width in zip(texts, widths, strict=True)).rstrip())
        rows.append("  ".join(str(token).ljust(width) for token, width in zip(part, widths, strict=True)).rstrip())
    return rows
