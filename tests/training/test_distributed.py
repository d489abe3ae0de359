"""Several processes that train one model: the same losses whatever their number, and what happens when one dies.

Most processes here are forks of this one, given the variables that torchrun would give them; they compute on a CPU and
talk through gloo. One test forks what torchrun runs, another one starts torchrun itself.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import make_pipeline
from faults import end_of, start
from runs import flags, interrupt_after, log_of, same, steps_of
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import train
from config import CHAR, ROOT
from dataset import open_tokens
from model import by_hand_c
from model.gpt import GPT
from model.storage.checkpoint import newest_checkpoint
from model.storage.model_file import load_model
from model.training import choose_step, distributed
from model.training.muon import orthogonalise
from model.training.optimizer import Optimizer
from plumbing.errors import UserError, run_script

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks processes")


@pytest.fixture(scope="module", autouse=True)
def imported():
    """What fully_shard imports, seconds of it: once here, not in every fork, nor where these tests do not run."""
    import torch._dynamo
    import torch.distributed.checkpoint.state_dict
    import torch.distributed.fsdp  # noqa: F401


# --- processes --------------------------------------------------------------------------------------------------------


def begin(number: int, work, folder: Path) -> list[int]:
    """Start work() in so many processes, as torchrun would. What each says lands in folder/RANK.out and .err."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(exist_ok=True)

    def process(rank):
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in variables.items()}, MASTER_ADDR="127.0.0.1")
        sys.stdout = open(folder / f"{rank}.out", "w", encoding="utf-8")  # noqa: SIM115 (until the process ends)
        try:
            return work()
        finally:
            sys.stdout.flush()

    return [start(lambda rank=rank: process(rank), errors=folder / f"{rank}.err") for rank in range(number)]


def training(settings, fresh=False, plan=False):
    """What `python train.py` does with these settings."""
    return lambda: run_script(lambda: train.main(settings, fresh, plan=plan))


def trained(number: int, settings, **changes):
    """Train in so many processes to the end. Returns the settings."""
    settings = replace(settings, **changes)
    said = settings.checkpoint_dir.with_name(settings.checkpoint_dir.name + "-said")
    said.parent.mkdir(exist_ok=True)
    codes = [end_of(pid) for pid in begin(number, training(settings), said)]
    assert codes == [0] * number, "".join(path.read_text() for path in said.glob("*.err"))
    return settings


def anew(settings, folder: Path):
    """The same settings and data for a run of its own."""
    return replace(settings, checkpoint_dir=folder / "run", model_file=folder / "model.pt")


def losses(settings) -> dict:
    """(step, kind) -> the losses of a run's log, at training and at validation."""
    return {
        (entry["step"], kind): entry[kind]
        for entry in log_of(settings)
        for kind in ("loss", "val_loss")
        if kind in entry
    }


def difference(one: dict, other: dict) -> float:
    assert one.keys() == other.keys()
    return max(abs(one[key] - other[key]) for key in one)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of one process without torchrun, 20 steps, to compare others with."""
    settings = make_pipeline(tmp_path_factory.mktemp("alone"), CHAR, "char")
    changes = {"batch_size": 8, "max_steps": 20, "eval_every": 10, "checkpoint_every": 10, "log_every": 1}
    settings = replace(settings, dropout=0.0, eval_tokens=200, **changes)
    assert end_of(start(training(settings))) == 0
    return settings


@pytest.fixture(scope="module")
def short(alone, tmp_path_factory):
    """The same over 10 steps, of a batch that 2 and 3 processes divide evenly."""
    settings = anew(alone, tmp_path_factory.mktemp("short"))
    settings = replace(settings, batch_size=12, max_steps=10, checkpoint_every=5, eval_every=5)
    assert end_of(start(training(settings))) == 0
    return settings


@pytest.fixture(scope="module")
def four(alone, tmp_path_factory):
    """The same in four processes."""
    return trained(4, anew(alone, tmp_path_factory.mktemp("four")))


# --- the same losses --------------------------------------------------------------------------------------------------


def test_losses_do_not_depend_on_the_number_of_processes(alone, four, tmp_path):
    """1, 2 and 4, over 20 steps; the validation loss on a part of the file and on all of it, too."""
    assert len(losses(alone)) == 20 + 3
    two = trained(2, anew(alone, tmp_path))
    for settings in (two, four):
        assert difference(losses(alone), losses(settings)) < 1e-5
        assert difference(losses(alone), losses(settings)) > 0, "several processes add in another order"
    evaluations = [[e["val_tokens"] for e in log_of(s) if "val_loss" in e] for s in (alone, two, four)]
    assert evaluations[0] == evaluations[1] == evaluations[2]
    assert evaluations[0][0] < evaluations[0][-1]


def test_a_run_of_four_goes_on_in_two_and_in_one(alone, four, tmp_path):
    for number in (2, 1):
        settings = anew(alone, tmp_path / str(number))
        (tmp_path / str(number)).mkdir()
        subprocess.run(["cp", "-r", four.checkpoint_dir, settings.checkpoint_dir], check=True)
        interrupt_after(settings, 10)
        trained(number, settings)
        assert newest_checkpoint(settings.checkpoint_dir)[1]["processes"] == number
        assert difference(losses(four), losses(settings)) < 1e-5
        assert "changed: processes was 4, is" in (tmp_path / str(number) / "run-said" / "0.out").read_text()


def test_a_resumed_run_of_two_is_the_same_run(alone, tmp_path):
    """To the bit, with dropout, of which each process draws its own."""
    settings = trained(2, anew(alone, tmp_path), dropout=0.1, max_steps=10, checkpoint_every=5)
    whole = newest_checkpoint(settings.checkpoint_dir)[1]
    interrupt_after(settings, 5)
    trained(2, settings)
    assert same(whole["model"], newest_checkpoint(settings.checkpoint_dir)[1]["model"])


def test_a_sharded_model_gives_the_same_losses(short, tmp_path):
    """--shard-model in three processes, among which no weight divides evenly; then on without it, and with it again."""
    sharded = trained(3, anew(short, tmp_path / "sharded"), shard_model=True)
    assert difference(losses(short), losses(sharded)) < 1e-5
    model, _, summary = load_model(sharded.model_file)
    val = open_tokens(sharded.val_file)
    assert train.evaluate(model, val)[0] == pytest.approx(summary["val_loss"], rel=1e-5)
    for changes in ({"shard_model": False}, {"accumulate": 2}):
        interrupt_after(sharded, 5)
        trained(2, sharded, **changes)
        assert difference(losses(short), losses(sharded)) < 1e-5


def test_micro_batches_add_up_to_the_batch(short, tmp_path):
    """Of one process and of two."""
    for number, micro_batches in ((1, 4), (2, 2)):
        settings = trained(number, anew(short, tmp_path / str(number)), accumulate=micro_batches)
        assert difference(losses(short), losses(settings)) < 1e-5


def test_tied_embeddings(alone, tmp_path):
    """A weight that stands in two places, sharded. To processes that hold it whole, it is a weight like any other."""
    tied = replace(alone, tie_embeddings=True, max_steps=5, eval_every=0)
    assert end_of(start(training(one := anew(tied, tmp_path / "one")))) == 0
    settings = trained(2, anew(tied, tmp_path / "sharded"), shard_model=True)
    assert difference(losses(one), losses(settings)) < 1e-5


def test_initial_weights_from_counting(alone, tmp_path):
    """Only the first process counts; the others have its weights, whole or sharded."""
    counted = replace(alone, initial_weights="bigram", max_steps=5, eval_every=0)
    assert end_of(start(training(one := anew(counted, tmp_path / "one")))) == 0
    for name, shard_model in (("two", False), ("sharded", True)):
        settings = trained(2, anew(counted, tmp_path / name), shard_model=shard_model)
        assert difference(losses(one), losses(settings)) < 1e-5


# --- how they do it ---------------------------------------------------------------------------------------------------


def results(number: int, work, folder: Path) -> list:
    """What work() returns in each of so many processes that are together."""

    def process():
        with distributed.process_group("cpu"):
            torch.save(work(), folder / f"{distributed.rank()}.pt")

    assert [end_of(pid) for pid in begin(number, process, folder / "said")] == [0] * number, [
        path.read_text() for path in (folder / "said").glob("*.err")
    ]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(number)]


def test_all_processes_take_the_same_step_to_the_bit(tmp_path):
    """After some steps on rows of their own. And the gradients are still views of the optimizer's vector, which
    becomes its mean."""

    def work():
        torch.manual_seed(0)
        model = GPT(20, block_size=8, n_layer=2, n_head=2, n_embd=16)
        optimizer = Optimizer(model, CHAR, orthogonalise=distributed.orthogonalise_together)
        run = SimpleNamespace(model=model, optimizer=optimizer, settings=CHAR)
        for step in range(3):
            idx, targets = torch.randint(20, (2, 4, 8), generator=torch.Generator().manual_seed(step))
            mine = distributed.batch_rows(4)
            train.train_step(run, model.loss, optimizer.step, idx[mine], targets[mine], torch.ones(()))
        # The gradients before they are clipped, against those of the whole batch:
        optimizer.zero_grad()
        model.loss(idx[mine], targets[mine]).backward()
        distributed.average(optimizer.grads)
        averaged = optimizer.grads.clone()
        views = all(
            p.grad.untyped_storage().data_ptr() == optimizer.grads.untyped_storage().data_ptr()
            for p in model.parameters()
        )
        optimizer.zero_grad()
        model.loss(idx, targets).backward()
        return {"weights": optimizer.weights, "views": views, "error": (averaged - optimizer.grads).abs().max()}

    one, two = results(2, work, tmp_path)
    assert torch.equal(one["weights"], two["weights"])
    assert one["views"] and two["views"]
    assert max(one["error"], two["error"]) < 1e-6


def test_only_the_first_process_ever_holds_all_of_a_sharded_model(tmp_path):
    """Neither its weights when it is made, nor the optimizer's state when it is saved and loaded."""
    shape = {"vocab_size": 20, "block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16}

    def work():
        from model.training.sharded_optimizer import ShardedOptimizer

        torch.manual_seed(3)
        with torch.device("cpu" if distributed.is_first() else "meta"):
            model = GPT(**shape)
        model = distributed.shard_model(model, torch.device("cpu"))
        optimizer = ShardedOptimizer(model, CHAR)
        for i, tensor in enumerate((*optimizer.mean, *optimizer.square)):
            tensor.to_local().fill_(i + 1)
        saved, weights = optimizer.state_dict(), distributed.gather_weights(model)
        whole = sum(tensor.numel() for tensor in (*saved.values(), *weights.values()))
        shapes = distributed.broadcast({name: tensor.to("meta") for name, tensor in saved.items()})
        again = ShardedOptimizer(model, CHAR)
        again.load_state_dict(saved or shapes)
        loaded = all(map(torch.equal, again.tensors(), optimizer.tensors()))
        own = sum(tensor.to_local().numel() for tensor in model.parameters())
        return {"whole": whole, "own": own, "loaded": loaded, "cos": model.cos.sum(), "weights": weights}

    torch.manual_seed(3)
    model = GPT(**shape)
    numbers = sum(weight.numel() for weight in model.parameters())
    for rank, result in enumerate(results(2, work, tmp_path)):
        assert result["whole"] > 2 * numbers if rank == 0 else result["whole"] == 0
        assert numbers / 3 < result["own"] < 2 * numbers / 3
        assert result["loaded"] and result["cos"] == model.cos.sum()
        assert rank > 0 or same(result["weights"], model.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrices_are_shared_out(tmp_path, dtype, monkeypatch):
    """Five matrices among three processes: two, two and one; and two among three, where one has none."""
    stack = torch.randn(5, 6, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    counts = []
    monkeypatch.setattr(distributed, "orthogonalise", lambda mine: counts.append(len(mine)) or orthogonalise(mine))

    def work():
        return {
            "five": distributed.orthogonalise_together(stack),
            "two": distributed.orthogonalise_together(stack[:2]),
            "counts": counts,
        }

    for rank, result in enumerate(results(3, work, tmp_path)):
        assert result["counts"] == [[2, 1], [2, 1], [1]][rank]
        torch.testing.assert_close(result["five"], orthogonalise(stack))
        torch.testing.assert_close(result["two"], orthogonalise(stack[:2]))


def test_what_processes_agree_on(tmp_path):
    def work():
        rank = distributed.rank()
        return {
            "first": distributed.broadcast({"rank": rank}),
            "any": [distributed.any_process(rank == 1), distributed.any_process(False)],
            "total": distributed.sum_over_processes(rank, 0.5),
            "mean": distributed.mean_over_processes(torch.tensor(float(rank))).item(),
            "rows": [distributed.batch_rows(6).start, distributed.batch_rows(6).stop],
        }

    for rank, result in enumerate(results(3, work, tmp_path)):
        assert result == {
            "first": {"rank": 0},
            "any": [True, False],
            "total": [3.0, 1.5],
            "mean": 1.0,
            "rows": [2 * rank, 2 * rank + 2],
        }


def test_one_process_agrees_with_itself():
    assert distributed.world_size() == 1 and distributed.is_first()
    assert distributed.broadcast(3) == 3 and distributed.any_process(True) and not distributed.any_process(False)
    assert (
        distributed.sum_over_processes(1, 2.5) == [1, 2.5] and distributed.mean_over_processes(torch.tensor(2.0)) == 2
    )
    assert list(range(6))[distributed.batch_rows(6)] == list(range(6))


# --- one voice --------------------------------------------------------------------------------------------------------


def test_only_the_first_process_prints_and_writes(four):
    said = four.checkpoint_dir.with_name("run-said")
    assert "This is the first of 4 processes. Each computes 2 of the 8 sequences" in (said / "0.out").read_text()
    for rank in (1, 2, 3):
        assert (said / f"{rank}.out").read_text() == (said / f"{rank}.err").read_text() == ""
    assert len([entry for entry in log_of(four) if "loss" in entry]) == 20
    assert steps_of(four) == ["step_00000010.pt", "step_00000020.pt"]


def said_of(number: int, settings, folder: Path, fresh=False) -> tuple[list[int], list[str]]:
    """Exit codes and standard errors of processes, of which torchrun would end the others once the first has ended.
    They wait for that, however long it takes on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "time", SimpleNamespace(sleep=lambda seconds: time.sleep(60)))
        pids = begin(number, training(settings, fresh), folder)
    codes = [end_of(pids[0])]
    for pid in pids[1:]:
        while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
            os.kill(pid, signal.SIGTERM)  # of which a training takes the first one for a wish
            time.sleep(0.05)
        codes.append(os.waitstatus_to_exitcode(ended[1]))
    return codes, [(folder / f"{rank}.err").read_text() for rank in range(number)]


@pytest.mark.parametrize(
    ("number", "changes", "message", "code"),
    [
        (3, {}, "--batch-size 8 cannot be divided evenly: it must be a multiple of the number of processes, 3", 2),
        (2, {"accumulate": 3}, "times --accumulate, 3", 2),
        (2, {"device": "cuda:1"}, "--device is auto, cpu or cuda", 2),
        (2, {"seed": 3}, "seed was 1337, is 3", 1),  # which only the first one reads
    ],
)
def test_an_error_of_all_is_told_once(four, tmp_path, number, changes, message, code):
    (first, *others), (error, *silent) = said_of(number, replace(four, **changes), tmp_path)
    assert first == code and error.startswith("error: ") and message in error and error.count("\n") == 1
    assert set(silent) == {""}
    assert set(others) == {-signal.SIGTERM}


def test_a_loss_that_is_not_finite_is_an_error_of_all(alone, tmp_path):
    wild = replace(anew(alone, tmp_path), learning_rate=1e30, grad_clip=0.0, warmup_steps=0)
    (code, *_), (error, *silent) = said_of(2, wild, tmp_path / "said")
    assert code == 1 and "Step 1 failed" in error and "Traceback" not in error
    assert silent == [""]


def test_an_error_of_one_process_names_it(alone, tmp_path, monkeypatch):
    """Other data than the first one's, as on a machine that was not kept up to date."""
    settings, other = anew(alone, tmp_path), make_pipeline(tmp_path, CHAR, "char")

    def work():
        mine = settings if os.environ["RANK"] == "0" else replace(settings, train_file=other.val_file)
        return training(mine)()

    monkeypatch.setattr(distributed, "time", SimpleNamespace(sleep=lambda seconds: time.sleep(0.2)))
    pids = begin(2, work, tmp_path / "said")
    assert [end_of(pid) for pid in reversed(pids)] == [1, 1]
    assert (tmp_path / "said" / "1.err").read_text().startswith("error: Process 1: The inputs differ")
    assert "Another process of this run has ended" in (tmp_path / "said" / "0.err").read_text()


def test_several_processes_need_torchrun(alone, tmp_path):
    with pytest.raises(UserError, match="--shard-model needs several processes: torchrun"):
        train.main(replace(anew(alone, tmp_path), shard_model=True), fresh=False)


def test_all_take_the_step_that_the_first_finds_fastest(alone, tmp_path, monkeypatch):
    """--minutes and --compile auto, with clocks that disagree."""
    monkeypatch.setattr(by_hand_c, "use", lambda wanted: False)  # as without a C compiler
    monkeypatch.setattr(choose_step, "COMPILE_FROM", 0.0)
    monkeypatch.setattr(choose_step, "compiler_missing", lambda: None)
    monkeypatch.setattr(
        torch,
        "compile",
        lambda f, dynamic: lambda *batch: (time.sleep(0.1 * (os.environ["RANK"] == "0")), f(*batch))[1],
    )
    monkeypatch.setattr(train, "STARTED", time.perf_counter())
    settings = replace(anew(alone, tmp_path), minutes=0.06, eval_every=0)

    def work():
        train.STARTED += 100 * int(os.environ["RANK"])
        return training(settings)()

    assert [end_of(pid) for pid in begin(2, work, tmp_path / "said")] == [0, 0]
    content = newest_checkpoint(settings.checkpoint_dir)[1]
    assert content["step"] == content["settings"]["max_steps"] > 5
    assert content["compiled"] is False


def test_minutes_with_a_sharded_model(alone, tmp_path, monkeypatch):
    """Timed steps of a sharded model leave no trace in it, either."""
    real = choose_step.seconds_per_step
    monkeypatch.setattr(choose_step, "seconds_per_step", lambda *rest: (real(*rest), 0.2)[1])
    monkeypatch.setattr(train, "STARTED", time.perf_counter())
    settings = trained(2, anew(alone, tmp_path), shard_model=True, minutes=0.05, eval_every=0)
    steps = newest_checkpoint(settings.checkpoint_dir)[1]["step"]
    plain = trained(2, anew(alone, tmp_path / "plain"), max_steps=steps, eval_every=0)
    assert difference(losses(plain), losses(settings)) < 1e-5


def test_a_plan_of_two_processes(alone, tmp_path, monkeypatch):
    """Counts the tokens of both."""
    settings = anew(alone, tmp_path)
    begun = [end_of(pid) for pid in begin(2, training(settings, plan=True), tmp_path / "said")]
    said = (tmp_path / "said" / "0.out").read_text()
    assert begun == [0, 0], (tmp_path / "said" / "0.err").read_text()
    assert f"{8 * 24 * 20:,} in 20 steps" in said and "Each process needs about" in said
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(UserError, match="--plan cannot be combined with --shard-model"):
        train.main(replace(settings, shard_model=True), fresh=False, plan=True)


@pytest.mark.slow
def test_the_real_compiler_gives_the_same_losses_in_two_processes(alone, tmp_path):
    """With micro-batches, too."""
    settings = trained(2, anew(alone, tmp_path), max_steps=10, compile="on", accumulate=2)
    assert newest_checkpoint(settings.checkpoint_dir)[1]["compiled"] is True
    plain = trained(1, anew(alone, tmp_path / "plain"), max_steps=10, compile="off")
    assert difference(losses(plain), losses(settings)) < 1e-4


# --- kills and signals ------------------------------------------------------------------------------------------------


def torchrun(settings) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(ROOT / "train.py"), *flags(settings)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_line(process: subprocess.Popen, beginning: str) -> None:
    assert any(line.startswith(beginning) for line in process.stdout)


@pytest.fixture(scope="module")
def long(alone, tmp_path_factory):
    """A run of two processes that lasts long enough to be killed after its first checkpoint."""
    folder = tmp_path_factory.mktemp("long")
    settings = replace(alone, max_steps=60, checkpoint_every=10, keep_checkpoints=100, eval_every=0, log_every=10)
    return trained(2, anew(settings, folder))


def launched(settings, folder: Path) -> int:
    """`torchrun --max-restarts=1 train.py --fresh`, whose workers are forks, so that none has to import torch. What
    they say lands in folder/out and folder/err, their process ids in folder/RANK.pid."""

    def worker():
        (folder / f"{os.environ['RANK']}.pid").write_text(str(os.getpid()))
        sys.stdout = open(folder / "out", "a", encoding="utf-8")  # noqa: SIM115 (until the process ends)
        training(settings, fresh=True)()

    def launcher():
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=2, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
            max_restarts=1, monitor_interval=0.1, start_method="fork",
        )  # fmt: skip
        elastic_launch(config, worker)()

    folder.mkdir()
    return start(launcher, errors=folder / "err")


def test_a_killed_worker_is_started_again_and_the_run_is_the_same(long, tmp_path):
    """With --fresh, which must not throw away what was done before the kill."""
    settings, said = anew(long, tmp_path), tmp_path / "said"
    pid = launched(settings, said)
    while not (settings.checkpoint_dir / "step_00000010.pt").exists():
        time.sleep(0.01)
    os.kill(int((said / "1.pid").read_text()), signal.SIGKILL)
    code, errors = end_of(pid), (said / "err").read_text()
    assert code == 0, errors
    assert "Resuming from" in (said / "out").read_text()
    assert "error: Another process of this run has ended" in errors and "--max-restarts" in errors
    assert same(newest_checkpoint(long.checkpoint_dir)[1], newest_checkpoint(settings.checkpoint_dir)[1])
    assert difference(losses(long), losses(settings)) == 0


@pytest.mark.slow
def test_torchrun_hands_sigterm_on_and_the_same_command_goes_on(long, tmp_path):
    settings = anew(long, tmp_path)
    process = torchrun(settings)
    wait_for_line(process, "checkpoint ")
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "The same command resumes it" in output, errors
    goes_on_as(long, settings)


def goes_on_as(long, settings):
    step = newest_checkpoint(settings.checkpoint_dir)[1]["step"]
    assert 10 <= step < long.max_steps
    trained(2, settings)
    now = newest_checkpoint(settings.checkpoint_dir)[1]
    assert same(newest_checkpoint(long.checkpoint_dir)[1]["model"], now["model"])


def test_a_signal_to_one_process_stops_all_at_the_same_step(long, tmp_path):
    settings = anew(long, tmp_path)
    pids = begin(2, training(settings), tmp_path / "said")
    while not (settings.checkpoint_dir / "step_00000010.pt").exists():
        time.sleep(0.01)
    os.kill(pids[1], signal.SIGTERM)
    assert [end_of(pid) for pid in pids] == [143, 143]
    assert "The same command resumes it" in (tmp_path / "said" / "0.out").read_text()
    goes_on_as(long, settings)


def test_a_signal_to_one_process_stops_the_plan_of_all(alone, tmp_path, monkeypatch):
    def stopping(run, *rest):
        if distributed.rank() == 1:
            signal.raise_signal(signal.SIGTERM)
        run.stop.check()

    monkeypatch.setattr(train, "print_estimate", stopping)
    pids = begin(2, training(anew(alone, tmp_path), plan=True), tmp_path / "said")
    assert [end_of(pid) for pid in pids] == [143, 143]
