"""The cache of compiled kernels may be shared, broken or gone: a first run waits longer for it, and no run fails.

Each test runs new processes on a copy of `kernels/backend.py` beside one small kernel, so that little is compiled.
The process says whether it was: "3.0 compiled" or "3.0 loaded".
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tinyvit import kernels

pytestmark = pytest.mark.skipif(kernels.backend() != "numba", reason="compiles")

KERNEL = """
from backend import jit

@jit
def next_number(x):
    return x + 1
"""
USE = """
from kernel import next_number
{before_the_first_call}
print(next_number(2.0), "loaded" if next_number.stats.cache_hits else "compiled")
"""


def new_package(folder):
    folder.mkdir()
    shutil.copy(Path(sys.modules["tinyvit.kernels"].__file__).with_name("backend.py"), folder)
    (folder / "kernel.py").write_text(KERNEL, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return new_package(tmp_path_factory.mktemp("install") / "package")


@pytest.fixture(scope="module")
def filled(package, tmp_path_factory):
    """A cache that holds the compiled kernel."""
    cache = tmp_path_factory.mktemp("filled")
    assert use(package, cache) == "3.0 compiled"
    return cache


def start(package, cache, before_the_first_call="", before_all="", cwd=None):
    """A process that calls the kernel; `cache` None leaves it to backend.py to find a place."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    env |= {"PYTHONPATH": str(package), "PYTHONUTF8": "1"} | ({"NUMBA_CACHE_DIR": str(cache)} if cache else {})
    code = before_all + USE.format(before_the_first_call=before_the_first_call)
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", code], env=env, cwd=cwd, stdin=pipe, stdout=pipe, stderr=pipe, encoding="utf-8"
    )


def answer(process):
    out, errors = process.communicate("\n", timeout=120)
    assert process.returncode == 0, errors
    return out.strip()


def use(*args, **options):
    return answer(start(*args, **options))


def test_four_first_runs_at_once(package, tmp_path):
    """They compile at the same moment into one new folder; whoever writes last, it is a whole kernel."""
    wait = 'print("ready", flush=True); input()'
    processes = [start(package, tmp_path, wait) for _ in range(4)]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 4
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    assert {answer(process) for process in processes} <= {"3.0 compiled", "3.0 loaded"}
    assert use(package, tmp_path) == "3.0 loaded"


def read_only_package(tmp_path):
    """A package in which no cache can be made. (A file in its place: rights would not stop root, nor Windows.)"""
    package = new_package(tmp_path / "package")
    (package / "__pycache__").touch()
    return package


def user_cache(place):
    return f"import platformdirs\nplatformdirs.user_cache_dir = lambda *args, **kwargs: {str(place)!r}\n"


def test_a_read_only_install_keeps_its_kernels_in_the_users_cache(tmp_path):
    package, cache = read_only_package(tmp_path), tmp_path / "user" / "cache"
    assert use(package, None, before_all=user_cache(cache)) == "3.0 compiled"
    assert use(package, None, before_all=user_cache(cache)) == "3.0 loaded"
    assert len(list(cache.rglob("*.nbi"))) == 1


def test_a_user_without_a_home_gets_no_folder_called_tilde(tmp_path):
    """Older versions of platformdirs leave the "~" as it stands where nobody knows the user's home."""
    package = read_only_package(tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    assert use(package, None, before_all=user_cache("~/.cache/tinyvit"), cwd=work) == "3.0 compiled"
    assert list(work.iterdir()) == []


ACCIDENTS = {
    "removed": "shutil.rmtree(backend.CACHE_FOLDER)",
    "replaced by a file": "shutil.rmtree(backend.CACHE_FOLDER); backend.CACHE_FOLDER.touch()",
    "disk full": "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))",
}


@pytest.mark.parametrize("accident", ACCIDENTS)
def test_a_cache_lost_after_the_import_stops_nobody(accident, package, tmp_path):
    if accident == "disk full":
        pytest.importorskip("resource", reason="Windows cannot limit the size of files")
    before = "import backend, shutil\n" + ACCIDENTS[accident]
    assert use(package, tmp_path, before) == "3.0 compiled"


BREAK = {
    "empty": lambda file: file.write_bytes(b""),
    "cut off": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "missing": Path.unlink,
}


@pytest.mark.parametrize("how, kind", [("empty", "nbi"), ("cut off", "nbc"), ("missing", "nbc")])
def test_a_broken_file_in_the_cache_is_compiled_again(how, kind, package, filled, tmp_path):
    """What a power failure or a killed process leaves. Once: the next run finds a whole one."""
    cache = shutil.copytree(filled, tmp_path / "cache")
    (file,) = cache.rglob(f"*.{kind}")
    BREAK[how](file)
    assert use(package, cache) == "3.0 compiled"
    assert use(package, cache) == "3.0 loaded"
