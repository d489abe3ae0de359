"""Any text that UTF-8 can express comes back from its ids. The full numbers: uv run pytest -m soak"""

import random

from faults import runs

from model.tokenization.bpe_trainer import train_bpe_tokenizer
from model.tokenization.tokenizer import Tokenizer, make_character_tokenizer


def random_text(rng: random.Random) -> str:
    """Any text that UTF-8 can say, in pieces that stand next to each other in all orders."""
    pieces = ["<|endoftext|>", "<|unk|>", "\n", "\r\n", "\r", "\0", "\ufeff", "  ", "\t", "def ", "'s", "é", "日", "🐍"]
    ranges = [(0, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000)]
    text = []
    for _ in range(rng.randrange(30)):
        text.append(rng.choice(pieces) if rng.random() < 0.4 else chr(rng.randrange(*rng.choice(ranges))))
    return "".join(text)


@runs(1000, 50_000)
def test_any_text_comes_back(number):
    rng = random.Random(number)
    bpe = Tokenizer(train_bpe_tokenizer([random_text(rng) for _ in range(200)], 500).to_str())
    texts = [random_text(rng) for _ in range(number)]
    for text, ids in zip(texts, map(bpe.encode, texts), strict=True):
        assert bpe.decode(ids) == text
        assert bpe.end_of_text_id not in ids
    known = min(number // 2, 2000)  # more have more different characters than a token file can count
    char = Tokenizer(make_character_tokenizer("".join(texts[:known])).to_str())
    for i, (text, ids) in enumerate(zip(texts, map(char.encode, texts), strict=True)):
        seen = "".join(c if char.library.token_to_id(c) is not None else "<|unk|>" for c in text)
        assert char.decode(ids) == seen
        assert i >= known or seen == text
        assert char.end_of_text_id not in ids
        assert len(char.unknown(text, ids)) == sum(char.library.token_to_id(c) is None for c in text)


def test_a_batch_that_finds_special_tokens_in_text_is_noticed():
    """The control: the library, as its file comes, does."""
    bpe = Tokenizer(train_bpe_tokenizer(["a b c"], 260).to_str())
    bpe.library.encode_special_tokens = False
    rng = random.Random(1)
    assert any(0 in bpe.encode(random_text(rng)) for _ in range(100))
