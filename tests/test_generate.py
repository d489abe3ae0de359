"""The generators: what goes to stdout and to stderr, where the text ends, what they refuse, and that the numbers shown
are the model's."""

import math
import re
from dataclasses import replace

import pytest
import torch
from conftest import make_pipeline

import generate
import train
from config import BPE, CHAR, UserError, generation_flags
from model.checkpoint import load_model, save
from model.insight import token_text


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
    real = generate.show_step

    def interrupt_at_step_4(tokenizer, number, *rest):
        if number == 4:
            raise KeyboardInterrupt
        real(tokenizer, number, *rest)

    monkeypatch.setattr(generate, "show_step", interrupt_at_step_4)
    out, err = write("--prompt", "import ", "--tokens", 50, "--temperature", 0)
    assert len(out) == len("import ") + 3
    assert "you stopped it" in err


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
        (("--stop", ""), "--stop"),
        (("--prompt", "caf\udce9"), "not UTF-8"),
        (("--device", "abacus"), "'abacus' cannot be used"),
    ],
)
def test_flags_that_cannot_be_used(write, flags, message):
    with pytest.raises(UserError, match=message):
        write(*flags)


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
    from model.checkpoint import save_model
    from model.gpt import GPT

    tokenizer = load_model(trained["bpe"])[1]
    torch.manual_seed(0)
    model = GPT(tokenizer.vocab_size, 10, 3, 2, 12, dropout=0.3, tie_embeddings=True)
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
