"""Text for people: bars, durations, paths, and characters that would be invisible or do something to a terminal."""

import math
import os
import shlex
import string
import unicodedata
from itertools import accumulate
from pathlib import Path


def printable(text: str, keep: str = "") -> str:
    """A text from outside, such as a file's name, a column, or what a model wrote, as it may be printed: what a
    terminal would obey, and bytes of a name that are not UTF-8, are escaped, save the characters in `keep`:
    "a\\x1b[2J" gives "a\\\\x1b[2J"."""
    return "".join(c if c.isprintable() or c in keep else escaped(c) for c in text)


def escaped(character: str) -> str:
    """ "\\n" gives "\\\\n"; a byte that Python could not decode, such as "\\udce9", gives "\\\\xe9"."""
    code = ord(character)
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code < 0xDD00 else character.encode("unicode_escape").decode()


def shown_path(path: Path) -> str:
    """A path as messages show it: relative to the current folder if it is below that, else absolute."""
    return printable(str(near_path(path)))


def near_path(path: Path) -> Path:
    path = Path(path).absolute()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def quoted_path(path: Path) -> str:
    """A path for a shell's command line; where it has characters that cannot be typed, as bash's $'...'."""
    text = str(near_path(path))
    if text.isprintable():
        return shlex.quote(text)
    plain = (string.ascii_letters + string.digits + "/._-").encode()
    typed = (chr(byte) if byte in plain else f"\\x{byte:02x}" for byte in os.fsencode(text))
    return f"$'{''.join(typed)}'"


IN_QUICKSTART = "TINYLITTLEGPT_QUICKSTART"  # set by the quickstart, which says itself what comes next


def print_next(what: str) -> None:
    """Say what comes after this script, where a person runs it."""
    if not os.environ.get(IN_QUICKSTART):
        print(f"Next: {what}")


def plural(count: int, noun: str) -> str:
    """A count and its noun: "1 token", "5,000 tokens"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def byte_size(size: float) -> str:
    """Bytes as people say them: 5.0 kB, 12.3 MB, 1.54 GB."""
    if size < 999_950:
        return f"{size / 1e3:.1f} kB"
    return f"{size / 1e6:.1f} MB" if size < 999_950_000 else f"{size / 1e9:,.2f} GB"


def byte_rate(size: float, seconds: float) -> str:
    """ " (12.3 MB/s)"; nothing for less than 1 MB, where only starting takes time."""
    return f" ({size / 1e6 / seconds:.1f} MB/s)" if size >= 1e6 else ""


def duration(seconds: float) -> str:
    """Seconds as people say them: 8.2 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def time_left(done: int, total: int, seconds: float) -> float:
    """Seconds that remain, at the speed so far. NaN before anything is done."""
    return seconds / done * (total - done) if done else math.nan


def bar(p: float, width: int = 20) -> str:
    """A probability as a bar of `width` cells at 1.0, in eighths of a cell: 0.5 at width 4 gives "██  "."""
    eighths = round(p * width * 8)
    full, part = divmod(eighths, 8)
    return ("█" * full + " ▏▎▍▌▋▊▉"[part]).ljust(width)[:width] if part else ("█" * full).ljust(width)


VISIBLE = {" ": "·", "\n": "↵", "\t": "→", "\r": "␍"}


def visible(text: str) -> str:
    """A text with visible white space: "a b\\n" gives "a·b↵". Other unprintable characters are escaped."""
    return "".join(VISIBLE.get(c) or (c if c.isprintable() else escaped(c)) for c in text)


def readable(data: bytes) -> str:
    """The bytes of a token as visible text, or as hex if they are not whole characters: b"\\xc3" gives <c3>."""
    try:
        return visible(data.decode("utf-8"))
    except UnicodeDecodeError:
        return "".join(f"<{byte:02x}>" for byte in data)


def cell_width(text: str) -> int:
    """Columns that a text takes in a terminal: two for East Asian wide characters, none for combining marks."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.category(c) in ("Mn", "Me") for c in text)


def shortened(text: str, cells: int) -> str:
    """A text in at most so many columns, with … where it was cut."""
    if cell_width(text) <= cells:
        return text
    return text[: sum(end < cells for end in accumulate(map(cell_width, text)))] + "…"


def fitted(text: str, cells: int) -> str:
    """A text in exactly so many columns, shortened or filled with spaces."""
    text = shortened(text, cells)
    return text + " " * (cells - cell_width(text))
