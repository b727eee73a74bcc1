"""How much memory a step needs: the process's peak during steps, less what it held before model and batch were made.

Imports are done at that moment, so interpreter and libraries count only in the absolute peak, which stands beside. The
warm-up is over, so its passing needs do not count where the system lets a process forget its peak (Linux); what a
compiler leaves behind in the process does, since whoever trains with it pays for it. The first run ever, which compiles
instead of reading a cache, can leave more behind than later ones. macOS knows the peak of the whole life only.
"""

import sys
from pathlib import Path

STATUS, FORGET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident():
    """(now, peak) resident memory of this process in MB (10⁶ bytes); None on a system that does not say, Windows."""
    try:
        fields = dict(line.split(":", 1) for line in STATUS.read_text(encoding="ascii").splitlines())
        return tuple(int(fields[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM"))
    except (OSError, KeyError):
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
    return peak, peak


def forget_peak():
    """Let the peak start from what is resident now, where the system can do that; says whether it did."""
    try:
        FORGET.write_text("5", encoding="ascii")  # man 5 proc: reset VmHWM
    except OSError:
        return False
    return True
