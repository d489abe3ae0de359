"""Passages of a text that are in a corpus: planted ones, against a plain search, and where they are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plumbing.corpus import write_documents
from plumbing.errors import UsageError, UserError
from scripts import novelty


def as_array(data):
    return np.frombuffer(data, np.uint8)


def words(seed, n):
    rng = np.random.default_rng(seed)
    return " ".join("".join(map(chr, rng.integers(97, 123, rng.integers(2, 9)))) for _ in range(n))


@pytest.fixture
def look_up(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(text, documents, *flags):
        (tmp_path / "written.py").write_bytes(text.encode())
        write_documents(tmp_path / "corpus.txt", documents)
        novelty.main(["written.py", "--corpus", "corpus.txt", *map(str, flags)])
        return capsys.readouterr().out

    return run


def test_a_planted_passage_is_found_with_its_source(look_up):
    documents = [words(i, 400) for i in range(5)]
    documents[3] = "# the fourth\n" + documents[3].replace(" ", "\n")
    passage = documents[3][500:1300]
    text = words(90, 50) + passage + words(91, 50)
    out = look_up(text, documents)
    assert f"800 bytes at {len(words(90, 50)):,}:" in out
    line = 1 + documents[3][:500].count("\n")
    assert f"document 4 of the corpus, line {line:,}; it begins: #·the·fourth" in out
    assert f"800 of {len(text):,} bytes" in out


def test_what_is_new_is_new(look_up):
    out = look_up(words(1, 300), [words(2, 300)])
    assert "No passage of 40 bytes or more" in out
    assert "0 of" in out


def brute_force(text, corpus, shortest):
    """By trying: the longest match at each position of the text where it cannot be made longer to the left."""
    best = {}
    for i in range(len(text)):
        for j in range(len(corpus)):
            if i and j and text[i - 1] == corpus[j - 1]:
                continue
            n = 0
            while i + n < len(text) and j + n < len(corpus) and text[i + n] == corpus[j + n]:
                n += 1
            if n >= shortest:
                best[i] = max(best.get(i, 0), n)
    return best


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(32, 90), st.integers(0, 60))
def test_against_trying_everything(seed, size, offset):
    rng = np.random.default_rng(seed)
    corpus = rng.integers(97, 100, 300).astype(np.uint8).tobytes()
    text = rng.integers(97, 100, 60).astype(np.uint8).tobytes() + corpus[offset : offset + size]
    found, covered = novelty.find_matches(text, as_array(corpus), 32, 100)
    best = brute_force(text, corpus, 32)
    assert all(best[place] >= length for place, _, length in found)
    assert max(length for *_, length in found) == max(best.values())
    assert all(text[t : t + n] == corpus[c : c + n] for t, c, n in found)
    inside = set().union(*(range(place, place + length) for place, length in best.items()))
    assert covered == len(inside)


@pytest.mark.parametrize("chunk", [64, 128, 1 << 24])
@pytest.mark.parametrize("at", [0, 1, 40, 63, 64, 77, 400])
def test_borders_of_chunks_hide_nothing(monkeypatch, chunk, at):
    monkeypatch.setattr(novelty, "CHUNK", chunk)
    passage = words(5, 9)[:40].encode()
    before = words(6, 200)[:at].encode()
    corpus = before + passage + words(7, 40).encode()
    found, _ = novelty.find_matches(b"\0" * 50 + passage + b"\1" * 50, as_array(corpus), 32, 5)
    assert found == [(50, at, 40)]


def test_of_two_that_overlap_the_longer_one_is_shown():
    one, two, three = (words(i, 40).encode()[:100] for i in range(3))
    corpus = one + two + b"\0" + two[80:] + three  # the last 20 bytes of `two` stand in both
    found, covered = novelty.find_matches(one + two + three[:60], as_array(corpus), 32, 9)
    assert [(place, length) for place, _, length in found] == [(0, 200), (180, 80)]
    assert covered == 260
    found, _ = novelty.find_matches(one + two + three[:15], as_array(corpus), 32, 9)
    assert [(place, length) for place, _, length in found] == [(0, 200)]  # more than half of the other is in it


def test_indentation_alone_is_not_looked_up_and_costs_no_time():
    corpus = (b" " * 200 + b"x = 1\n") * 5000
    text = b" " * 5000 + b"y"
    t, c = novelty.find_seeds(as_array(text), as_array(corpus))
    assert len(t) == len(c) == 0


def test_what_repeats_itself_costs_no_time():
    """Each of 6,000 places of the text fits to 50,000 of the corpus."""
    text, corpus = b"0, " * 2_000, b"x" + b"0, " * 400_000
    t, c = novelty.find_seeds(as_array(text), as_array(corpus))
    assert 0 < len(t) == len(c) <= 3 * novelty.MAX_HITS**2
    found, covered = novelty.find_matches(text, as_array(corpus), 32, 5)
    assert found == [(0, 1, 6_000)] and covered == 6_000


def test_places_of_documents(monkeypatch, tmp_path):
    monkeypatch.setattr(novelty, "CHUNK", 32)
    documents = ["\n\n---\nalpha\nbeta", "gamma " * 20, "delta\nepsilon"]
    write_documents(tmp_path / "corpus.txt", documents)
    corpus = (tmp_path / "corpus.txt").read_bytes()
    for text, expected in (
        ("beta", (1, 5, "alpha")), ("gamma", (2, 1, ("gamma " * 20).strip())), ("delta", (3, 1, "delta")),
        ("epsilon", (3, 2, "delta")),
    ):  # fmt: skip
        assert novelty.locate(as_array(corpus), corpus.index(text.encode())) == expected


def test_what_it_refuses(look_up, tmp_path):
    with pytest.raises(UsageError, match="at least 32"):
        look_up("a", ["b"], "--shortest", 31)
    with pytest.raises(SystemExit):
        look_up("a", ["b"], "--most", 0)
    with pytest.raises(UserError, match="empty"):
        look_up("", ["b"])
    with pytest.raises(UserError, match="no text"):
        novelty.main(["nowhere.py", "--corpus", str(tmp_path / "corpus.txt")])
