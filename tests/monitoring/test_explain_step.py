"""--explain-step: the lines below a step are the step's numbers, and the run is the same with them."""

import contextlib
import io
import re
from dataclasses import replace

import pytest
import torch
from conftest import make_pipeline
from runs import log_of, same

import train
from config import CHAR
from model.interpretation import training_step as ts
from model.interpretation.open_step import open_before
from model.storage.checkpoint import newest_checkpoint
from model.training import distributed
from model.training.run_settings import check_settings
from plumbing.errors import UsageError


@pytest.fixture(scope="module")
def explained(tmp_path_factory):
    """The settings of a run that explains its steps, and what it printed."""
    settings = make_pipeline(tmp_path_factory.mktemp("explained"), CHAR, "char")
    settings = replace(settings, debug=True, explain_step=True, eval_every=1, compile="off", grad_clip=0.2)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        train.main(settings)
    return settings, out.getvalue()


def test_the_run_is_the_same(explained, tmp_path, capsys):
    settings, _ = explained
    other = replace(settings, explain_step=False, checkpoint_dir=tmp_path / "run", model_file=tmp_path / "model.pt")
    train.main(other)
    assert "hardest" not in capsys.readouterr().out
    runs = [newest_checkpoint(one.checkpoint_dir)[1] for one in (settings, other)]
    for name in ("model", "optimizer", "rng"):  # with dropout
        assert same(runs[0][name], runs[1][name]), name


def test_several_processes_are_refused(char, monkeypatch):
    check_settings(replace(char, explain_step=True))
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(UsageError, match="--explain-step looks at the whole batch"):
        check_settings(replace(char, explain_step=True))


def test_the_lines_are_the_steps_numbers(explained):
    settings, out = explained
    blocks = re.findall(r"^step +(\d+)/10 .*\n((?:    .*\n)+)", out, re.MULTILINE)
    assert [int(step) for step, _ in blocks] == [1, 2, 4, 6, 8, 10]
    records = {entry["step"]: entry["record"] for entry in log_of(settings) if "record" in entry}
    for step, lines in blocks:
        for title, name, scale in (
            ("gradient norms", "gradient_norm", 1),
            ("update / weight", "update_to_weight", 100),
        ):
            shown = re.search(rf"^    {title}: (.*)$", lines, re.MULTILINE)[1].split(", ")
            expected = records[int(step)][name]
            assert [value.rpartition(" ")[0] for value in shown] == list(expected)
            values = [float(value.rpartition(" ")[2].strip("%")) for value in shown]
            assert values == pytest.approx([scale * value for value in expected.values()], rel=0.01, abs=0.006)


def test_the_loss_after_a_step_is_that_of_the_opened_step(explained):
    """Step 6 by scripts/inspect_step.py, from the checkpoint of step 5."""
    settings, out = explained
    run, _ = open_before(settings.checkpoint_dir, 6, settings, train.train_step)
    step = ts.trace_training_step(run, train.train_step)
    losses = ts.other_losses(step, step.inputs, step.targets, step.after)
    block = out[re.search(r"^step +6/10 ", out, re.MULTILINE).start() :]
    shown = re.search(r"this batch: loss (\S+), after the step (\S+)\.", block)
    assert [float(x) for x in shown.groups()] == pytest.approx([step.loss, losses.mean().item()], abs=1e-4)
    hardest = [float(x) for x in re.findall(r"^      (\S+) nats: ", block, re.MULTILINE)[:3]]
    assert hardest == pytest.approx(losses.flatten().topk(3).values.tolist(), abs=0.006)
    assert torch.isfinite(losses).all()
