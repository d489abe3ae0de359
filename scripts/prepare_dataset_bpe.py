"""Step 5, for byte pairs: prepare_dataset.py with the settings of config.BPE.

    python scripts/prepare_dataset_bpe.py
    python scripts/prepare_dataset_bpe.py --corpus data/corpus_sample.txt

Reads   data/corpus.txt and data/tokenizer_bpe.json
Writes  data/train_bpe.bin and data/val_bpe.bin: uint16 ids, <|endoftext|> after every document; each with a description
Next    python trainv2.py
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # also with python -I
import plumbing.start

import functools

from config import BPE
from plumbing.errors import run_script
from scripts.prepare_dataset import main

if __name__ == "__main__":
    run_script(functools.partial(main, BPE, __doc__, kind="bpe"))
