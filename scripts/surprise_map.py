"""Colour a text of yours by how much it surprises the model.

    python scripts/surprise_map.py config.py
    python scripts/surprise_map.py config.py --html data/config.html --quiet

Reads   any UTF-8 text, and gpt_model.pt (train.py, trainv2.py)
Writes  the coloured text, the bits of each line and a summary to stdout; with --html a page that shows the same, and
        for every token what the model expected instead
Next    open the page; or train longer, and see which surprises go away

The surprise of a token is -log2 of the probability that the model gave it: 1 bit for a coin toss, 10 bits for one
chance in a thousand. The rules:

- Each token of the text is scored once. The first one is predicted from <|endoftext|>, which precedes every document in
  training; no end-of-text is scored after the last one. A line <|endoftext|> in the text is ordinary text.
- A text longer than block_size is read in windows of block_size tokens that overlap by half. The first window scores
  all of its tokens, each later one its new half, so every token after the first window is predicted from at least half
  a block. Training scores its validation file in blocks that do not overlap, so its figures differ slightly.
- A token counts for the line in which it starts. A line end belongs to the line that it ends. The bits of the lines add
  up to the total exactly: each surprise is rounded to 2^-20 bits, and sums of such numbers are exact.
- Tokens that are parts of the same character are shown together, in the colour of their sum, which is their joint
  surprise: -log2 (p1 p2) = -log2 p1 - log2 p2.
- A character model scores a character that it does not know as <|unk|>. That leaves open which character it is, so the
  true surprise is higher.

Colours are for a terminal. In a file or a pipe, and if NO_COLOR is set (https://no-color.org), the surprise of a token
is printed below it, in whole bits. COLUMNS sets the width.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # also with python -I
import plumbing.start

from html import escape
from pathlib import Path

from config import CHAR
from plumbing import terminal
from plumbing.command_line import ScriptParser, add_flags, file_flags, model_flag, parse, refuse_no_page
from plumbing.corpus import NO_TEXT, decode_text
from plumbing.errors import UserError, run_script
from plumbing.page import fill_page, write_page
from plumbing.text import plural, printable, quoted_path, shown_path


def main(argv: list[str] | None = None) -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="the text to read")
    model_flag(parser)
    parser.add_argument("--html", type=Path, metavar="PAGE", help="write a page for a browser to this file as well")
    add_flags(parser, CHAR, "show device debug")
    settings, args = parse(parser, CHAR, argv)
    refuse_no_page("--html", args.html, args.file, settings.model_file)
    text = read_text(args.file)

    # What needs torch is imported here, so that --help answers at once.
    from model.device import memory_advice, pick_device
    from model.interpretation.surprise import most_surprising, score_text, spans_by_line, summarize_surprise
    from model.interpretation.surprise_map import legend_html, print_map, ranking_html, surprise_page_data, text_html
    from model.storage.model_file import load_model, show_training

    with memory_advice("Try a shorter text, or --device cpu."):
        model, tokenizer, training = load_model(settings.model_file)
        if tokenizer.kind == "none":
            raise UserError(f"{shown_path(settings.model_file)} was trained on bare ids: it cannot read a text.")
        model.to(pick_device(settings.device))
        found = score_text(model, tokenizer, text, settings.show)

    lines, span_bits, line_bits = list(spans_by_line(text, found.layout)), found.span_bits(), found.line_bits()
    if settings.debug:
        print(f"{shown_path(settings.model_file)}, a {tokenizer.kind} model: {show_training(training)}")
        if len(found.ids) > model.block_size:
            print(f"{len(found.ids):,} tokens, read in windows of {model.block_size} that overlap by half")
        print_map(lines, span_bits, line_bits, terminal.colours(sys.stdout), terminal.width())
    facts = summarize_surprise(args.file.name, tokenizer, found)
    ranking = most_surprising(tokenizer, found)
    print(printable("\n".join(facts), keep="\n"))
    print(f"The {plural(len(ranking), 'most surprising token')}, and what the model expected instead:")
    for row in ranking:
        print(f"  line {row.line}, column {row.column}: {row.token}  {row.bits:.2f} bits, rank {row.rank:,}")
        if row.instead:
            print("    instead: " + "  ".join(f"{text} {p:.1%}" for text, p in row.instead))
    if args.html:
        parts = {"name": escape(args.file.name), "legend": legend_html(), "ranking": ranking_html(ranking)}
        parts["lines"] = text_html(lines, span_bits, line_bits)
        page = fill_page("surprise_map.html", facts, surprise_page_data(tokenizer, found), **parts)
        write_page(args.html, page, plural(len(found.ids), "token"))
    else:
        flag = file_flags(settings, CHAR, "model_file")
        print(f"Next: python scripts/surprise_map.py {quoted_path(args.file)}{flag} --html data/surprise.html")


def read_text(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"There is no file {shown_path(path)}. Name a text file to read.")
    data = path.read_bytes()
    if not data:
        raise UserError(f"{shown_path(path)} is empty. Name a file that contains text.")
    if data.count(0) * 4 > len(data):  # ids below 128 are valid UTF-8
        raise UserError(f"{shown_path(path)} is not text. {NO_TEXT}")
    return decode_text(data, path)


if __name__ == "__main__":
    run_script(main)
