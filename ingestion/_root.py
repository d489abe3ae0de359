"""Puts the project's folder on the import path, so that `python ingestion/x.py` runs from anywhere: `import _root`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import plumbing.interrupts
