"""Being stopped: a signal is taken between two steps, so that the checkpoint written then is of one moment.

Ctrl-C is SIGINT; SIGTERM is what `kill`, a shutdown and a cluster's scheduler send before they lose patience and send
SIGKILL. That one cannot be caught: against it helps only the checkpoint that is there already. SIGHUP comes when the
terminal is closed or ssh loses its connection, unless the run was started with `nohup`; Windows' word for much of this
is SIGBREAK.

Chapter of the course: notebooks/07-training.ipynb.
"""

import contextlib
import signal
import sys
import threading

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]


class Interrupt(contextlib.AbstractContextManager):
    """Turns the first of SIGNALS into its number, `asked`, which is 0 until then; the second acts as usual.
    `aloud` says so."""

    def __init__(self, aloud=True):
        self.asked, self.aloud = 0, aloud
        self.before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            for number in SIGNALS:
                if signal.Signals(number).name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN:
                    continue  # nohup
                self.before[number] = signal.signal(number, self._handle) or signal.SIG_DFL
        return self

    def _handle(self, number, _):
        self.hear(int(number))
        with contextlib.suppress(RuntimeError, OSError):  # it may come in the middle of a print, or with no terminal
            again = "Ctrl-C again" if number == signal.SIGINT else "a second signal"
            if self.aloud:
                print(f"\nfinishing this step; {again} stops at once", file=sys.stderr, flush=True)
        self._restore()

    def hear(self, number):
        """What is done with a signal."""
        self.asked = number

    def _restore(self):
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def __exit__(self, *exception):
        self._restore()
