"""Step 5, for byte pairs: all as in prepare_dataset.py, which does the work: only the settings (config.BPE) differ.

    python scripts/prepare_dataset_bpe.py
    python scripts/prepare_dataset_bpe.py --corpus data/corpus_sample.txt

Reads   data/corpus.txt and data/tokenizer_bpe.json
Writes  data/train_bpe.bin and data/val_bpe.bin: uint16 ids, <|endoftext|> after every document; each with a description
Next    python trainv2.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import BPE, run
from scripts.prepare_dataset import main

if __name__ == "__main__":
    run(lambda: main(BPE, __doc__, kind="bpe"))
