"""A full or broken disk: training stops with one sentence, loses nothing, and resumes when there is room again.

Each test has its control: the same check, on a version without the protection, must find something. The full numbers:
uv run pytest -m soak
"""

import errno
import os
from dataclasses import replace

import pytest
from faults import Faults, end_of, left_over, runs, start
from runs import same
from stored_runs import script, write_in_place

from model.storage.checkpoint import newest_checkpoint, save_checkpoint

pytestmark = pytest.mark.skipif(os.name != "posix", reason="forks and kills processes")


def failed_saves(settings, finished_run) -> int:
    """Save under an error at the Nth call, N = 1, 2, ... until one comes through. Returns how many failed."""
    old, new = finished_run.first, finished_run.last
    folder = settings.checkpoint_dir
    for n in range(1, 1000):
        code = (errno.ENOSPC, errno.EIO, errno.EFBIG)[n % 3]  # what is done about it does not depend on the code
        try:
            with Faults(at_call=n, error=code)():
                save_checkpoint(folder, 10, new, keep=2)
        except OSError as error:
            assert error.errno == code, n
            assert error.filename in (str(folder), str(folder / "step_00000010.pt"))
            assert "MB free" in error.strerror
        else:
            assert same(newest_checkpoint(folder)[1], new)
            return n - 1
        if not (folder / "step_00000010.pt").exists():
            assert same(newest_checkpoint(folder)[1], old)
        assert newest_checkpoint(folder)[2] == []
        assert left_over(folder) == []
        save_checkpoint(folder, 10, new, keep=2)  # with room again
        (folder / "step_00000010.pt").unlink()
    raise AssertionError("no save came through")


def test_a_full_or_broken_disk_at_any_call_of_a_save_loses_nothing(interrupted_run, finished_run):
    assert failed_saves(interrupted_run, finished_run) > 20


def test_without_the_temporary_file_a_full_disk_is_noticed(interrupted_run, finished_run, monkeypatch):
    write_in_place(monkeypatch)
    with pytest.raises(OSError), Faults(at_call=10, error=errno.ENOSPC)():
        save_checkpoint(interrupted_run.checkpoint_dir, 10, finished_run.last, keep=2)
    assert newest_checkpoint(interrupted_run.checkpoint_dir)[2] != []


@runs(6, 10_000)
def test_training_on_a_full_disk_stops_with_one_sentence_and_goes_on_later(finished_run, tmp_path, number):
    """The whole run, its log and its model file included, under an error at the Nth call."""
    settings, new = finished_run.settings, finished_run.last
    n, failed = 1, 0
    while True:
        folder = tmp_path / str(n)
        attempt = replace(settings, checkpoint_dir=folder / "run", model_file=folder / "model.pt")

        def full(attempt=attempt, n=n):
            with Faults(at_call=n, error=errno.ENOSPC)():
                script(attempt)()

        code = end_of(start(full, errors=tmp_path / "errors"))
        said = (tmp_path / "errors").read_text()
        if code == 0:
            break
        failed += 1
        assert code == 1, said
        assert said.startswith("error: No space left on device") and said.count("\n") == 1 and "MB free" in said, said
        assert str(folder) in said
        assert left_over(folder) == []
        assert newest_checkpoint(attempt.checkpoint_dir)[2] == []
        assert end_of(start(script(attempt))) == 0
        assert same(newest_checkpoint(attempt.checkpoint_dir)[1], new)
        n += max(1, 300 // number)
    assert failed > 4


def test_a_limit_on_the_size_of_files_is_named(interrupted_run, finished_run, tmp_path):
    size = (interrupted_run.checkpoint_dir / "step_00000005.pt").stat().st_size
    for limit in (1000, size // 2, size - 10):

        def limited(limit=limit):
            import resource  # which Windows has not

            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            script(interrupted_run)()

        assert end_of(start(limited, errors=tmp_path / "errors")) == 1
        said = (tmp_path / "errors").read_text()
        assert said.startswith("error: File too large, with ") and said.count("\n") == 1, said
        assert newest_checkpoint(interrupted_run.checkpoint_dir)[0].name == "step_00000005.pt"
        assert left_over(tmp_path) == []
    assert end_of(start(script(interrupted_run))) == 0
    assert same(newest_checkpoint(interrupted_run.checkpoint_dir)[1], finished_run.last)
