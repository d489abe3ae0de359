"""Text while it is being written: whole characters only, and nothing that a stop text would take back."""

import codecs
from collections.abc import Sequence


class TextStream:
    """Bytes go in, token by token; text comes out as soon as it is certain.

    A character whose bytes are in two tokens waits for the second one. The possible beginning of a stop text waits
    until it is one or is not: with the stop text "\\n\\n", a newline comes out together with what follows it.

        stream = TextStream(["</end>"])
        stream.feed(b"a <"), stream.feed(b"/b")     ->  "a ", "</b"

    All that comes out, with finish() at the end, equals decoding all bytes at once, up to the stop text that is
    complete first (of two that end together, the longer one). Bytes that are not UTF-8 become U+FFFD.
    """

    def __init__(self, stops: Sequence[str] = ()):
        self.stops = list(stops)
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.held = ""  # the end of the text, which may be the beginning of a stop text
        self.stopped = False  # a stop text has come up; nothing comes out any more

    def feed(self, data: bytes, final: bool = False) -> str:
        """Take bytes, and return the text that is certain now."""
        if self.stopped:
            return ""
        text = self.held + self.decoder.decode(data, final)
        found = [(text.find(stop) + len(stop), text.find(stop)) for stop in self.stops if stop in text]  # (end, start)
        self.stopped = bool(found)
        certain = min(found)[1] if found else len(text) - (0 if final else self.uncertain(text))
        self.held = text[certain:]
        return text[:certain]

    def finish(self) -> str:
        """The text that was held back, when nothing more comes."""
        return self.feed(b"", final=True)

    def uncertain(self, text: str) -> int:
        """How many characters at the end of the text may be the beginning of a stop text."""
        longest = max(map(len, self.stops), default=0)
        for n in range(min(longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-n:]) for stop in self.stops):
                return n
        return 0
