"""Let a BPE model write. All as in generate.py, which does the work; tokens are pieces of words instead of characters.

    python generatev2.py --prompt "def" --readable
    python generatev2.py --prompt "class" --stop-at-newline --quiet

Reads   gpt_model.pt (trainv2.py)
Writes  the text to stdout, everything else to stderr; with --output-file the text to a file as well

A BPE token brings its space along (" name"), so a prompt that ends with a space leaves the model where it rarely was.
Without --readable, tokens are shown as the tokenizer's file has them, a letter for each byte: "Ġdef" is " def".
"""

from config import BPE
from model.generation.command_line import generation_flags
from plumbing.errors import run_script

if __name__ == "__main__":
    settings, args = generation_flags(BPE, __doc__)  # before generate, which imports torch

from generate import main

if __name__ == "__main__":
    run_script(lambda: main(settings, args, kind="bpe"))
