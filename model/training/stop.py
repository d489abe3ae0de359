"""How Ctrl-C, SIGTERM and a closed terminal (SIGHUP) stop a run: between two steps, with a checkpoint."""

import os
import signal
from contextlib import suppress

from model.training import distributed
from plumbing.interrupts import raise_interrupt

MESSAGE = b"\nstopping after this step; press again to stop at once, without a checkpoint\n"


class Stopped(Exception):
    """Raised between two steps, in evaluation and in sampling, after Ctrl-C, SIGTERM or SIGHUP."""


class StopFlag:
    """Turns the first Ctrl-C, SIGTERM or SIGHUP into a flag that the loops check. The second Ctrl-C or SIGTERM ends the
    process at once; a second SIGHUP does not, because a closing terminal sends it from both the shell and the system.

    Several processes all stop at the same check(), whichever of them got the signal.
    """

    def __init__(self):
        self.signal = None
        numbers = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # not under nohup
            numbers.append(signal.SIGHUP)
        for number in numbers:
            signal.signal(number, self.note)

    def note(self, number, frame):
        self.signal = number
        raise_interrupt()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        if distributed.is_first():
            with suppress(OSError):  # the same Ctrl-C ends `| tee`, and a closed terminal takes no text
                os.write(2, MESSAGE)  # not print(), which the signal may have interrupted

    @property
    def exit_code(self) -> int:
        return 128 + (self.signal or signal.SIGTERM)  # the signal may have reached another process

    def check(self):
        if distributed.any_process(self.signal is not None):
            raise Stopped
