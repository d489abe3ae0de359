"""How Ctrl-C and SIGTERM stop a run: between two steps, with a checkpoint."""

import os
import signal

from model.training import distributed

MESSAGE = b"\nstopping after this step; press again to stop at once, without a checkpoint\n"


class Stopped(Exception):
    """Raised between two steps, in evaluation and in sampling, after Ctrl-C or SIGTERM."""


class StopFlag:
    """Turns the first Ctrl-C or SIGTERM into a flag that the loops check; the second one ends the process at once.

    Several processes all stop at the same check(), whichever of them got the signal.
    """

    def __init__(self):
        self.signal = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.note)

    def note(self, number, frame):
        self.signal = number
        if distributed.is_first():
            os.write(2, MESSAGE)  # not print(), which the signal may have interrupted
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    @property
    def exit_code(self) -> int:
        return 128 + (self.signal or signal.SIGTERM)  # the signal may have reached another process

    def check(self):
        if distributed.any_process(self.signal is not None):
            raise Stopped
