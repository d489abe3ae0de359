"""Texts that are hard to cut and to encode, and the ids that encoders give, for the tests of both encoders."""

from hypothesis import strategies as st

from model.tokenization.pre_tokens import join_documents
from model.tokenization.tokenizer import Tokenizer
from plumbing.corpus import END_OF_TEXT

# What the pattern of pre-tokens tells apart, in every order: suffixes, blanks, line ends, white space that is not
# ASCII (or not white in every library), letters with and without case, digits, marks, NUL, control characters.
SUFFIXES = "' 's 't 're 've 'll 'd 'm 'S 'r s".split(" ")
WHITE = [
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    "\v",
    "\f",
    "\x85",
    "\xa0",
    "\u2028",
    "\u3000",
    " " * 17,
    "\n" + " " * 12,
]
OTHERS = ["a", "foo", "Bar_", "1", "23", ".", "((", "==", "\0", "\x1c", "\x1f", "\x7f", "x" * 20, END_OF_TEXT]
NOT_ASCII = ["é", "\u017f", "İ", "日本", "🐍", "²", "\u0661", "\u0301", "\ufeff"]
samples = st.sampled_from([*SUFFIXES, *WHITE, *OTHERS, *NOT_ASCII])
texts = st.lists(samples | st.characters(codec="utf-8"), min_size=1, max_size=14).map("".join)


def library_ids(tokenizer: Tokenizer, documents: list[str]) -> list[int]:
    """The ids of documents by the plain way: the library encodes one after the other."""
    encoded = (tokenizer.library.encode(document, add_special_tokens=False).ids for document in documents)
    return [token for ids in encoded for token in [*ids, tokenizer.end_of_text_id]]


def our_ids(encoder, documents: list[str]) -> list[int]:
    """The ids of documents by one of our encoders."""
    text = join_documents(document.encode() for document in documents)
    return [token for ids in encoder.encode(text) for token in ids.tolist()]
