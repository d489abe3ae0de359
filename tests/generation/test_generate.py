"""The generators: what goes to stdout and to stderr, where the text ends, what they refuse, and that the numbers shown
are the model's."""

import io
import itertools
import json
import math
import re
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_pipeline

import generate
import train
from config import BPE, CHAR, ROOT
from model.generation.command_line import generation_flags
from model.gpt import GPT
from model.storage.checkpoint import save
from model.storage.model_file import load_model, save_model
from model.tokenization.display import token_text
from plumbing.errors import UsageError, UserError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trained model of each kind: {"char": path, "bpe": path}."""
    models = {}
    for kind, settings in (("char", CHAR), ("bpe", BPE)):
        settings = make_pipeline(tmp_path_factory.mktemp(kind), settings, kind)
        settings = replace(settings, max_steps=150, eval_every=1000, dropout=0.0, learning_rate=1e-2, n_embd=32)
        train.main(replace(settings, debug=False), fresh=False, kind=kind)
        models[kind] = settings.model_file
    return models


@pytest.fixture
def write(trained, capfdbinary):
    """Run a generator with a command line. Returns (stdout as bytes, stderr as text)."""

    def run(*flags, kind="char", model=None):
        base = {"char": CHAR, "bpe": BPE}[kind]
        argv = ["--model", str(model or trained[kind]), "--device", "cpu", *map(str, flags)]
        settings, args = generation_flags(base, "", argv)
        capfdbinary.readouterr()
        generate.main(settings, args, kind)
        out, err = capfdbinary.readouterr()
        return out, err.decode()

    return run


# --- the text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_the_text_alone_goes_to_stdout_and_exactly_to_the_file(write, tmp_path, kind):
    file = tmp_path / "out.py"
    out, err = write("--prompt", "def é", "--tokens", 40, "--output-file", file, kind=kind)
    assert out.startswith("def é".encode())
    assert file.read_bytes() == out
    assert len(out) > len("def é".encode())
    assert "step 40" in err or "ended the document" in err
    quiet = write("--prompt", "def é", "--tokens", 40, "--quiet", kind=kind)
    assert quiet == (out, "")


def test_the_seed_decides(write):
    texts = [write("--tokens", 60, "--temperature", 1.5, "--top-k", 0, "--seed", seed)[0] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_temperature_zero_is_the_likeliest_token_by_plain_pytorch(write, trained, kind):
    model, tokenizer, _ = load_model(trained[kind])
    ids = tokenizer.encode("def ").tolist()
    for _ in range(12):  # the block is 24, so no token is forgotten
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    out, _ = write("--prompt", "def ", "--temperature", 0, "--tokens", 12, kind=kind)
    assert out.decode() == tokenizer.decode(ids)


def test_tokens_zero_gives_the_prompt_back(write):
    assert write("--prompt", "def ", "--tokens", 0)[0] == b"def "


def test_without_a_prompt_it_begins_a_document(write):
    out, err = write("--temperature", 0, "--tokens", 10)
    assert "No prompt" in err
    assert out.startswith(b'"""Module')  # as every document of the corpus does


def test_it_ends_where_the_model_ends_the_document(write):
    out, err = write("--prompt", "return first", "--temperature", 0, "--tokens", 500)
    assert "the model ended the document" in err
    assert b"<|endoftext|>" not in out
    assert out.endswith(b"\n")


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_stop_texts_end_the_text_before_them(write, trained, kind):
    prompt = "import os"
    whole = write("--prompt", prompt, "--temperature", 0, "--tokens", 60, kind=kind)[0].decode()
    new = whole[len(prompt) :]
    # Text across the border of two tokens, for BPE too: a piece of three characters that is no token of its own.
    tokenizer = load_model(trained[kind])[1]
    pieces = {tokenizer.decode([token]) for token in range(tokenizer.vocab_size)}
    at = next(i for i in range(4, len(new) - 3) if new[i : i + 3] not in pieces)
    stop = new[at : at + 3]
    out, err = write(
        "--prompt", prompt, "--temperature", 0, "--tokens", 60, "--stop", "no such", "--stop", stop, kind=kind
    )
    assert out.decode() == prompt + new[: new.index(stop)]
    assert "a stop text came up" in err
    assert b"\n" not in write("--prompt", "def add", "--stop-at-newline", "--tokens", 200, kind=kind)[0]


def test_a_stop_text_in_the_prompt_does_not_count(write):
    out, _ = write("--prompt", "a\nb", "--tokens", 5, "--temperature", 0, "--stop", "a\nb")
    assert len(out) > 3


def test_ctrl_c_keeps_what_is_written(write, monkeypatch):
    interrupt_once(monkeypatch, generate.Completion, "take", call=4)
    out, err = write("--prompt", "import ", "--tokens", 50, "--temperature", 0)
    assert len(out) == len("import ") + 3
    assert "you stopped it" in err
    assert "step 3:" in err


def test_ctrl_c_while_steps_are_put_into_words_loses_none(write, monkeypatch):
    """They come ten times a second, the first at once: here an interruption falls into the second time."""
    monkeypatch.setattr(generate.time, "perf_counter", itertools.count().__next__)  # each look at the clock, it is due
    interrupt_once(monkeypatch, generate, "show_step", call=2)
    out, err = write("--prompt", "import ", "--tokens", 50, "--temperature", 0)
    assert len(out) == len("import ") + 2
    assert [line.partition(":")[0] for line in err.splitlines() if line.startswith("step")] == ["step 1", "step 2"]
    assert "you stopped it" in err


def interrupt_once(monkeypatch, place, name: str, call: int) -> None:
    """Ctrl-C as the function begins to be called for that time."""
    real, calls = getattr(place, name), []

    def interrupted(*given):
        calls.append(given)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(place, name, interrupted)


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


def rows(err):
    """The printed steps: [{"chosen": id, "rank": int, "bits": float, "candidates": [(mark, id, text, drawn, p)]}]."""
    steps = []
    for line in err.splitlines():
        if found := re.match(r"step \d+: chose (.*) \(id (\d+)\), rank (\d+), surprise ([\d.]+|inf) bits", line):
            steps.append({"chosen": int(found[2]), "rank": int(found[3]), "bits": float(found[4]), "candidates": []})
        elif found := re.match(r" ([> ]) id +(\d+)  (\S+) .*drawn with +([\d.]+)%  model +([\d.]+)%", line):
            row = (found[1], int(found[2]), found[3], float(found[4]) / 100, float(found[5]) / 100)
            steps[-1]["candidates"].append(row)
    return steps


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

KNOBS = {"--temperature": 0.7, "--top-k": 9, "--top-p": 0.95, "--min-p": 0.02, "--repetition-penalty": 1.3}
FLAGS = [part for pair in KNOBS.items() for part in pair]
NUMBER = r"(-?\d+\.\d+|-inf)"


def tables(err: str) -> list[dict]:
    """The printed tables of --explain, read as a person would: [{"number", "rows", "chosen", "of"}]. A row is a dict,
    of id None where it sums up others."""
    found = []
    for line in err.splitlines():
        if m := re.match(r".*step \d+: the random number is (\S+)", line):
            found.append({"number": float(m[1]), "rows": []})
        elif m := re.match(
            rf" ([ >]) +(\d+)  (\S+) +{NUMBER} +{NUMBER} +{NUMBER}  (.{{11}}) +{NUMBER}  {NUMBER}  {NUMBER}", line
        ):
            row = dict(zip("logit penalised tempered".split(), map(float, m.groups()[3:6]), strict=True))
            row |= dict(zip("p start end".split(), map(float, m.groups()[7:]), strict=True))
            found[-1]["rows"].append({"id": int(m[2]), "mark": m[1], "removed": m[7].strip(), "text": m[3], **row})
        elif m := re.match(rf" +([\d,]+) others? +{NUMBER}  {NUMBER}  {NUMBER}", line):
            row = dict(zip("p start end".split(), map(float, m.groups()[1:]), strict=True))
            found[-1]["rows"].append({"id": None, "count": int(m[1].replace(",", "")), **row})
        elif m := re.match(r"   (\S+) falls to id (\d+), ", line):
            found[-1]["chosen"] = int(m[2])
        elif m := re.search(r"\(of ([\d,]+) tokens\)", line):
            found[-1]["of"] = int(m[1].replace(",", ""))
    return found


@pytest.mark.parametrize("kind", ["char", "bpe"])
@pytest.mark.parametrize(
    "flags", [[], FLAGS, ["--top-k", 0], ["--temperature", 0], ["--top-k", 0, "--top-p", 0.3]], ids=str
)
def test_the_token_follows_by_hand_from_the_explained_table_and_the_number(write, kind, flags):
    """From the printed figures alone. Ten rows: some of the drawn tokens stand below them, in a row of their own."""
    _, err = write("--prompt", "def ", "--tokens", 25, "--explain", "--readable", "--show", 10, *flags, kind=kind)
    steps = tables(err)
    assert len(steps) == 25 or "ended the document" in err
    assert len(steps) > 5
    for step in steps:
        assert sum(row["p"] for row in step["rows"]) == pytest.approx(1, abs=2e-5)
        end = 0.0
        for row in step["rows"]:  # laid end to end, and in the one where the number falls
            assert (row["start"], row["end"]) == (pytest.approx(end, abs=2e-5), pytest.approx(end + row["p"], abs=2e-5))
            end = row["end"]
        (row,) = [row for row in step["rows"] if row["start"] <= step["number"] < row["end"]]
        assert row["id"] == step["chosen"]
        assert row["mark"] == ">"
        assert sum(row.get("count", 1) for row in step["rows"]) == step["of"]


def test_every_column_of_the_explained_table_follows_from_the_one_before(write, trained):
    """All of the vocabulary shown; each filter's cut found again by hand from the figures in the rows."""
    model, tokenizer, _ = load_model(trained["char"])
    _, err = write("--prompt", "def ", "--tokens", 8, "--explain", "--readable", "--show", 999, *FLAGS)
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
        assert [row["p"] for row in rows[: len(stay)]] == pytest.approx([x / sum(stay) for x in stay], abs=1e-3)
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
            for name, key in (("logits", "logit"), ("penalised", "penalised"), ("ends", "end"), ("sampled_p", "p")):
                assert line[name][i] == pytest.approx(row[key], abs=6e-5)


def test_an_interrupted_trace_keeps_its_lines(write, tmp_path, monkeypatch):
    file = tmp_path / "steps.jsonl"
    real = generate.trace_step

    def interrupt_at_step_4(sample, number, *rest):
        if number == 4:
            (unfinished,) = tmp_path.glob("steps.jsonl.*.tmp")
            assert len(unfinished.read_text("utf-8").splitlines()) == 3, "written as it goes"
            raise KeyboardInterrupt
        return real(sample, number, *rest)

    monkeypatch.setattr(generate, "trace_step", interrupt_at_step_4)
    write("--trace", file, "--top-k", 2, "--show", 2)  # lines so short that a buffer would hold all of them
    assert [json.loads(line)["step"] for line in file.read_text("utf-8").splitlines()] == [1, 2, 3]

    def fail(sample, number, *rest):
        if number == 3:
            raise OSError("the pipe of the text is closed")
        return real(sample, number, *rest)

    monkeypatch.setattr(generate, "trace_step", fail)
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


# --- several texts, and prompts that come otherwise -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_samples_are_the_texts_of_successive_seeds(write, tmp_path, kind):
    file, flags = tmp_path / "out.txt", ["--prompt", "def é", "--tokens", 50, "--temperature", 1.5, "--stop", "\n\n"]
    out, err = write(*flags, "--samples", 3, "--seed", 7, "--output-file", file, kind=kind)
    alone = [write(*flags, "--seed", 7 + i, kind=kind)[0] for i in range(3)]
    assert out == file.read_bytes() == b"\n<|endoftext|>\n".join(alone)
    assert len(set(alone)) == 3
    assert err.count("Stopped after") == 3
    assert "sample 2, step 1: chose" in err
    assert write(*flags, "--samples", 3, "--seed", 7, "--quiet", kind=kind) == (out, "")


def test_the_prompt_can_come_from_a_file(write, tmp_path):
    file = tmp_path / "prompt.txt"
    file.write_bytes("def é\r\n\n".encode())
    out, _ = write("--prompt-file", file, "--tokens", 5)
    assert out.startswith("def é\r\n\n".encode())
    assert out == write("--prompt", "def é\r\n\n", "--tokens", 5)[0]
    with pytest.raises(UserError, match="There is no file .*nowhere.txt"):
        write("--prompt-file", tmp_path / "nowhere.txt")
    file.write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match="prompt.txt is not UTF-8 at byte 3"):
        write("--prompt-file", file)


@pytest.fixture
def talk(write, monkeypatch):
    """Run a generator with --interactive and this as its standard input."""

    def run(text: str, *flags):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(text.encode("utf-8", "surrogateescape"))))
        return write("--interactive", "--tokens", 12, "--temperature", 0, *flags)

    return run


def test_a_conversation(write, talk):
    out, err = talk("def add\nimport \n/tokens 3\n/temperature 1.5\n/seed 4\nimport \n//x\n\n", "--quiet")
    flags = ["--tokens", 3, "--temperature", 1.5, "--seed", 4]
    expected = [
        write("--prompt", "def add", "--tokens", 12, "--temperature", 0)[0],
        write("--prompt", "import ", "--tokens", 12, "--temperature", 0)[0],
        *(write("--prompt", prompt, *flags)[0] for prompt in ("import ", "/x", "")),
    ]
    assert out == b"".join(text + b"\n" for text in expected)
    assert "error" not in err


def test_the_trace_of_a_conversation_tells_completions_apart(talk, tmp_path):
    talk("def add\n/tokens 2\nimport \n", "--quiet", "--tokens", 3, "--trace", tmp_path / "steps.jsonl")
    lines = map(json.loads, (tmp_path / "steps.jsonl").read_text("utf-8").splitlines())
    assert [(line["completion"], line["step"]) for line in lines] == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2)]


def test_a_conversation_survives_mistakes(write, talk):
    out, err = talk("/temperature cold\n/temperature -1\n/colour red\n/device cpu\ncaf\udce9\n/\nimport \n")
    assert "'cold' is no value for temperature" in err
    assert "--temperature must be 0" in err
    assert err.count("There is no setting") == 2
    assert "not UTF-8" in err
    assert "tokens 12  temperature 0.0  top_k 50" in err
    assert out.startswith(b"import ")


def test_ctrl_c_in_a_conversation_ends_one_completion_only(write, talk, monkeypatch):
    interrupt_once(monkeypatch, generate.Completion, "take", call=4)
    out, err = talk("import \nimport \n")
    whole = write("--prompt", "import ", "--tokens", 12, "--temperature", 0)[0]
    assert out == whole[: len("import ") + 3] + b"\n" + whole + b"\n"
    assert err.count("you stopped it") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="sends Ctrl-C as a signal")
def test_the_text_comes_while_it_is_written(trained):
    """Through a pipe, from another process: the first bytes are there long before the last."""
    command = [sys.executable, str(ROOT / "generate.py"), "--model", str(trained["char"]), "--device", "cpu", "--quiet"]
    command += ["--prompt", "def ", "--tokens", "1000000", "--temperature", "3", "--top-k", "0", "--stop", "<never>"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        begin = process.stdout.read(40)
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=60)
    assert begin.startswith(b"def ")
    assert process.returncode in (0, 130), err
    (begin + rest).decode("utf-8")


# --- limits and refusals ----------------------------------------------------------------------------------------------


def test_a_prompt_longer_than_the_block_counts_by_its_end(write):
    long = "x = 1\n" * 20 + "def "
    out, err = write("--prompt", long, "--tokens", 3, "--temperature", 0)
    assert "The prompt has 124 tokens. The model sees 24" in err
    assert out.startswith(long.encode())
    assert out[len(long) :] == write("--prompt", long[-24:], "--tokens", 3, "--temperature", 0)[0][24:]


def test_text_longer_than_the_block_goes_on(write):
    _, err = write("--prompt", "def ", "--tokens", 100, "--temperature", 2.0, "--top-k", 0, "--seed", 3)
    assert len(rows(err)) == 100 or "ended the document" in err


def test_characters_never_seen_are_named(write):
    out, err = write("--prompt", "日x日本", "--tokens", 1, "--quiet")
    assert "read as <|unk|>: '日', 'x', '本'" in err
    assert out.startswith("日x日本".encode())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--temperature", -1), "--temperature"),
        (("--temperature", "nan"), "--temperature"),
        (("--top-k", -1), "--top-k"),
        (("--top-p", 0), "--top-p"),
        (("--top-p", 1.5), "--top-p"),
        (("--tokens", -1), "--tokens"),
        (("--min-p", -0.1), "--min-p"),
        (("--min-p", 1.1), "--min-p"),
        (("--repetition-penalty", 1e-40), "--repetition-penalty"),
        (("--repetition-penalty", 1e45), "--repetition-penalty"),
        (("--samples", 0), "--samples"),
        (("--stop", ""), "--stop"),
        (("--explain", "--quiet"), "--explain"),
        (("--interactive", "--output-file", "x"), "--output-file"),
        (("--prompt", "caf\udce9"), "not UTF-8"),
        (("--device", "abacus"), "'abacus' cannot be used"),
    ],
)
def test_flags_that_cannot_be_used(write, flags, message):
    with pytest.raises(UserError, match=message):
        write(*flags)


def test_a_folder_is_no_output_file_and_nothing_is_written_before_that_is_said(write, tmp_path, capfdbinary):
    with pytest.raises(UserError, match="is not a file that can be replaced"):
        write("--output-file", tmp_path)
    assert capfdbinary.readouterr().out == b""


def test_more_samples_than_memory_holds(write, monkeypatch):
    monkeypatch.setattr(generate, "generate_samples", lambda *args, **more: torch.empty(2**60))
    with pytest.raises(UserError, match=r"not enough memory for this\. Try fewer --samples"):
        write("--samples", 2)


@pytest.mark.parametrize("flags", [[], ["--top-k", 0, "--top-p", 0.9, "--min-p", 0.1]], ids=str)
def test_weights_that_are_too_large_to_compute_with(write, trained, tmp_path, flags):
    model, tokenizer, training = load_model(trained["char"])
    model.blocks[0].mlp.down.weight.data.fill_(3e38)
    save_model(tmp_path / "large.pt", model, tokenizer, training)
    with warnings.catch_warnings(action="error"), pytest.raises(UserError, match="logits are not numbers"):
        write(*flags, model=tmp_path / "large.pt")


def test_no_file_is_replaced_by_another(write, trained):
    before = trained["char"].read_bytes()
    for flag in ("--output-file", "--trace"):
        with pytest.raises(UsageError, match=f"{flag} would replace .*char.pt, which is read here"):
            write(flag, trained["char"])
    with pytest.raises(UsageError, match="--trace would replace .*x, which --output-file writes"):
        write("--output-file", "x", "--trace", "x")
    assert trained["char"].read_bytes() == before and not Path("x").exists()


def test_a_model_of_the_other_kind_names_its_generator(write, trained):
    with pytest.raises(UserError, match="bpe model: use generatev2.py"):
        write(model=trained["bpe"])
    with pytest.raises(UserError, match="char model: use generate.py"):
        write(model=trained["char"], kind="bpe")


def test_files_that_are_no_model(write, trained, tmp_path):
    with pytest.raises(UserError, match=r"no model .*nowhere.pt\. Train one with train.py"):
        write(model=tmp_path / "nowhere.pt")
    (tmp_path / "text.pt").write_text("not a model")
    with pytest.raises(UserError, match="text.pt is not a model"):
        write(model=tmp_path / "text.pt")
    torch.save({"model": torch.zeros(3)}, tmp_path / "foreign.pt")
    with pytest.raises(UserError, match="foreign.pt is not a model"):
        write(model=tmp_path / "foreign.pt")
    (tmp_path / "short.pt").write_bytes(trained["char"].read_bytes()[:-500])
    with pytest.raises(UserError, match="short.pt is not a model"):
        write(model=tmp_path / "short.pt")
    content = torch.load(trained["char"], weights_only=True)
    save(tmp_path / "other.pt", content | {"architecture": content["architecture"] | {"n_embd": 64}})
    with pytest.raises(UserError, match="other.pt is not a model|damaged"):
        write(model=tmp_path / "other.pt")
    checkpoint = next((trained["char"].parent / "checkpoints" / "char").glob("step_*.pt"))
    with pytest.raises(UserError, match="checkpoint"):
        write(model=checkpoint)
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        write(model=tmp_path)  # a folder


def test_a_model_file_gives_back_the_model(trained, tmp_path):
    """load(save(x)) behaves as x, with every field of the architecture away from its default."""
    tokenizer = load_model(trained["bpe"])[1]
    torch.manual_seed(0)
    model = GPT(tokenizer.vocab_size, block_size=10, n_layer=3, n_head=2, n_embd=12, dropout=0.3, tie_embeddings=True)
    for p in model.parameters():
        torch.nn.init.normal_(p)
    save_model(tmp_path / "m.pt", model, tokenizer, {"steps": 3, "val_bits_per_byte": 2.5})
    again, tokens, training = load_model(tmp_path / "m.pt")
    assert again.architecture == model.architecture
    assert again.head.weight is again.embedding.weight
    idx = torch.randint(tokenizer.vocab_size, (2, 10))
    assert torch.equal(again(idx), model.eval()(idx))
    assert not again.training
    assert training == {"steps": 3, "val_bits_per_byte": 2.5}
    assert tokens.json_text == tokenizer.json_text


def test_loading_does_not_wait_for_torchs_compiler(trained):
    """To import it takes longer than all else, and some harmless looking operations of torch do."""
    checkpoint = next((trained["char"].parent / "checkpoints" / "char").glob("step_*.pt"))
    script = f"""
import sys
from pathlib import Path
from model.checkpoint import load_checkpoint, load_model
load_model(Path({str(trained["char"])!r}))
load_checkpoint(Path({str(checkpoint)!r}))
print([name for name in ("sympy", "torch._dynamo") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
