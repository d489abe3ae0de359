"""What the tests of the surprise map share: a text, tokenizers and models for it, and a way to run the script."""

import torch

from model.gpt import GPT
from model.interpretation.surprise import layout_tokens, score_tokens
from model.storage.model_file import save_model
from model.tokenization.bpe_trainer import train_bpe_tokenizer
from model.tokenization.tokenizer import Tokenizer, make_character_tokenizer
from scripts import surprise_map

KNOWN = "def add(a, b):\n\treturn a + b  # naïve 日本 🙂 & <b>\n"
TOKENIZERS = {
    "char": Tokenizer(make_character_tokenizer(KNOWN + "'\"/~|\\").to_str()),
    # Of the merges that this text has, some hold a part of a character, and some a line end with what follows it.
    "bpe": Tokenizer(train_bpe_tokenizer(["x = '日本'\n\n    y = '日曜日'\n\n" * 3], vocab_size=280).to_str()),
}
BLOCK = 12


def make_model(kind: str, block_size: int = BLOCK) -> GPT:
    """A model whose weights are drawn large, so that its predictions depend on all that it sees."""
    torch.manual_seed(7)
    model = GPT(TOKENIZERS[kind].vocab_size, block_size=block_size, n_layer=2, n_head=2, n_embd=16)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    torch.nn.init.normal_(model.head.weight, std=2.0)
    return model.eval()


def map_runner(tmp_path, monkeypatch, capsys):
    """A function that runs the script on a text, run(kind, text, *flags), and returns what it printed."""
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)

    def run(kind, text, *flags, file="text.py"):
        model_file = tmp_path / f"{kind}.pt"
        if not model_file.exists():
            save_model(model_file, make_model(kind), TOKENIZERS[kind], {"steps": 3, "val_bits_per_byte": 1.5})
        (tmp_path / "text.py").write_bytes(text if isinstance(text, bytes) else text.encode())
        argv = [file, "--model", str(model_file), "--device", "cpu", *map(str, flags)]
        capsys.readouterr()
        surprise_map.main(argv)
        return capsys.readouterr().out

    return run


def score(kind, text, model=None, show=3):
    tokenizer = TOKENIZERS[kind]
    ids = tokenizer.encode(text)
    return ids, score_tokens(model or make_model(kind), ids, tokenizer.end_of_text_id, show)


def layout(kind, text):
    return layout_tokens(TOKENIZERS[kind], text, TOKENIZERS[kind].encode(text))
