"""The first half second of the command `tinyvit`, in which NumPy and Numba are imported.

Ctrl-C would then show a traceback of wherever it came, or be taken by a library for an import that has failed. So until
the package is there it simply ends the process, which has nothing to lose yet. This file stands beside the package
because it has to come before it. (Python's own start, some hundredths of a second, comes before this file; and
`python -m tinyvit` imports the package first.)
"""

import os
import signal
import sys


def main():
    """Run `tinyvit` on sys.argv and return its exit code."""
    heard = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # not what a shell's background ignores
    if heard:
        signal.signal(signal.SIGINT, _end)
    from tinyvit.__main__ import main

    if heard:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return main()


def _end(*_):
    try:
        os.write(2, b"interrupted\n")
    finally:
        os._exit(130)


if __name__ == "__main__":
    sys.exit(main())
