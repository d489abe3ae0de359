"""Streaming against decoding all at once: whatever the borders between tokens, the text that comes out is the same."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.generation.writer import TextStream

in_any_time = settings(deadline=None)


def stream(parts: list[bytes], stops: list[str] = ()) -> list[str]:
    """What came out after each part, and at the end."""
    stream = TextStream(stops)
    return [*(stream.feed(part) for part in parts), stream.finish()]


def test_half_a_character_waits_for_the_other_half():
    assert stream([b"a", "é".encode()[:1], "é".encode()[1:] + b"b"]) == ["a", "", "éb", ""]
    whole = "日".encode()
    assert stream([whole[:1], whole[1:2], whole[2:]]) == ["", "", "日", ""]
    assert stream([b"a", whole[:2]]) == ["a", "", "\N{REPLACEMENT CHARACTER}"]


def test_a_stop_text_across_tokens():
    assert stream([b"abc\n", b"\nd"], ["\n\n"]) == ["abc", "", ""]
    assert stream([b"a</", b"en", b"d>b"], ["</end>"]) == ["a", "", "", ""]
    assert stream([b"a</", b"em>", b"</"], ["</end>"]) == ["a", "</em>", "", "</"]


def test_only_what_a_stop_text_may_begin_with_waits():
    assert stream([b"aab", b"aabc"], ["aabc"]) == ["", "aab", ""]  # the second "aab" could be the one
    assert stream([b"xab", b"c"], ["abcd", "bcd"]) == ["x", "", "abc"]


def test_the_first_of_several_stop_texts_counts():
    assert stream([b"one two three"], ["three", "two"]) == ["one ", ""]
    for parts in ([b"abcd"], [b"a", b"b", b"c", b"d"]):  # the first to be complete, though the other begins before it
        assert "".join(stream(parts, ["abcd", "bc"])) == "a"
    assert "".join(stream([b"abc"], ["bc", "abc"])) == ""


def test_nothing_comes_after_a_stop():
    stream = TextStream(["."])
    assert stream.feed(b"a.b") == "a"
    assert stream.stopped
    assert (stream.feed(b"c"), stream.finish()) == ("", "")


def test_a_stop_text_can_wait_for_the_end():
    """The end of the input makes half a character U+FFFD, which a stop text may hold."""
    assert stream([b"a\xc3"], ["\N{REPLACEMENT CHARACTER}"]) == ["a", ""]


pieces = st.lists(st.one_of(st.binary(max_size=3), st.sampled_from([b"a", b"ab", b"\n", "é".encode()])), max_size=12)
stop_texts = st.lists(st.text("ab\né", min_size=1, max_size=4), max_size=3)


@in_any_time
@given(pieces, stop_texts)
def test_what_comes_out_is_the_text_before_the_first_stop(parts, stops):
    whole = b"".join(parts).decode("utf-8", errors="replace")
    seen = ""
    for text in stream(parts, stops):
        seen += text
        assert whole.startswith(seen), "nothing is ever taken back"
    if not any(stop in whole for stop in stops):
        assert seen == whole
    else:
        assert not any(stop in seen for stop in stops)
        assert any(whole[len(seen) :].startswith(stop) for stop in stops)
    assert seen == "".join(stream([b"".join(parts)], stops)), "wherever the borders are"


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_same_text_in_pieces_of_any_size(size):
    data = "def café():\n    return '日本'\n\n".encode()
    parts = [data[i : i + size] for i in range(0, len(data), size)]
    assert "".join(stream(parts, ["\n\n\n"])) == data.decode()
