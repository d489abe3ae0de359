"""Let a BPE model write. All is as in generate.py, which does the work, but a token is often several characters.

    python generatev2.py --prompt "def" --readable
    python generatev2.py --prompt "class" --stop-at-newline --quiet

Reads   gpt_model.pt (trainv2.py), or checkpoints/bpe/gpt_model.pt if that one is a character model
Writes  the text to stdout, everything else to stderr; --output-file writes the text to a file as well

A BPE token includes the space before a word (" name"), so a prompt that ends with a space is unlike the training text.
Without --readable, tokens are shown as in the tokenizer's file, one letter per byte: "Ġdef" is " def".
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # also with python -I
import plumbing.start

from config import BPE
from model.generation.command_line import generation_flags
from plumbing.errors import run_script

if __name__ == "__main__":
    settings, args = generation_flags(BPE, __doc__)  # before generate, which imports torch

from generate import main

if __name__ == "__main__":
    run_script(lambda: main(settings, args, kind="bpe"), "go on" if args.output_file or args.trace else "end")
