"""Watching a run: whatever moment its files are read at, what is shown is what the run has done."""

import contextlib
import io
import os
import re
import struct
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
from made_up_runs import CONFIG, IN_PROGRESS, RECIPE, TEST, epochs, images, make_run, write_metrics
from matplotlib.text import Text

from tinyvit import train, viz
from tinyvit.cli import main, tensorboard, watching
from tinyvit.train import CheckpointError, checkpoint, runs
from tinyvit.train.folder import only_one
from tinyvit.train.runs import follow, read_run


@pytest.fixture(autouse=True)
def all_runs_end():
    yield
    IN_PROGRESS.close()


@pytest.fixture
def meanwhile(monkeypatch):
    """A list of functions; one is called each time that somebody sleeps until the next look."""
    events = []

    def sleep(_):
        assert events, "nothing happens any more, and still somebody waits"
        events.pop(0)()

    monkeypatch.setattr(runs.time, "sleep", sleep)
    return events


def interrupt():
    raise KeyboardInterrupt


# ---------------------------------------------------------------------------------------------- reading a run


def test_what_a_run_holds(tmp_path):
    run = read_run(make_run(tmp_path / "run", epochs(4), TEST))
    assert (run.state, run.epochs_done, run.test, run.seconds) == ("finished", 4, TEST, 20.0)
    assert run.recipe == RECIPE and run.model == CONFIG and run.best["epoch"] == 4
    assert run.settings()["lr"] == RECIPE.lr and run.settings()["width"] == CONFIG.width


def test_a_line_that_is_half_written_is_not_there_yet(tmp_path):
    folder = make_run(tmp_path / "run", [])
    for torn in ('{"epoch": 3, "lo', '{"epoch": 3}', "\0\0\0"):
        write_metrics(folder, epochs(2), torn)
        assert read_run(folder).epochs_done == 2


@pytest.mark.parametrize(
    "line, what",
    [
        ("nonsense", "line 2"), ("[1]", "must be a number"), ("7", "line 2"), ('{"epoch": 2}', "loss must be a number"),
        ('{"epoch": 2, "loss": NaN}', "NaN is no number"), ("\0\0", "line 2"),
        ('{"test_accuracy": true}', "test_accuracy must be a number"),
    ],
)  # fmt: skip
def test_a_damaged_line_is_named(line, what, tmp_path):
    folder = make_run(tmp_path / "run", [])
    write_metrics(folder, epochs(1), f"{line}\n")
    with pytest.raises(CheckpointError, match="metrics.jsonl is damaged in line 2") as error:
        read_run(folder)
    assert what in str(error.value)


@pytest.mark.parametrize(
    "text, what",
    [
        ("", "'data' is missing"), ("a = ", "config.toml is damaged"), ('data = 3\nclasses = ["a"]', "must be names"),
        ('data = "d"\nclasses = ["a"]\n[recipe]\nfoo = 1', "a recipe has no foo"),
        ('data = "d"\nclasses = ["a"]\nrecipe = 3', "config.toml is damaged"),
        ('data = "d"\nclasses = ["a"]\n[recipe]\n[model]\nkind = "magic"', "the model's kind must be one of"),
    ],
)  # fmt: skip
def test_a_damaged_configuration_is_one_sentence(text, what, tmp_path):
    (tmp_path / "config.toml").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=re.escape(what)):
        read_run(tmp_path)


def test_a_run_that_was_stopped_and_goes_on_again(tmp_path):
    """Protects: in progress is a run as long as a process trains in its folder, and no second longer."""
    folder = make_run(tmp_path / "run", epochs(3), stopped=True)
    assert read_run(folder).state == "stopped"
    with only_one(folder):
        assert read_run(folder).state == "running"
    assert read_run(folder).state == "stopped"


def test_an_error_ends_a_run(tmp_path):
    """Protects: nobody waits for a run whose loss is not a number."""
    with pytest.raises(train.TrainingError, match="training stopped"):
        train.fit(replace(RECIPE, lr=1e8, clip=0.0), images(), tmp_path / "run", say=lambda line: None, bar=False)
    assert read_run(tmp_path / "run").state == "stopped"


def test_epochs_come_in_order(tmp_path):
    """Protects: what two processes have written counts as damage, not as twice as many epochs."""
    folder = make_run(tmp_path / "run", [])
    one, two, three = epochs(3)
    write_metrics(folder, [one, two, two, three])
    with pytest.raises(CheckpointError, match="damaged in line 3: epoch 2 stands after epoch 2"):
        read_run(folder)
    write_metrics(folder, [one, three])
    run = read_run(folder)
    assert run.epochs_done == 3 and run.after(1) == run.after(2) == [three]


@pytest.mark.skipif(os.name == "nt", reason="simulates Windows")
def test_a_file_that_is_being_renamed_is_read_again(tmp_path, monkeypatch):
    """Protects: on Windows both metrics.jsonl and config.toml refuse to be read for the moment in which they are
    replaced."""
    folder = make_run(tmp_path / "run", epochs(2), TEST)
    refused = []

    def at_first_refused(read):
        def reading(path, *arguments):
            if path not in refused:
                refused.append(path)
                raise PermissionError
            return read(path, *arguments)

        return reading

    monkeypatch.setattr(checkpoint, "os", types.SimpleNamespace(name="nt"))
    for name in ("read_bytes", "read_text"):
        monkeypatch.setattr(Path, name, at_first_refused(getattr(Path, name)))
    assert read_run(folder).epochs_done == 2 and len(refused) == 2


def test_follow_from_before_the_beginning_over_a_resumed_run_to_the_end(tmp_path, meanwhile):
    folder, told = tmp_path / "run", []
    meanwhile += [
        lambda: folder.mkdir(),
        lambda: None,
        lambda: (folder.rmdir(), make_run(folder, [])),
        lambda: write_metrics(folder, epochs(1)),
        lambda: write_metrics(folder, epochs(1), '{"epoch": 2,'),
        lambda: write_metrics(folder, epochs(5)),
        lambda: write_metrics(folder, epochs(3)),
        lambda: write_metrics(folder, [*epochs(4), TEST]),
    ]
    seen = [(run.epochs_done, run.state) for run in follow(folder, waiting=told.append)]
    assert seen == [(0, "running"), (1, "running"), (5, "running"), (3, "running"), (4, "finished")]
    assert not meanwhile
    assert told == [f"there is no run's folder at {folder}", f"{folder} is not a run's folder: it holds no config.toml"]


def test_follow_ends_when_nobody_trains_any_longer(tmp_path, meanwhile):
    folder = make_run(tmp_path / "run", epochs(2))
    meanwhile += [lambda: None, IN_PROGRESS.close]
    assert [run.state for run in follow(folder)] == ["running", "stopped"]


@pytest.mark.parametrize("name", ["config.toml", "metrics.jsonl"])
def test_follow_does_not_wait_for_what_is_damaged(name, tmp_path, meanwhile):
    folder = make_run(tmp_path / "run", epochs(2))
    (folder / name).write_text("nonsense\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"{name} is damaged"):
        list(follow(folder))


def test_follow_ends_where_the_folder_goes_away(tmp_path, meanwhile):
    folder = make_run(tmp_path / "run", epochs(2))
    meanwhile.append(lambda: (IN_PROGRESS.close(), folder.rename(tmp_path / "elsewhere")))
    with pytest.raises(CheckpointError, match="there is no run's folder"):
        list(follow(folder))


# ---------------------------------------------------------------------------------------------- in the terminal


def test_where_nothing_can_be_drawn_over_each_epoch_is_a_line(tmp_path, meanwhile, capsys):
    folder = make_run(tmp_path / "run", epochs(1))
    meanwhile += [
        lambda: write_metrics(folder, epochs(3)),
        lambda: write_metrics(folder, epochs(2)),
        lambda: write_metrics(folder, epochs(3)),
        lambda: write_metrics(folder, [*epochs(10), TEST]),
    ]
    assert main(["watch", str(folder)]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].startswith(f"{folder}: digits, ") and lines[-1] == "test accuracy 90.00 %"
    assert lines[1] == "epoch   1/10  loss 2.000  validation 50.00%  500 images/s"
    assert [line.split("/")[0] for line in lines[1:-1]] == [
        *(f"epoch {i:3d}" for i in (1, 2, 3)), "resumed after epoch 2", *(f"epoch {i:3d}" for i in range(3, 11)),
    ]  # fmt: skip
    assert captured.err == ""


def test_a_run_that_stopped_says_how_it_goes_on(tmp_path, capsys):
    folder = make_run(tmp_path / "a run", epochs(3), stopped=True)
    assert main(["watch", str(folder)]) == 1
    assert capsys.readouterr().err == (
        f'the run has stopped after 3 of 10 epochs; tinyvit train --resume "{folder}" lets it go on\n'
    )


def test_ctrl_c_is_quiet(tmp_path, meanwhile, capsys):
    meanwhile.append(interrupt)
    assert main(["watch", str(make_run(tmp_path / "run", epochs(1)))]) == 130
    assert capsys.readouterr().err == ""


def test_waiting_is_said(tmp_path, meanwhile, capsys):
    meanwhile += [lambda: None, interrupt]
    assert main(["watch", str(tmp_path / "none")]) == 130
    assert capsys.readouterr().err == f"waiting for the run: there is no run's folder at {tmp_path / 'none'}\n"


class Terminal(io.StringIO):
    """A stream that says it is a terminal, and that keeps on its screen what a real one would."""

    encoding = "utf-8"

    def isatty(self):
        return True

    def screen(self):
        rows, y, x = {}, 0, 0
        for code, number, letter, other in re.findall(r"(\x1b\[(\d*)([A-Za-z]))|([^\x1b])", self.getvalue()):
            if letter == "H":
                y, x = 0, 0
            elif letter == "J" and number == "2":
                rows = {}
            elif letter == "A":
                y, x = y - int(number), 0
            elif letter == "K":
                rows[y] = rows.get(y, "")[:x]
            elif letter == "J":
                rows = {k: row for k, row in rows.items() if k < y} | {y: rows.get(y, "")[:x]}
            elif other == "\n":
                y, x = y + 1, 0
            elif other:
                row = rows.get(y, "").ljust(x)
                rows[y], x = row[:x] + other + row[x + 1 :], x + 1
            assert y >= 0 and (letter or not code)
        return [rows.get(k, "") for k in range(max(rows, default=-1) + 1)]


@pytest.mark.parametrize(
    "size, curves", [((80, 24), 2), ((40, 12), 2), ((200, 60), 2), ((80, 10), 1), ((39, 24), 0), ((20, 5), 0),
                     ((10, 3), 0), ((10, 2), 0)],
)  # fmt: skip
def test_the_picture_is_drawn_over_and_fits(size, curves, tmp_path, monkeypatch):
    """Protects: a line as wide as the terminal wraps, and a picture as high as it scrolls, so the next one is torn. In
    the smallest there is still how far the run is."""
    monkeypatch.setattr(watching.shutil, "get_terminal_size", lambda: size)
    terminal = Terminal()
    picture = watching.Picture(terminal)
    folder = make_run(tmp_path / "run", [])
    for count in (0, 1, 2, 10, 4):
        write_metrics(folder, epochs(count))
        picture(read_run(folder))
        screen = [line for line in terminal.screen() if line]
        assert screen[min(1, size[1] - 2)].startswith(f"epoch {count} of 10"[: size[0] - 1])
        assert len(screen) < size[1] and max(map(len, screen)) < size[0]
    assert sum("accuracy in %" in line for line in screen) == (curves > 0)
    assert sum("loss" in line for line in screen) == (curves > 1)
    assert not curves or screen[-1].split() == ["1", "epoch", "10"]


def test_a_terminal_that_is_resized_gets_the_picture_anew(tmp_path, monkeypatch, meanwhile):
    """Protects: after a resize the old picture's lines have wrapped or moved, so nothing can be drawn over it; and the
    next epoch may be minutes away."""
    sizes = [(80, 24)]
    monkeypatch.setattr(watching.shutil, "get_terminal_size", lambda: os.terminal_size(sizes[-1]))
    terminal, widths = Terminal(), []
    monkeypatch.setattr(watching.sys, "stdout", terminal)
    monkeypatch.setattr(watching, "draws", lambda stream: True)
    folder = make_run(tmp_path / "run", epochs(2))

    def look(next_size):
        screen = [line for line in terminal.screen() if line]
        widths.append(max(map(len, screen)))
        assert sum("epoch 2 of 10"[: sizes[-1][0] - 1] in line for line in screen) == 1 and len(screen) < sizes[-1][1]
        sizes.append(next_size)

    for size in ((80, 24), (60, 20), (60, 20), (20, 5), (100, 40)):
        meanwhile.append(lambda size=size: look(size))
    meanwhile += [lambda: look((100, 40)), lambda: write_metrics(folder, [*epochs(10), TEST])]
    assert main(["watch", str(folder)]) == 0
    assert [width for width in widths] == [79, 79, 59, 59, 19, 99]
    assert terminal.getvalue().count("\x1b[2J") == 3  # only where the size has changed
    assert terminal.screen()[-2].split() == ["1", "epoch", "10"] and terminal.screen()[-1] == "test accuracy 90.00 %"


def test_letters_of_two_columns_count_twice():
    """Protects: the name of a folder in Korean wraps otherwise."""
    assert [watching.cut("손글씨: digits", columns) for columns in (1, 5, 6, 8, 80)] == [
        "", "손글", "손글씨", "손글씨: ", "손글씨: digits",
    ]  # fmt: skip


def test_the_curves_are_where_the_numbers_are(tmp_path):
    """Rising accuracy ends at the top right, falling loss at the bottom right, of a run that is half done in the
    middle."""
    from tinyvit.cli.plot import MARGIN, plot

    rows = [
        dict(epoch=i, loss=5 - i, validation_loss=5 - i, accuracy=i / 10, validation_accuracy=i / 10) for i in (1, 2)
    ]
    for names, first, last in ((("accuracy", "validation_accuracy"), 6, 1), (("loss", "validation_loss"), 1, 6)):
        lines = [re.sub(r"\x1b\[\d*m", "", line) for line in plot(rows, names, 3, 6, MARGIN + 21)]
        assert lines[first][MARGIN] == "•" and lines[last][MARGIN + 10] == "•"
        assert all(len(line) <= MARGIN + 16 for line in lines[1:])
    assert "20" in lines[0] or lines[1].strip().startswith("4│") and lines[6].strip().startswith("3│")


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_few_epochs_and_equal_ones_are_drawn_too(epoch):
    from tinyvit.cli.plot import plot

    rows = [dict(epoch=i + 1, accuracy=1.0, validation_accuracy=1.0) for i in range(epoch)]
    assert len(plot(rows, ("accuracy", "validation_accuracy"), epoch, 5, 60)) == 6


def test_which_terminals_get_a_picture(monkeypatch):
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(watching.os, "name", "posix")
    terminal, pipe = Terminal(), io.StringIO()
    assert watching.draws(terminal) and not watching.draws(pipe)
    monkeypatch.setenv("TERM", "dumb")
    assert not watching.draws(terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not watching.draws(terminal)
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setattr(Terminal, "encoding", "ascii")
    assert not watching.draws(terminal)


def test_a_name_that_the_terminal_cannot_show(tmp_path):
    bytes_written = io.BytesIO()
    stream = io.TextIOWrapper(bytes_written, encoding="ascii")
    watching.Lines(stream)(read_run(make_run(tmp_path / "Ziffern-ö", epochs(1))))
    assert b"Ziffern-?: digits" in bytes_written.getvalue()


# ---------------------------------------------------------------------------------------------- in a notebook


@pytest.fixture
def shown(monkeypatch):
    """What a notebook shows, one list an output; there need be no IPython."""
    outputs = []

    def display(figure, display_id):
        assert display_id is True
        outputs.append([figure])
        return types.SimpleNamespace(update=outputs[-1].append)

    package = types.SimpleNamespace(version_info=(9, 0))  # for matplotlib, which asks
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", types.SimpleNamespace(display=display))
    return outputs


def test_live_curves_of_a_run_of_this_notebook(tmp_path, shown):
    folder = tmp_path / "run"
    with viz.live(folder, every=0.01):
        make_run(folder, epochs(3), TEST)
    [figures] = shown
    assert len(figures) >= 2 and "after epoch 3" in figures[-1].get_suptitle()


def test_live_curves_of_another_process(tmp_path, shown, meanwhile):
    folder = make_run(tmp_path / "run", epochs(1))
    meanwhile += [lambda: None, lambda: write_metrics(folder, [*epochs(2), TEST])]
    viz.live(folder).wait()
    [figures] = shown
    assert [figure.get_suptitle()[-13:] for figure in figures[1:]] == ["after epoch 1", "after epoch 2"]


def test_live_does_not_wait_for_what_is_damaged(tmp_path, shown, meanwhile):
    folder = make_run(tmp_path / "run", epochs(1))
    (folder / "metrics.jsonl").write_text("nonsense\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match="damaged in line 1"):
        viz.live(folder).wait()


def test_live_says_what_is_damaged_and_lets_training_go_on(tmp_path, shown):
    folder = make_run(tmp_path / "run", epochs(1))
    (folder / "metrics.jsonl").write_text("nonsense\n", encoding="utf-8")
    with viz.live(folder, every=60):
        pass
    [figures] = shown
    assert "damaged in line 1" in " ".join(text.get_text() for text in figures[-1].findobj(Text))


def test_live_outside_of_a_notebook(tmp_path, shown, monkeypatch):
    """Protects: IPython's `display` returns nothing in a plain program."""
    monkeypatch.setattr(sys.modules["IPython.display"], "display", lambda figure, display_id: None)
    with viz.live(make_run(tmp_path / "run", epochs(1), TEST)):
        pass


def test_live_lets_the_errors_of_training_through(tmp_path, shown):
    with pytest.raises(ZeroDivisionError), viz.live(tmp_path / "none", every=0.01):
        raise ZeroDivisionError


# ---------------------------------------------------------------------------------------------- in TensorBoard


def records(folder):
    """The events in a folder: TFRecords (length, its checksum, data, its checksum), each a protocol buffer."""
    from tensorboardX.crc32c import crc32c
    from tensorboardX.proto.event_pb2 import Event

    def masked(data):
        crc = crc32c(data)
        return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

    for path in sorted(folder.glob("events.out.tfevents.*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            head, length, check = content[at : at + 8], *struct.unpack_from("<QI", content, at)
            data = content[at + 12 : at + 12 + length]
            assert check == masked(head) and masked(data) == struct.unpack_from("<I", content, at + 12 + length)[0]
            at += 16 + length
            event = Event()
            event.ParseFromString(data)
            yield event


def numbers(events):
    """{(name, step): value} as TensorBoard understands events: a start makes void what is from its step on."""
    found = {}
    for event in events:
        if event.session_log.status == event.session_log.START:
            found = {(name, step): value for (name, step), value in found.items() if step < event.step}
        for value in event.summary.value:
            found[value.tag, event.step] = value.simple_value
    return found


def test_tensorboard_gets_every_number_once(tmp_path, meanwhile, capsys):
    pytest.importorskip("tensorboardX")
    folder = make_run(tmp_path / "run", [*epochs(2), *epochs(5, top=0.8)[2:]])
    meanwhile += [lambda: write_metrics(folder, epochs(2)), lambda: write_metrics(folder, [*epochs(6), TEST])]
    for _ in range(2):  # a second time changes nothing
        assert main(["watch", str(folder), "--tensorboard", str(tmp_path / "events")]) == 0
        events = list(records(tmp_path / "events" / "run"))
        found = numbers(events)
        rows = epochs(6)
        assert {key[0] for key in found} == set(tensorboard.NAMES.values())
        assert len(found) == 6 * 7 + 2
        for row in rows:
            assert found["accuracy/validation", row["epoch"]] == pytest.approx(row["validation_accuracy"])
            assert found["loss/training", row["epoch"]] == pytest.approx(row["loss"])
        assert found["test/accuracy", 6] == pytest.approx(0.9)
    times = [event.wall_time for event in events if event.summary.value]
    assert times[-1] - read_run(folder).started == pytest.approx(20, abs=1e-3)


def test_without_tensorboardx_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    folder = make_run(tmp_path / "run", epochs(1), TEST)
    assert main(["watch", str(folder), "--tensorboard", str(tmp_path / "events")]) == 2
    assert "pip install tinyvit[tensorboard]" in capsys.readouterr().err
    with contextlib.suppress(FileNotFoundError):
        assert not list((tmp_path / "events").iterdir())
