"""Every example runs. What it reaches is in its docstring, measured; here it takes one short epoch."""

import runpy
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_thirty_lines(capsys):
    accuracy = runpy.run_path(str(EXAMPLES / "thirty_lines.py"))["main"](epochs=2)
    out = capsys.readouterr().out
    assert 0.1 < accuracy <= 1 and out.count("validation") == 2 and "test accuracy" in out


def test_no_example_is_forgotten():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {"thirty_lines"}
