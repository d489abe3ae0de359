"""The quickstart, run twice: chains.py says with what result. The other chains start from what it leaves."""

from chains import after_quickstart


def test_the_quickstart_runs_as_written_and_skips_what_is_done(tmp_path_factory):
    assert (after_quickstart(tmp_path_factory) / "gpt_model.pt").exists()
