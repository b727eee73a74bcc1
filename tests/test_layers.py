"""The package reads as a book: a file imports only from files above it, and each opens with its thesis."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import tinyvit

PACKAGE = Path(tinyvit.__file__).parent

# The order in which to read. A folder stands for its files, which have an order of their own (below).
ORDER = """
    memory tensor gradcheck tape kernels ops convolution functional nn optim cores models data train interop classifier
    interpret viz bench cli __init__ __main__
""".split()
INSIDE = {
    "kernels": """
        backend update elementary simd softmax layernorm groupnorm gelu cross_entropy matmul linear attention block
        im2col convolution scatter warp retouch __init__
    """.split(),
    "nn": "module initial layers convolution positions resolution __init__".split(),
    "models": "model vit resnet hybrid resolution conv_attention augmented igpt masked __init__".split(),
    "data": """
        dataset idx cifar image folder digits sources fetch augment randaugment pipeline mixing palette batches
        __init__
    """.split(),
    "viz": "figure training panels page images report compare live inside centres graph bench __init__".split(),
    "bench": """
        shapes ours pytorch parts footprint worker machine statistics rounds results report training inference __init__
    """.split(),
    "train": """
        recipes shards checkpoint average metrics folder progress interrupt ranks loop fitting runs finetune pretrain
        probe __init__
    """.split(),
    "interop": "files layouts settings folding reading onnx_operators onnx writing __init__".split(),
    "cli": """
        shared reporting training finetuning trained exporting figures plot tensorboard watching comparing machine words
        __init__
    """.split(),
}
# cli is the one reader of `tinyvit` as a whole: it uses the public names, as a user would.
ENTRANCES = {"cli", "__main__"}
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def place(module):
    """(chapter, section) of a dotted module name below tinyvit, as numbers to compare."""
    chapter, *rest = module.split(".")
    sections = INSIDE.get(chapter, [])
    return ORDER.index(chapter), sections.index(rest[0]) if rest and rest[0] in sections else len(sections)


def imported_modules(path):
    """The modules of tinyvit that a file imports, at any depth (inside functions too)."""
    package = path.relative_to(PACKAGE).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] == "tinyvit":
                    yield name.name.removeprefix("tinyvit").lstrip(".") or "__init__"
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(("tinyvit", *package[: len(package) - node.level + 1], *filter(None, [base])))
            if base == "tinyvit":
                yield from (n.name if n.name in ORDER else "__init__" for n in node.names)
            elif base.startswith("tinyvit."):
                inner = base.removeprefix("tinyvit.")
                for name in node.names:
                    yield f"{inner}.{name.name}" if name.name in INSIDE.get(inner, ()) else inner


@pytest.mark.parametrize("file", FILES)
def test_imports_point_upwards(file):
    module = file.removesuffix(".py").replace("/", ".")
    mine = place(module)
    for other in imported_modules(PACKAGE / file):
        if other == "__init__" and module.split(".")[0] in ENTRANCES:
            continue
        assert place(other) < mine, f"{file} imports {other}, which a reader has not seen yet"


def test_the_order_names_every_file():
    for file in FILES:
        chapter, *rest = file.removesuffix(".py").split("/")
        assert chapter in ORDER, f"{file} has no place in the reading order"
        assert not rest or rest[0] in INSIDE[chapter], f"{file} has no place in its folder's order"


def test_the_table_of_contents_is_in_this_order():
    contents = [
        line.split()[0] for line in tinyvit.__doc__.splitlines() if line.startswith("    ") and "  " in line[4:]
    ]
    chapters = [name.removesuffix(".py").rstrip("/") for name in contents]
    assert chapters == [name for name in ORDER if not name.startswith("__")]


@pytest.mark.parametrize("folder", ["kernels", "models", "data", "bench", "interop"])
def test_a_folders_table_of_contents_is_in_its_order(folder):
    """Those whose docstring has one: a name, two spaces or more, what it is about."""
    doc = importlib.import_module(f"tinyvit.{folder}").__doc__
    assert re.findall(r"^ *(\w+)  +\S", doc, re.MULTILINE) == INSIDE[folder][:-1]


@pytest.mark.parametrize("file", FILES)
def test_each_file_opens_with_its_thesis(file):
    text = (PACKAGE / file).read_text(encoding="utf-8")
    doc = ast.get_docstring(ast.parse(text))
    assert doc and len(doc.splitlines()[0]) > 20, f"{file} must open with a docstring that says what it teaches"


@pytest.mark.parametrize("file", FILES)
def test_files_stay_short(file):
    """A file that outgrows this becomes a folder of the same name."""
    assert len((PACKAGE / file).read_text(encoding="utf-8").splitlines()) <= 400


def test_public_names_have_docstrings():
    for name in tinyvit.__all__:
        thing = getattr(tinyvit, name)
        assert isinstance(thing, dict) or (thing.__doc__ or "").strip(), f"tinyvit.{name} needs a docstring"


def test_importing_is_light():
    """`import tinyvit` loads neither matplotlib nor the download and image libraries."""
    import subprocess
    import sys

    code = (
        "import sys, tinyvit; print(*sorted({'matplotlib', 'pooch', 'PIL', 'requests', 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == ""
