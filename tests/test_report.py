"""A run's page and the comparison: whole in one file, true, safe for any name, and there for any state of a run."""

import io
import os
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from made_up_runs import CONFIG, IN_PROGRESS, RECIPE, TEST, epochs, images, make_run
from PIL import Image

import tinyvit
from tinyvit import interpret, models, viz
from tinyvit.classifier import Classifier, load
from tinyvit.cli import main
from tinyvit.cli.reporting import write_report
from tinyvit.train.runs import duration, read_run
from tinyvit.viz.compare import differences, spread, table

HOSTILE = ("<script>alert(1)</script>", 'a "b" & c', "$x$", "-->", "ok")
ALONE = {"meta", "br", "img"}  # tags without an end


@pytest.fixture(autouse=True)
def all_runs_end():
    yield
    IN_PROGRESS.close()


class Page(HTMLParser):
    """What a page holds: tags with their attributes, the text, and whether every tag is closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)
        assert not self.open, self.open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ALONE:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["style"], ["title"]):
            self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def opened(path):
    """The page at a path, after what must hold for each: it needs nothing else, and tells what its pictures show."""
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert len(text) < 1.5e6
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/")), (tag, attributes[name][:80])
    assert "url(http" not in text and "@import" not in text
    assert all(image["alt"] for image in page.all("img"))
    assert all(len(svg["aria-label"]) > 20 for svg in page.all("svg"))
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1 and max(np.diff(levels), default=0) <= 1
    assert page.all("html")[0]["lang"] == "en" and len(page.all("main")) == 1
    return page


# ---------------------------------------------------------------------------------------------- the report


def test_a_finished_run(tmp_path):
    dataset = images()
    folder = make_run(tmp_path / "run", epochs(10), TEST)
    assert write_report(folder, dataset) == ""
    page = opened(folder / "report.html")
    for words in (
        "digits: 90.00 % of the test images right", "How it learned", "What it takes for what", "Where it looks",
        "10 of 10", "86.00 % (epoch 10)", "batch_size 64", "width 8", "python 3.12", "of 40 test images",
    ):  # fmt: skip
        assert words in page.text, words
    assert len(page.all("svg")) == 4
    p = load(folder).predict(dataset.test.images)
    wrong = (p.argmax(1) != dataset.test.labels).sum()
    assert len(page.all("img")) == min(wrong, 24) + 2 * 10
    assert f"when the run ended it was {90:.2f} %" in page.text.replace("\xa0", " ")  # these weights are untrained


def test_the_confusion_matrix_is_the_models(tmp_path):
    folder, dataset = make_run(tmp_path / "run", epochs(1), TEST), images()
    p = np.eye(10, dtype=np.float32)[np.random.default_rng(1).integers(0, 10, 40)]
    write_report(folder, dataset, p)
    text = (folder / "report.html").read_text(encoding="utf-8")
    body = re.search(r'class="counts">.*?<tbody>(.*?)</tbody>', text)[1]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in body.split("</tr>")[:-1]]
    counts = interpret.confusion(dataset.test.labels, p.argmax(1), 10)
    assert [[int(n or 0) for n in row[:-1]] for row in rows] == counts.tolist()
    assert rows[3][-1] == f"{100 * counts[3, 3] / counts[3].sum():.1f} %"


def test_probabilities_that_are_known_are_not_computed_again(tmp_path, monkeypatch):
    folder, dataset = make_run(tmp_path / "run", epochs(1), TEST), images()
    monkeypatch.setattr(Classifier, "predict", None)
    write_report(folder, dataset, np.eye(10)[dataset.test.labels])
    assert "No mistakes among 40 images" in opened(folder / "report.html").text


@pytest.mark.parametrize("state", ["in progress", "stopped"])
def test_a_run_that_is_not_finished_is_asked_about_validation_images(state, tmp_path):
    """Protects: the test images are for the end of the run, and a page must not look at them before."""
    dataset = replace(images(), test=None)
    object.__setattr__(dataset, "test", replace_images(images().test))
    folder = make_run(tmp_path / "a run", epochs(3), stopped=state == "stopped")
    assert write_report(folder, dataset) == ""
    page = opened(folder / "report.html")
    assert (
        state in page.text
        and "3 of 10 epochs" in page.text
        and "40 validation images, by the checkpoint after 3 whole epochs" in page.text
    )
    assert "test accuracy" not in page.text
    assert (f'tinyvit train --resume "{folder}"' in page.text) == (state == "stopped")


class replace_images:
    """A test split of which only the images' shape may be known."""

    def __init__(self, split):
        self.images = type("Hidden", (), {"shape": split.images.shape})()


def test_a_run_before_its_first_epoch(tmp_path):
    folder = make_run(tmp_path / "run", [])
    write_report(folder, images())
    assert "No epoch is finished yet" in opened(folder / "report.html").text


@pytest.mark.parametrize("trouble", ["no data", "no checkpoint", "damaged checkpoint"])
def test_what_is_missing_is_said_and_the_rest_is_there(trouble, tmp_path, capsys):
    dataset = images(name="photos")
    recipe = replace(RECIPE, data=str(tmp_path / "nowhere" if trouble == "no data" else "digits"))
    folder = make_run(
        tmp_path / "run", epochs(4), TEST, recipe=recipe, dataset=dataset, weights=trouble != "no checkpoint"
    )
    if trouble == "damaged checkpoint":
        path = folder / "checkpoint.safetensors"
        path.write_bytes(path.read_bytes()[:-9])
    assert main(["report", str(folder)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("tinyvit report: without confusion matrix") and error.count("\n") == 1
    page = opened(folder / "report.html")
    assert "No confusion matrix, mistakes and attention:" in page.text and len(page.all("svg")) == 4


def test_names_are_text(tmp_path):
    """Protects: a class is named after a folder, and a folder may be called <script>."""
    dataset = images(HOSTILE, name="<b>bold</b>")
    config = replace(CONFIG, classes=5)
    folder = make_run(tmp_path / "<i>run", epochs(2), TEST, config=config, dataset=dataset)
    write_report(folder, dataset)
    page = opened(folder / "report.html")
    assert not page.all("b") and not page.all("i")
    for name in (*HOSTILE, "<b>bold</b>", "<i>run"):
        assert name in page.text
    assert any(image["alt"] == f"an image of class {HOSTILE[1]}" for image in page.all("img"))


def test_large_images_and_many_classes_stay_small(tmp_path):
    """Protects: 1.5 MB, for noise of 224 × 224 pixels, which no format packs."""
    names = tuple(f"class number {i}" for i in range(100))
    dataset = images(names, (224, 224, 3), 120, "photos")
    config = replace(CONFIG, image_size=(224, 224), patch=28, channels=3, classes=100)
    folder = make_run(tmp_path / "run", epochs(300), TEST, config=config, dataset=dataset)
    write_report(folder, dataset)
    page = opened(folder / "report.html")  # which looks at the size
    assert len(page.all("img")) > 40
    assert "taken for" in page.text


def test_a_resnet_has_no_attention_to_show(tmp_path):
    config = replace(tinyvit.PRESETS["resnet20"], image_size=(8, 8), channels=1, classes=10, blocks=(1, 1, 1))
    folder = make_run(tmp_path / "run", epochs(2), TEST, config=config, recipe=replace(RECIPE, preset="resnet20"))
    write_report(folder, images())
    page = opened(folder / "report.html")
    assert "A ResNet with" in page.text and "Where it looks" not in page.text and "Its surest" in page.text


def test_the_lines_that_load_the_model_work(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "it's a run", epochs(1), TEST)
    write_report(folder, images())
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "image.png")
    text = (folder / "report.html").read_text(encoding="utf-8")
    code = Page(re.search(r"<pre><code>import.*?</code></pre>", text, re.S)[0]).words
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec("".join(code), scope)
    assert isinstance(scope["model"], Classifier)


def test_the_command(tmp_path, capsys):
    folder = make_run(tmp_path / "run", epochs(1), TEST, dataset=images())
    assert main(["report", str(folder), "--out", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'page.html'}\n"
    opened(tmp_path / "page.html")
    assert not (folder / "report.html").exists()
    assert main(["report", str(tmp_path)]) == 1
    assert f"{tmp_path} is not a run's folder: it holds no config.toml" in capsys.readouterr().err
    assert main(["report", str(folder), "--data", str(tmp_path / "none")]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "seconds, words", [(0.04, "0.0 s"), (59.6, "1 min 0 s"), (42, "42 s"), (723, "12 min 3 s"), (7500, "2 h 5 min")]
)
def test_durations(seconds, words):
    assert duration(seconds) == words


def test_curves_take_the_pages_colours():
    """Protects: black letters on a dark page."""
    from tinyvit.viz.figure import BLUE, FAINT, GREY, INK, svg
    from tinyvit.viz.panels import Line, panel

    text = svg(panel([Line([1, 2], [3.0, 4.0], BLUE), Line([1, 2], [3.0, 1.0], INK)], "epoch"), "one", 'a "b"')
    assert not re.search(f"{BLUE}|{INK}|{GREY}|{FAINT}", text, re.I)
    assert "var(--blue)" in text and "var(--ink)" in text and 'aria-label="a &quot;b&quot;"' in text
    assert ">epoch</text>" in text  # letters that can be searched and copied
    for target in re.findall(r"(?:url\(#|href=\"#)([\w-]+)", text):
        assert f'id="{target}"' in text and target.startswith("one-")


# ---------------------------------------------------------------------------------------------- the comparison


def test_only_what_differs_is_shown(tmp_path):
    a = read_run(make_run(tmp_path / "a", epochs(2), TEST))
    b = read_run(make_run(tmp_path / "b", epochs(10), TEST, recipe=replace(RECIPE, lr=0.1, seed=3)))
    assert differences([a, b]) == {"lr": ["0.004", "0.1"], "seed": ["0", "3"]}
    head, first, second = table([a, b], ["a", "b"])
    assert head == ["run", "test", "best validation", "epochs", "time", "parameters", "lr", "seed"]
    count = f"{models.build(CONFIG).parameter_count():,}"
    assert first == ["a", "90.00 %", "70.00 % (epoch 2)", "2 of 10", "20 s", count, "0.004", "0"]
    assert second[2] == "86.00 % (epoch 10)"


def test_seeds_get_their_mean_and_spread(tmp_path):
    runs = [
        read_run(make_run(tmp_path / str(i), epochs(1), TEST | {"test_accuracy": a}, recipe=replace(RECIPE, seed=i)))
        for i, a in enumerate((0.9, 0.92, 0.94))
    ]
    assert spread(runs) == "test accuracy 92.00 ± 2.00 % (mean and standard deviation of 3 seeds)"
    assert spread(runs[:1]) == ""
    other = read_run(make_run(tmp_path / "lr", epochs(1), TEST, recipe=replace(RECIPE, lr=1.0, seed=7)))
    assert spread([*runs, other]) == ""


def test_compare(tmp_path, capsys):
    """Of any state; what is missing or damaged is said, and the others are compared."""
    make_run(tmp_path / "done", epochs(10), TEST)
    make_run(tmp_path / "going", epochs(3), recipe=replace(RECIPE, lr=0.1))
    make_run(tmp_path / "new", [])
    make_run(tmp_path / "<b>", epochs(30), stopped=True, dataset=images(name="photos"))
    (make_run(tmp_path / "broken", epochs(2)) / "config.toml").write_text("[", encoding="utf-8")
    names = ("done", "going", "new", "<b>", "broken", "missing")
    assert main(["compare", *(str(tmp_path / name) for name in names), "--out", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["run", "done", "going", "new", "<b>"]
    assert "in progress" in lines[2] and "none yet" in lines[3] and "stopped" in lines[4]
    assert len({len(line) for line in lines[:5]}) == 1  # columns stand below each other
    assert "config.toml is damaged" in captured.err and "there is no run's folder" in captured.err
    assert "of different data (digits, photos)" in captured.err and "Traceback" not in captured.err
    page = opened(tmp_path / "out" / "compare.html")
    assert not page.all("b") and "<b>" in page.text and "lr" in page.text and "They" not in page.text
    assert len(page.all("svg")) == 4
    assert "done ends at 86; going ends at 76.67; <b> ends at" in page.all("svg")[0]["aria-label"]
    with Image.open(tmp_path / "out" / "compare.png") as picture:
        assert picture.width == 900


def test_compare_names_each_run_once(tmp_path, capsys):
    """One alone is fine, too: what there is to say of it is said."""
    folder = str(make_run(tmp_path / "run", epochs(1), TEST))
    out = tmp_path / "out"
    for same in (folder, f"{folder}{os.sep}", os.path.join(folder, "..", "run")):
        assert main(["compare", folder, same, "--out", str(out)]) == 0
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[:-2]] == ["run", "run"]
    page = opened(out / "compare.html").text
    assert "1 run: digits" in page and "configurations" not in page


def test_compare_leaves_out_what_is_no_run(tmp_path, capsys):
    """Protects: `tinyvit compare runs/*` beside a run that is about to begin, the command's own --out, and a file."""
    make_run(tmp_path / "done", epochs(10), TEST)
    make_run(tmp_path / "begun", [])
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("lr 0.1 was too much", encoding="utf-8")
    paths = [str(path) for path in sorted(tmp_path.iterdir())]
    assert main(["compare", *paths]) == 0
    captured = capsys.readouterr()
    assert [line.split()[0] for line in captured.out.splitlines()] == ["run", "begun", "done"]
    empty, notes = captured.err.splitlines()
    assert empty == f"tinyvit compare: {tmp_path / 'empty'} is not a run's folder: it holds no config.toml"
    assert notes == f"tinyvit compare: there is no run's folder at {tmp_path / 'notes.txt'}"
    assert main(["compare", *paths, str(tmp_path / "dnoe")]) == 1  # whoever names what is not there shall learn of it
    assert main(["compare", str(tmp_path / "empty")]) == 1
    assert capsys.readouterr().err.count("Traceback") == 0


def test_compare_knows_what_a_star_stands_for(tmp_path, monkeypatch, capsys):
    """Protects: `tinyvit compare runs/*` on Windows, whose shells pass on the *; and a folder named like a pattern."""
    monkeypatch.chdir(tmp_path)
    for name in ("digits-1", "digits-2", "digits-[1]"):
        make_run(tmp_path / "runs" / name, epochs(1), TEST)
    assert main(["compare", "runs/digits-?", "runs/digits-[1]"]) == 0
    assert re.findall(r"^digits-\S+", capsys.readouterr().out, re.M) == ["digits-1", "digits-2", "digits-[1]"]
    assert main(["compare", "runs/none-*", "runs/digits-1"]) == 1
    assert "none-*" in capsys.readouterr().err


def test_the_curves_of_the_runs_are_told_apart(tmp_path):
    """By colour, and beyond seven by stroke."""
    records = [read_run(make_run(tmp_path / str(i), epochs(3), TEST, weights=False)) for i in range(16)]
    figure = viz.compare(records, [str(i) for i in range(16)])
    for axes in figure.axes:
        assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == 16
        low, high = axes.get_ylim()
        assert all(low <= y <= high for line in axes.lines for y in line.get_ydata())
    with Image.open(io.BytesIO(viz.png(figure))) as picture:
        assert picture.height < 1600


def test_long_and_hidden_names_are_in_the_legend(tmp_path):
    """Protects: matplotlib leaves out what begins with "_", and lets long words run off the page."""
    names = ["_hidden", "runs/" + "very-" * 20 + "long"]
    records = [read_run(make_run(tmp_path / str(i), epochs(3), TEST, weights=False)) for i in range(2)]
    figure = viz.compare(records, names)
    viz.png(figure)
    [legend] = figure.legends
    assert [text.get_text()[-5:] for text in legend.get_texts()] == ["idden", "-long"]
    box = legend.get_window_extent()
    assert 0 <= box.x0 and box.x1 <= figure.bbox.x1
