"""Run the chapters, each in a fresh kernel, in order.

    python notebooks/execute.py [--answers] [--save] [CHAPTER ...]

--answers   at each exercise also run the usual mistake, which its check must catch, and the answer, which must pass
--save      write the outputs into the notebooks, and renew the line numbers of their links and the table in README.md
CHAPTER     the beginning of a file name, such as 05; all chapters without

TINYVIT_KERNELS=numpy runs them on the NumPy versions of the kernels. Needs `pip install -e ".[notebooks]"`.
"""

import argparse
import json
import os
import sys
import time

import contents
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

LIMIT = 300  # seconds a cell may take before it counts as stuck
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
    """Execute a chapter; returns (the notebook with outputs, seconds). Raises CellExecutionError."""
    chapter = contents.Chapter(path)
    notebook = nbformat.read(path, as_version=4)
    if answers:
        with_answers(chapter, notebook)
    start = time.perf_counter()
    client = NotebookClient(
        notebook, timeout=LIMIT, kernel_name="python3", resources={"metadata": {"path": str(contents.HERE)}}
    )
    client.execute(env=dict(os.environ, TINYVIT_STATIC="1"))
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
        if cell.cell_type == "markdown":
            cell.source = contents.with_lines(cell.source)
    text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    path.write_text(text, encoding="utf-8", newline="\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", action="store_true", help="run each exercise's answer and usual mistake, too")
    parser.add_argument("--save", action="store_true", help="write the outputs into the notebooks")
    parser.add_argument("chapters", nargs="*", metavar="CHAPTER", help="the beginning of a file name, such as 05")
    options = parser.parse_args()
    if options.save and options.answers:
        parser.error("--save keeps the exercises open, --answers fills them in: take one of the two")
    paths = [c.path for c in contents.chapters() if c.path.name.startswith(tuple(options.chapters or [""]))]
    if not paths:
        parser.error(f"no chapter begins with {' or '.join(options.chapters)} in {contents.HERE}")
    failed = 0
    for path in paths:
        try:
            notebook, seconds = run(path, options.answers)
        except (CellExecutionError, ValueError) as error:
            failed += 1
            print(f"{path.stem}: FAILED\n{error}", flush=True)
            continue
        print(f"{path.stem}: {seconds:.1f} s", flush=True)
        if options.save:
            save(path, notebook)
    if options.save:
        readme = contents.HERE / "README.md"
        readme.write_text(contents.with_table(readme.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
