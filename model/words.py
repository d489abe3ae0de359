"""Byte-pair encoding at the speed of numpy: cut text into words by arithmetic on its bytes, look known words up.

Merges never cross the words that GPT-2's pattern cuts a text into, so the ids of a text are those of its words, one
after the other, and a word that was seen before needs no merging again. Source code repeats itself: of a megabyte of
Python nearly all words are known from the megabytes before. So each distinct word goes once through the `tokenizers`
library, and the rest is arrays: where words begin, their bytes as numbers, a table of numbers, the ids found there.

    import os    ->    import| os|END    ->    two numbers of 128 bits each    ->    [id, id, end-of-text id]

The pattern (Radford et al. 2019, as in the library's ByteLevel) tries, at each place, from left to right:

    's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+

For ASCII this is a rule about neighbours, see word_starts(). A stretch with other characters goes to the library whole.
"""

from collections.abc import Iterator

import numpy as np

END = 0xFF  # the byte that stands behind every document: no byte of UTF-8 is 255
BLOCK = 1 << 18  # bytes worked on at once: few enough that the arrays stay in the processor's caches

LETTER, DIGIT, OTHER, HIGH, SPACE, BLANK, STOP = 1, 2, 3, 4, 8, 9, 16  # HIGH: not ASCII; BLANK: the space character
KIND = bytearray([OTHER] * 128 + [HIGH] * 127 + [STOP])  # of each byte
KIND[ord("A") : ord("Z") + 1] = KIND[ord("a") : ord("z") + 1] = bytes([LETTER] * 26)
KIND[ord("0") : ord("9") + 1] = bytes([DIGIT] * 10)
KIND[9:14] = bytes([SPACE] * 5)
KIND[ord(" ")] = BLANK

APOSTROPHE = ord("'")
SUFFIX = np.zeros(256, np.uint8)  # 's 't 'm 'd are words of one letter; r, v and l need a second one
SUFFIX[list(b"stmd")] = 1
SUFFIX[list(b"rvl")] = list(b"eel")


def word_starts(data: bytes) -> np.ndarray:
    """Where the words of a text begin, (words,) int64, the text being documents with an END behind each.

    For ASCII, a word begins
    - where the kind changes to letters, digits or others, and no blank stands before;
    - at the first of several white characters, and at the last one if something else follows it: a blank belongs to the
      word behind it;
    - behind a word that is an apostrophe and a suffix: where such a word begins, the pattern prefers it.
    From the white character before to the next one behind it, a word with a character that is not ASCII stays whole,
    and so do its neighbours in between: no word of the pattern crosses these two borders, whatever stands between.
    """
    size = len(data)
    text = np.frombuffer(data + b"\0\0", np.uint8)  # so that one can look two bytes ahead
    kind = np.zeros(size + 1, np.uint8)
    kind[:size] = np.frombuffer(data.translate(bytes(KIND)), np.uint8)
    kind[size] = STOP  # a block ends with END, or where a white character follows
    previous = np.zeros(size, np.uint8)
    previous[1:] = kind[: size - 1]
    white = (kind & SPACE) != 0
    changed = kind[:size] != previous
    first_white = (previous & SPACE) == 0
    last_white = ~white[1:] & (kind[1:] != STOP)
    starts = np.zeros(size + 4, bool)
    starts[:size] = np.where(white[:size], first_white | last_white, changed & (previous != BLANK))
    starts[:size] |= kind[:size] == STOP

    # --- an apostrophe and a suffix -----------------------------------------------------------------------------------
    quotes = np.flatnonzero(starts[:size] & (text[:size] == APOSTROPHE))
    suffix = SUFFIX[text[quotes + 1]]
    for length, found in ((2, suffix == 1), (3, (suffix > 1) & (text[quotes + 2] == suffix))):
        starts[quotes[found] + 1] = False
        starts[quotes[found] + length] = True

    # --- stretches that are not ASCII ---------------------------------------------------------------------------------
    high = np.flatnonzero(kind[:size] == HIGH)
    if len(high):
        borders = np.flatnonzero(safe_borders(kind[:size], previous))
        stretch = np.unique(np.searchsorted(borders, high, "right"))
        for i in stretch.tolist():
            begin = borders[i - 1] if i else 0
            starts[begin + 1 : borders[i] if i < len(borders) else size] = False
    if size:
        starts[0] = True
    return np.flatnonzero(starts[:size])


def safe_borders(kind: np.ndarray, previous: np.ndarray) -> np.ndarray:
    """Where a text may be cut without a change to its words: before an END, behind one, and where white characters
    begin. The pattern looks ahead only from white characters, and never back."""
    return ((kind & SPACE) != 0) & (previous < HIGH) | (kind == STOP) | (previous == STOP)


def blocks(data: bytes, size: int = BLOCK) -> Iterator[bytes]:
    """Cut a text (documents with an END behind each) into blocks of about `size` bytes, its words left whole."""
    begin = 0
    while len(data) - begin > size:
        window, cut = size, 0
        while not cut and begin + window < len(data):  # the last border inside; a window without one is too small
            kind = np.frombuffer(data[begin : begin + window].translate(bytes(KIND)), np.uint8)
            found = np.flatnonzero(safe_borders(kind[1:], kind[:-1]))
            cut, window = (int(found[-1]) + 1 if len(found) else 0), 4 * window
        if not cut:
            break
        yield data[begin : begin + cut]
        begin += cut
    yield data[begin:] if begin else data


# --- words as numbers -------------------------------------------------------------------------------------------------

SHORT = 16  # bytes: a word of up to so many is two numbers of 64 bits, exactly
MASK = np.array([(1 << 8 * min(n, 8)) - 1 for n in range(9)], np.uint64)  # the first n bytes of a number
ODD = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))  # multipliers that mix bits


def pack(data: bytes, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Words of at most 16 bytes, none of them NUL, as two numbers each: (2, words) uint64. Longer ones are cut off.

    Bytes that are not there count as NUL, so words with a NUL would not be told apart. b"ab" gives 0x6261, 0.
    """
    padded = data + bytes(SHORT)
    eight = np.ndarray(len(data) + 8, "<u8", padded, strides=(1,))  # the 8 bytes from each place on
    numbers = np.zeros((2, len(starts)), np.uint64)
    numbers[0] = eight[starts] & MASK[np.minimum(lengths, 8)]
    longer = np.flatnonzero(lengths > 8)
    numbers[1, longer] = eight[starts[longer] + 8] & MASK[np.minimum(lengths[longer] - 8, 8)]
    return numbers


class WordTable:
    """From words to rows: an exact hash table (open addressing, linear probing) in numpy that looks up many at once."""

    def __init__(self, bits: int):
        self.size, self.shift, self.used = 1 << bits, np.uint64(64 - bits), 0
        self.keys = np.zeros((self.size, 2), np.uint64)
        self.rows = np.full(self.size, -1, np.int32)

    def slots(self, numbers: np.ndarray) -> np.ndarray:
        mixed = numbers[0] * ODD[0] ^ numbers[1] * ODD[1]
        return ((mixed ^ (mixed >> np.uint64(29))) * ODD[0] >> self.shift).astype(np.int64)

    def find(self, numbers: np.ndarray) -> np.ndarray:
        """The row of each word, (words,) int32; -1 where it is not in the table."""
        slots = self.slots(numbers)
        keys = self.keys[slots]
        rows = self.rows[slots]
        wrong = np.flatnonzero(((keys[:, 0] != numbers[0]) | (keys[:, 1] != numbers[1])) & (rows >= 0))
        while len(wrong):  # another word has its place: the next place, until it is found or a place is free
            slots[wrong] = (slots[wrong] + 1) % self.size
            keys = self.keys[slots[wrong]]
            rows[wrong] = self.rows[slots[wrong]]
            differs = (keys[:, 0] != numbers[0, wrong]) | (keys[:, 1] != numbers[1, wrong])
            wrong = wrong[differs & (rows[wrong] >= 0)]
        return rows

    def add(self, numbers: np.ndarray, rows: np.ndarray) -> None:
        """Enter words that are not in the table and differ from each other."""
        slots, waiting = self.slots(numbers), np.arange(len(rows))
        self.used += len(rows)
        while len(waiting):
            free = waiting[self.rows[slots[waiting]] < 0]
            self.rows[slots[free]] = rows[free]  # of several for one place, the last one gets it
            settled = free[self.rows[slots[free]] == rows[free]]
            self.keys[slots[settled]] = numbers[:, settled].T
            waiting = waiting[~np.isin(waiting, settled, assume_unique=True)]
            slots[waiting] = (slots[waiting] + 1) % self.size


# --- text to ids ------------------------------------------------------------------------------------------------------

WORDS = 1 << 20  # remembered at most: with their ids about 70 MB an encoder
LONG_BYTES = 16_000_000  # and so many bytes of longer ones


class Words:
    """Gives each distinct word a number, its row, and the words of a text as rows. Not for several threads at once."""

    def __init__(self, table_bits: int):
        self.table = WordTable(table_bits)
        self.long: dict[bytes, int] = {}  # words of more than 16 bytes, or with a NUL
        self.rows = 0

    def learn(self, words: list[bytes]) -> dict[bytes, int]:
        """Rows for words that are not known yet: for good where there is room, else until the next call."""
        raise NotImplementedError

    def enter(self, short: list[bytes], long: list[bytes]) -> None:
        """Remember words under the next rows."""
        numbers = np.frombuffer(b"".join(word.ljust(SHORT, b"\0") for word in short), "<u8").reshape(-1, 2).T
        self.table.add(numbers, np.arange(self.rows, self.rows + len(short)))
        self.rows += len(short)
        self.long |= dict(zip(long, range(self.rows, self.rows + len(long)), strict=True))
        self.rows += len(long)

    def rows_of(self, data: bytes) -> np.ndarray:
        """The row of each word of a block, (words,) int32."""
        starts = word_starts(data)
        lengths = np.diff(starts, append=len(data))
        numbers = pack(data, starts, lengths)
        rows = self.table.find(numbers)
        rows[lengths > SHORT] = -1
        if 0 in data:
            zeros = np.flatnonzero(np.frombuffer(data, np.uint8) == 0)
            rows[np.searchsorted(starts, zeros, "right") - 1] = -1
        unknown = np.flatnonzero(rows < 0)
        words = [data[a : a + n] for a, n in zip(starts[unknown].tolist(), lengths[unknown].tolist(), strict=True)]
        found = [self.long.get(word, -1) for word in words]
        new = dict.fromkeys(word for word, row in zip(words, found, strict=True) if row < 0)
        if new:
            new = self.learn(list(new))
            found = [new.get(word, row) for word, row in zip(words, found, strict=True)]
        rows[unknown] = found
        return rows


def is_short(word: bytes) -> bool:
    return len(word) <= SHORT and b"\0" not in word


class WordEncoder(Words):
    """Encodes documents with a BPE tokenizer, to the very ids that the `tokenizers` library gives.

    It remembers the words that it has seen, up to WORDS of them, so it gets faster with every megabyte.
    """

    def __init__(self, library, end_of_text_id: int):
        super().__init__(WORDS.bit_length())  # a table that is at most half full
        self.library = library
        self.long_bytes = 0
        # Row i stands for the ids[first[i] : first[i + 1]]. Row 0 is the END of a document.
        self.ids, self.first = np.array([end_of_text_id], np.uint16), np.array([0, 1])
        self.enter([bytes([END])], [])

    def encode(self, data: bytes) -> Iterator[np.ndarray]:
        """Yield the ids of a text, (tokens,) uint16, a piece at a time. The text is documents with an END behind each;
        the end-of-text id stands for it."""
        for block in blocks(data):
            rows = self.rows_of(block)
            begin = self.first[rows]
            counts = self.first[rows + 1] - begin
            ends = np.cumsum(counts)
            # All ids of all rows in one step: their places in self.ids, which go up by one inside a row.
            places = np.repeat(begin - ends + counts, counts) + np.arange(ends[-1] if len(ends) else 0)
            yield self.ids[places]

    def learn(self, words: list[bytes]) -> dict[bytes, int]:
        """Encode words with the library and give them rows."""
        short, long, others = [], [], []
        for word in words:
            if is_short(word) and self.table.used + len(short) < WORDS:
                short.append(word)
            elif not is_short(word) and self.long_bytes < LONG_BYTES:
                long.append(word)
                self.long_bytes += len(word)
            else:
                others.append(word)
        words = [*short, *long, *others]
        encodings = self.library.encode_batch_fast([word.decode() for word in words], add_special_tokens=False)
        ids = [encoding.ids for encoding in encodings]
        ends = self.first[self.rows] + np.cumsum([len(part) for part in ids])
        self.ids = append(self.ids, int(self.first[self.rows]), np.array([i for part in ids for i in part], np.uint16))
        self.first = append(self.first, self.rows + 1, ends)
        rows = dict(zip(words, range(self.rows, self.rows + len(words)), strict=True))
        self.enter(short, long)
        return rows


class WordCounter(Words):
    """Counts the distinct words of documents."""

    def __init__(self):
        super().__init__(table_bits=20)
        self.words: list[bytes] = []
        self.counts = np.zeros(0, np.int64)

    def add(self, data: bytes) -> None:
        """Count the words of a text: documents with an END behind each."""
        for block in blocks(data):
            counts = np.bincount(self.rows_of(block), minlength=self.rows)
            counts[: len(self.counts)] += self.counts
            self.counts = counts

    def learn(self, words: list[bytes]) -> dict[bytes, int]:
        short, long = [word for word in words if is_short(word)], [word for word in words if not is_short(word)]
        if 2 * (self.table.used + len(short)) > self.table.size:
            known = np.flatnonzero(self.table.rows >= 0)
            larger = WordTable(self.table.size.bit_length())
            larger.add(self.table.keys[known].T, self.table.rows[known])
            self.table = larger
        rows = dict(zip([*short, *long], range(self.rows, self.rows + len(words)), strict=True))
        self.words += [*short, *long]
        self.enter(short, long)
        return rows


def append(array: np.ndarray, used: int, more: np.ndarray) -> np.ndarray:
    """Write `more` behind the used part of an array, which is replaced by one of twice the size where it is full."""
    if used + len(more) > len(array):
        larger = np.empty(max(2 * len(array), used + len(more)), array.dtype)
        larger[:used] = array[:used]
        array = larger
    array[used : used + len(more)] = more
    return array


class CharacterEncoder:
    """Encodes documents with a character tokenizer; `table` is its character_table()."""

    def __init__(self, table: np.ndarray, end_of_text_id: int, unknown_id: int):
        self.table, self.unknown_id = table, unknown_id
        ascii_ids = np.append(
            table[:128], np.full(128, end_of_text_id, table.dtype)
        )  # the upper half: only END is used
        self.small = bytes(ascii_ids.astype(np.uint8)) if ascii_ids.max() < 256 else None
        self.ascii_ids = ascii_ids
        self.unknown: dict[str, int] = {}

    def encode(self, data: bytes) -> Iterator[np.ndarray]:
        """Yield the ids of a text, (characters,) uint16, a piece at a time, as WordEncoder does.

        Counts the characters that the tokenizer does not know in self.unknown.
        """
        begin = 0
        while begin < len(data):
            end = begin + BLOCK
            while end < len(data) and data[end] & 0xC0 == 0x80:  # no character is cut in two
                end += 1
            yield self.encode_block(data[begin:end])
            begin = end

    def encode_block(self, data: bytes) -> np.ndarray:
        text = np.frombuffer(data, np.uint8)
        if self.small is not None:  # bytes to bytes is what the interpreter does fastest
            ids = np.frombuffer(data.translate(self.small), np.uint8).astype(np.uint16)
        else:
            ids = self.ascii_ids[text]
        high = np.flatnonzero(text >= 0x80)
        first = high[(text[high] >= 0xC0) & (text[high] != END)]  # the first bytes of characters that are not ASCII
        characters = np.zeros(0, np.uint32)
        if len(first):
            characters = decode_utf8(text, first)
            ids[first] = self.table[characters]
        if (ids == self.unknown_id).any():
            known = np.frombuffer(data, np.uint8)
            plain = known[(ids == self.unknown_id) & (known < 0x80)]
            missing = np.append(characters[self.table[characters] == self.unknown_id], plain)
            for character, count in zip(*np.unique(missing, return_counts=True), strict=True):
                self.unknown[chr(character)] = self.unknown.get(chr(character), 0) + int(count)
        return ids[(text & 0xC0) != 0x80] if len(first) else ids


def decode_utf8(text: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The Unicode numbers of the characters of 2 to 4 bytes that begin at `first`, in valid UTF-8 (RFC 3629)."""
    b = np.append(text, np.zeros(3, np.uint8))
    b0, b1, b2, b3 = (b[first + i].astype(np.uint32) for i in range(4))
    b1, b2, b3 = b1 & 0x3F, b2 & 0x3F, b3 & 0x3F
    two, three = (b0 & 0x1F) << 6 | b1, (b0 & 0x0F) << 12 | b1 << 6 | b2
    return np.where(b0 < 0xE0, two, np.where(b0 < 0xF0, three, (b0 & 0x07) << 18 | b1 << 12 | b2 << 6 | b3))
