"""model/tokenization/tokenizer.py: both kinds, against the `tokenizers` library and definitions."""

import hashlib
import inspect
import json
import textwrap
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers

from model.tokenization.bpe_trainer import train_bpe_tokenizer
from model.tokenization.byte_letters import LETTER_TO_BYTE, byte_letters
from model.tokenization.tokenizer import (
    EMPTY_TEMPLATE,
    UNKNOWN,
    BareIds,
    Tokenizer,
    check_round_trip,
    load_tokenizer,
    make_character_tokenizer,
    reloaded,
    save_tokenizer,
)
from plumbing.corpus import END_OF_TEXT
from plumbing.errors import UserError

CODE = inspect.getsource(textwrap) + "\n\tnaïve façade 日本語 🐍 1234567\r\n" * 3
SEEN = sorted(set(CODE))
SPECIAL_LOOKING = f"a{END_OF_TEXT}b\n{END_OF_TEXT}\n{UNKNOWN}<|{END_OF_TEXT}|>"  # text, however special it looks


@pytest.fixture(scope="module")
def char_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "char.json"
    save_tokenizer(reloaded(make_character_tokenizer(CODE)), path)
    return path


@pytest.fixture(scope="module")
def bpe_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "bpe.json"
    save_tokenizer(reloaded(train_bpe_tokenizer(CODE.split("\n\n"), 600)), path)
    return path


@pytest.fixture(scope="module")
def char(char_file):
    return load_tokenizer(char_file)


@pytest.fixture(scope="module")
def bpe(bpe_file):
    return load_tokenizer(bpe_file)


@pytest.fixture(scope="module", params=["char", "bpe"])
def either(request):
    return request.getfixturevalue(request.param)


def library_of(path: Path) -> tokenizers.Tokenizer:
    """The file as the library itself reads it, with the one setting that it does not save."""
    library = tokenizers.Tokenizer.from_file(str(path))
    library.encode_special_tokens = True
    return library


def library_ids(library: tokenizers.Tokenizer, text: str) -> list[int]:
    return library.encode(text, add_special_tokens=False).ids


seen_texts = st.text(st.sampled_from(SEEN), max_size=40) | st.sampled_from([CODE, SPECIAL_LOOKING, ""])
# Everything that UTF-8 can say: control characters, CRLF, planes beyond the first; surrogates it cannot.
any_texts = st.lists(
    st.characters(codec="utf-8")
    | st.sampled_from(["\r\n", "\0", "  ", "\n\n\t", "\x85", "def ", "'s", END_OF_TEXT, UNKNOWN]),
    max_size=20,
).map("".join)


# === characters ======================================================================================================


def test_character_ids_follow_the_special_ones_in_unicode_order():
    tokenizer = Tokenizer(make_character_tokenizer("ba\n🐍ab").to_str())
    assert tokenizer.library.get_vocab() == {END_OF_TEXT: 0, UNKNOWN: 1, "\n": 2, "a": 3, "b": 4, "🐍": 5}
    assert tokenizer.encode("b🐍a\nb").tolist() == [4, 5, 3, 2, 4]
    assert (tokenizer.kind, tokenizer.vocab_size) == ("char", 6)
    assert (tokenizer.end_of_text_id, tokenizer.unknown_id) == (0, 1)


@settings(max_examples=200, deadline=None)
@given(text=seen_texts)
def test_text_of_seen_characters_comes_back_with_one_id_each(char, text):
    ids = char.encode(text)
    assert ids.dtype == np.uint16
    assert len(ids) == len(text)
    assert not np.isin(ids, [0, 1]).any()
    assert char.decode(ids) == text
    assert char.unknown(text, ids) == []


def test_the_library_decodes_characters_without_spaces_between(char, char_file):
    """Other tools read the file with the library's own decoder."""
    assert library_of(char_file).decode(char.encode(CODE).tolist()) == CODE


@settings(max_examples=120, deadline=None)
@given(text=any_texts)
@example(text=SPECIAL_LOOKING)
@example(text="\u00e9 is not e\u0301, ﬁ is not fi")  # no normalisation
def test_characters_as_the_library_encodes_them(char, char_file, text):
    ids = char.encode(text)
    assert ids.tolist() == library_ids(library_of(char_file), text)
    assert char.unknown(text, ids) == [character for character in text if character not in SEEN]


def test_unknown_characters_are_counted_in_order_and_written_out():
    tokenizer = Tokenizer(make_character_tokenizer("abc").to_str())
    ids = tokenizer.encode("aβcβΩ")
    assert ids.tolist() == [2, 1, 4, 1, 1]
    assert tokenizer.unknown("aβcβΩ", ids) == ["β", "β", "Ω"]
    assert tokenizer.decode(ids) == f"a{UNKNOWN}c{UNKNOWN}{UNKNOWN}"


def test_lone_surrogates_are_unknown_characters(char):
    """A prompt can hold one: the bytes of a command line that are not UTF-8."""
    assert char.encode("a\udce9").tolist()[1] == char.unknown_id


# === byte pairs ======================================================================================================


@settings(max_examples=250, deadline=None)
@given(text=any_texts)
@example(text="".join(map(chr, range(0x250))))  # every control character, every Latin letter
@example(text="\r\n\n\r\t \v\f\x1c\u2028\u00a0\u3000\ufeff\ufffd\uffff\U0010ffff")
@example(text=SPECIAL_LOOKING)
@example(text=CODE)
def test_any_text_comes_back_from_bpe(bpe, text):
    ids = bpe.encode(text)
    assert ids.dtype == np.uint16
    assert bpe.decode(ids) == text
    assert 0 not in ids
    assert b"".join(bpe.token_bytes(token) for token in ids) == text.encode()
    assert bpe.unknown(text, ids) == []


@settings(max_examples=120, deadline=None)
@given(text=any_texts)
@example(text=CODE)
def test_bpe_as_the_library_encodes_it(bpe, bpe_file, text):
    library = library_of(bpe_file)
    ids = library_ids(library, text)
    assert bpe.encode(text).tolist() == ids
    assert library.decode(ids) == text


def test_bpe_ids_start_with_end_of_text_and_the_bytes(bpe):
    assert (bpe.kind, bpe.vocab_size, bpe.end_of_text_id, bpe.unknown_id) == ("bpe", 600, 0, None)
    assert bpe.token_bytes(0) == END_OF_TEXT.encode()
    assert {bpe.token_bytes(token) for token in range(1, 257)} == {bytes([byte]) for byte in range(256)}


def test_merges_stay_inside_words(bpe):
    """A token is white space, or a word, a number or punctuation with at most one space before it."""
    for token in range(257, bpe.vocab_size):
        text = bpe.token_bytes(token).decode("utf-8", errors="ignore")
        body = text.removeprefix(" ")
        if not body.strip():
            continue
        body = body.removeprefix("'")  # the pattern has words such as 's
        kinds = {
            "letter" if c.isalpha() else "digit" if c.isdecimal() else "space" if c.isspace() else "other" for c in body
        }
        assert len(kinds) <= 1, text
        assert "space" not in kinds, text


def test_there_is_no_prefix_space(bpe):
    """A space put before each text would change code, and give its first word another id."""
    assert bpe.decode(bpe.encode("def")) == "def"
    assert bpe.encode("def").tolist() != bpe.encode(" def").tolist()


def test_a_common_word_is_one_token(bpe):
    assert len(bpe.encode(" self")) == 1
    assert len(bpe.encode(CODE)) < len(CODE.encode()) / 2


# === special tokens, bytes, strings ===================================================================================


def test_special_tokens_never_come_from_text(either):
    assert either.end_of_text_id not in either.encode(SPECIAL_LOOKING)
    assert either.decode(either.encode(SPECIAL_LOOKING)) == SPECIAL_LOOKING


@pytest.mark.parametrize("name", ["char_file", "bpe_file"])
def test_the_library_on_its_own_would_find_them_in_text(request, name):
    """The control of the test above: why the loader sets encode_special_tokens."""
    library = tokenizers.Tokenizer.from_file(str(request.getfixturevalue(name)))
    assert 0 in library_ids(library, SPECIAL_LOOKING)


def test_decode_writes_special_tokens_out(either):
    ids = [either.end_of_text_id, *either.encode("a"), either.end_of_text_id]
    assert either.decode(ids) == f"{END_OF_TEXT}a{END_OF_TEXT}"
    assert either.decode([]) == ""
    assert either.decode(np.array(ids, np.uint16)) == either.decode(ids)


def test_half_a_character_becomes_the_replacement_sign():
    tokenizer = Tokenizer(train_bpe_tokenizer(["x"], 257).to_str())  # bytes only
    ids = tokenizer.encode("é日")
    assert [tokenizer.token_bytes(token) for token in ids] == [b"\xc3", b"\xa9", b"\xe6", b"\x97", b"\xa5"]
    assert tokenizer.decode(ids[:1]) == "\ufffd"
    assert tokenizer.decode(ids[1:]) == "\ufffd日"
    assert tokenizer.decode(ids[:4]) == "é\ufffd"
    assert tokenizer.decode(ids) == "é日"  # put together before they are decoded


def test_token_strings_are_what_the_file_says(char, bpe):
    assert char.token_string(char.encode("\n")[0]) == "\n"
    assert char.token_bytes(char.encode("日")[0]) == "日".encode()
    assert [bpe.token_string(token) for token in bpe.encode(" self")] == ["Ġself"]
    assert bpe.token_bytes(bpe.encode(" self")[0]) == b" self"
    assert char.token_string(0) == bpe.token_string(0) == END_OF_TEXT


def test_byte_letters_are_those_of_the_library_and_of_gpt2():
    letters = byte_letters()
    assert sorted(letters) == list(range(256))
    assert sorted(letters.values()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    known = {" ": "Ġ", "\n": "Ċ", "\t": "ĉ", "\r": "č", "\0": "Ā", "!": "!", "~": "~", "\x7f": "ġ"}
    assert {byte: letters[ord(byte)] for byte in known} == known
    assert (letters[0xA0], letters[0xA1], letters[0xAD], letters[0xFF]) == ("ł", "¡", "Ń", "ÿ")
    assert {letter: byte for byte, letter in letters.items()} == LETTER_TO_BYTE
    # The library itself, byte by byte: the characters below U+0800 hold every byte that can stand in two.
    for character in map(chr, range(0x800)):
        (piece, _), *rest = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(
            character
        )
        assert (piece, rest) == ("".join(letters[byte] for byte in character.encode()), [])


def test_check_round_trip_counts_and_compares(char):
    assert check_round_trip(char, ["ab", "日", ""]) == (3, 5)
    with pytest.raises(UserError, match="does not give back the text that begins 'a€'"):
        check_round_trip(char, ["ab", "a€"])  # the euro sign is none of the characters seen


def test_bare_ids_answer_whatever_a_tokenizer_answers(either):
    bare = BareIds(10)
    own = {"library", "character_to_id", "meaning", "made"}  # for the encoders, and for sidecars, which bare ids lack
    assert {name for name in dir(either) if not name.startswith("_")} - own <= set(dir(bare))
    assert either.counts_bytes and not bare.counts_bytes
    assert either.ends_document(either.end_of_text_id) and not either.ends_document(2)
    assert not bare.ends_document(bare.end_of_text_id)
    for tokenizer in (either, bare):
        prompt = tokenizer.prompt_from(np.array([3, 4, 5]))
        assert len(tokenizer.encode(prompt)) and not tokenizer.unknown(prompt, tokenizer.encode(prompt))


@pytest.mark.parametrize(
    ("text", "prompt"),
    [
        ("import os\n\ndef f():\n    return 1\n", "def"),
        ("Die Sonne sank.\nDie Nacht kam, und der Mond.\nÜber dem Tal\n", "Die"),
        ("Über\n12 a\nÜber\nEs\n", "Über"),
        ("defend\n1 2 3\n", "defend"),
        ("  7\n", "7"),
    ],
)
def test_a_prompt_from_the_text_itself(text, prompt):
    for library in (make_character_tokenizer(text), train_bpe_tokenizer([text], 270)):
        tokenizer = Tokenizer(library.to_str())
        assert tokenizer.prompt_from(tokenizer.encode(text)) == prompt


# === files ===========================================================================================================


def test_a_tokenizer_is_known_by_its_meaning(either):
    """However its file is written, and with what transformers adds when it saves it."""
    facts = {"tokenizer_sha256": either.sha256}
    content = json.loads(either.json_text) | {
        "post_processor": EMPTY_TEMPLATE,
        "padding": {"strategy": {"Fixed": 2**40}, "direction": "Left", "pad_id": 0, "pad_type_id": 0, "pad_token": "x"},
        "truncation": {"max_length": 1, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
    }
    again = Tokenizer(json.dumps(content))
    assert again.sha256 != either.sha256 and again.meaning == either.meaning
    assert again.made(facts) and again.is_named(either.sha256)
    assert again.encode("def f()").tolist() == either.encode("def f()").tolist()
    assert either.made({"tokenizer_sha256": again.sha256, "tokenizer_meaning": again.meaning})
    assert not either.made({"tokenizer_sha256": again.sha256})

    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    other = Tokenizer(json.dumps(content))
    assert other.meaning != either.meaning and not other.made(facts)


def test_the_order_of_merges_is_part_of_the_meaning(bpe):
    content = json.loads(bpe.json_text)
    merges = content["model"]["merges"]
    merges[0], merges[1] = merges[1], merges[0]
    assert Tokenizer(json.dumps(content)).meaning != bpe.meaning


@pytest.mark.parametrize("name", ["char", "bpe"])
def test_a_saved_file_is_named_by_its_hash(request, name, tmp_path):
    path, tokenizer = request.getfixturevalue(f"{name}_file"), request.getfixturevalue(name)
    assert tokenizer.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert tokenizer.json_text == path.read_text("utf-8")
    again = Tokenizer(tokenizer.json_text)  # as a model file carries it
    assert (again.sha256, again.kind, again.vocab_size) == (tokenizer.sha256, tokenizer.kind, tokenizer.vocab_size)
    assert again.encode(CODE).tolist() == tokenizer.encode(CODE).tolist()
    changed = json.loads(tokenizer.json_text) | {"version": "1.0", "padding": None}
    assert Tokenizer(json.dumps(changed)).sha256 != tokenizer.sha256  # of the text, not of the meaning


def wordlevel(vocab: dict[str, int]) -> str:
    return tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN)).to_str()


REFUSED = {
    "empty": (b"", "is not a tokenizer"),
    "not JSON": (b"{", "is not a tokenizer"),
    "text": (b"def f():\n    pass\n", "is not a tokenizer"),
    "JSON of another kind": (b'{"model": 5}', "is not a tokenizer"),
    "a list": (b"[]", "is not a tokenizer"),
    "binary": (bytes(range(256)), "is not UTF-8"),
    "zip": (b"PK\x03\x04\xff\xfe", "is not UTF-8"),
    "Unigram": (tokenizers.Tokenizer(models.Unigram([("a", 0.0)])).to_str(), "is not a tokenizer"),
    "WordPiece": (tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0})).to_str(), "is not a tokenizer"),
    "no end of text": (wordlevel({UNKNOWN: 0, "a": 1}), "lacks a special token"),
    "no unknown": (wordlevel({END_OF_TEXT: 0, "a": 1}), "lacks a special token"),
    "BPE without end of text": (tokenizers.Tokenizer(models.BPE({"a": 0}, [])).to_str(), "lacks a special token"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_are_refused(tmp_path, name):
    content, message = REFUSED[name]
    path = tmp_path / "foreign.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=rf"foreign\.json .*{message}|foreign\.json {message}"):
        load_tokenizer(path)


@pytest.mark.parametrize("path", ["nothing.json", "."])
def test_a_missing_file_is_named_with_the_scripts_that_make_one(tmp_path, path):
    with pytest.raises(
        UserError, match=r"There is no tokenizer .*train_tokenizer_character_level.*train_tokenizer_bpe"
    ):
        load_tokenizer(tmp_path / path)


@pytest.mark.parametrize("change", [{"merges": [["nowhere", "b"]]}, {"vocab": {"a": -1}}, {"type": "Nonsense"}])
def test_a_senseless_model_is_refused(bpe, change):
    content = json.loads(bpe.json_text)
    with pytest.raises(UserError, match="is not a tokenizer"):
        Tokenizer(json.dumps(content | {"model": content["model"] | change}))


def test_a_file_that_makes_the_library_panic_is_refused(bpe):
    """The library's Rust code gives up by an error that is no Exception, and would pass an `except Exception`."""
    panics = {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}
    with pytest.raises(UserError, match="is not a tokenizer"):
        Tokenizer(json.dumps(json.loads(bpe.json_text) | panics))


def test_a_vocabulary_must_fit_uint16():
    characters = [chr(i) for i in range(0x10000, 0x10000 + 65_535)]
    largest = Tokenizer(make_character_tokenizer(characters[:65_534]).to_str())
    assert largest.vocab_size == 65_536
    assert largest.encode(characters[65_533]).tolist() == [65_535]
    assert largest.decode([65_535]) == characters[65_533]
    with pytest.raises(UserError, match="the id 65,536, which does not fit uint16"):
        Tokenizer(make_character_tokenizer(characters).to_str())


def test_an_id_must_fit_uint16(char):
    broken = json.loads(char.json_text)
    broken["model"]["vocab"]["a"] = 70_000
    with pytest.raises(UserError, match="the id 70,000, which does not fit uint16"):
        Tokenizer(json.dumps(broken))
