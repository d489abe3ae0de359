"""The chain "inside" of chains.py: commands of the pages, as written."""

from chains import run_chain


def test_commands_run_as_written(tmp_path_factory, request):
    run_chain("inside", tmp_path_factory, request)
