"""What several test files share: a small corpus with tokenizers and token files, as settings that lie in tmp_path."""

import os
import signal
import sys
from dataclasses import replace

# Where this is set, each of the many processes started here would compile all that it imports once more.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# One thread for torch, here and in subprocesses: models this small lose more by waiting for threads than they gain.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here may reach out; tests/ingestion starts its own server

import pytest
import torch

# Triton's interpreter is chosen before Triton is imported, which torch._dynamo does.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from browser import chromium, open_page, spare_pages  # noqa: F401 (fixtures)
from data_scripts import prepare, project, run  # noqa: F401 (fixtures)
from fork_server import ForkServer
from hub import files, hub  # noqa: F401 (fixtures)
from stored_runs import finished_run, interrupted_run  # noqa: F401 (fixtures)

from config import BPE, CHAR
from dataset import token_writer
from model import by_hand_c
from model.storage.checkpoint import newest_checkpoint
from model.storage.safe_load import save
from model.tokenization.bpe_trainer import train_bpe_tokenizer
from model.tokenization.tokenizer import load_tokenizer, make_character_tokenizer, reloaded, save_tokenizer
from plumbing.corpus import split_documents, write_documents
from plumbing.parallel import cores

DOCUMENT = '''"""Module {i}."""

import os


def add_{i}(first, second):
    # café {rest}
    return first + {i} * second
'''
DOCUMENTS = [DOCUMENT.format(i=i, rest=i % 7) for i in range(60)]

# A model that trains in milliseconds, every setting that matters away from its default.
SMALL = {
    "block_size": 24,
    "n_layer": 2,
    "n_head": 2,
    "n_embd": 16,
    "dropout": 0.1,
    "batch_size": 4,
    "max_steps": 10,
    "warmup_steps": 2,
    "eval_every": 5,
    "checkpoint_every": 5,
    "log_every": 2,
    "sample_tokens": 6,
    "device": "cpu",
    "dtype": "float32",
}


ORDER = {"training": 0, "storage": 0, "readme": 1}  # folders of tests, before all others


def make_pipeline(folder, settings, kind):
    """Write corpus, tokenizer and token files of a kind below `folder`. Returns the settings that name them."""
    settings = replace(
        settings,
        corpus=folder / "corpus.txt",
        tokenizer_file=folder / settings.tokenizer_file.name,
        train_file=folder / settings.train_file.name,
        val_file=folder / settings.val_file.name,
        checkpoint_dir=folder / "checkpoints" / kind,
        model_file=folder / f"{kind}.pt",
        **SMALL,
    )
    write_documents(settings.corpus, DOCUMENTS)
    library = make_character_tokenizer("".join(DOCUMENTS)) if kind == "char" else train_bpe_tokenizer(DOCUMENTS, 300)
    save_tokenizer(reloaded(library), settings.tokenizer_file)
    tokenizer = load_tokenizer(settings.tokenizer_file)
    facts = {
        "tokenizer_kind": kind,
        "tokenizer_sha256": tokenizer.sha256,
        "vocab_size": tokenizer.vocab_size,
        "end_of_text_id": tokenizer.end_of_text_id,
        "pairs": ["prepared by conftest.py"],
    }
    with token_writer(settings.train_file, facts) as train, token_writer(settings.val_file, facts) as val:
        for split, document in split_documents(settings.corpus, 0.2):
            {"train": train, "val": val}[split].add(tokenizer.encode(document.decode()), len(document))
    return settings


def lose(folder, part):
    """Take the random numbers ("rng") or the optimizer's memory ("optimizer") out of a run's newest checkpoint."""
    path, content, _ = newest_checkpoint(folder)
    if part == "rng":
        content["rng"] = torch.Generator().manual_seed(0).get_state()
    else:
        content["optimizer"]["mean"].zero_()
    save(path, content)


@pytest.fixture(scope="session")
def torch_server(tmp_path_factory):
    """One for all tests of a worker, so that torch is imported once for them."""
    server = ForkServer(tmp_path_factory.mktemp("torch_server"))
    yield server
    server.close()


@pytest.fixture
def char(tmp_path):
    return make_pipeline(tmp_path, CHAR, "char")


@pytest.fixture
def bpe(tmp_path):
    return make_pipeline(tmp_path, BPE, "bpe")


@pytest.fixture(autouse=True)
def layers_in_torch(monkeypatch):
    """A training in this process may switch layers in C on; the next test begins without."""
    monkeypatch.setattr(by_hand_c, "library", None)


@pytest.fixture(autouse=True)
def signal_handlers():
    """Training takes over Ctrl-C, SIGTERM and SIGHUP; the test run wants them back."""
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in (getattr(signal, name) for name in names)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def pytest_xdist_auto_num_workers():
    """With -n auto: one more than there are cores, because many tests wait for a process or a browser."""
    return int(os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS") or cores() + 1)


def pytest_collection_modifyitems(items):
    """The longest first, so that no worker has much left when the others are done.

    The commands of the pages take longest, and all of them wait for the quickstart: other tests run in between.
    """
    items.sort(key=lambda item: (item.path.name != "test_readme_quickstart.py", ORDER.get(item.path.parent.name, 2)))
