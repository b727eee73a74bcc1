"""Run the chapters, each in a fresh kernel, in order.

    python notebooks/execute.py [--answers] [--save] [CHAPTER ...]

--answers   at each exercise also run the usual mistake, which its check must catch, and the answer, which must pass
--save      write the outputs into the notebooks, and renew the line numbers of their links and the table in README.md
            (`python notebooks/contents.py` does only that, for all chapters, and runs nothing)
CHAPTER     the beginning of a file name, such as 05; all chapters without

TINYVIT_KERNELS=numpy runs them on the NumPy versions of the kernels. No chapter may need the network, so here they have
none. The exit code is 1 if a chapter failed. Needs `pip install -e ".[notebooks]"`.
"""

import argparse
import json
import os
import re
import sys
import time

import contents

try:
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
except ModuleNotFoundError as error:
    sys.exit(f'{sys.executable} has no {error.name}: pip install -e ".[notebooks]", or take the Python of .venv')

LIMIT = 300  # seconds a cell may take before it counts as stuck
PROMISE = 60  # seconds a chapter is to take on two cores; a busy machine may need more, so it is said and no failure
NOWHERE = "http://127.0.0.1:9"  # nothing listens there: what asks for the network fails at once
OFFLINE = {"http_proxy": NOWHERE, "https_proxy": NOWHERE, "no_proxy": ""}
COLOURS = re.compile(r"\x1b\[[\d;]*m")  # a terminal's, in tracebacks; a log has no use for them
MISTAKE = """
from course import CheckFailed as _CheckFailed
try:
    exec({mistake!r} + {checks!r})
except _CheckFailed as _caught:
    print("caught:", _caught)
else:
    raise SystemError({name!r} + ": the usual mistake passes the check")
"""


def with_answers(chapter, notebook):
    """Behind each exercise its usual mistake, which has to fail, and its answer, which has to pass."""
    for exercise in reversed(chapter.exercises()):
        mistake = MISTAKE.format(mistake=exercise.mistake, checks=exercise.checks, name=exercise.name)
        # A check of something not done yet does not fail: so the answer's cell fails unless a check says ✓.
        answer = exercise.answer + exercise.checks
        cells = [nbformat.v4.new_code_cell(source) for source in (mistake, answer)]
        cells[1].metadata["answer"] = exercise.name
        notebook.cells[exercise.cell + 1 : exercise.cell + 1] = cells


def run(path, answers=False):
    """Execute a chapter; returns (the notebook with outputs, seconds).

    Raises CellExecutionError, CellTimeoutError where a cell is stuck, DeadKernelError, and ValueError where the file is
    not a chapter or an answer does not pass.
    """
    chapter = contents.Chapter(path)
    notebook = nbformat.read(path, as_version=4)
    if answers:
        with_answers(chapter, notebook)
    start = time.perf_counter()
    client = NotebookClient(
        notebook, timeout=LIMIT, kernel_name="python3", resources={"metadata": {"path": str(contents.HERE)}}
    )
    offline = OFFLINE | {name.upper(): value for name, value in OFFLINE.items()}
    client.execute(env=os.environ | offline | {"TINYVIT_STATIC": "1"})
    seconds = time.perf_counter() - start
    for cell in notebook.cells:
        if "answer" in cell.metadata:
            said = "".join(output.get("text", "") for output in cell.outputs)
            if "✓" not in said or "○" in said:
                raise ValueError(f"{chapter.path.name}, {cell.metadata['answer']}: the answer does not pass: {said}")
    return notebook, seconds


def save(path, notebook):
    """Write a chapter as it was run, without what differs from run to run."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "tinyvit": notebook.metadata["tinyvit"],
    }
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i:02}"
        cell.metadata = {}
    contents.write(path, json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", action="store_true", help="run each exercise's answer and usual mistake, too")
    parser.add_argument("--save", action="store_true", help="write the outputs into the notebooks")
    parser.add_argument("chapters", nargs="*", metavar="CHAPTER", help="the beginning of a file name, such as 05")
    options = parser.parse_args()
    if options.save and options.answers:
        parser.error("--save keeps the exercises open, --answers fills them in: take one of the two")
    try:
        paths = contents.paths(options.chapters)
    except ValueError as error:
        parser.error(str(error))
    start, done, failed = time.perf_counter(), 0, []
    for path in paths:
        done += 1
        try:
            before = path.read_bytes()
            notebook, seconds = run(path, options.answers)
            slow = f", more than the {PROMISE} s it is to take" if seconds > PROMISE else ""
            print(f"{path.stem}: {seconds:.1f} s{slow}", flush=True)
            if options.save and path.read_bytes() != before:
                raise ValueError("not saved: someone else has changed the file while it ran")
            if options.save:
                save(path, notebook)
        except (CellExecutionError, CellTimeoutError, ValueError, OSError) as error:
            failed.append(path.stem)
            print(f"{path.stem}: FAILED\n{COLOURS.sub('', str(error))}", flush=True)
        except (DeadKernelError, AssertionError):  # nbclient's own assertion is what comes of Ctrl-C: no next chapter
            failed.append(path.stem)
            print(f"{path.stem}: FAILED: interrupted, or its kernel died (out of memory?)", flush=True)
            break
    if options.save:
        failed += contents.renew(paths)[1]
    seconds = time.perf_counter() - start
    print(f"{done} of {len(paths)} chapters in {seconds:.0f} s; failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8")  # ✗ in a pipe on Windows
    sys.exit(main())
