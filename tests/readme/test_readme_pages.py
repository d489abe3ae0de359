"""The chain "pages" of chains.py: commands of the pages, as written."""

from chains import run_chain


def test_commands_run_as_written(tmp_path_factory, request):
    run_chain("pages", tmp_path_factory, request)
