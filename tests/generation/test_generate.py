"""The generators: the text on stdout, where it ends, what they refuse, and which model they take."""

# ruff: noqa: F401, F811 (imported fixtures)

import itertools
import os
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from generators import interrupt_once, rows, trained, write

from config import ROOT
from model.generation import display, writer
from model.gpt import GPT
from model.storage.model_file import load_model, save_model
from model.storage.safe_load import save
from model.tokenization.tokenizer import BareIds
from plumbing.errors import UsageError, UserError

CHECKPOINT = next((ROOT / "tests/fixtures/before_rooms/run").glob("step_*.pt"))


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


@pytest.mark.parametrize(("script", "kind"), [("generate.py", "char"), ("generatev2.py", "bpe")])
def test_the_files_get_the_whole_text_though_the_reader_of_stdout_has_gone(write, trained, tmp_path, script, kind):
    """As in `python generate.py --output-file out.py | head -1`."""
    text, trace = tmp_path / "out.py", tmp_path / "trace.jsonl"
    flags = ["--prompt", "def", "--tokens", 60, "--output-file", text, "--trace", trace]
    whole = write(*flags, kind=kind)[0]
    steps = trace.read_bytes()
    text.unlink(), trace.unlink()
    command = [sys.executable, str(ROOT / script), "--model", str(trained[kind]), "--device", "cpu", "--quiet"]
    process = subprocess.Popen([*command, *map(str, flags)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 0
    process.stderr.close()
    assert text.read_bytes() == whole and trace.read_bytes() == steps


def test_the_seed_decides(write):
    texts = [write("--tokens", 60, "--temperature", 1.5, "--top-k", 0, "--seed", seed)[0] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_temperature_zero_is_the_most_likely_token_by_plain_pytorch(write, trained, kind):
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
    interrupt_once(monkeypatch, writer.Completion, "take", call=4)
    out, err = write("--prompt", "import ", "--tokens", 50, "--temperature", 0)
    assert len(out) == len("import ") + 3
    assert "you stopped it" in err
    assert "step 3:" in err


def test_ctrl_c_while_steps_are_formatted_loses_none(write, monkeypatch):
    """They come ten times a second, the first at once: here an interruption falls into the second time."""
    monkeypatch.setattr(display.time, "perf_counter", itertools.count().__next__)  # each look at the clock, it is due
    interrupt_once(monkeypatch, display, "show_step", call=2)
    out, err = write("--prompt", "import ", "--tokens", 50, "--temperature", 0)
    assert len(out) == len("import ") + 2
    assert [line.partition(":")[0] for line in err.splitlines() if line.startswith("step")] == ["step 1", "step 2"]
    assert "you stopped it" in err


@pytest.mark.skipif(sys.platform == "win32", reason="sends Ctrl-C as a signal")
def test_the_text_comes_while_it_is_written(tmp_path):
    """Through a pipe, from another process: the first bytes are there long before the last. Of bare ids, because none
    of them ends a document."""
    path, training = tmp_path / "ids.pt", {"steps": 0, "val_bits_per_byte": None}
    save_model(path, GPT(40, block_size=24, n_layer=1, n_head=2, n_embd=16), BareIds(40), training)
    command = [sys.executable, str(ROOT / "generate.py"), "--model", str(path), "--device", "cpu", "--quiet"]
    command += ["--prompt", "3 1 ", "--tokens", "1000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        begin = process.stdout.read(40)
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=60)
    assert begin.startswith(b"3 1 ")
    assert process.returncode == 130, err
    assert set((begin + rest).decode("utf-8")) <= set("0123456789 \n")


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
    ("flag", "value"),
    [
        ("--temperature", -1), ("--temperature", "nan"), ("--top-k", -1), ("--top-p", 0), ("--top-p", 1.5),
        ("--tokens", -1), ("--min-p", -0.1), ("--min-p", 1.1), ("--repetition-penalty", 1e-40),
        ("--repetition-penalty", 1e45), ("--samples", 0), ("--show", -1), ("--seed", -1),
    ],
)  # fmt: skip
def test_values_beyond_their_limits(write, capfdbinary, flag, value):
    with pytest.raises(SystemExit, match="^2$"):
        write(flag, value)
    assert capfdbinary.readouterr().err.decode().startswith(f"error: {flag} must be ")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--stop", ""), "--stop"),
        (("--explain", "--quiet"), "--explain"),
        (("--interactive", "--output-file", "x"), "--output-file"),
        (("--prompt", "caf\udce9"), "not UTF-8"),
        (("--device", "abacus"), "--device is auto, cpu, .*, not 'abacus'"),
    ],
)
def test_flags_that_cannot_be_used(write, flags, message):
    with pytest.raises(UserError, match=message):
        write(*flags)


def test_a_folder_is_no_output_file_and_nothing_is_written_before_that_is_said(write, tmp_path, capfdbinary):
    with pytest.raises(UserError, match="is not a file that can be replaced"):
        write("--output-file", tmp_path)
    assert capfdbinary.readouterr().out == b""


@pytest.mark.parametrize("text", ["-x", "--x=1", "-hello", "- a"])
def test_a_text_may_begin_with_a_dash(write, text):
    flags = ["--temperature", 2.0, "--top-k", 0]
    out, _ = write("--prompt", text, "--tokens", 5, "--stop", "-y", *flags)
    assert out.startswith(text.encode())
    assert write(f"--prompt={text}", "--tokens", 5, *flags)[0] == out
    with pytest.raises(SystemExit):
        write("--prompt", "--quiet")


def test_so_many_samples_are_refused_before_the_memory_is_gone(write):
    with pytest.raises(UserError, match=r"1,000,000,000 samples need [\d,.]+ GB .* Give --samples [\d,]+ or fewer"):
        write("--samples", 1_000_000_000)


def test_more_samples_than_memory_holds(write, monkeypatch):
    monkeypatch.setattr(writer, "generate", lambda *args, **more: torch.empty(2**60))
    with pytest.raises(UserError, match=r"not enough memory for this\. Try fewer --samples"):
        write("--samples", 2)


@pytest.mark.parametrize(
    "flags", [[], ["--top-k", 2, "--show", 1], ["--top-k", 0, "--top-p", 0.9, "--min-p", 0.1]], ids=str
)
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
    with pytest.raises(UserError, match="checkpoint"):
        write(model=CHECKPOINT)
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


def test_loading_does_not_wait_for_torchs_compiler(trained, tmp_path, torch_server):
    """To import it takes longer than all else, and some harmless looking operations of torch do."""
    script = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from model.storage.checkpoint import load_checkpoint
from model.storage.model_file import load_model
load_model(Path({str(trained["char"])!r}))
load_checkpoint(Path({str(CHECKPOINT)!r}))
print([name for name in ("sympy", "torch._dynamo") if name in sys.modules])
"""
    (tmp_path / "load.py").write_text(script, "utf-8")
    done = torch_server.run([str(tmp_path / "load.py")], ROOT, dict(os.environ), 300)
    assert (done.stdout, done.stderr) == ("[]\n", "")
