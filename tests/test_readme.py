"""The README's code runs, and what it names exists."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")


def test_the_code_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    assert blocks
    for block in blocks:
        exec(compile(block, "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert "[2. 4. 6.]" in out and "(2, 4, 17, 17)" in out


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)\)", TEXT))))
def test_links_lead_somewhere(target):
    assert target.startswith("https://") or (README.parent / target).exists()


@pytest.mark.parametrize("anchor", sorted(set(re.findall(r"\]\(#([^)]+)\)", TEXT))))
def test_anchors_are_headings(anchor):
    """GitHub makes them of a heading: small letters, no punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.+)$", TEXT, re.M)
    assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_tests_and_examples_it_names_exist():
    root = README.parent
    for name in set(re.findall(r"`(test_\w+\.py)`", TEXT)):
        assert (root / "tests" / name).exists(), name
    for name in set(re.findall(r"python (\w+/\w+\.py)", TEXT)):
        assert (root / name).exists(), name


def test_the_two_commands_are_the_first_ones():
    commands = re.findall(r"^python3 run\.py \w+", TEXT, re.M)
    assert commands[:2] == ["python3 run.py train", "python3 run.py test"]
