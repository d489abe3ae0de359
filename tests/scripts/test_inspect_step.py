"""The script that opens a training step: its short form, its page in a browser, and the step's numbers in both.

The script and its page read the texts of tokens, and nothing else of a tokenizer. One kind is enough to show them: BPE,
whose texts are longer."""

import json
import re

import pytest
from test_inspect_model import unpack

from config import BPE, CHAR
from model.interpretation import step_page
from model.interpretation import training_step as ts
from model.interpretation.open_step import open_before
from model.storage.checkpoint import newest_checkpoint
from plumbing.errors import UsageError, UserError
from plumbing.text import cell_width
from scripts import inspect_step
from train import main, train_step


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each kind, of 10 steps with checkpoints at 5 and 10: its settings."""
    from dataclasses import replace

    from conftest import make_pipeline

    found = {}
    for kind, settings in (("char", CHAR), ("bpe", BPE)):
        settings = make_pipeline(tmp_path_factory.mktemp(kind), settings, kind)
        found[kind] = replace(settings, debug=False, sample_tokens=0, eval_every=0)
        main(found[kind], False, kind)
    return found


def run_script(settings, *flags):
    s = settings
    files = ["--tokenizer-file", s.tokenizer_file, "--train-file", s.train_file, "--val-file", s.val_file]
    argv = ["--checkpoint", s.checkpoint_dir, *files, "--device", "cpu", *flags]
    inspect_step.main(list(map(str, argv)))


@pytest.fixture
def inspect(runs, tmp_path, monkeypatch, capsys):
    """Run the script: inspect(kind, *flags). Returns what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(kind, *flags):
        run_script(runs[kind], *flags)
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def pages(runs, tmp_path_factory):
    """The page of each run."""
    found = {kind: tmp_path_factory.mktemp(kind) / "page.html" for kind in runs}
    for kind, path in found.items():
        run_script(runs[kind], "--html", path)
    return found


def data_of(path):
    return json.loads(re.search(r"id=data>(.*?)</script>", path.read_text("utf-8"), re.DOTALL)[1])


def step_now(settings):
    run, _ = open_before(settings.checkpoint_dir, None, settings, train_step)
    return ts.trace_training_step(run, train_step)


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_the_page_has_the_numbers_of_the_step(pages, runs, kind):
    """training_step.py is held to torch by tests/interpretation/test_training_step.py."""
    data, step = data_of(pages[kind]), step_now(runs[kind])
    assert (data["step"], data["max_steps"]) == (6, 10)
    assert data["loss"] == pytest.approx(step.loss, abs=1e-6)
    assert unpack(data["losses"]).mean().item() == pytest.approx(step.loss, abs=1e-5)
    assert unpack(data["inputs"]).tolist() == step.inputs.tolist()
    # A token's push: the gradient of its own loss, not of the mean
    push = step.streams[-1].norm(dim=-1).view(step.inputs.shape) * step.inputs.numel()
    assert (unpack(data["push"]) - push).abs().max() < 1e-5 * push.max()
    named = {weight["name"]: weight for weight in data["weights"]}
    assert len(named) == len(data["weights"]) >= 6
    for name, weight in named.items():
        matrix, row, column = step_page.parse_weight(step, name)
        gradient = step.gradients[matrix][row, column].item()
        assert weight["update"]["gradient"] == pytest.approx(gradient, rel=1e-4)
        assert weight["sum"] == pytest.approx(gradient, rel=1e-4, abs=1e-6)
        assert weight["update"]["after"] == pytest.approx(step.weight(matrix, step.after)[row, column].item(), abs=1e-6)
        parts = [token["part"] for token in weight["tokens"]]
        assert parts == sorted(parts, key=abs, reverse=True)
    for matrix in data["matrices"]:
        assert matrix["gradient"] == pytest.approx(step.gradients[matrix["name"] + ".weight"].norm().item(), rel=1e-4)
    at = data["curve"]["multiples"].index(1.0)
    assert data["curve"]["batch"][at] == pytest.approx(data["bought"][0]["after"], abs=1e-5)
    assert data["curve"]["held_out"][at] == pytest.approx(data["bought"][1]["after"], abs=1e-5)
    assert data["curve"]["multiples"][0] == pytest.approx(0.1) and data["curve"]["multiples"][-1] >= 29.99


def test_the_short_form_fits_into_a_terminal(inspect, runs):
    before = newest_checkpoint(runs["bpe"].checkpoint_dir)[0].read_bytes()
    out = inspect("bpe", "--text", "--weight", "blocks.1.mlp.down.weight[3,5]")
    assert "Step 6 of 10" in out and "blocks.1.mlp.down.weight[3,5] = " in out
    assert "from MLP unit 5 to channel 3" in out and "singular values" in out
    assert [line for line in out.splitlines()[2:] if cell_width(line) > 80] == []
    assert out.rstrip().endswith("Next: add --html data/step.html to see everything as a page.")
    assert newest_checkpoint(runs["bpe"].checkpoint_dir)[0].read_bytes() == before


def test_a_model_and_a_step_can_be_named(inspect, runs):
    assert "step_00000005.pt, 2 steps taken again.\nStep 8 of 10" in inspect("char", "--step", "8")
    out = inspect("char", "--checkpoint", runs["char"].model_file)
    assert "a finished model: an optimizer without memory.\nStep 11 of 11, at 10.0% of" in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--step", "0"], "--step counts from 1"),
        (["--weight", "head"], "there are embedding.weight, blocks.0.attention.qkv.weight"),
        (["--weight", "norm.weight[0,0]"], "--weight is a matrix"),
        (["--weight", "head.weight[0,99999]"], "columns, counted from 0"),
    ],
)
def test_wrong_use_is_a_sentence(inspect, flags, message):
    with pytest.raises(UsageError, match=message):
        inspect("char", *flags)


def test_no_file_of_the_run_is_replaced(inspect, runs):
    path = newest_checkpoint(runs["char"].checkpoint_dir)[0]
    for file in (path, runs["char"].val_file):
        with pytest.raises(UsageError, match="--html would replace"):
            inspect("char", "--html", file)


def test_a_step_without_a_finite_loss_is_a_sentence(inspect, monkeypatch):
    def fail(*_):
        raise FloatingPointError("loss nan, gradient norm nan")

    monkeypatch.setattr(ts, "trace_training_step", fail)
    with pytest.raises(UserError, match="Step 6 has no finite loss"):
        inspect("char")


def test_what_each_weight_means(runs):
    step = step_now(runs["char"])
    for weight, expected in {
        "embedding.weight[5,2]": "channel 2 of the vector of token ",
        "head.weight[5,2]": "from channel 2 to the logit of token ",
        "blocks.1.attention.qkv.weight[0,3]": "layer 1: from channel 3 to the query of head 0",
        "blocks.0.attention.qkv.weight[25,3]": "layer 0: from channel 3 to the key of head 1",
        "blocks.0.attention.output.weight[2,15]": "layer 0: from what head 1 has read to channel 2",
        "blocks.0.mlp.gate_up.weight[70,1]": "layer 0: from channel 1 to value of MLP unit 6",
    }.items():
        assert step_page.meaning(step, *step_page.parse_weight(step, weight)).startswith(expected)


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture
def data(pages):
    return data_of(pages["bpe"])


@pytest.fixture
def page(pages, open_page):
    return open_page(pages["bpe"])


def test_tokens_tell_their_loss(page, data):
    losses = unpack(data["losses"])
    page.select_option("#sequence", "1")
    tokens = page.locator("#text .token")
    assert tokens.count() == data["shape"][1]
    tokens.nth(3).click()
    assert f"a loss of {losses[1, 3]:.4f}" in page.inner_text("#token")
    page.keyboard.press("ArrowRight")
    assert f"a loss of {losses[1, 4]:.4f}" in page.inner_text("#token")
    page.select_option("#colour-by", "push")
    assert page.locator("#text [aria-selected=true]").count() == 1


def test_weights_and_matrices_can_be_chosen(page, data):
    assert page.locator("#matrices tbody tr").count() == len(data["matrices"])
    for i, weight in enumerate(data["weights"]):
        page.select_option("#weight", str(i))
        assert page.locator("#parts tbody tr").count() == len(weight["tokens"])
        assert f"{weight['update']['after']:.7f}" in page.inner_text("#terms")
        assert page.locator("#nudges tbody tr").count() == len(weight["nudges"])
    options = page.locator("#muon option")
    names = options.all_inner_texts()
    heads = len([name for name in names if name.startswith("blocks.0.attention.qkv")]) // 3
    assert len(names) == 2 * (3 * heads + 1 + 2 + 1) and heads > 1
    assert names[heads - 1].endswith(f"qkv, queries of head {heads - 1}")
    assert names[heads].endswith("qkv, keys of head 0")
    assert names[3 * heads].endswith("attention.output")
    page.select_option("#muon", index=4)
    assert page.locator("#singular path").count() == 2


def test_the_slider_tells_the_loss_after_the_step(page, data):
    assert page.inner_text("#rate-shown") == "as in the run"
    after = data["bought"][0]["after"]
    assert f"→ {after:.4f}" in page.inner_text("#after")
    page.locator("#rate").fill("0")
    assert page.inner_text("#rate-shown") == "0.1 times"
    assert f"→ {data['curve']['batch'][0]:.4f}" in page.inner_text("#after")


def test_the_page_on_a_phone_and_in_the_dark(pages, open_page):
    source = pages["bpe"].read_text("utf-8")
    assert len(source) < 2e6 and "%%" not in source and source.count("</script>") == 2
    narrow = open_page(pages["bpe"], width=390)
    assert narrow.evaluate("document.documentElement.scrollWidth <= innerWidth")
    dark = open_page(pages["bpe"], dark=True)
    assert dark.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 19, 22)"
    assert len(dark.pdf()) > 10_000
