"""Model files of the version before model/ had rooms: they load, and write the texts that that version wrote."""

import pytest

import generate
from config import BPE, CHAR, ROOT
from model.generation.command_line import generation_flags

OLD = ROOT / "tests/fixtures/before_rooms"
TEXTS = [
    (CHAR, "char", "gpt_model.pt --temperature 0", "def ", "def " + " " * 40),
    (CHAR, "char", "gpt_model.pt --seed 7", "def ", "def i ]aySi.NSs    wavd[}|mt4-K'IS  d\"n   bl"),
    (BPE, "bpe", "gpt_model_bpe.pt --temperature 0", "def", "def" + "). if" * 10),
]


@pytest.mark.parametrize(("settings", "kind", "flags", "prompt", "text"), TEXTS)
def test_they_write_what_they_wrote(settings, kind, flags, prompt, text, capfd):
    file, *flags = flags.split()
    argv = ["--model", str(OLD / file), "--prompt", prompt, "--tokens", "40", "--device", "cpu", "--quiet", *flags]
    assert generate.main(*generation_flags(settings, "", argv), kind) == 0
    assert capfd.readouterr() == (text, "")
