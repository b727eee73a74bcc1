"""The chapters keep the course's promises: form, order, links. What runs them is notebooks/execute.py."""

import ast
import importlib
import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import tinyvit as tv

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
sys.path.insert(0, str(NOTEBOOKS))
import contents  # noqa: E402
import course  # noqa: E402
from course import CheckFailed, check  # noqa: E402

CHAPTERS = contents.chapters()
GIVEN = ("tinyvit.data", "tinyvit.viz.figure")  # to load images and to draw; no chapter hangs on how they work
each = pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda chapter: chapter.path.stem)


def test_the_chapters_are_numbered_from_00():
    assert [c.path.name[:2] for c in CHAPTERS] == [f"{i:02}" for i in range(len(CHAPTERS))]
    assert all(re.match(rf"# {c.path.name[:2]} · \S", c.source(0)) for c in CHAPTERS)


@each
def test_a_chapter_is_short_enough(chapter):
    assert len(chapter.cells) <= 40
    for i in chapter.code():
        lines = chapter.source(i).splitlines()
        assert len(lines) <= 25 and max(map(len, lines)) <= 120, f"cell {i}"
    assert chapter.path.stat().st_size < 1_000_000


@each
def test_it_was_saved_after_a_whole_run(chapter):
    """Protects: what the web shows is what the code does, in order, without an error, a widget or somebody's paths."""
    cells = [chapter.cells[i] for i in chapter.code()]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr", output["text"]
            assert not [kind for kind in output.get("data", ()) if "widget" in kind]
            said = "".join(output.get("text", ())) + "".join(output.get("data", {}).get("text/plain", ()))
            assert not re.search(r"/(home|root|tmp|work|Users)/|<\w+(\.\w+)* ((object )?at 0x|display_id=)", said), said


@each
def test_every_figure_is_described(chapter):
    assert chapter.figures()
    for output in chapter.figures():
        alt = output.get("metadata", {}).get("image/png", {}).get("alt", "")
        assert len(alt) >= 40, "use show(figure, alt): what the figure shows and what follows from it"


@each
def test_it_has_exercises_questions_and_a_way_on(chapter):
    assert 3 <= len(chapter.exercises()) <= 5
    text = chapter.text()
    questions = re.search(r"^## Five questions$(.*?)^## Recap$", text, re.M | re.S)
    assert questions and re.findall(r"^(\d)\. ", questions[1], re.M) == list("12345")
    assert questions[1].count("<details>") == 5
    assert text.count("<details>") == text.count("</details>") == 5 + len(chapter.exercises())
    assert "## Now read" in text.split("## Recap")[1]
    assert isinstance(chapter.metadata["minutes"], int)


@each
def test_every_step_is_checked(chapter):
    assert chapter.checks() >= 8


@each
def test_its_links_name_the_lines_as_they_are(chapter):
    """Protects: "now read" points at what it names. `python notebooks/contents.py` renews the lines."""
    text = chapter.text()
    assert contents.LINES.search(text) and contents.with_lines(text) == text
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert target.startswith("https://") or (NOTEBOOKS / target).exists(), target


def test_each_file_names_the_chapter_that_explains_it():
    """Protects: from a file of the package there is a way to its chapter, as there is one from the chapter to it."""
    explained_in = {}
    for chapter in CHAPTERS:
        for link in contents.LINES.finditer(chapter.text()):
            explained_in.setdefault(link["file"], chapter.path.name)
    for file, name in explained_in.items():
        docstring = ast.get_docstring(ast.parse((contents.ROOT / file).read_text(encoding="utf-8")))
        assert f"notebooks/{name}" in docstring, file


def names(code):
    """What a piece of code uses of the package, as (module, name, ...) chains."""
    tree, aliases, chains = ast.parse(code), {"tv": ("tinyvit",), "tinyvit": ("tinyvit",)}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tinyvit":
            for alias in node.names:
                aliases[alias.asname or alias.name] = (*node.module.split("."), alias.name)
                chains.add(aliases[alias.asname or alias.name])
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "tinyvit" and alias.asname:
                    aliases[alias.asname] = tuple(alias.name.split("."))
                    chains.add(aliases[alias.asname])
    for node in ast.walk(tree):
        chain = []
        while isinstance(node, ast.Attribute):
            chain.insert(0, node.attr)
            node = node.value
        if isinstance(node, ast.Name) and node.id in aliases and chain and not chain[0].startswith("__"):
            chains.add((*aliases[node.id], *chain))
    return chains


def home(chain):
    """Where what a chain names is defined: `tinyvit.functional.softmax` for tv.functional.softmax and for an import."""
    thing, where = importlib.import_module("tinyvit"), "tinyvit"
    for part in chain[1:]:
        if isinstance(thing, ModuleType):
            where = f"{thing.__name__}.{part}"
            if not hasattr(thing, part):
                importlib.import_module(where)
        thing = getattr(thing, part)
        if isinstance(thing, ModuleType):
            where = thing.__name__
        elif getattr(thing, "__module__", None) and getattr(thing, "__qualname__", None):
            return f"{thing.__module__}.{thing.__qualname__}"
        else:
            return where
    return where


def explained(where):
    """The chapter that explains a name: the one whose `introduces` fits it best; -1 for what is given."""
    fits = [(len(given), -1) for given in GIVEN if f"{where}.".startswith(f"{given}.")]
    for number, chapter in enumerate(CHAPTERS):
        fits += [(len(i), number) for i in chapter.metadata["introduces"] if f"{where}.".startswith(f"{i}.")]
    return max(fits, key=lambda fit: (fit[0], -fit[1]), default=(0, None))[1]


@each
def test_it_uses_only_what_has_been_explained(chapter):
    """Protects: nobody meets in chapter n what only chapter n + 1 explains."""
    number = int(chapter.path.name[:2])
    code = "\n".join([chapter.source(i) for i in chapter.code()] + [e.answer for e in chapter.exercises()])
    early, chains = {}, names(code)
    for chain in chains:
        where = home(chain)
        on_the_way = any(len(longer) > len(chain) and longer[: len(chain)] == chain for longer in chains)
        by = explained(where)
        if not (on_the_way and where in sys.modules) and (by is None or by > number):  # `tv.nn` by itself says nothing
            early[where] = by
    assert not early, "explained later (None: nowhere)"


@each
def test_what_it_introduces_exists(chapter):
    for name in chapter.metadata["introduces"]:
        assert home(tuple(name.split("."))).startswith(name), name


def test_the_table_of_chapters_is_up_to_date():
    """`python notebooks/contents.py` renews it."""
    text = (NOTEBOOKS / "README.md").read_text(encoding="utf-8")
    assert contents.with_table(text) == text and contents.table() in text


@each
def test_it_reads_the_embedded_digits_alone(chapter):
    """Protects: a chapter downloads nothing, and needs no TINYVIT_DATA."""
    code = "\n".join([chapter.source(i) for i in chapter.code()] + [e.answer for e in chapter.exercises()])
    assert set(re.findall(r"\bdata\.load\(\W*(\w+)", code)) <= {"digits"}


def test_the_glossary_is_in_order_and_bilingual():
    """Protects: four columns, no word twice, a Korean one for each (whatever its letters), chapter by chapter."""
    rows = re.findall(r"^\| (.+) \| (.+) \| (.+) \| (\d\d) \|$", (NOTEBOOKS / "glossary.md").read_text("utf-8"), re.M)
    words = [word for english, *_ in rows for word in re.sub(r" \(.*?\)", "", english).split(", ")]
    numbers = [row[3] for row in rows]
    assert len(words) == len(set(words)) > 80
    assert not [korean for _, korean, *_ in rows if not re.search("[가-힣]", korean)]
    assert numbers == sorted(numbers) and set(numbers) == {c.path.name[:2] for c in CHAPTERS}


def test_check_accepts_what_is_right(capsys):
    check("a", np.ones((2, 3)), np.ones((2, 3)) + 1e-9)
    check("b", tv.Tensor([1.0, np.nan, np.inf]), [1, np.nan, np.inf])
    check("c", (2, 3), (2, 3))
    check("d", 1e9 + 1, 1e9)
    check("e", np.zeros(0), np.zeros(0))
    check("f", np.array([True]), np.array([True]))
    check("g", np.True_, True)
    check("h", 86_567_656, 86_567_656)
    check("i", np.array(True), True)
    check("j", [tv.Tensor(1.0), 2], (1.0, 2.0))
    check("k", 1j * np.ones(1), [1j])
    assert capsys.readouterr().out.splitlines() == [
        "✓ a: shape (2, 3), largest difference 1.0e-09",
        "✓ b: shape (3,), equal to the last bit",
        "✓ c: (2, 3)",
        "✓ d: 1e+09, largest difference 1.0e+00",
        "✓ e: shape (0,), equal to the last bit",
        "✓ f: shape (1,), equal to the last bit",
        "✓ g: True",
        "✓ h: 86,567,656, equal to the last bit",
        "✓ i: True",
        "✓ j: shape (2,), equal to the last bit",
        "✓ k: shape (1,), equal to the last bit",
    ]


@pytest.mark.parametrize(
    "got, expected, says",
    [
        (np.ones((3, 2)), np.ones((2, 3)), "the shape must be (2, 3), but is (3, 2)"),
        ([1.0, 2.0], [1.0, 3.0], "must be 3 at (1,), but is 2; 1 of 2 entries are wrong"),
        ([1.0, np.nan], [1.0, 3.0], "must be 3 at (1,), but is nan"),
        ([1.0, np.inf], [1.0, -np.inf], "must be -inf at (1,), but is inf"),
        (2.0, 1.0, "must be 1, but is 2"),
        ("N", "B", "must be 'B', but is 'N'"),
        (False, True, "must be True, but is False"),
        ((2, 3), (3, 2), "must be (3, 2), but is (2, 3)"),
        (np.ones(2), True, "must be True, but is array"),
        (1, True, "must be True, but is 1"),
        ("two", 2.0, "must hold numbers"),
        ([[1.0], [1.0, 2.0]], np.ones((2, 2)), "its rows differ in length"),
        ([object()], [2.0], "must hold numbers"),
        (np.sum, [2.0], "must hold numbers, but is <function sum"),
        ({}, [2.0], "must hold numbers, but is {}"),
        ([1 + 1j], [1.0], "must be 1+0j at (0,), but is 1+1j"),
        ([], [1.0], "the shape must be (1,), but is (0,)"),
        ((np.ones(2), 3), (2, 3), "must be (2, 3), but is (array([1., 1.]), 3)"),
        ((tv.Tensor([1.0]), 3), (1, 3), "must be (1, 3), but is (Tensor("),
    ],
)
def test_check_says_what_is_wrong(got, expected, says):
    with pytest.raises(CheckFailed, match=re.escape(says)) as caught:
        check("step", got, expected, hint="look at the axis")
    assert str(caught.value).startswith("step: ") and str(caught.value).endswith("\n  Hint: look at the axis")


@pytest.mark.parametrize("nothing", [None, ...])
def test_check_waits_for_an_answer(nothing, capsys):
    check("step", nothing, 1.0)
    assert capsys.readouterr().out.startswith("○ step: not done yet")


def bars(height):
    """A figure for a slider; not all of its values make one."""
    drawn, ax = course.figure()
    ax.bar([0], [1 / height])
    return drawn


@pytest.fixture
def displayed(monkeypatch):
    """What `show` and `slider` display: a list of data by MIME type; a picture's update takes its place."""
    pytest.importorskip("ipywidgets", reason='needs pip install -e ".[notebooks]"')
    import IPython.display

    seen = []

    class Handle:
        def update(self, data, **_):
            seen[-1] = data

    def display(thing, **_):
        seen.append(thing)
        return Handle()

    monkeypatch.setattr(IPython.display, "display", display)
    monkeypatch.setattr(course, "STATIC", False)
    return seen


def test_a_slider_redraws_and_shows_its_errors(displayed):
    course.slider(bars, [0, 1, 2], "height", 'a bar, "1" high')
    control, picture = displayed
    assert control.value == 1 and 'alt="a bar, &quot;1&quot; high"' in picture["text/html"]
    control.value = 2
    assert 'alt="height: 2"' in displayed[1]["text/html"] and displayed[1] != picture
    control.value = 0
    assert displayed[1] == {"text/plain": "ZeroDivisionError: division by zero"}
    control.value = 1
    assert displayed[1] == picture


def test_without_ipywidgets_or_a_kernel_a_slider_is_a_figure(displayed, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ipywidgets", None)
        course.slider(bars, [1, 2], "height", "a bar")
    assert "pip install ipywidgets" in capsys.readouterr().out
    monkeypatch.setattr(course, "STATIC", True)
    course.slider(bars, [1, 2], "height", "a bar")
    assert ["text/html" in data for data in displayed] == [True, False] and "image/png" in displayed[1]


def test_another_pythons_kernel_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tinyvit.tensor", None)
    spec = importlib.util.spec_from_file_location("course_again", NOTEBOOKS / "course.py")
    with pytest.raises(ModuleNotFoundError, match=re.escape(sys.executable) + r".* has no tinyvit.*Choose the kernel"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


EXERCISE = """def double(x):
    ...


check("double", double(2), 4)
"""
ANSWER = """<details><summary>Answer</summary>

```python
def double(x):
    return {answer}
```

```python
def double(x):
    return {mistake}
```

</details>"""


def written(folder, cells, name="00-small.ipynb"):
    """A chapter of Markdown and code cells, ("markdown" or "code", source)."""
    cells = [
        {"cell_type": kind, "id": f"c{i}", "metadata": {}, "source": source}
        | ({"execution_count": None, "outputs": []} if kind == "code" else {})
        for i, (kind, source) in enumerate(cells)
    ]
    metadata = {"tinyvit": {"minutes": 1, "introduces": []}}
    text = json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5})
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """notebooks/execute.py, at work in an empty folder."""
    pytest.importorskip("nbclient", reason='needs pip install -e ".[notebooks]"')
    pytest.importorskip("ipykernel")
    shutil.copy(NOTEBOOKS / "course.py", tmp_path)
    monkeypatch.setattr(contents, "HERE", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOKS.parent))
    (tmp_path / "README.md").write_text("<!-- chapters -->\n\n<!-- end -->\n")
    module = importlib.import_module("execute")
    monkeypatch.setattr(sys, "argv", ["execute.py"])
    return module


def exercise(answer="2 * x", mistake="x**3", setup="from course import check"):
    return [
        ("markdown", "# 00 · Small\nRead [`tinyvit/tensor.py`: `Tensor.backward`](x)."),
        ("code", setup),
        ("markdown", "### Exercise 1\nDouble it."),
        ("code", EXERCISE),
        ("markdown", ANSWER.format(answer=answer, mistake=mistake)),
    ]


@pytest.mark.parametrize(
    "cells, says",
    [
        (exercise(), ""),
        (exercise(answer="3 * x"), "double: must be 4, but is 6"),
        (exercise(answer="None"), "the answer does not pass"),
        (exercise(mistake="x + x"), "the usual mistake passes the check"),
        (exercise()[:-1] + [("markdown", "no answer")], "Exercise 1: below its text must stand"),
        (exercise()[:-1], "Exercise 1: below its text must stand"),
        (exercise(setup="import time; time.sleep(60)"), "timed out"),
        (exercise(setup="import os; os._exit(1)"), "its kernel died"),
        (exercise(setup="from urllib.request import urlopen; urlopen('http://example.invalid')"), "refused"),
    ],
    ids=[
        "right",
        "wrong answer",
        "no answer",
        "harmless mistake",
        "not folded",
        "cut off",
        "stuck",
        "kernel ends",
        "network",
    ],
)
def test_execute_tells_right_from_wrong(execute, tmp_path, monkeypatch, capfd, cells, says):
    written(tmp_path, cells)
    monkeypatch.setattr(sys, "argv", ["execute.py", "--answers"])
    monkeypatch.setattr(execute, "LIMIT", 1 if says == "timed out" else 10)
    assert execute.main() == bool(says)
    out = capfd.readouterr().out
    assert says in out and ("failed: 00-small" if says else "failed: none") in out.splitlines()[-1]


def test_execute_saves_what_does_not_differ_from_run_to_run(execute, tmp_path, monkeypatch):
    path = written(tmp_path, exercise())
    monkeypatch.setattr(sys, "argv", ["execute.py", "--save", "00"])
    assert execute.main() == 0
    first = path.read_bytes()
    assert execute.main() == 0 and path.read_bytes() == first
    chapter = contents.Chapter(path)
    assert "○ double: not done yet" in "".join(chapter.cells[3]["outputs"][0]["text"])
    assert (
        contents.with_lines(chapter.text()) == chapter.text() != contents.Chapter(written(tmp_path, exercise())).text()
    )
    assert "| 00 | [Small](00-small.ipynb) | 1 | 5 | 0 | 1 | 1 |" in (tmp_path / "README.md").read_text()


def test_execute_goes_on_after_a_failure_and_says_so(execute, tmp_path, monkeypatch, capfd):
    written(tmp_path, exercise(setup="1 / 0"))
    written(tmp_path, exercise(), "01-small.ipynb")
    (tmp_path / "02-small.ipynb").write_text("<<<<<<< a merge", encoding="utf-8")
    assert execute.main() == 1
    out = capfd.readouterr().out
    assert "ZeroDivisionError" in out and "\x1b" not in out and "02-small.ipynb is not a whole notebook" in out
    assert re.search(r"^01-small: [\d.]+ s$", out, re.M) and "failed: 00-small, 02-small" in out
    monkeypatch.setattr(sys, "argv", ["execute.py", "00", "07"])
    with pytest.raises(SystemExit):
        execute.main()
    assert "begins with '07'" in capfd.readouterr().err


def test_what_changes_while_it_runs_is_not_overwritten(execute, tmp_path, monkeypatch, capfd):
    edit = "import pathlib; pathlib.Path('00-small.ipynb').write_text('a later edit'); from course import check"
    path = written(tmp_path, exercise(setup=edit))
    monkeypatch.setattr(sys, "argv", ["execute.py", "--save"])
    assert execute.main() == 1 and "someone else has changed" in capfd.readouterr().out
    assert path.read_text() == "a later edit"


def test_renewing_changes_lines_and_table_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "HERE", tmp_path)
    path, readme = written(tmp_path, exercise()), tmp_path / "README.md"
    readme.write_text("before\n<!-- chapters -->\n\n<!-- end -->\n", encoding="utf-8")
    old = path.read_text(encoding="utf-8")
    first, last = contents.lines_of("tinyvit/tensor.py", "Tensor.backward")
    new = old.replace("](x)", f"](../tinyvit/tensor.py#L{first}-L{last})")
    assert contents.renew(contents.paths()) == (["00-small.ipynb", "README.md"], [])
    assert path.read_text(encoding="utf-8") == new != old and "| 00 | [Small]" in readme.read_text(encoding="utf-8")
    assert contents.renew(contents.paths()) == ([], [])

    path.write_text(new.replace("Tensor.backward", "Tensor.sideways"), encoding="utf-8")
    changed, wrong = contents.renew(contents.paths())
    assert changed == [] and "00-small.ipynb: tinyvit/tensor.py has no Tensor.sideways" in wrong[0]


def test_a_write_that_is_cut_short_leaves_the_old_file(tmp_path, monkeypatch):
    """Protects: a reader's notebook is never half of one, whenever the program is killed."""
    path = tmp_path / "00-small.ipynb"
    path.write_text("old", encoding="utf-8")
    seen = []
    monkeypatch.setattr(contents.os, "replace", lambda new, to: seen.append((new.read_text("utf-8"), path.read_text())))
    contents.write(path, "new")
    assert seen == [("new", "old")]
