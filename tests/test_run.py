"""run.py is a newcomer's first minute: it sets up what is missing, once, and says what to do when it cannot.

No network here. Each test has a copy of run.py in a folder of its own, with a small stand-in for pip beside
it; the virtual environments and the processes are real.
"""

import ast
import importlib.util
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

RUN = Path(__file__).parent.parent / "run.py"

# Notes what it is to install; fails with the text of pip-fails.txt if it exists; links tinyvit as -e does.
PIP = """
import pathlib, sys
here = pathlib.Path(__file__).parent
with open(here / "calls.txt", "a") as calls:
    calls.write(sys.argv[-1] + "\\n")
for trouble in here.glob("pip-fails.txt"):
    sys.exit(trouble.read_text())
for site in here.glob(".venv/[Ll]ib/**/site-packages"):
    (site / "tinyvit.pth").write_text(str(here))
for extra, name in ("[test]", "pytest"), ("[notebooks]", "jupyter-lab"):
    for folder in here.glob(".venv/[bS][ic][nr]*") if extra in sys.argv[-1] else ():  # bin or Scripts
        program = folder / (name + ".exe" if folder.name == "Scripts" else name)
        program.touch()
        program.chmod(0o755)
"""
TINYVIT = "import os, random, sys; print(sys.argv[1:], os.getcwd(), sys.prefix); sys.exit(int(sys.argv[-1]))"


class Project:
    """A folder with run.py, loaded as the module `run`, and everything it needs to set itself up."""

    def __init__(self, folder):
        self.folder = folder
        spec = importlib.util.spec_from_file_location("run", folder / "run.py")
        self.run = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.run)
        self.real_pip, self.run.pip = self.run.pip, lambda: [sys.executable, str(folder / "pip.py")]

    def installed(self):
        """What pip was asked for, call by call."""
        calls = self.folder / "calls.txt"
        return calls.read_text().split() if calls.exists() else []


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "a folder with spaces"
    (folder / "tinyvit").mkdir(parents=True)
    shutil.copy(RUN, folder)
    (folder / "pyproject.toml").write_text("[project]\n")
    (folder / "pip.py").write_text(PIP)
    (folder / "tinyvit" / "__init__.py").write_text("")
    (folder / "tinyvit" / "__main__.py").write_text(TINYVIT)
    (folder / "pytest.py").write_text("import sys; print('pytest', sys.argv[1:])")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield Project(folder)
    for number, handler in handlers.items():  # run() sets its own
        signal.signal(number, handler)


def test_file_can_be_read_by_old_pythons():
    """An f-string or a Greek letter would show a syntax error instead of "needs Python 3.11"."""
    source = RUN.read_text(encoding="ascii")
    tree = ast.parse(source, feature_version=(3, 4))
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.JoinedStr | ast.AnnAssign)]


@pytest.mark.parametrize("name", ["python2.7", "python3.6", "python3.9"])
def test_real_old_python(name):
    old = shutil.which(name, path="/usr/bin")
    if not old:
        pytest.skip(f"no {name} here")
    ended = subprocess.run([old, str(RUN), "train"], capture_output=True, text=True)
    assert ended.returncode == 1 and ended.stderr.count("\n") == 1
    assert "needs Python 3.11 or newer; this is Python " + name[6:] in ended.stderr


def test_old_python_is_told_the_way_out(project, tmp_path, monkeypatch):
    fake = SimpleNamespace(version_info=(3, 9, 6), executable="/bin/python3", maxsize=2**63, exit=sys.exit)
    monkeypatch.setattr(project.run, "sys", fake)
    monkeypatch.setattr(project.run, "VERSION", "3.9.6")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"Python 3\.11 or newer; this is Python 3\.9\.6 .*install a newer"):
        project.run.check_python()
    (tmp_path / "python3.12").touch()
    with pytest.raises(SystemExit, match=r"run it with python3\.12"):
        project.run.check_python()
    fake.version_info, fake.maxsize = (3, 12, 0), 2**31 - 1
    with pytest.raises(SystemExit, match="64-bit"):
        project.run.check_python()


def test_first_run_installs_and_the_second_starts_at_once(project, tmp_path, monkeypatch, capfd):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "random.py").write_text("raise SystemExit('the wrong random.py')")
    monkeypatch.chdir(elsewhere)
    assert project.run.main(["train", "--epochs", "7"]) == 7  # the stand-in's exit code
    out, err = capfd.readouterr()
    assert "['train', '--epochs', '7']" in out and str(elsewhere) in out and project.run.VENV in out
    assert "creating .venv with Python" in err and "installed in" in err

    assert project.run.main(["info", "0"]) == 0
    assert capfd.readouterr().err == ""
    assert project.installed() == ["."]


def test_an_extra_is_added_once_and_leaves_the_rest_valid(project, capfd):
    assert project.run.main(["train", "0"]) == 0
    assert project.run.main(["test", "-k", "vit"]) == 0
    assert "pytest ['-k', 'vit']" in capfd.readouterr().out
    assert project.run.main(["train", "0"]) == 0
    assert project.run.main(["test"]) == 0
    assert project.installed() == [".", ".[test]"]


def test_an_extra_that_was_taken_away_is_installed_again(project):
    """`uv sync` removes pytest and leaves the stamp; then `test` must not end with "No module named pytest"."""
    assert project.run.main(["test"]) == 0
    assert project.run.ready() == {"", "test"}
    for program in Path(project.run.BIN).glob("pytest*"):
        program.unlink()
    assert project.run.ready() == {""}
    assert project.run.main(["test"]) == 0
    assert project.installed() == [".[test]"] * 2


def test_stamp_is_for_one_project_file_python_and_extra(project, monkeypatch):
    assert project.run.main(["train", "0"]) == 0
    assert project.run.ready() == {""}
    assert "test" not in project.run.ready()
    (project.folder / "pyproject.toml").write_text("[project]\n# changed\n")
    assert project.run.ready() == set()
    assert project.run.usable()  # so that it is installed into again, not made anew
    (project.folder / "pyproject.toml").write_text("[project]\n")
    assert project.run.ready() == {""}
    monkeypatch.setattr(project.run, "sys", SimpleNamespace(version="3.99.0 (another one)"))
    assert project.run.ready() == set() and not project.run.usable()


@pytest.mark.parametrize("content", ['{"extras": ["te', "[1, 2]"])
def test_damaged_stamp_counts_as_none(project, content):
    assert project.run.main(["train", "0"]) == 0
    Path(project.run.STAMP).write_text(content)
    assert project.run.ready() == set()
    assert project.run.main(["train", "0"]) == 0
    assert project.installed() == [".", "."]


def break_by_removing_python(venv, python):
    python.unlink()


def break_by_leaving_a_half_made_one(venv, python):
    shutil.rmtree(venv)
    (venv / "lib").mkdir(parents=True)


def break_by_making_it_no_environment(venv, python):
    (venv / "tinyvit-stamp.json").unlink()
    (venv / "pyvenv.cfg").unlink()


@pytest.mark.parametrize(
    "damage", [break_by_removing_python, break_by_leaving_a_half_made_one, break_by_making_it_no_environment]
)
def test_broken_environment_is_made_anew(project, damage, capfd):
    assert project.run.main(["train", "0"]) == 0
    damage(Path(project.run.VENV), Path(project.run.PYTHON))
    capfd.readouterr()
    assert project.run.main(["train", "0"]) == 0
    assert "creating .venv" in capfd.readouterr().err


def test_moved_folder_gets_a_new_environment(project, capfd):
    """The old one's editable link would run the tinyvit that used to be there."""
    assert project.run.main(["train", "0"]) == 0
    moved = Project(project.folder.rename(project.folder.with_name("moved")))
    capfd.readouterr()
    assert moved.run.main(["train", "0"]) == 0
    out, err = capfd.readouterr()
    assert "creating .venv" in err and str(moved.folder) in out


@pytest.mark.parametrize(
    "log, line",
    [
        ("WARNING: Retrying (Retry(total=4, ...\nERROR: No matching distribution", "index is out of reach"),
        ("ERROR: Could not install: [Errno 28] No space left on device: 'x'", "the disk is full"),
        ("note: much\nERROR: No matching distribution for numpy>=99\n", "distribution for numpy>=99"),
        ("", "pip gave no reason"),
    ],
)
def test_failed_install_says_why_and_leaves_no_stamp(project, log, line):
    (project.folder / "pip-fails.txt").write_text(log or " ")
    with pytest.raises(SystemExit, match="installing failed: .*" + line + ".*install.log") as failure:
        project.run.main(["train", "0"])
    assert "\n" not in str(failure.value)
    assert not Path(project.run.STAMP).exists()
    assert log in Path(project.run.LOG).read_text()
    (project.folder / "pip-fails.txt").unlink()
    assert project.run.main(["train", "0"]) == 0  # and the next run mends it


def test_failed_extra_leaves_what_was_there(project):
    """On a train without network, `test` fails and `train` must go on working."""
    assert project.run.main(["train", "0"]) == 0
    (project.folder / "pip-fails.txt").write_text("ERROR: no network")
    with pytest.raises(SystemExit, match="no network"):
        project.run.main(["test"])
    assert project.run.main(["train", "0"]) == 0


def test_new_python_is_named_as_a_possible_cause(project, monkeypatch):
    Path(project.run.VENV).mkdir()
    Path(project.run.LOG).write_text("ERROR: no wheel")
    assert "too new" not in project.run.reason()
    monkeypatch.setattr(project.run, "NEWEST_TESTED", (3, 10))
    assert "too new" in project.run.reason()


def test_interrupted_install_leaves_no_stamp(project, monkeypatch, capfd):
    assert project.run.main(["train", "0"]) == 0

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(project.run.subprocess, "call", interrupted)
        assert project.run.main(["test"]) == 130
    assert "interrupted" in capfd.readouterr().err
    assert not Path(project.run.STAMP).exists()


def test_disk_or_folder_trouble_is_one_line(project):
    Path(project.run.VENV).write_text("a file where the folder should be")
    with pytest.raises(SystemExit, match="cannot set up .*a folder with spaces"):
        project.run.main(["train"])


def test_without_ensurepip_another_pip_serves_or_the_remedy_is_named(project, monkeypatch):
    run = project.run
    monkeypatch.setattr(run, "runs", lambda *command: "--python" in command)
    assert project.real_pip() == [sys.executable, "-m", "pip", "--python", run.PYTHON]
    monkeypatch.setattr(run, "runs", lambda *command: "ensurepip" in command)
    assert project.real_pip() == [run.PYTHON, "-m", "pip"]
    monkeypatch.setattr(run, "runs", lambda *command: False)
    with pytest.raises(SystemExit, match="sudo apt install python3-venv"):
        project.real_pip()


def test_second_run_waits_for_the_first(project, monkeypatch):
    waiting, entered = threading.Event(), threading.Event()
    monkeypatch.setattr(project.run, "time", SimpleNamespace(sleep=lambda _: waiting.set()))

    def second():
        with project.run.one_at_a_time():
            entered.set()

    thread = threading.Thread(target=second)
    with project.run.one_at_a_time():
        thread.start()
        assert waiting.wait(10) and not entered.is_set()
    thread.join(10)
    assert entered.is_set()


def test_what_the_other_run_installed_is_not_installed_again(project, monkeypatch):
    answers = iter([set(), {""}])  # nothing at first; after the wait for the other run, everything
    monkeypatch.setattr(project.run, "ready", lambda: next(answers))
    project.run.ensure("")
    assert project.installed() == []


def test_other_pythons_settings_stay_out(project, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("PYTHONHOME", "/elsewhere")
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example/simple")
    env = project.run.environment()
    assert "PYTHONPATH" not in env and "PYTHONHOME" not in env
    assert env["PIP_INDEX_URL"] == "https://mirror.example/simple"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to end a process with")
def test_child_ended_by_a_signal(project):
    project.run.PYTHON = sys.executable
    code = "import os, signal; signal.signal(2, signal.SIG_DFL); os.kill(os.getpid(), 2)"
    assert project.run.run(["-c", code], None) == 130  # Ctrl-C, as a shell reports it


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to send to one process")
def test_child_saves_before_it_ends(project, capfd):
    """Ctrl-C interrupts both; run.py waits for the child's checkpoint and shows no traceback."""
    project.run.PYTHON = sys.executable
    code = (
        "import os, signal, sys, time\n"
        "os.kill(os.getppid(), signal.SIGINT)\n"
        "time.sleep(0.4); print('saved'); sys.exit(130)"  # longer than subprocess.call would wait
    )
    assert project.run.run(["-c", code], None) == 130
    assert capfd.readouterr() == ("saved\n", "")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals to send to one process")
def test_ctrl_c_in_the_first_moment_is_quiet(project, capfd):
    """The package is imported by main(), not before it: what interrupts the import is no traceback."""
    shutil.copy(RUN.parent / "tinyvit" / "__main__.py", project.folder / "tinyvit")
    (project.folder / "tinyvit" / "__init__.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    assert project.run.main(["train"]) == 130
    assert "Traceback" not in capfd.readouterr().err


def test_notebooks_open_the_first_chapter(project, capfd):
    """From the top folder: JupyterLab opens nothing above the folder it starts in, and chapters link to tinyvit/."""
    (project.folder / "notebooks").mkdir()
    (project.folder / "jupyterlab.py").write_text("import os, sys; print(sys.argv[1:], os.getcwd())")
    assert project.run.main(["notebooks", "--no-browser"]) == 0
    first = "notebooks/00-the-map.ipynb"
    place = [f"--ServerApp.root_dir={project.folder}", f"--LabApp.default_url=/lab/tree/{first}"]
    assert capfd.readouterr().out == f"{[*place, '--no-browser']} {project.folder}\n"
    assert project.installed() == [".[notebooks]"]
    assert (RUN.parent / first).exists()


def test_usage_and_missing_notebooks(project, capsys):
    assert project.run.main([]) == 2
    assert project.run.main(["--help"]) == 0
    assert "run.py train" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="there are no notebooks in this copy"):
        project.run.main(["notebooks"])
    assert not Path(project.run.VENV).exists()  # none of this needs an installation
