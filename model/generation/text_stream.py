"""Text while it is being written: whole characters, nothing that a stop text would take back; and where it goes."""

import codecs
import sys
import time
from collections.abc import Callable, Sequence


class TextStream:
    """Bytes go in, token by token; text comes out as soon as it is certain.

    A character that two tokens share waits for the second one. What might be the beginning of a stop text waits until
    it is one, or is not: with the stop text "\\n\\n", a newline comes out together with what follows it.

        stream = TextStream(["</end>"])
        stream.feed(b"a <"), stream.feed(b"/b")     ->  "a ", "</b"

    What came out in all, with finish() at the end, is what decoding all bytes at once gives, bytes that are not UTF-8
    as U+FFFD, up to the stop text that is complete first; of two that end together, the longer one.
    """

    def __init__(self, stops: Sequence[str] = ()):
        self.stops = list(stops)
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.held = ""  # the end of the text, which may be the beginning of a stop text
        self.stopped = False  # a stop text has come up; nothing comes out any more

    def feed(self, data: bytes, final: bool = False) -> str:
        """The text that is certain now."""
        if self.stopped:
            return ""
        text = self.held + self.decoder.decode(data, final)
        places = [(text.find(stop) + len(stop), text.find(stop)) for stop in self.stops if stop in text]  # (end, begin)
        self.stopped = bool(places)
        certain = min(places)[1] if places else len(text) if final else len(text) - self.uncertain(text)
        self.held = text[certain:]
        return text[:certain]

    def finish(self) -> str:
        """What was held back, when nothing more comes."""
        return self.feed(b"", final=True)

    def uncertain(self, text: str) -> int:
        """How many characters at the end of the text a stop text may begin with."""
        longest = max(map(len, self.stops), default=0)
        for n in range(min(longest - 1, len(text)), 0, -1):
            if any(stop.startswith(text[-n:]) for stop in self.stops):
                return n
        return 0


class Output:
    """The text to stdout and the steps to stderr, collected and handed on ten times a second.

    Handing on each token costs as much as a small model takes to choose it, and nobody reads that fast. A line comes as
    a function that makes it: many in a row are made twice as fast as each between two tokens, for which the model has
    filled the processor's caches with its weights.
    """

    def __init__(self):
        self.text, self.lines, self.due = [], [], 0.0

    def add(self, text: str, *lines: Callable[[], str]) -> None:
        self.text.append(text)
        self.lines += lines
        if time.perf_counter() >= self.due:
            self.flush()

    def flush(self) -> None:
        lines, text = "".join(line() + "\n" for line in self.lines), "".join(self.text)
        self.text, self.lines, self.due = [], [], time.perf_counter() + 0.1
        sys.stderr.write(lines)
        sys.stderr.flush()
        sys.stdout.buffer.write(text.encode())  # exact for a file or a pipe
        sys.stdout.buffer.flush()
