"""What the generators show of each step, in short, explained and as a trace: that the figures are the model's."""

# ruff: noqa: F401, F811 (imported fixtures)

import json
import math
import re
import sys

import pytest
import torch
from generators import FLAGS, rows, trained, write

from model.generation import display
from model.storage.model_file import load_model
from model.tokenization.display import STYLES, surprise_level, token_text
from plumbing import terminal
from plumbing.text import cell_width, visible

# --- what is shown ----------------------------------------------------------------------------------------------------


def test_the_prompt_is_shown_with_the_surprise_of_each_token(write, trained):
    model, tokenizer, _ = load_model(trained["char"])
    prompt = "def add"
    _, err = write("--prompt", prompt, "--tokens", 0, "--readable")
    ids = tokenizer.encode(prompt)
    with torch.no_grad():
        log_p = torch.log_softmax(model(torch.tensor(ids.astype(int))[None])[0], dim=-1)
    expected = [-float(log_p[i, ids[i + 1]]) / math.log(2) for i in range(len(ids) - 1)]
    shown = re.findall(r"id +(\d+)  (\S+) +surprise +([\d.]+) bits", err)
    assert [int(token) for token, _, _ in shown] == ids[1:].tolist()
    assert [text for _, text, _ in shown] == ["e", "f", "·", "a", "d", "d"]
    assert [float(bits) for _, _, bits in shown] == pytest.approx(expected, abs=0.006)


def test_the_candidates_are_those_that_were_sampled_from(write, trained):
    """Each step's table against plain PyTorch: the model's probabilities, and after temperature and top-k."""
    model, tokenizer, _ = load_model(trained["char"])
    _, err = write("--prompt", "def ", "--tokens", 8, "--temperature", 0.7, "--top-k", 3, "--show", 4, "--readable")
    context = tokenizer.encode("def ").tolist()
    steps = rows(err)
    assert len(steps) == 8
    for step in steps:
        logits = model(torch.tensor([context]))[0, -1].detach().double()
        p = logits.softmax(0)
        kept = (logits / 0.7).softmax(0).topk(3)
        drawn = dict(zip(kept.indices.tolist(), (kept.values / kept.values.sum()).tolist(), strict=True))
        assert [row[1] for row in step["candidates"]] == p.topk(4).indices.tolist()
        for mark, token, text, drawn_p, model_p in step["candidates"]:
            assert model_p == pytest.approx(float(p[token]), abs=6e-5)
            assert drawn_p == pytest.approx(drawn.get(token, 0.0), abs=6e-5)
            assert text == token_text(tokenizer, token)
            assert (mark == ">") == (token == step["chosen"])
        assert step["rank"] == 1 + sum(float(x) > float(p[step["chosen"]]) for x in p)
        assert step["bits"] == pytest.approx(-math.log2(p[step["chosen"]]), abs=0.006)
        context.append(step["chosen"])


def test_a_choice_below_the_candidates_shown_gets_a_row_of_its_own(write):
    _, err = write("--tokens", 40, "--temperature", 3.0, "--top-k", 0, "--show", 2)
    low = [step for step in rows(err) if step["rank"] > 2]
    assert low
    for step in low:
        assert len(step["candidates"]) == 3
        assert step["candidates"][-1][:2] == (">", step["chosen"])
    _, err = write("--tokens", 5, "--show", 0)
    assert all(len(step["candidates"]) == 1 for step in rows(err))


def test_entropy_and_what_the_filters_removed(write, trained):
    """Against plain PyTorch: of the model's own distribution, in bits, and which part of it each filter left out."""
    model, tokenizer, _ = load_model(trained["bpe"])
    filters = ["--top-k", 12, "--top-p", 0.8, "--min-p", 0.1]
    _, err = write("--prompt", "def ", "--tokens", 12, "--temperature", 1.5, *filters, "--readable", kind="bpe")
    context, names = tokenizer.encode("def ").tolist(), set()
    for step in rows(err):
        p = model(torch.tensor([context]))[0, -1].detach().double().softmax(0)
        assert step["entropy"] == pytest.approx(-float((p * p.log2()).sum()), abs=0.006)
        p = p.sort(descending=True).values
        q = (p.log() / 1.5)[:12].softmax(0)
        n = int((q.cumsum(0) - q < 0.8).sum())
        m = int((q[:n] >= 0.1 * q[0]).sum())
        removed = {"top-k": p[12:].sum(), "top-p": p[n:12].sum(), "min-p": p[m:n].sum()}
        removed = {name: float(part) for name, part in removed.items() if part >= 5e-5}
        assert step["removed"] == pytest.approx(removed, abs=6e-5)
        names |= set(removed)
        context.append(step["chosen"])
    assert names == {"top-k", "top-p", "min-p"}
    assert "removed" not in write("--tokens", 5, "--top-k", 0)[1]


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_the_text_so_far_ends_with_the_chosen_token(write, kind, monkeypatch):
    monkeypatch.setenv("COLUMNS", "75")
    out, err = write("--prompt", "def é", "--tokens", 120, "--readable", "--seed", 3, kind=kind)
    text = visible("def é")
    for step in rows(err):
        if step["so_far"].endswith("|<|endoftext|>"):
            break
        before, _, new = step["so_far"].rpartition("|")
        text += new
        shown = (before + new).lstrip("…")
        assert text.endswith(shown)
        assert len(shown) == len(text) or len(shown) > 50
    assert out.decode().startswith("def é") and len(text) > 50


LONG = ["--prompt", "日本" + "x" * 90, "--tokens", 30, "--temperature", 2, "--top-k", 0, "--readable"]


@pytest.mark.parametrize("columns", [60, 80, 132])
@pytest.mark.parametrize("flags", [[], ["--explain"], ["--explain", *FLAGS], ["--samples", 3]], ids=str)
def test_no_line_is_wider_than_the_terminal(write, monkeypatch, columns, flags):
    if columns < 80 and "--explain" in flags:
        pytest.skip("its figures alone need more")
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(display, "token_text", lambda tokenizer, token, as_text=True: f"日{token}" + "y" * (token % 30))
    for kind in ("char", "bpe"):
        _, err = write(*LONG, *flags, kind=kind)
        lines = [line for line in err.splitlines() if not re.match("/|The prompt|Mean surprise", line)]
        assert [line for line in lines if cell_width(line) > columns] == []
        assert len(lines) > 100


def test_titles_come_once_and_only_of_what_is_on(write):
    assert write("--tokens", 4)[1].count("drawn with") == 1
    _, err = write("--tokens", 4, "--explain")
    assert err.count(" drawn ") == 1 and "penalised" not in err and "tempered" in err and "removed" in err
    _, err = write("--tokens", 4, "--explain", "--temperature", 1, "--top-k", 0)
    assert "tempered" not in err and "removed" not in err
    _, err = write("--tokens", 4, "--explain", "--repetition-penalty", 1.1)
    assert "penalised" in err


def test_rows_of_nothing_are_left_out(write):
    _, err = write("--prompt", "def add_1(first, seco", "--tokens", 3, "--temperature", 0.3, "--show", 50)
    shown = [len(step["candidates"]) for step in rows(err)]
    assert max(shown) < 40
    for step in rows(err):
        assert all(mark == ">" or max(drawn, p) > 0 for mark, _, _, drawn, p in step["candidates"])


def test_colours_in_a_terminal_only(write, monkeypatch):
    plain = write("--prompt", "def x", "--tokens", 20, "--temperature", 2)[1]
    assert "\x1b" not in plain
    monkeypatch.setattr(terminal, "colours", lambda stream: stream is sys.stderr)
    coloured = write("--prompt", "def x", "--tokens", 20, "--temperature", 2)[1]
    strip = re.compile(r"\x1b\[[\d;]*m")
    assert rows(strip.sub("", coloured)) == rows(plain)
    found = re.findall(rf", surprise (?:\x1b\[([\d;]+)m)?({'[0-9.]+'})", coloured)
    assert len(found) == len(rows(plain)) > 5
    for style, bits in found:
        assert style == STYLES[surprise_level(float(bits))]
    lines = [line for line in coloured.splitlines() if line.startswith("   text ")]
    newest = [re.search(r"\|(?:\x1b\[([\d;]+)m)?[^|]+$", line.replace("<|endoftext|>", "end"))[1] for line in lines]
    assert [style or "" for style in newest] == [style for style, _ in found]


def test_the_summary_adds_up(write):
    out, err = write("--prompt", "é", "--tokens", 20, "--temperature", 1.0)
    surprises = [step["bits"] for step in rows(err)]
    found = re.search(r"Mean surprise ([\d.]+) bits, perplexity ([\d.]+), ([\d.]+) bits per byte", err)
    mean, perplexity, per_byte = map(float, found.groups())
    assert mean == pytest.approx(sum(surprises) / len(surprises), abs=0.011)
    assert perplexity == pytest.approx(2**mean, rel=0.01)
    assert per_byte == pytest.approx(sum(surprises) / (len(out) - len("é".encode())), rel=0.01)


def test_tokens_are_shown_raw_or_readable(write):
    raw = write("--prompt", " x\n", "--tokens", 0, kind="bpe")[1]
    assert "Ċ" in raw
    assert "↵" not in raw
    readable = write("--prompt", " x\n", "--tokens", 0, "--readable", kind="bpe")[1]
    assert "↵" in readable
    assert "Ċ" not in readable
    half = write("--prompt", "日", "--tokens", 0, "--readable", kind="bpe")[1]
    assert "<e6>" in half  # bytes of a character that is no token
    assert "\N{REPLACEMENT CHARACTER}" not in half


# --- every setting explained ------------------------------------------------------------------------------------------


def tables(err: str) -> list[dict]:
    """The printed tables of --explain, read as a person would: [{"number", "of", "rows", "chosen"}]. A row has the
    columns of the title by their names, and "id", "mark" and "text"; its id is None where it sums up others."""
    found, titles = [], []
    for line in err.splitlines():
        if re.match(r" +id  token ", line):
            titles = re.findall(r"\S+", line)[2:]
        elif m := re.match(r".*step \d+: the random number is (\S+), for ([\d,]+) tokens", line):
            found.append({"number": float(m[1]), "of": int(m[2].replace(",", "")), "rows": []})
        elif m := re.match(r" +([\d,]+) others? +(\S+) +(\S+) +(\S+)$", line):
            row = dict(zip(("drawn", "from", "to"), map(float, m.groups()[1:]), strict=True))
            found[-1]["rows"].append({"id": None, "count": int(m[1].replace(",", "")), **row})
        elif m := re.match(r"([ >]) +(\d+)  (\S+) +(.*)$", line):
            cells = m[4].split()
            if "removed" in titles and len(cells) < len(titles):
                cells.insert(titles.index("removed"), "")
            row = {name: cell if name == "removed" else float(cell) for name, cell in zip(titles, cells, strict=True)}
            found[-1]["rows"].append({"id": int(m[2]), "mark": m[1], "text": m[3], **row})
        elif m := re.match(r"   (\S+) selects id (\d+): ", line):
            found[-1]["chosen"] = int(m[2])
    return found


@pytest.mark.parametrize("kind", ["char", "bpe"])
@pytest.mark.parametrize(
    "flags", [[], FLAGS, ["--top-k", 0], ["--temperature", 0], ["--top-k", 0, "--top-p", 0.3]], ids=str
)
def test_the_token_follows_by_hand_from_the_explained_table_and_the_number(write, kind, flags):
    """From the printed figures alone. Ten rows: some of the drawn tokens stand below them, in a row of their own."""
    _, err = write(
        "--prompt", "def ", "--tokens", 25, "--explain", "--readable", "--show", 10, "--seed", 2, *flags, kind=kind
    )
    steps = tables(err)
    assert len(steps) == 25 or "ended the document" in err
    assert len(steps) > 5
    for step in steps:
        assert sum(row["drawn"] for row in step["rows"]) == pytest.approx(1, abs=2e-5)
        end = 0.0
        for row in step["rows"]:  # laid end to end, and in the one where the number falls
            assert row["from"] == pytest.approx(end, abs=2e-5)
            assert row["to"] == pytest.approx(end + row["drawn"], abs=2e-5)
            end = row["to"]
        (row,) = [row for row in step["rows"] if row["from"] <= step["number"] < row["to"]]
        assert row["id"] == step["chosen"]
        assert row["mark"] == ">"
        assert sum(row.get("count", 1) for row in step["rows"]) == step["of"]


def test_every_column_of_the_explained_table_follows_from_the_one_before(write, trained):
    """All of the vocabulary shown; each filter's cut found again by hand from the figures in the rows."""
    model, tokenizer, _ = load_model(trained["char"])
    _, err = write("--prompt", "def ", "--tokens", 8, "--explain", "--readable", "--show", 999, *FLAGS)
    # every column of a setting that is on
    context = tokenizer.encode("def ").tolist()
    removals = set()
    for step in tables(err):
        rows = step["rows"]
        logits = model(torch.tensor([context]))[0, -1].tolist()
        assert sorted(row["id"] for row in rows) == list(range(tokenizer.vocab_size))
        for row in rows:
            assert row["logit"] == pytest.approx(logits[row["id"]], abs=1e-3)
            penalty = 1 if row["id"] not in context else 1 / 1.3 if row["logit"] > 0 else 1.3
            assert row["penalised"] == pytest.approx(row["logit"] * penalty, abs=1e-3)
            assert row["tempered"] == pytest.approx((row["penalised"] - rows[0]["penalised"]) / 0.7, abs=1e-3)
        left = [math.exp(row["tempered"]) for row in rows[:9]]
        removed = ["top-k"] * (len(rows) - 9)
        fewest = next(n for n in range(1, 10) if sum(left[:n]) / sum(left) >= 0.95 or n == 9)
        removed = ["top-p"] * (len(left) - fewest) + removed
        left = left[:fewest]
        stay = [x for x in left if x >= 0.02 * left[0]]
        removed = [""] * len(stay) + ["min-p"] * (len(left) - len(stay)) + removed
        assert [row["removed"] for row in rows] == removed
        assert [row["drawn"] for row in rows[: len(stay)]] == pytest.approx([x / sum(stay) for x in stay], abs=1e-3)
        removals |= set(removed)
        context.append(step["chosen"])
    assert removals >= {"", "top-k", "top-p"}


def test_the_trace_holds_the_same_as_data(write, tmp_path):
    file = tmp_path / "steps.jsonl"
    _, err = write("--prompt", "def ", "--tokens", 12, "--explain", "--readable", "--show", 4, "--trace", file, *FLAGS)
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    steps = tables(err)
    assert len(lines) == len(steps) == 12
    for number, (line, step) in enumerate(zip(lines, steps, strict=True), 1):
        assert (line["step"], line["sample"]) == (number, 0)
        assert line["number"] == pytest.approx(step["number"], abs=1e-6)
        start = 0.0  # the token by hand, now with all digits
        for i, p in enumerate(line["sampled_p"]):
            if start <= line["number"] < start + p:
                assert line["ids"][i] == line["token"] == step["chosen"]
                assert i + 1 == line["rank"]
            start += p
        assert start == pytest.approx(1, abs=1e-9)
        for i, row in enumerate(row for row in step["rows"] if row["id"] in line["ids"][:4]):
            assert line["ids"][i] == row["id"]
            assert line["removed_by"][i] == row["removed"]
            for name, key in (
                ("logits", "logit"),
                ("penalised", "penalised"),
                ("ends", "to"),
                ("sampled_p", "drawn"),
            ):
                assert line[name][i] == pytest.approx(row[key], abs=6e-5)


def test_an_interrupted_trace_keeps_its_lines(write, tmp_path, monkeypatch):
    file = tmp_path / "steps.jsonl"
    real = display.trace_step

    def interrupt_at_step_4(sample, number, *rest):
        if number == 4:
            (unfinished,) = tmp_path.glob("steps.jsonl.*.tmp")
            assert len(unfinished.read_text("utf-8").splitlines()) == 3, "written as it goes"
            raise KeyboardInterrupt
        return real(sample, number, *rest)

    monkeypatch.setattr(display, "trace_step", interrupt_at_step_4)
    write("--trace", file, "--top-k", 2, "--show", 2)  # lines so short that a buffer would hold all of them
    assert [json.loads(line)["step"] for line in file.read_text("utf-8").splitlines()] == [1, 2, 3]

    def fail(sample, number, *rest):
        if number == 3:
            raise OSError("the pipe of the text is closed")
        return real(sample, number, *rest)

    monkeypatch.setattr(display, "trace_step", fail)
    with pytest.raises(OSError, match="pipe"):
        write("--trace", file)
    assert [json.loads(line)["step"] for line in file.read_text("utf-8").splitlines()] == [1, 2]


def test_the_trace_is_json_for_others_too(write, tmp_path):
    """Python writes and reads Infinity, which is no JSON."""
    file = tmp_path / "steps.jsonl"
    write("--tokens", 3, "--temperature", 0, "--trace", file, "--quiet")
    for line in file.read_text("utf-8").splitlines():
        step = json.loads(line, parse_constant=pytest.fail)
        assert step["sampled_p"][0] == 1
        assert step["tempered"][1:] == [None] * (len(step["ids"]) - 1)
        assert step["removed_by"][1:] == ["temperature"] * (len(step["ids"]) - 1)
