"""Colour a text of yours by how much it surprises the model.

    python scripts/surprise_map.py config.py
    python scripts/surprise_map.py config.py --html data/config.html --quiet

Reads   any UTF-8 text, and gpt_model.pt (train.py, trainv2.py)
Writes  the coloured text, the cost of each line and a summary to stdout; with --html a page that shows the same, and at
        every token what the model expected there instead
Next    open the page; or train longer, and see which surprises go away

The surprise of a token is -log2 of the probability that the model gave it: 1 bit for a coin toss, 10 bits for one
chance in a thousand. These rules say what is counted, and where:

- The first token is foreseen from <|endoftext|>, which precedes every document in training. Each token of the text is
  scored once; no end-of-text is scored after the last one. A line <|endoftext|> in the text is text like any other.
- A text longer than block_size (B tokens) is read in windows of B that overlap by half. In the first window all tokens
  are scored, in each later one the half that is new, so from there on a token is foreseen from at least half a block.
  Training scores its validation file in blocks that do not overlap, so its figures are not quite these.
- A token is charged to the line in which it begins. A line end belongs to the line that it ends. The costs of the lines
  add up to the total, exactly: a surprise is rounded to 2^-20 bits, and sums of such numbers are exact.
- Tokens that hold parts of the same character are shown together, in the colour of their sum, which is the surprise of
  them all: -log2 (p1 p2) = -log2 p1 - log2 p2.
- Characters that a character model does not know are scored as <|unk|>, the token that it reads in their place. That
  leaves open which character it is, so their true cost is higher.

Colours are for a terminal. Where NO_COLOR is set (https://no-color.org), and into a file or a pipe, the surprise of a
token stands below it, in whole bits. COLUMNS sets the width.
"""

import argparse
import sys
from pathlib import Path

import _root

from config import CHAR, Settings
from plumbing.command_line import add_flags, file_flags, model_flag, parse_before_torch, refuse_same
from plumbing.errors import UsageError, UserError, run_script
from plumbing.text import shown_path


def command_line(argv: list[str] | None = None):
    """Returns (settings, arguments)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE", help="the text to read")
    model_flag(parser)
    parser.add_argument("--html", type=Path, metavar="PAGE", help="write a page for a browser to this file as well")
    add_flags(parser, CHAR, "show device debug")
    return parse_before_torch(parser, CHAR, argv)


if __name__ == "__main__":
    settings, args = command_line()  # before torch, which takes seconds to import

import html
import os
import re
import shlex
import shutil
import unicodedata
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from tqdm import tqdm

from model import metrics
from model.device import memory_advice, pick_device
from model.gpt import GPT
from model.storage.model_file import load_model, show_training
from model.tokenization.display import token_text
from model.tokenization.tokenizer import Tokenizer, code_points
from plumbing.corpus import NO_TEXT, decode_text
from plumbing.files import whole_file
from plumbing.page import fill, json_in_html
from plumbing.text import visible

WORST = 10  # the most surprising tokens that the summary names

# Surprise is shown in six levels, of which these are the borders in bits: probability 1/2, 1/4, 1/16, 1/256, 1/4096.
BORDERS = [1, 2, 4, 8, 12]
RANGES = ["below 1", *(f"{a} to {b}" for a, b in pairwise(BORDERS)), f"{BORDERS[-1]} and more"]
# How a terminal shows each (parameters of the SGR sequence, ECMA-48, and xterm's 256 colours). From plain to loud on a
# dark background as on a light one: letters first, whose violet has the same contrast with black and with white, then
# backgrounds that bring their own letters along. Violet, orange and dark red differ for colour-blind eyes too, and
# underline and bold tell the levels apart without any colour.
STYLES = ["", "38;5;98", "38;5;98;4", "38;5;16;48;5;147", "38;5;16;48;5;214;1", "38;5;231;48;5;124;1;4"]


# === scoring ==========================================================================================================


@dataclass(frozen=True)
class Scores:
    """What the model made of a text of N tokens, with K candidates for each."""

    bits: np.ndarray  # (N,) float64, surprise
    rank: np.ndarray  # (N,) place of the token among all, from 1 for the likeliest
    expected: np.ndarray  # (N, K) the ids that the model held likeliest, likeliest first
    p: np.ndarray  # (N, K) their probabilities


@torch.inference_mode()
def score(model: GPT, ids: np.ndarray, end_of_text_id: int, show: int) -> Scores:
    """Score each of N >= 1 tokens once, by the windows that are described above, many of them in one batch.

    Window w holds the tokens from w * (B // 2) on, B being block_size: B tokens to read, each with the next one as its
    target. Targets of the first window are all new, of the later ones the last B // 2.
    """
    block, half = model.block_size, max(1, model.block_size // 2)
    later = -(-max(0, len(ids) - block) // half)  # windows after the first
    # <|endoftext|>, the text, and filling behind it: attention looks back only, so it changes nothing.
    tokens = torch.full((block + later * half + 1,), end_of_text_id)
    tokens[1 : len(ids) + 1] = torch.from_numpy(ids.astype(np.int64))
    windows = tokens.unfold(0, block + 1, half)  # (1 + later, B + 1)

    # As many windows at once as the processor likes, but not more logits than 64 MB (or one window).
    batch_size = max(1, min(4096, (1 << 24) // model.vocab_size) // block)
    bits, rank, expected, p = [], [], [], []
    with tqdm(total=len(ids), desc="reading", unit="token", unit_scale=True, delay=2, leave=False) as progress:
        for first in range(0, len(windows), batch_size):
            window = windows[first : first + batch_size].to(model.device)
            logits = model(window[:, :-1]).float()  # (windows, B, V)
            new, targets = logits[:, -half:].flatten(0, 1), window[:, -half:].flatten()  # (scored, V), (scored,)
            if first == 0:
                new = torch.cat([logits[0, :-half], new])
                targets = torch.cat([window[0, 1:-half], targets])
            log_p = new.log_softmax(dim=-1)
            own = log_p.gather(1, targets[:, None])  # (scored, 1)
            top = log_p.topk(min(show, model.vocab_size))
            bits.append(metrics.bits(-own[:, 0].cpu().double()).numpy())
            rank.append(1 + (log_p > own).sum(dim=-1).cpu().numpy())
            expected.append(top.indices.cpu().numpy())
            p.append(top.values.exp().cpu().numpy())
            progress.update(min(len(targets), len(ids) - progress.n))
    scores = [np.concatenate(parts)[: len(ids)] for parts in (bits, rank, expected, p)]
    scores[0] = np.round(scores[0] * 2**20) / 2**20 + 0.0  # see the rules above; + 0.0 makes 0.0 of -0.0
    return Scores(*scores)


# === where the tokens stand in the text ===============================================================================


@dataclass(frozen=True)
class Places:
    """Where each of N tokens stands. A piece is the fewest tokens in a row that are whole characters: mostly one."""

    line: np.ndarray  # (N,) the line in which the token begins, from 0
    column: np.ndarray  # (N,) the character of that line in which it begins, from 0
    lines: int
    first: np.ndarray  # (P + 1,) the first token of each piece, and N
    cuts: np.ndarray  # (P + 1,) the character at which each piece begins, and the length of the text


def find_places(tokenizer: Tokenizer, text: str, ids: np.ndarray) -> Places:
    """Lines, columns and pieces of the tokens `ids` of a text. Only "\\n" ends a line."""
    characters = code_points(text)
    if tokenizer.kind == "char":  # one token a character, <|unk|> included
        at = np.arange(len(ids))  # the character in which each token begins
        whole = np.ones(len(ids), dtype=bool)  # whether it begins with it, and not in its middle
    else:
        sizes = {token: len(tokenizer.token_bytes(token)) for token in set(ids.tolist())}
        begins = np.cumsum([0, *(sizes[token] for token in ids.tolist())])[:-1]  # the byte at which each token begins
        ends = np.cumsum(1 + (characters > 0x7F) + (characters > 0x7FF) + (characters > 0xFFFF))  # of UTF-8 characters
        at = np.searchsorted(ends, begins, side="right")
        whole = begins == np.append(0, ends)[at]
    line_ends = np.flatnonzero(characters == ord("\n"))
    line = np.searchsorted(line_ends, at)
    column = at - np.append(0, line_ends + 1)[line]
    lines = len(line_ends) + (not text.endswith("\n"))
    return Places(line, column, lines, np.append(np.flatnonzero(whole), len(ids)), np.append(at[whole], len(text)))


def text_by_line(text: str, places: Places) -> Iterator[list[tuple[int, str]]]:
    """Yield each line as a list of (number of a piece, what of the piece stands in this line, as it is shown).

    "a\\n  b" in the pieces "a", "\\n ", " b" gives [(0, "a"), (1, "↵")] and [(1, "·"), (2, "·b")].
    """
    line = []
    for number, (begin, end) in enumerate(pairwise(places.cuts.tolist())):
        for part in re.findall(r"[^\n]*\n|[^\n]+", text[begin:end]):
            line.append((number, shown(part)))
            if part.endswith("\n"):
                yield line
                line = []
    if line:
        yield line


def shown(text: str) -> str:
    """A text with visible white space. A combining mark without its letter gets the dotted circle that Unicode has for
    this, or it would be drawn on its neighbour."""
    return "◌" * (cells(text[0]) == 0) + visible(text)


def cells(text: str) -> int:
    """Columns that a text takes in a terminal: two for East Asian wide characters, none for combining marks."""
    wide = sum(unicodedata.east_asian_width(c) in "WF" for c in text)
    return len(text) + wide - sum(unicodedata.category(c) in ("Mn", "Me") for c in text)


# === the terminal =====================================================================================================


def level(bits: float) -> int:
    """The level of a surprise, 0 to 5: one for each border that it reaches."""
    return bisect_right(BORDERS, bits)


def painted(text: str, bits: float) -> str:
    """A text in the style of a surprise."""
    style = STYLES[level(bits)]
    return f"\x1b[{style}m{text}\x1b[0m" if style else text


def mark(bits: float) -> str:
    """A surprise as one letter, for where there are no colours: whole bits, "+" from 10 on, nothing below 1."""
    return " " if bits < 1 else "+" if bits >= 10 else str(int(bits))


def wrapped(line: list[tuple[int, str]], width: int) -> Iterator[list[tuple[int, str]]]:
    """Cut a line into rows of at most `width` cells, also inside a piece."""
    row, used = [], 0
    for number, text in line:
        begin = 0
        for i, character in enumerate(text):
            if used + cells(character) > width:
                if begin < i:
                    row.append((number, text[begin:i]))
                yield row
                row, used, begin = [], 0, i
            used += cells(character)
        row.append((number, text[begin:]))
    yield row


def print_map(lines, bits: list[float], costs: list[float], colours: bool, width: int) -> None:
    """Print each line with its number and cost: coloured, or with a mark under the beginning of each piece.

    lines as text_by_line gives them, bits of each piece, costs of each line.
    """
    print(" line     bits  text: · space, ↵ line end, → tab")
    last = -1
    for number, (line, cost) in enumerate(zip(lines, costs, strict=True), 1):
        gutter = f"{number:>5} {cost:>8.1f}  "
        for row in wrapped(line, width - len(gutter)):
            if colours:
                print(gutter + "".join(painted(text, bits[piece]) for piece, text in row))
            else:
                print(gutter + "".join(text for _, text in row))
                marks = ""
                for piece, text in row:
                    marks += (mark(bits[piece]) if piece != last else "").ljust(cells(text))
                    last = piece
                if marks.strip():
                    print(" " * len(gutter) + marks.rstrip())
            gutter = " " * len(gutter)
    if colours:
        print("surprise in bits: " + "  ".join(map(painted, RANGES, [0, *BORDERS])))
    else:
        print("Under the beginning of each token: its surprise in whole bits. Nothing: below 1 bit. +: 10 and more.")


# === the page =========================================================================================================


def make_page(
    name: str, facts: list[str], worst: list, lines, bits: list[float], costs: list[float], details: dict
) -> str:
    """The page, from surprise_map.html. Everything that comes from the text or the model is escaped here.

    facts     lines of the summary
    worst     rows of most_surprising()
    lines, bits, costs   as in print_map()
    details   what a token shows when it is pointed at
    """
    written, seen = [], set()
    for number, (line, cost) in enumerate(zip(lines, costs, strict=True), 1):
        spans = []
        for piece, text in line:
            place = f"data-of=t{piece}" if piece in seen else f"id=t{piece}"
            seen.add(piece)
            style = f" class=l{level(bits[piece])}" * (level(bits[piece]) > 0)
            spans.append(f"<span {place}{style}>{html.escape(text)}</span>")
        written.append(f"<div class=line><b>{number}</b><i>{cost:.1f}</i><code>{''.join(spans)}</code></div>")
    rows = []
    for row in worst:
        instead = ", ".join(f"<code>{html.escape(text)}</code> {p:.1%}" for text, p in row.instead)
        rows.append(
            f"<tr><td><a href=#t{row.piece}>line {row.line}, column {row.column}</a><td>{row.bits:.2f}"
            f"<td>{row.rank:,}<td><code>{html.escape(row.token)}</code><td>{instead}"
        )
    legend = "".join(f"<li><span class=l{i}>{text}</span>" for i, text in enumerate(RANGES))
    return fill(
        Path(__file__).parent / "pages" / "surprise_map.html",
        name=html.escape(name),
        facts="".join(f"<p>{html.escape(fact)}</p>" for fact in facts),
        legend=legend,
        worst="\n".join(rows),
        lines="\n".join(written),
        details=json_in_html(details),
    )


# === what it comes to =================================================================================================


@dataclass(frozen=True)
class Row:
    """One of the most surprising tokens, as the summary shows it."""

    piece: int
    line: int  # from 1, as column
    column: int
    token: str
    bits: float
    rank: int
    instead: list[tuple[str, float]]  # the likeliest other tokens, with their probabilities


def most_surprising(tokenizer: Tokenizer, text: str, ids: np.ndarray, scores: Scores, places: Places) -> list[Row]:
    """The WORST tokens with the highest surprise, highest first; of equals, the earlier one."""
    rows = []
    for i in np.argsort(-scores.bits, kind="stable")[:WORST].tolist():
        piece = int(np.searchsorted(places.first, i, side="right")) - 1
        (first, after), (begin, end) = places.first[piece : piece + 2], places.cuts[piece : piece + 2]
        token = token_text(tokenizer, ids[i])
        if ids[i] == tokenizer.unknown_id:
            token = f"{shown(text[begin:end])} (read as {token})"
        elif after - first > 1:
            token = f"{token} (in {shown(text[begin:end])})"
        candidates = zip(scores.expected[i].tolist(), scores.p[i].tolist(), strict=True)
        rows.append(
            Row(
                piece=piece,
                line=int(places.line[i]) + 1,
                column=int(places.column[i]) + 1,
                token=token,
                bits=float(scores.bits[i]),
                rank=int(scores.rank[i]),
                instead=[(token_text(tokenizer, other), p) for other, p in candidates if other != ids[i]],
            )
        )
    return rows


def token_details(tokenizer: Tokenizer, ids: np.ndarray, scores: Scores, places: Places) -> dict:
    """What the page shows at each token: {"words": {id: text}, "first": the first token of each piece, "tokens": [[id,
    surprise in bits, rank, id of the likeliest, its probability, id of the second, ...], ...]}."""
    used = np.union1d(ids, scores.expected).tolist()
    tokens = []
    for i, token in enumerate(ids.tolist()):
        row = [token, round(float(scores.bits[i]), 2), int(scores.rank[i])]
        for candidate, p in zip(scores.expected[i].tolist(), scores.p[i].tolist(), strict=True):
            if p >= 0.0005:  # below that it would be shown as 0.0%
                row += [candidate, round(p, 3)]
        tokens.append(row)
    words = {token: token_text(tokenizer, token) for token in used}
    return {"words": words, "first": places.first.tolist(), "tokens": tokens}


def read_text(path: Path) -> tuple[str, int]:
    """The text of a file, and its size in bytes."""
    if not path.is_file():
        raise UserError(f"There is no file {shown_path(path)}. Name a text file to read.")
    data = path.read_bytes()
    if not data:
        raise UserError(f"{shown_path(path)} is empty: there is nothing in it to be surprised by.")
    if data.count(0) * 4 > len(data):  # ids below 128 are valid UTF-8
        raise UserError(f"{shown_path(path)} is no text. {NO_TEXT}")
    return decode_text(data, path), len(data)


@memory_advice("Try a shorter text, or --device cpu.")
def main(settings: Settings, args) -> None:
    if settings.show < 0:
        raise UsageError(f"--show must be 0 or above, and it is {settings.show}.")
    refuse_same({"--html": args.html}, args.file, settings.model_file)
    text, utf8_bytes = read_text(args.file)
    model, tokenizer, training = load_model(settings.model_file)
    if tokenizer.kind == "none":
        raise UserError(f"{shown_path(settings.model_file)} was trained on bare ids: it cannot read a text.")
    model.to(pick_device(settings.device))

    # === score ========================================================================================================
    ids = tokenizer.encode(text)
    scores = score(model, ids, tokenizer.end_of_text_id, settings.show)
    places = find_places(tokenizer, text, ids)
    lines = list(text_by_line(text, places))
    costs = np.bincount(places.line, weights=scores.bits, minlength=places.lines).tolist()
    piece_bits = np.add.reduceat(scores.bits, places.first[:-1]).tolist()

    # === the map ======================================================================================================
    if settings.debug:
        print(f"{shown_path(settings.model_file)}, a {tokenizer.kind} model: {show_training(training)}")
        if len(ids) > model.block_size:
            print(f"{len(ids):,} tokens, read in windows of {model.block_size} that overlap by half")
        colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        print_map(lines, piece_bits, costs, colours, shutil.get_terminal_size((100, 24)).columns)

    # === the summary ==================================================================================================
    total = float(scores.bits.sum())
    loss = total / len(ids) * metrics.LN2
    facts = [
        f"{args.file.name}: {places.lines:,} lines, {utf8_bytes:,} bytes, {len(ids):,} tokens, {total:,.1f} bits",
        f"{metrics.bits_per_byte(loss, len(ids) / utf8_bytes):.3f} bits per byte, mean surprise "
        f"{metrics.bits(loss):.3f} bits a token, loss {loss:.4f} nats a token, perplexity "
        f"{metrics.perplexity(loss):.2f}",
    ]
    if unknown := Counter(tokenizer.unknown(text, ids)):
        some = ", ".join(f"{shown(c)} ({n:,})" for c, n in unknown.most_common(20)) + ", ..." * (len(unknown) > 20)
        facts.append(f"{unknown.total():,} characters are unknown to the model and were read as <|unk|>: {some}")
    worst = most_surprising(tokenizer, text, ids, scores, places)
    print("\n".join(facts))
    print(f"The {len(worst)} most surprising tokens, and what the model expected instead:")
    for row in worst:
        print(f"  line {row.line}, column {row.column}: {row.token}  {row.bits:.2f} bits, rank {row.rank:,}")
        if row.instead:
            print("    instead: " + "  ".join(f"{text} {p:.1%}" for text, p in row.instead))
    if not args.html:
        flag = file_flags(settings, CHAR, "model_file")
        print(f"Next: python scripts/surprise_map.py {shlex.quote(str(args.file))}{flag} --html data/surprise.html")
        return

    # === the page =====================================================================================================
    details = token_details(tokenizer, ids, scores, places)
    page = make_page(args.file.name, facts, worst, lines, piece_bits, costs, details)
    with whole_file(args.html) as file:
        file.write(page.encode(errors="backslashreplace"))  # a file's name can hold bytes that are no text
    print(f"Next: open {shown_path(args.html)} in a browser; it needs no network.")


if __name__ == "__main__":
    run_script(lambda: main(settings, args))
