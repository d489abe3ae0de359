"""Stopping a run between two steps."""

import os
import signal

from model.training import distributed


class Stopped(Exception):
    """Raised between two steps, in evaluation and in sampling, after Ctrl-C or SIGTERM."""


class StopFlag:
    """Turns the first Ctrl-C or SIGTERM into a flag that the loops look at; the second one ends the process at once.

    Of several processes, all stop at the same check(), whichever got the signal.
    """

    def __init__(self):
        self.signal = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.note)

    def note(self, number, frame):
        self.signal = number
        if distributed.is_first():
            # not print, which the signal may have interrupted
            os.write(2, b"\nstopping after this step; once more to stop at once, without a checkpoint\n")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    @property
    def exit_code(self) -> int:
        return 128 + (self.signal or signal.SIGTERM)  # of another process, where this one got none

    def check(self):
        if distributed.any_process(self.signal is not None):
            raise Stopped
