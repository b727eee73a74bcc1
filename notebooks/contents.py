"""The chapters as they lie on disk: what each holds, and the table of them in README.md.

    python notebooks/contents.py

renews the lines in the chapters' links to the package and the table, wherever they are no longer right. It runs nothing
and needs nothing but Python: what to do after a change of the package.
"""

import ast
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CODE = re.compile(r"```python\n(.*?)```", re.S)
# [`tinyvit/tensor.py`: `Tensor.backward`](../tinyvit/tensor.py#L10-L20): "now read", with the lines.
LINES = re.compile(r"\[`(?P<file>tinyvit/[\w/]+\.py)`: `(?P<name>[\w.]+)`\]\((?P<target>[^)\s]*)\)")


@dataclass(frozen=True)
class Exercise:
    """A task: `cell` is the reader's code cell, `stub` its part before the checks, `checks` the rest; `answer` passes
    them, `mistake`, a usual wrong answer, does not."""

    name: str
    cell: int
    stub: str
    checks: str
    answer: str
    mistake: str


class Chapter:
    """One notebook. metadata["tinyvit"] says `minutes` (to work through) and `introduces` (modules, or names in them,
    that it explains and that later chapters may use)."""

    def __init__(self, path):
        self.path = Path(path)
        try:
            self.notebook = json.loads(self.path.read_text(encoding="utf-8"))
        except ValueError as error:  # a conflict left by a merge, or not UTF-8
            raise ValueError(f"{self.path.name} is not a whole notebook: {error}") from None
        self.cells = self.notebook["cells"]
        self.metadata = self.notebook["metadata"].get("tinyvit", {})

    @property
    def title(self):
        return re.search(r"^# (.+)$", self.source(0), re.M)[1]

    def source(self, i):
        return "".join(self.cells[i]["source"])

    def code(self):
        """The numbers of the code cells."""
        return [i for i, cell in enumerate(self.cells) if cell["cell_type"] == "code"]

    def text(self):
        """All Markdown."""
        return "\n\n".join(self.source(i) for i, cell in enumerate(self.cells) if cell["cell_type"] == "markdown")

    def figures(self):
        """The saved pictures' outputs."""
        outputs = [output for i in self.code() for output in self.cells[i]["outputs"]]
        return [output for output in outputs if "image/png" in output.get("data", ())]

    def checks(self):
        """How many checks the chapter has, exercises included."""
        return sum(len(re.findall(r"^ *check\(", self.source(i), re.M)) for i in self.code())

    def exercises(self):
        """Each `### Exercise n` with the code cell below it and the folded answer below that."""
        found = []
        for i, cell in enumerate(self.cells):
            heading = re.search(r"^### (Exercise \d+)", self.source(i), re.M)
            if cell["cell_type"] != "markdown" or not heading:
                continue
            kinds = [below["cell_type"] for below in self.cells[i + 1 : i + 3]]
            code, answer = (self.source(i + 1), self.source(i + 2)) if len(kinds) == 2 else ("", "")
            stub, *checks = re.split(r"^(?=check\()", code, flags=re.M)
            blocks = CODE.findall(answer)
            if kinds != ["code", "markdown"] or not checks or "<details>" not in answer or len(blocks) != 2:
                raise ValueError(
                    f"{self.path.name}, {heading[1]}: below its text must stand a code cell with `check(` at the start "
                    "of a line, then a Markdown cell with <details> and two ```python blocks: the answer, and a usual "
                    "mistake that the check catches"
                )
            found.append(Exercise(heading[1], i + 1, stub, "".join(checks), *blocks))
        return found


def paths(beginnings=()):
    """The chapters' files in order; with beginnings of file names, such as 05, those that begin so.

    Raises ValueError where none does."""
    every = sorted(HERE.glob("[0-9][0-9]-*.ipynb"))
    beginnings = [Path(beginning).name for beginning in beginnings]  # notebooks/05-attention.ipynb is meant well, too
    for beginning in beginnings:
        if not any(path.name.startswith(beginning) for path in every):
            raise ValueError(f"no chapter in {HERE} begins with {beginning!r}; try 05")
    return [path for path in every if path.name.startswith(tuple(beginnings or [""]))]


def chapters(beginnings=()):
    """All chapters in order, or those of `paths(beginnings)`."""
    return [Chapter(path) for path in paths(beginnings)]


def lines_of(file, name):
    """First and last line of a function, class or method in a file of the repository."""
    body = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    for part in name.split("."):
        matching = [node for node in body if getattr(node, "name", None) == part]
        if not matching:
            raise ValueError(f"{file} has no {name}; a chapter's `Now read` must name what is there")
        node, body = matching[0], getattr(matching[0], "body", [])
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)]), node.end_lineno


def with_lines(text):
    """The text with the lines of each link to the package as they are now."""

    def link(match):
        first, last = lines_of(match["file"], match["name"])
        return f"[`{match['file']}`: `{match['name']}`](../{match['file']}#L{first}-L{last})"

    return LINES.sub(link, text)


def table():
    """The chapters as a Markdown table."""
    rows = ["| | chapter | minutes | cells | figures | exercises | checks |", "|---|---|---:|---:|---:|---:|---:|"]
    total = [0] * 5
    for chapter in chapters():
        counts = [
            chapter.metadata["minutes"], len(chapter.cells), len(chapter.figures()), len(chapter.exercises()),
            chapter.checks(),
        ]  # fmt: skip
        total = [a + b for a, b in zip(total, counts, strict=True)]
        number, title = chapter.path.name[:2], chapter.title.split("·", 1)[-1].strip()
        rows.append(f"| {number} | [{title}]({chapter.path.name}) | " + " | ".join(map(str, counts)) + " |")
    return "\n".join([*rows, "| | all | " + " | ".join(map(str, total)) + " |"])


def with_table(text):
    """README.md's text with the table as it is now."""
    return re.sub(r"(?<=<!-- chapters -->\n).*?(?=\n<!-- end -->)", lambda _: table(), text, flags=re.S)


def write(path, text):
    """Write a text file: at every moment the file there is the old one or the new one, whole.

    The package's `write_atomically` does more, and needs NumPy; this must run with Python alone."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text, encoding="utf-8", newline="\n")
    os.replace(new, path)


def renew(chosen):
    """Write the lines of these chapters' links and the table as they are now.

    Returns the names of the files that have changed, and what went wrong, such as a link to what is not there.
    """
    changed, wrong = [], []
    for path in [*chosen, HERE / "README.md"]:
        try:
            text = path.read_text(encoding="utf-8")
            # A link holds nothing that JSON escapes: so a notebook's text may be taken as it is, unparsed.
            new = with_lines(text) if path.suffix == ".ipynb" else with_table(text)
            if new != text:
                write(path, new)
                changed.append(path.name)
        except (ValueError, OSError) as error:
            wrong.append(f"{path.name}: {error}")
    return changed, wrong


if __name__ == "__main__":
    renewed, trouble = renew(paths())
    print("renewed:", ", ".join(renewed) or "nothing")
    sys.exit("\n".join(trouble) or 0)
