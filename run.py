#!/usr/bin/env python3
"""Set tinyvit up and run it, with nothing but Python.

    python3 run.py train [...]      train a first model; `train --help` lists what you can change
    python3 run.py test [...]       run the tests; further arguments go to pytest
    python3 run.py notebooks [...]  open the course in JupyterLab; further arguments go to it
    python3 run.py COMMAND [...]    any other tinyvit command: eval, predict, figures, info, data

The first run makes a virtual environment, .venv, next to this file and installs into it what the command
needs. Later runs start at once. tinyvit is installed "editable": what you change in tinyvit/ counts from the
next run on. To start afresh, delete .venv.
"""

# Each guard below is for a machine that exists, and says which. The file keeps to ASCII and to syntax that
# Python 2.7 can parse (no f-strings): so an old Python gets as far as `check_python`, which says what to do.

import contextlib
import errno
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time

OLDEST, NEWEST_TESTED = (3, 11), (3, 14)
WINDOWS = os.name == "nt"
ROOT = os.path.dirname(os.path.realpath(__file__))
VENV = os.path.join(ROOT, ".venv")
BIN = os.path.join(VENV, "Scripts" if WINDOWS else "bin")
PYTHON = os.path.join(BIN, "python.exe" if WINDOWS else "python")
STAMP = os.path.join(VENV, "tinyvit-stamp.json")  # which extras are installed, and for whom; see `ready`
LOG = os.path.join(VENV, "install.log")
PROGRAMS = {"test": "pytest", "notebooks": "jupyter-lab"}  # an extra is there as long as its program is
VERSION = "{}.{}.{}".format(*sys.version_info[:3])


def say(text):
    sys.stderr.write(text + "\n")  # not stdout: `run.py info > file` holds only what tinyvit says
    sys.stderr.flush()


def fail(text):
    sys.exit("run.py: " + text)


def check_python():
    """macOS has Python 3.9 as python3, older Linuxes 3.6 to 3.10. Numba has no wheels for 32-bit Windows."""
    this = "this is Python {} ({})".format(VERSION, sys.executable)
    if sys.version_info[:2] < OLDEST:
        folders = os.environ.get("PATH", "").split(os.pathsep)
        names = ["python3.{}".format(minor) for minor in (14, 13, 12, 11)]
        newer = [name for name in names if any(os.path.exists(os.path.join(f, name)) for f in folders)]
        mend = "run it with " + newer[0] if newer else "install a newer one, for example from python.org"
        fail("tinyvit needs Python {}.{} or newer; {}; {}".format(OLDEST[0], OLDEST[1], this, mend))
    if sys.maxsize < 2**32:
        fail("tinyvit needs a 64-bit Python; {}, a 32-bit one".format(this))


def environment():
    """The user's environment, so that proxies and pip's settings hold, without what would break .venv."""
    env = dict(os.environ, VIRTUAL_ENV=VENV, PATH=BIN + os.pathsep + os.environ.get("PATH", ""))
    env["PIP_USER"] = "0"  # `user = true` in a pip.conf: pip would refuse to install into .venv
    env["PYTHONUTF8"] = "1"  # Windows: print() of a Greek letter into a file or pipe would raise
    for name in ("PYTHONHOME", "PYTHONPATH", "__PYVENV_LAUNCHER__"):
        env.pop(name, None)  # clusters, macOS: another Python's libraries would be mixed into ours
    return env


def runs(*command):
    """Whether a command succeeds; what it prints is dropped."""
    try:
        return not subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True).returncode
    except OSError:
        return False


def identity():
    """Whom an installation serves. A new pyproject.toml means installing again, the other two a new .venv."""
    with open(os.path.join(ROOT, "pyproject.toml"), "rb") as file:
        return {"project": hashlib.sha256(file.read()).hexdigest(), "python": sys.version, "folder": ROOT}


def read_stamp():
    try:
        with open(STAMP) as file:
            return dict(json.load(file))
    except (OSError, ValueError, TypeError):  # none, or cut short by a full disk: counts as not installed
        return {}


def ready():
    """The extras installed in .venv for this pyproject.toml, Python and folder; "" is tinyvit itself."""
    stamp = read_stamp()
    extras = set(stamp.pop("extras", ()))
    if stamp != identity() or not os.path.exists(PYTHON):
        return set()
    # A tool that keeps .venv at what a lock file says, like `uv sync`, takes an extra away and leaves the stamp.
    return {extra for extra in extras if extra not in PROGRAMS or shutil.which(PROGRAMS[extra], path=BIN)}


def usable():
    """Whether .venv runs, is a virtual environment of this very Python, and was made in this folder."""
    if read_stamp().get("folder", ROOT) != ROOT:  # moved or copied: what is in it names the old place
        return False
    same = "import sys; sys.exit(sys.prefix == sys.base_prefix or sys.version != {!r})".format(sys.version)
    return runs(PYTHON, "-I", "-c", same)


@contextlib.contextmanager
def one_at_a_time():
    """Two terminals at once: the second waits. However the first one ends, the system frees its lock."""
    with open(VENV + ".lock", "w") as file:
        for attempt in itertools.count():
            try:
                if WINDOWS:
                    import msvcrt

                    msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                else:
                    import fcntl

                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    break  # a network drive that has no locks: go on without
                if attempt == 0:
                    say("another run is setting up .venv; waiting for it ...")
                time.sleep(0.2)
        yield


def create():
    try:
        import venv
    except ImportError:  # the "embeddable" Python for Windows
        fail("this Python has no venv module; install a complete one, for example from python.org")
    say("creating .venv with Python " + VERSION)
    venv.EnvBuilder(clear=True, symlinks=not WINDOWS).create(VENV)  # Windows lets only administrators link


def pip():
    """The command that installs into .venv: its own pip, or this Python's, which PEP 668 permits there."""
    inside, outside = [PYTHON, "-m", "pip"], [sys.executable, "-m", "pip", "--python", PYTHON]
    if runs(*inside + ["--version"]) or runs(PYTHON, "-I", "-m", "ensurepip"):
        return inside
    if runs(*outside + ["--version"]):  # Debian and Ubuntu leave ensurepip out of python3; needs pip 22.3
        return outside
    return fail("this Python cannot install packages; run `sudo apt install python3-venv` or install pip")


def install(extra, extras):
    """Install tinyvit with an extra where `extras` already are. A stamp only describes a complete .venv."""
    what = ".[{}]".format(extra) if extra else "."
    command = pip() + ["install", "--disable-pip-version-check", "-q", "-e", what]
    if extras:
        say("installing what is missing: {} ...".format(extra))
    else:
        say("installing tinyvit and its libraries (about 1 minute, once) ...")
    start = time.time()
    if os.path.exists(STAMP):
        os.remove(STAMP)  # so that after Ctrl-C or a power cut the next run installs again
    with open(LOG, "w") as log:  # no stdin: an index with a password asks for it otherwise, unseen
        null = subprocess.DEVNULL
        code = subprocess.call(command, env=environment(), cwd=ROOT, stdin=null, stdout=log, stderr=log)
    complete = extras if code else extras | {"", extra}  # when pip fails, it leaves what was there as it was
    if complete:
        with open(STAMP, "w") as file:
            json.dump(dict(identity(), extras=sorted(complete)), file, indent=1)
    if code:
        fail("installing failed: {}; the full story is in {}".format(reason(), LOG))
    say("installed in {:.0f} s".format(time.time() - start))


def reason():
    """One line from pip's many."""
    with open(LOG, errors="replace") as file:
        text = file.read()
    if "No space left on device" in text or shutil.disk_usage(VENV).free < 2**20:  # then the log stayed empty
        return "the disk is full"
    if "Retrying (" in text:
        return "the package index is out of reach (check network and proxy, then run this again)"
    line = (["pip gave no reason"] + [x for x in text.splitlines() if x.lower().startswith("error: ")])[-1]
    if sys.version_info[:2] > NEWEST_TESTED:
        line += " (Python {} may be too new for NumPy or Numba)".format(VERSION)
    return line


def ensure(extra):
    """Have tinyvit and an extra installed in .venv."""
    if extra in ready():
        return
    with one_at_a_time():
        extras = ready()  # again: while this run waited, the other one may have done it
        if extra not in extras:
            if not usable():
                create()
            install(extra, extras)


def run(arguments, folder):
    """Run .venv's Python and return its exit code, or 128 + N when signal N ended it, as a shell does."""
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C reaches the child by itself, which may save first
    child = subprocess.Popen([PYTHON] + arguments, env=environment(), cwd=folder)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    code = child.wait()
    if code == 0xC000013A:  # Windows: ended by Ctrl-C
        return 130
    return 128 - code if code < 0 else code


def main(arguments):
    check_python()
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__.strip())
        return 0 if arguments else 2
    notebooks = os.path.join(ROOT, "notebooks")
    if arguments[0] == "test":
        extra, command, folder = "test", ["-m", "pytest"] + arguments[1:], ROOT
    elif arguments[0] == "notebooks":
        if not os.path.isdir(notebooks):
            fail("there are no notebooks in this copy (no folder {})".format(notebooks))
        # From the top folder, whatever the user's own configuration says: so a chapter's links to tinyvit/ open, too.
        place = ["--ServerApp.root_dir=" + ROOT, "--LabApp.default_url=/lab/tree/notebooks/00-the-map.ipynb"]
        extra, command, folder = "notebooks", ["-m", "jupyterlab"] + place + arguments[1:], ROOT
    else:  # -P: a random.py or a folder tinyvit/ in the folder where the user stands would be imported first
        extra, command, folder = "", ["-P", os.path.join(ROOT, "tinyvit", "__main__.py")] + arguments, None
    try:
        ensure(extra)
    except KeyboardInterrupt:
        say("interrupted; the next run goes on from here")
        return 130
    except (OSError, ValueError) as error:  # full disk, read-only folder, .venv is a file or (Windows) in use
        fail("cannot set up {}: {}".format(VENV, error))
    return run(command, folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
