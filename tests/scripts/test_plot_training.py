"""The page of a training: what it reads of a log, its program in a browser, and the drawing."""

import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import wait_until
from conftest import make_pipeline

import train
from config import CHAR
from model.monitoring import run_log
from model.monitoring.log import Log
from plumbing.errors import UsageError, UserError
from scripts import plot_training


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two short runs that have recorded: their folders."""
    folder = tmp_path_factory.mktemp("runs")
    settings = replace(make_pipeline(folder, CHAR, "char"), max_steps=20, debug=False)
    train.main(settings, fresh=False)
    other = replace(settings, checkpoint_dir=folder / "checkpoints" / "wider", n_embd=24, max_steps=12)
    train.main(other, fresh=False)
    return settings.checkpoint_dir, other.checkpoint_dir


@pytest.fixture
def plot(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        capsys.readouterr()
        plot_training.main([str(arg) for arg in argv])
        return capsys.readouterr().out

    return run


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]


# --- reading a log ----------------------------------------------------------------------------------------------------


def test_a_run_is_what_its_log_says(runs, monkeypatch):
    run = run_log.read_run(runs[0])
    entries = log_of(runs[0])
    assert [e["step"] for e in run["lines"]] == [e["step"] for e in entries if "loss" in e]
    assert [e["val_loss"] for e in run["evaluations"]] == [e["val_loss"] for e in entries if "val_loss" in e]
    assert [e["step"] for e in run["records"]] == [0, 1, 2, 4, 5, 8, 10, 15, 16, 20]
    assert run["about"]["ladder"]["bigram"] > 0
    assert run_log.read_run(runs[0] / "log.jsonl") == run
    monkeypatch.chdir(runs[0])
    for path in (".", "log.jsonl"):
        assert run_log.read_run(Path(path)) == run


def test_while_a_training_writes(runs, tmp_path):
    """The last line is not whole yet, and one of a killed training stands there twice."""
    whole = (runs[0] / "log.jsonl").read_bytes()
    (tmp_path / "log.jsonl").write_bytes(
        whole + b'{"step": 22, "loss": 1.0}\n{"step": 22, "loss": 2.0}\n{"step": 24, "lo'
    )
    lines = run_log.read_run(tmp_path)["lines"]
    assert [(e["step"], e["loss"]) for e in lines[-2:]] == [(20, lines[-2]["loss"]), (22, 2.0)]


def test_logs_that_cannot_be_read(tmp_path, runs, plot):
    with pytest.raises(UserError, match="no log"):
        run_log.read_run(tmp_path)
    Log(tmp_path / "new", None)
    with pytest.raises(UserError, match="no figures yet"):
        run_log.read_run(tmp_path / "new")
    with pytest.raises(UsageError, match="--html would replace .*which is no page"):
        plot(runs[0], "--html", runs[0] / "log.jsonl")


def test_the_curve_is_the_mean_over_steps_within_five_percent():
    rng = np.random.default_rng(0)
    losses = {step: 2 + 3 / step + 0.2 * rng.standard_normal() for step in range(1, 301)}
    losses[100] = None
    curve = dict(run_log.smoothed(losses))
    assert sorted(curve) == [step for step in losses if step != 100]
    for step, mean in curve.items():
        near = [x for s, x in losses.items() if abs(s - step) <= step // 20 and x is not None]
        assert mean == pytest.approx(sum(near) / len(near), abs=1e-5)
    assert [curve[step] for step in range(1, 20)] == pytest.approx([losses[step] for step in range(1, 20)], abs=1e-5)
    long = run_log.smoothed(dict.fromkeys(range(1, 100001), 5.0))
    assert len(long) <= 800 and long[0] == (1, 5.0) and long[-1] == (100_000, 5.0)
    assert run_log.smoothed({50: 2.0, 100: 1.0}) == [(50, 2.0), (100, 1.0)]  # an older log: its lines alone
    assert run_log.smoothed({}) == run_log.smoothed({1: math.inf}) == []


# --- the terminal -----------------------------------------------------------------------------------------------------


def test_the_plot(runs, plot):
    out = plot(runs[0], "--text")
    rows = [line.partition("│")[2] for line in out.splitlines() if "│" in line]
    assert len(rows) == 16
    assert sum(row.count("o") for row in rows) == 5  # evaluations at 0, 5, 10, 15, 20
    assert rows[0].startswith("o") or rows[1].startswith("o")  # the untrained model's loss is the highest, or nearly
    assert "validation at step 20" in out


def test_the_plot_by_hand():
    curve = [(0, 4.0), (5, 2.0), (10, 1.0)]
    rows = plot_training.plot_loss({"training": curve, "evaluations": []}, width=11, height=3).splitlines()
    assert [row.partition("│")[2] for row in rows[:3]] == ["·", "     ·", "          ·"]
    assert rows[0].startswith("     4.000")
    assert "no finite loss" in plot_training.plot_loss({"training": [], "evaluations": []})


# --- the page ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def page(runs, plot, open_page, tmp_path):
    plot(runs[0], "--html", "page.html")
    return open_page(tmp_path / "page.html")


def test_the_slider_goes_through_the_records(page, runs):
    records = [entry for entry in log_of(runs[0]) if "record" in entry]
    slider = page.locator("#moment")
    assert page.inner_text("#moment-shown") == "step 20"
    for place in (0, 3, len(records) - 1):
        slider.fill(str(place))
        assert page.inner_text("#moment-shown") == f"step {records[place]['step']}"
        assert page.text_content("#sample") == records[place]["record"]["sample"]
        bits = records[place]["record"]["surprise_bits"]
        assert f"Mean: {sum(bits) / len(bits):.2f} bits" in page.inner_text("#paragraph-mean")
        shown = page.locator("#kinds td.number").all_inner_texts()
        assert shown == [f"{value:.2f}" for value in records[place]["record"]["kind_bits"].values()]
        expected = page.locator("#places tr").first.locator("td").nth(1).locator("code").all_text_contents()
        assert expected == [text for text, _ in records[place]["record"]["expected"][0]]
    slider.focus()
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#moment-shown") == f"step {records[-2]['step']}"


def test_the_loss_chart_is_read_by_pointer_and_by_keyboard(page, runs):
    svg = page.locator("#loss-chart svg")
    box = svg.bounding_box()
    page.mouse.move(box["x"] + 2, box["y"] + 50)
    first = next(e for e in log_of(runs[0]) if "val_loss" in e)
    assert page.inner_text("#loss-chart .readout").startswith("step 0: char, validation ")
    assert float(page.inner_text("#loss-chart .readout").split()[-1]) == pytest.approx(first["val_loss"], abs=0.006)
    svg.focus()
    page.keyboard.press("End")
    step, last = run_log.read_run(runs[0])["training"][-1]
    assert step == 20
    said = re.search(
        r"step 20: char, training ([\d.]+), char, validation ([\d.]+)", page.inner_text("#loss-chart .readout")
    )
    assert float(said[1]) == pytest.approx(last, abs=0.006)
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#loss-chart .readout").startswith("step 19:")
    baselines = page.locator("#loss-chart .baseline-name").all_text_contents()
    assert sorted(baselines) == sorted(["uniform", "unigram", "bigram", "trigram", "gzip", "xz"])


def test_switches_change_unit_and_axes(page, runs):
    heights = lambda: page.locator("#loss-chart path").first.get_attribute("d")  # noqa: E731
    before = heights()
    page.uncheck("#log-loss")
    linear = heights()
    page.check("#log-step")
    assert len({before, linear, heights()}) == 3
    page.select_option("#unit", "bpb")
    page.locator("#loss-chart svg").focus()
    page.keyboard.press("End")
    last = [e for e in log_of(runs[0]) if "val_loss" in e][-1]
    shown = float(page.inner_text("#loss-chart .readout").split()[-1])
    assert shown == pytest.approx(last["val_bits_per_byte"], abs=0.006)


def test_runs_over_each_other(plot, open_page, runs, tmp_path):
    out = plot(runs[0], "--compare", runs[1], "--html", "page.html")
    assert "18 recorded steps" in out
    page = open_page(tmp_path / "page.html", dark=True)
    legend = page.locator("#loss-chart .legend li").all_inner_texts()
    assert legend == ["char, training", "char, validation", "wider, training", "wider, validation"]
    assert page.input_value("#unit") == "bpb"
    page.select_option("#which", "1")
    assert page.inner_text("#moment-shown") == "step 12"
    assert "wider" in page.inner_text("#entropy figcaption")
    assert page.locator("#internals svg").count() == 7
    narrow = open_page(tmp_path / "page.html", width=420)
    assert narrow.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_texts_of_a_log_are_no_markup(plot, open_page, runs, tmp_path):
    evil = "</script><b id=evil>&"
    lines = (runs[0] / "log.jsonl").read_text("utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    for entry in entries:
        if "record" in entry:
            entry["record"]["sample"] = evil
            del entry["crc32"]  # as in logs of old versions
    entries.append({"step": 20, "warning": evil})
    folder = tmp_path / "a<b id=evil>"
    folder.mkdir()
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, entries)), "utf-8")
    plot(folder, "--html", "page.html")
    page = open_page(tmp_path / "page.html")
    assert page.text_content("#sample") == evil
    assert page.inner_text("#warnings").endswith(f"step 20: {evil}")
    assert page.locator("#evil").count() == 0
    source = (tmp_path / "page.html").read_text("utf-8")
    assert re.findall(r"(?:https?:)?//(?!www\.w3\.org/2000/svg)[\w.-]+\.\w+|@import|url\(|<link|src=", source) == []


def test_a_run_without_records_or_with_infinite_losses(plot, open_page, tmp_path):
    log = Log(tmp_path / "bare", None)
    for step, loss in ((50, 2.0), (100, float("inf"))):
        log.write(step=step, loss=loss, bits_per_byte=loss, learning_rate=0.1, gradient_norm=1.0, tokens_per_second=5.0)
    plot("bare", "--html", "page.html")
    page = open_page(tmp_path / "page.html")
    assert page.locator("#records").is_hidden()
    assert "has no records" in page.inner_text("#no-records")
    assert page.locator("#internals svg").count() == 3


@pytest.mark.parametrize("width", [390, 1280])
def test_labels_can_be_read_at_any_width(plot, open_page, runs, tmp_path, width):
    """A chart is drawn in the pixels that it has, and again when they change."""
    plot(runs[0], "--html", "page.html")
    page = open_page(tmp_path / "page.html", width=width)
    for new in (width, 700):
        page.set_viewport_size({"width": new, "height": 900})
        wait_until(page, "[...document.querySelectorAll('svg')].every(s => s.viewBox.baseVal.width === s.clientWidth)")
        widths = page.eval_on_selector_all("svg", "all => all.map(one => one.viewBox.baseVal.width - one.clientWidth)")
        assert set(widths) == {0}
        heights = page.eval_on_selector_all("svg text", "all => all.map(one => one.getBoundingClientRect().height)")
        assert len(heights) > 50 and min(heights) >= 11
        labels = page.eval_on_selector_all(
            "#entropy svg text[text-anchor=middle]",
            "all => all.map(one => one.getBoundingClientRect()).map(b => [b.left, b.right])",
        )
        assert all(a[1] < b[0] for a, b in itertools.pairwise(labels)), labels
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_every_kind_of_token_has_a_colour_of_its_own(plot, open_page, runs, tmp_path):
    plot(runs[0], "--html", "page.html")
    for dark in (False, True):
        page = open_page(tmp_path / "page.html", dark=dark)
        figures = page.locator("#internals figure")
        for i in range(figures.count()):
            look = "all => all.map(getComputedStyle).map(one => one.stroke + one.strokeDasharray)"
            styles = figures.nth(i).locator("path").evaluate_all(look)
            if "entropy" not in figures.nth(i).inner_text():  # one colour per layer
                assert len(set(styles)) == len(styles)
    kinds = page.locator("figure", has_text="Surprise by kind of token").locator("path")
    assert kinds.count() >= 6


def test_few_evaluations_are_not_joined(plot, open_page, tmp_path):
    log = Log(tmp_path / "few", None)
    for step in range(1, 9):
        log.write(
            step=step, loss=4 / step, bits_per_byte=1.0, learning_rate=0.1, gradient_norm=1.0, tokens_per_second=5.0
        )
        if step % 4 == 0:
            log.write(step=step, val_loss=5 / step, val_tokens=9, val_bits_per_byte=1.0)
    plot("few", "--html", "page.html")
    page = open_page(tmp_path / "page.html")
    assert page.locator("#loss-chart path").count() == 1 and page.locator("#loss-chart circle").count() == 2
