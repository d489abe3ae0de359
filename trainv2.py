"""Train a GPT on byte-pair tokens. The loop is in train.py; only the settings (config.BPE) differ.

    python trainv2.py
    python trainv2.py --minutes 10

Reads   data/train_bpe.bin, data/val_bpe.bin (scripts/prepare_dataset_bpe.py) and data/tokenizer_bpe.json
Writes  checkpoints/bpe/step_*.pt, log.jsonl and, at each evaluation, gpt_model.pt; the finished model also as
        gpt_model.pt
Next    python generatev2.py --prompt "def"
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # also with python -I
import plumbing.start

from config import BPE
from model.training.command_line import training_flags
from plumbing.errors import run_script

if __name__ == "__main__":
    settings, args = training_flags(BPE, __doc__)  # before train, which imports torch

from train import main

if __name__ == "__main__":
    run_script(lambda: main(settings, args.fresh, "bpe", args.init_from, args.ids, args.plan), when_unread="stderr")
