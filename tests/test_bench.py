"""The benchmark's own honesty: what it counts, whom it leaves out, what it repeats and what it says. No times are
asserted."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tinyvit import bench, kernels
from tinyvit.bench import footprint, parts, rounds, statistics, training
from tinyvit.bench.rounds import BenchError, Died, Measured, Worker, play_rounds
from tinyvit.bench.shapes import BATCH
from tinyvit.cli import main
from tinyvit.models import ViT

compiled = pytest.mark.skipif(kernels.backend() != "numba", reason="it measures the compiled kernels only, and says so")

# ---------------------------------------------------------------------------------------------- statistics, rounds


def test_ratios_are_taken_within_rounds():
    """Protects: a slow round slows both, so it must not move the ratio."""
    assert statistics.paired([2, 20, 3], [1, 10, 1]) == (2, 2, 3)


def test_the_verdict_is_one_line_of_a_fixed_form():
    assert statistics.verdict([4.0, 1.0]) == "geometric mean 2.00 (min 1.00)"


@pytest.mark.parametrize(
    ("shares", "kept", "played"),
    [
        ([1, 1, 1, 1], [0, 1, 2], 3),
        ([1, 1, 0.5, 1, 1, 1], [0, 3, 4], 5),  # a bad calibration spoils the round before it and the round after
        ([0.5, 0.5, 0.6, 0.7, 0.8, 0.8, 0.8], [3, 4, 5], 6),  # never enough: the best of twice as many
    ],
)
def test_a_round_short_of_cores_is_played_again(shares, kept, played):
    calibrations = iter(shares)
    rounds, count = play_rounds(lambda number: number, lambda: next(calibrations), 3)
    assert sorted(number for number, _ in rounds) == kept and count == played


class FakeWorker:
    """Takes its turns in no time, and dies when told to."""

    dies_in = {}  # label: the turn, 0 for the start
    turns = []

    def __init__(self, name, shape, threads):
        self.label = rounds.label(name, threads)
        self.asked = -1

    def answer(self):
        self.asked += 1
        if self.dies_in.get(self.label) == self.asked:
            raise Died("out of luck")
        return {"memory": None} if self.asked == 0 else {"step": {"median": 1.0, "p90": 2.0}}

    def turn(self, seconds):
        self.turns.append(self.label)
        return self.answer()

    def close(self):
        pass


class FakeCores:
    def __init__(self, threads):
        self.threads = threads

    def __call__(self):
        return float(self.threads)

    def close(self):
        pass


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(rounds, "Worker", FakeWorker)
    monkeypatch.setattr(rounds, "Cores", FakeCores)
    monkeypatch.setattr(FakeWorker, "dies_in", {})
    monkeypatch.setattr(FakeWorker, "turns", [])
    return FakeWorker


def test_the_order_rotates(fake):
    """Protects: whoever follows a heavy neighbour must not always be the same."""
    rounds.measure("digits", [("a", 1), ("b", 1), ("c", 1)], 3, 0.1, print)
    assert [label[0] for label in fake.turns] == list("abcbcacab")


def test_who_dies_is_left_out_with_the_reason(fake):
    fake.dies_in |= {"b ×1": 0, "c ×2": 2}
    measured = rounds.measure("digits", [("a", 1), ("b", 1), ("c", 2)], 3, 0.1, print)
    assert measured.left_out == {"b ×1": "out of luck", "c ×2": "out of luck"}
    assert list(measured.memory) == ["a ×1"] and all(list(times) == ["a ×1"] for times in measured.rounds)
    assert len(measured.rounds) == 3


@compiled
def test_without_tinyvit_or_anyone_there_is_nothing_to_report(fake):
    fake.dies_in |= {"tinyvit ×1": 0}
    with pytest.raises(BenchError, match="digits: tinyvit ×1: out of luck"):
        training.train_step(["digits"], [1], rivals=[], rounds=1, say=print)
    with pytest.raises(BenchError, match="out of luck"):
        rounds.measure("digits", [("tinyvit", 1)], 1, 0.1, print)


@compiled
def test_what_cannot_be_measured_is_refused():
    with kernels.use("numpy"), pytest.raises(BenchError, match="TINYVIT_KERNELS"):
        training.train_step(["digits"], say=print)
    with pytest.raises(BenchError, match="at least 1, got 0 and 5"):
        training.train_step(["digits"], [0], say=print)


# ---------------------------------------------------------------------------------------------- real processes


@pytest.fixture
def start():
    """Starts workers, and ends them."""
    workers = []

    def start(*arguments):
        workers.append(Worker(*arguments))
        return workers[-1]

    yield start
    for worker in workers:
        worker.close()
        assert worker.process.returncode is not None, "a zombie is left"


def test_a_worker_says_what_is_wrong(start):
    with pytest.raises(Died, match="KeyError: 'nobody'"):
        start("nobody", "digits", 1).answer()
    worker = start("tinyvit", "digits", 1)
    worker.process.kill()
    with pytest.raises(Died, match="ended with exit code"):
        worker.turn(0.01)


def test_a_missing_library_is_one_line(start, monkeypatch, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('there is\\nno PyTorch here')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Died, match="^ImportError: there is$"):
        start("eager", "digits", 1).answer()


def test_what_a_library_prints_does_not_get_between_the_answers(start, monkeypatch, tmp_path):
    noise = "import os, subprocess, sys\nprint('noise', flush=True)\nsubprocess.run([sys.executable, '-c', 'print(1)'])"
    (tmp_path / "torch.py").write_text(noise, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Died, match="torch"):  # such a torch has no torch.nn
        start("eager", "digits", 1).answer()


@pytest.fixture(scope="module")
def measured():
    """Results of one short round at the smallest shape, by real workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rounds, "Cores", FakeCores)
        return bench.train_step(["digits"], [2], rivals=[], rounds=1, seconds=0.02, say=lambda text: None)


@compiled
def test_a_real_round(measured):
    digits = measured.shapes["digits"]
    assert set(digits.memory) == {"tinyvit ×1", "tinyvit ×2", "parts ×1"} and not digits.left_out
    assert digits.time("tinyvit ×1") > 0 and digits.time("tinyvit ×1", what="p90") > 0
    assert digits.time("parts ×1", "products") > 0
    stack = training.stacks(measured)["digits"]
    assert sum(stack.values()) == pytest.approx(digits.time("parts ×1"))
    assert {"attention", "layernorm", "adamw"} < set(stack) and list(stack)[-1] == "all else"
    if footprint.resident():
        assert all(memory["peak"] > memory["growth"] > 0 for memory in digits.memory.values())


def tables(markdown):
    """The report's tables as lists of rows of cells; every row must have as many cells as its head."""
    found = []
    for block in re.findall(r"(?:^\|.*\|$\n?)+", markdown, re.M):
        rows = [line.strip("| ").split(" | ") for line in block.strip().splitlines()]
        assert {len(row) for row in rows} == {len(rows[0])} and set("".join(rows[1])) <= set("-:")
        found.append([rows[0], *rows[2:]])
    return found


@compiled
def test_the_report_of_it(measured, monkeypatch):
    for torch in (True, False):
        monkeypatch.setattr(training, "has_pytorch", lambda torch=torch: torch)
        text = bench.training_report(measured)
        assert ("pip install torch" in text) != torch
        assert "geometric mean" not in text
    times, scaling, pieces, limit, memory = tables(text)
    assert times[1][:2] == ["digits", "2"] and len(scaling) == len(pieces) == len(limit) == len(memory) == 2
    assert float(pieces[1][1]) == pytest.approx(sum(map(float, pieces[1][2:])), abs=0.1)


def test_the_products_are_all_and_only_those_of_a_step(monkeypatch):
    """Protects: the limit; a backward pass takes twice the products of the forward pass, less dx of the images."""
    config, counted = bench.SHAPES["digits"], []
    run = parts.products(config)
    monkeypatch.setattr(np, "matmul", lambda a, b, out: counted.append(2 * a.shape[-1] * out.size))
    run()
    B, N, P, D = BATCH, config.tokens, config.patch**2 * config.channels, config.width
    block = 2 * B * N * (4 * D * D + 2 * D * config.mlp) + 4 * B * N * N * D
    embedding, head = 2 * B * (N - 1) * P * D, 2 * B * D * config.classes
    assert sum(counted) == 3 * config.depth * block + 2 * embedding + 3 * head


def test_the_clock_goes_when_it_should_and_stops():
    call = kernels.Kernel.__call__
    with parts.clock() as seconds:
        kernels.softmax(np.ones((2, 2), np.float32))
        kernels.softmax_backward(*np.ones((2, 2, 2), np.float32))
    assert list(seconds) == ["softmax"] and seconds["softmax"] > 0
    assert kernels.Kernel.__call__ is call


# ---------------------------------------------------------------------------------------------- reports


def results(cores=2.0):
    """Made-up results: PyTorch takes 3 and 2 times as long; compiled 1.5 times at digits, and fails at cifar."""

    def one(step, **factors):
        times = {f"tinyvit ×{n}": {"step": {"median": step / n, "p90": step}} for n in (1, 2)}
        for rival, factor in factors.items():
            times |= {f"{rival} ×{n}": {"step": {"median": factor * step / n, "p90": step}} for n in (1, 2)}
        pieces = {"products": 0.5, "step": 1.0, "linear": 0.6, "attention": 0.2, "layernorm": 0.1}
        times["parts ×1"] = {name: {"median": share * step, "p90": step} for name, share in pieces.items()}
        memory = {name: {"growth": 10.0, "peak": 100.0, "whole life": False} for name in times}
        left_out = {} if "compile" in factors else {"compile ×1": "No compiler", "compile ×2": "No compiler"}
        return Measured([times] * 3, [cores] * 3, 2, 3, memory, left_out)

    shapes = {"digits": one(0.01, eager=3.0, compile=1.5), "cifar": one(0.1, eager=2.0)}
    return bench.Results({"processor": "made up"}, (1, 2), shapes)


def test_the_verdict_is_against_the_faster_pytorch():
    text = bench.training_report(results())
    assert text.splitlines()[-1] == "geometric mean 1.73 (min 1.50)"  # √(1.5 · 2)
    assert "- cifar: compile ×1 is left out: No compiler" in text
    times, scaling, pieces, limit, memory = tables(text)
    assert times[1] == [
        "digits",
        "1",
        "10.00",
        "12,800",
        "30.00",
        "3.00 (3.00 to 3.00)",
        "15.00",
        "1.50 (1.50 to 1.50)",
    ]
    assert times[3][-2:] == ["–", "–"]
    assert scaling[1][1:] == ["2.00 (2.00 to 2.00)"] * 3
    assert pieces[1] == ["digits", "10.00", "6.00", "2.00", "1.00", "1.00"]
    assert limit[2] == ["cifar", "50.00", "2.00 (2.00 to 2.00)", "4.00 (4.00 to 4.00)", "–"]
    assert memory[2][1:] == ["10 (100)"] * 4 + ["–"] * 2


def test_the_report_says_when_the_machine_was_busy():
    assert "gave 2.00 of 2 cores or more in all of 3 rounds" in bench.training_report(results())
    text = bench.training_report(results(cores=1.4))
    assert "gave 1.40 of 2 cores in 3 of 3 rounds (3 played); ratios between threads mean little" in text


def test_json_has_every_round(tmp_path):
    results().save(tmp_path / "bench.json")
    content = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert len(content["shapes"]["digits"]["rounds"]) == 3
    assert content["shapes"]["digits"]["rounds"][0]["eager ×2"]["step"]["median"] == 0.015


def test_the_report_on_prediction():
    def one(factor):
        seconds = {"one": 1e-3 * factor, "many": 0.1 * factor}
        return {step: {"median": time, "p90": 2 * time} for step, time in seconds.items()}

    times = {"tinyvit predict ×1": one(1), "eager predict ×1": one(3)}
    digits = Measured([times] * 2, [1.0] * 2, 1, 2, dict.fromkeys(times), {})
    latency, throughput = tables(bench.inference_report(bench.Results({}, (1,), {"digits": digits})))
    assert latency[1] == ["digits", "1", "1.00", "2.00", "3.00", "6.00"] + ["3.00 (3.00 to 3.00)"] * 2
    assert throughput[1] == ["digits", "256", "1", "2,560", "853", "3.00 (3.00 to 3.00)"]
    _, throughput = tables(bench.inference_report(bench.Results({}, (1,), {"b16": digits})))
    assert throughput[1][1:5] == ["8", "1", "80.0", "26.7"]
    alone = Measured([{"tinyvit predict ×1": one(1)}], [1.0], 1, 1, {"tinyvit predict ×1": None}, {})
    latency, _ = tables(bench.inference_report(bench.Results({}, (1,), {"digits": alone})))
    assert latency[1][4:] == ["–"] * 4


# ---------------------------------------------------------------------------------------------- the command


def test_the_command(tmp_path, monkeypatch, capsys):
    asked = {}
    monkeypatch.setattr(bench, "train_step", lambda **options: asked.update(options) or results())
    paths = [tmp_path / "bench.json", tmp_path / "bench.png"]
    assert main(["bench", "--threads", "1", "--json", str(paths[0]), "--picture", str(paths[1])]) == 0
    assert asked["threads"] == [1] and asked["rivals"] == ["eager"]
    assert re.search(r"\ngeometric mean \d+\.\d\d \(min \d+\.\d\d\)\n$", capsys.readouterr().out)
    assert json.loads(paths[0].read_text(encoding="utf-8"))["threads"] == [1, 2]
    with Image.open(paths[1]) as image:
        assert image.width == 900
    main(["bench", "--compile"])
    assert asked["rivals"] == ["eager", "compile"]


def test_the_commands_failure_is_one_line(monkeypatch, capsys):
    def fails(**_):
        raise BenchError("digits: tinyvit ×1: out of luck")

    monkeypatch.setattr(bench, "train_step", fails)
    assert main(["bench"]) == 1
    assert capsys.readouterr().err == "tinyvit bench: digits: tinyvit ×1: out of luck\n"


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["bench", "--help"])
    assert stop.value.code == 0 and "--compile" in capsys.readouterr().out


@compiled
@pytest.mark.skipif(os.name == "nt", reason="sends the signal in POSIX's way")
def test_ctrl_c_leaves_no_process_behind():
    command = [sys.executable, "-m", "tinyvit", "bench", "--threads", "1"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    with process:
        said = iter(process.stderr.readline, "")
        assert any("preparing" in line for line in said)
        os.killpg(process.pid, signal.SIGINT)
        assert "interrupted" in process.stderr.read()
    assert process.returncode == 130
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


# ---------------------------------------------------------------------------------------------- the rival


@pytest.mark.parity
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="PyTorch is not installed")
@pytest.mark.parametrize("shape", bench.SHAPES)
def test_the_rival_has_as_many_parameters(shape):
    from tinyvit.bench import pytorch

    config = bench.SHAPES[shape]
    assert sum(p.numel() for p in pytorch.ViT(config).parameters()) == ViT(config).parameter_count()
