"""The process around the command: output that may break, warnings of one line, Ctrl-C at any moment.

A training run outlives the terminal that started it. So whatever becomes of its streams, the run goes on; and what
a user meets is a sentence, not a traceback. `cli/` says what the commands do.
"""

import contextlib
import errno
import os
import sys
import warnings


def main():
    """Run `tinyvit` on sys.argv and return its exit code. The package is imported here, because that takes a moment in
    which Ctrl-C must be as quiet as later. (So it is for `run.py`, which starts this file. The installed command
    imports the package before this module; a Ctrl-C in that half second is answered by Python, with its traceback.)"""
    try:
        with _patient_output(), warnings.catch_warnings():
            warnings.showwarning = _one_line
            from tinyvit import cli

            return cli.main()
    except KeyboardInterrupt:
        return 130


def _one_line(message, *_):
    print(f"tinyvit: {' '.join(str(message).split())}", file=sys.stderr)


@contextlib.contextmanager
def _patient_output():
    """Printing that stops no run: without a reader, without a stream (a service may have none), in any alphabet."""
    streams = [stream or open(os.devnull, "w", encoding="utf-8") for stream in (sys.stdout, sys.stderr)]
    for stream in streams:
        with contextlib.suppress(AttributeError, ValueError):  # not a text file: a notebook's, a debugger's
            # A console that lacks a character shows "?" instead of failing; a pipe gets each line when it is said.
            stream.reconfigure(errors="replace", line_buffering=True)
    with contextlib.redirect_stdout(_Patient(streams[0])), contextlib.redirect_stderr(_Patient(streams[1])):
        yield


class _Patient:
    """A stream that outlives its reader: after `tinyvit train | head -1` the rest goes nowhere and training goes on."""

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        return self._unless_broken(self.stream.write, text)

    def flush(self):
        self._unless_broken(self.stream.flush)

    def _unless_broken(self, act, *arguments):
        try:
            return act(*arguments)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EINVAL):  # EINVAL: Windows's word for it
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
