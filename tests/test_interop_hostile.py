"""Files of weights that lie: each gets a sentence. None runs code or takes memory that it does not fill; no tracebacks.

The generator makes a few hundred files from small good ones: lists that claim terabytes, arrays on top of each other,
pickled objects, zip bombs, flipped bytes, cut files, and settings of every wrong type. What a file is must follow from
its bytes alone, so each case is a dict of {path in a folder: bytes} and the path to load.
"""

import io
import itertools
import json
import os
import struct
import subprocess
import sys
import tempfile
import tracemalloc
import warnings
import zipfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

import tinyvit
from tinyvit.train import CheckpointError

STORED = Path(__file__).parent / "parity" / "interop"
MOST = 64 * 2**20  # bytes that may be taken on the way to the error; the largest case is a file of 5 MB
CODE = "__import__('pathlib').Path('ran').touch()"


@cache
def good(name, file="model.safetensors"):
    return (STORED / name / file).read_bytes()


# ------------------------------------------------------------------------------------------ safetensors


def safetensors(table, numbers=b"", length=None):
    """A file with this list, which may be bytes already, and a length that may be a lie."""
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + numbers


def entry(dtype="F32", shape=(2, 3), place=(0, 24)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(place)}


def lists():
    """Lists that are none, or that contradict themselves or the file."""
    ok, name, room = entry(), "patch_embed.proj.weight", bytes(24)
    for length in (0, 1, 2**31, 2**40, 2**63, 2**64 - 1):
        yield f"a list of {length} bytes", safetensors({name: ok}, room, length)
    for count in range(9):
        yield f"a file of {count} bytes", safetensors({name: ok}, room)[:count]
    for what, text in {
        "no JSON": b"hello",
        "a JSON list": b"[]",
        "a number": b"3",
        "deep JSON": b"[" * 200_000,
        "not UTF-8": b"\xff\xfe{}",
        "a long number": b'{"a": ' + b"9" * 6000 + b"}",
        "a list of 5 MB": b'{"a": "' + b"x" * 5_000_000 + b'"}',
        "names twice": b'{"a": %b, "a": %b}' % ((json.dumps(ok).encode(),) * 2),
        "200,000 names, the last twice": b"{%b, %b}"
        % (b", ".join(b'"%d": 0' % i for i in range(200_000)), b'"199999": 0'),
        "200,000 names": json.dumps({str(i): {} for i in range(200_000)}).encode(),
        "a name of 4 MB": json.dumps({"encoderblock" * 340_000 + "/LayerNorm_1/": ok}).encode(),
        "an empty list": b"{}",
    }.items():
        yield what, safetensors(text, room)
    terabyte = 2**40
    for what, wrong in {
        "terabytes": entry(shape=(2**20, 2**18), place=(0, terabyte)),
        "a shape that overflows": entry(shape=(2**62, 4)),
        "a shape beyond 64 bits": entry(shape=(10**30, 0), place=(0, 0)),
        "more than the file": entry(place=(0, 25)),
        "less than the shape": entry(place=(0, 20)),
        "before the file": entry(place=(-24, 0)),
        "backwards": entry(place=(24, 0)),
        "behind the file": entry(place=(1000, 1024)),
        "a gap": entry(place=(1, 25)),
        "a negative side": entry(shape=(-2, -3)),
        "a broken side": entry(shape=(2.0, 3)),
        "a true side": entry(shape=(True, 6)),
        "a text side": entry(shape=("2", "3")),
        "an endless shape": entry(shape=(1,) * 100 + (6,)),
        "an unknown type": entry("F4"),
        "a type that is a list": entry(["F32"]),
        "a type that is no text": entry(None),
        "a type of half the size": entry("F16"),
        "a shape that is a number": {**ok, "shape": 6},
        "a place that is a number": {**ok, "data_offsets": 0},
        "three places": {**ok, "data_offsets": [0, 12, 24]},
        "no shape": {"dtype": "F32", "data_offsets": [0, 24]},
        "an entry that is a list": [1, 2],
        "an entry null": None,
        "places that are texts": {**ok, "data_offsets": ["0", "24"]},
    }.items():
        yield what, safetensors({name: wrong}, room)
    for what, table, numbers in (
        ("two arrays in one place", {"a": ok, name: ok}, bytes(24)),
        ("arrays that overlap", {"a": ok, name: entry(place=(20, 44))}, bytes(44)),
        ("bytes of nobody", {name: ok}, bytes(25)),
        ("remarks that are a list", {"__metadata__": [1], name: ok}, room),
        ("a path for a name", {"../../../etc/passwd": ok}, room),
        ("a name of control characters", {"\x1b[2J\x00": ok}, room),
        ("a long name", {"x" * 100_000: ok}, room),
    ):
        yield what, safetensors(table, numbers)
    yield "50,000 layers", listed(good("timm"), {f"blocks.{i}.w": (0,) for i in range(2, 50_000)})
    from test_interop import google_arrays

    google = save(google_arrays(L=1))
    yield "a thousand stacks", listed(google, {f"Transformer/encoderblock/{i}": (1000, 0) for i in range(1000)})
    yield "stacks of all depths", listed(google, {f"Transformer/encoderblock/{i}": (i, 0) for i in range(1, 9)})
    yield "a stack of a million", listed(google, {"Transformer/encoderblock/a": (10**6, 0)})


def listed(content, more):
    """A file's content with more arrays in its list, {name: shape}, which hold nothing."""
    length = int.from_bytes(content[:8], "little")
    table = json.loads(content[8 : 8 + length])
    end = len(content) - 8 - length
    table |= {name: entry("U8", shape, (end, end)) for name, shape in more.items()}
    return safetensors(json.dumps(table, separators=(",", ":")).encode(), content[8 + length :])


def rewritten(change, name="timm"):
    """A good file whose list was changed by a function that gets it as a dict of arrays."""
    content = good(name)
    length = int.from_bytes(content[:8], "little")
    table = json.loads(content[8 : 8 + length])
    numbers, arrays = content[8 + length :], {}
    for key, about in table.items():
        if key != "__metadata__":
            begin, end = about["data_offsets"]
            arrays[key] = (about["dtype"], about["shape"], numbers[begin:end])
    change(arrays)
    table, body = {}, b""
    for key, (dtype, shape, part) in arrays.items():
        table[key] = entry(dtype, shape, (len(body), len(body) + len(part)))
        body += part
    return safetensors(table, body)


def lists_of_good_form():
    """Whole files that are no such model."""
    for key in (
        "patch_embed.proj.weight",
        "pos_embed",
        "blocks.0.mlp.fc1.weight",
        "blocks.1.attn.qkv.weight",
        "norm.weight",
    ):
        yield f"without {key}", rewritten(lambda arrays, key=key: arrays.pop(key))
        for what, value in {
            "as whole numbers": ("I32", [3], bytes(12)),
            "of no side": ("F32", [], bytes(4)),
            "of no number": ("F32", [0, 10**12], b""),
            "with nine zeros": ("F32", [9, 1, 1], bytes(36)),
            "in truth values": ("BOOL", [4], bytes(4)),
        }.items():
            yield f"{key} {what}", rewritten(lambda arrays, key=key, value=value: arrays.update({key: value}))

    def fill(value, key="blocks.0.mlp.fc2.weight"):
        def change(arrays):
            dtype, shape, part = arrays[key]
            arrays[key] = (dtype, shape, np.full(len(part) // 4, value, "<f4").tobytes())

        return change

    yield "NaN weights", rewritten(fill(np.nan))
    yield "infinite weights", rewritten(fill(np.inf))

    def beyond_float32(arrays):
        dtype, shape, part = arrays["head.weight"]
        arrays["head.weight"] = ("F64", shape, np.full(len(part) // 4, 1e300).tobytes())

    yield "weights that only float64 holds", rewritten(beyond_float32)


def cut(content, count):
    """The content, cut short at so many places."""
    for at in sorted(np.random.default_rng(1).choice(len(content) - 1, count, replace=False).tolist()):
        yield f"cut at {at}", content[:at]


def flipped(content, count, first):
    """The content with one bit flipped, somewhere in its first bytes."""
    rng = np.random.default_rng(2)
    for at in sorted(rng.choice(first, count, replace=False).tolist()):
        changed = bytearray(content)
        changed[at] ^= 1 << int(rng.integers(8))
        yield f"flipped at {at}", bytes(changed)


# ------------------------------------------------------------------------------------------ npz


def npy(header, numbers=b"", version=(1, 0)):
    """A .npy file with this text as header."""
    text = (header if isinstance(header, bytes) else header.encode()) + b"\n"
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version[0] == 1 else "<I", len(text)) + text + numbers


def archive(members, packed=False, way=zipfile.ZIP_DEFLATED):
    """A zip file with (name, bytes) in it."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", way if packed else zipfile.ZIP_STORED) as out:
        for name, content in members:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of names twice
                out.writestr(name, content)
    return file.getvalue()


def array(values):
    file = io.BytesIO()
    np.save(file, values, allow_pickle=True)
    return file.getvalue()


def four_gigabytes(name):
    """A member packed with LZMA that wants so much memory to be unpacked."""
    content = bytearray(archive([(name, array(np.ones(300, "f4")))], packed=True, way=zipfile.ZIP_LZMA))
    struct.pack_into("<I", content, 30 + len(name) + 5, 0xF0000000)  # its header: version, 5, properties, dictionary
    return bytes(content)


class Runs:
    """A pickle that leaves a file where it is opened."""

    def __reduce__(self):
        return exec, (CODE,)


def archives():
    name, header = "embedding/kernel.npy", "{'descr': '%s', 'fortran_order': False, 'shape': %s}"
    for what, content in {
        "objects": array(np.array([Runs()], object)),
        "texts": array(np.array(["weights"])),
        "dates": array(np.array(["2020"], "M8[D]")),
        "complex numbers": array(np.ones(3, complex)),
        "records": array(np.zeros(3, "f4,f4")),
        "three bytes a number": array(np.zeros(3, "V3")),
        "no npy": b"hello",
        "nothing": b"",
        "a header cut": array(np.ones(3))[:20],
        "numbers cut": array(np.ones(3))[:-5],
        "numbers too many": array(np.ones(3)) + bytes(8),
        "version 9": npy(header % ("<f4", "(2,)"), bytes(8), (9, 0)),
        "terabytes": npy(header % ("<f4", "(1099511627776,)"), bytes(64)),
        "a product that overflows": npy(header % ("<f4", "(4294967296, 4294967296)"), b""),
        "a negative side": npy(header % ("<f4", "(-2, -2)"), bytes(16)),
        "a broken side": npy(header % ("<f4", "(2.0,)"), bytes(8)),
        "a long side": npy(header % ("<f4", f"({'9' * 5000},)")),
        "code for a header": npy(CODE),
        "code for a shape": npy(header % ("<f4", CODE)),
        "deep header": npy("(" * 5000 + ")" * 5000),
        "a header of 60 kB": npy(header % ("<f4", "(2,)") + " " * 60_000, bytes(8)),
        "an object type": npy(header % ("|O", "(2,)"), bytes(16)),
        "an unknown type": npy(header % ("<q9", "(2,)"), bytes(16)),
        "zero numbers, endless side": npy(header % ("<f4", "(0, 1000000000000)")),
        "not text": npy(b"\xff\x00\xfe"),
        "a header of another form": npy("{'shape': (2,)}", bytes(8)),
        "no dict": npy("[1, 2]"),
        "forty sides": npy(header % ("<f4", f"{(1,) * 40}"), bytes(4)),
    }.items():
        yield f"npz: {what}", archive([(name, content)])
    yield "npz: a bomb", archive([(name, array(np.zeros(2**25, "f4")))], packed=True)
    yield "npz: many small bombs", archive([(f"{i}.npy", array(np.zeros(2**18, "f4"))) for i in range(64)], packed=True)
    yield "npz: LZMA, with a dictionary of 4 GB", four_gigabytes(name)
    yield "npz: bzip2", archive([(name, array(np.ones(3, "f4")))], packed=True, way=zipfile.ZIP_BZIP2)
    yield "npz: a name of 60 kB", archive([("encoderblock" * 5_000 + "/LayerNorm_1/.npy", array(np.ones(3, "f4")))])
    yield "npz: names twice", archive([(name, array(np.ones(3, "f4")))] * 2)
    yield (
        "npz: paths",
        archive([("../../../tmp/evil.npy", array(np.ones(3, "f4"))), ("/etc/passwd.npy", array(np.ones(3)))]),
    )
    yield "npz: no members", archive([])
    yield "npz: begins like one", b"PK\x03\x04" + bytes(200)
    yield "npz: a folder and a picture", archive([("folder/", b""), ("cat.png", b"\x89PNG")])
    small = archive([(name, array(np.ones(300, "f4")))])
    where = small.rindex(b"PK\x01\x02")
    for what, at, value in (
        ("a size that lies", 24, 2**30), ("a size of terabytes", 24, 2**32 - 1), ("a packed size that lies", 20, 2**30),
        ("an encrypted member", 8, 1), ("a place behind the end", 42, 2**30), ("a checksum that lies", 16, 123),
    ):  # fmt: skip
        content = bytearray(small)
        width = "<H" if at == 8 else "<I"
        struct.pack_into(width, content, where + at, value)
        yield f"npz: {what}", bytes(content)


# ------------------------------------------------------------------------------------------ settings


WRONG = {
    "huge": 10**12, "beyond float": 10**400, "negative": -5, "a text": "many", "numbers": [1, 2, 3],
    "a table": {"a": 1}, "NaN": float("nan"), "broken": 2.5, "true": True, "empty": [],
}  # fmt: skip
KEYS = {
    ("hf", "config.json"): """hidden_size num_attention_heads num_hidden_layers intermediate_size patch_size image_size
        num_channels layer_norm_eps hidden_act id2label model_type""".split(),
    ("hf", "preprocessor_config.json"): """size resample image_mean image_std rescale_factor crop_size
        image_processor_type""".split(),
    ("timm", "config.json"): """model_args.num_heads model_args.embed_dim model_args.depth model_args.patch_size
        model_args.img_size model_args.global_pool model_args.act_layer model_args pretrained_cfg.mean
        pretrained_cfg.std pretrained_cfg.crop_pct
        pretrained_cfg.crop_mode pretrained_cfg.interpolation pretrained_cfg.input_size
        label_names label_descriptions architecture num_classes""".split(),
}  # fmt: skip
RIGHT = {  # wrong values that are not wrong there, or that say nothing
    ("image_mean", "numbers"),
    ("image_std", "numbers"),
    ("pretrained_cfg.mean", "numbers"),
    ("pretrained_cfg.std", "numbers"),
    ("image_processor_type", "a text"),
    ("label_descriptions", "empty"),
    ("id2label", "empty"),
    ("label_names", "empty"),
    ("architecture", "a text"),
    ("pretrained_cfg.input_size", "numbers"),
}


def settings():
    """(name, kind of model, {file: bytes})"""
    for (kind, file), keys in KEYS.items():
        for key, (what, value) in itertools.product(keys, WRONG.items()):
            if (key, what) in RIGHT:
                continue
            table = json.loads(good(kind, file)) | ({"do_center_crop": True, "crop_size": 16} if "pre" in file else {})
            place, *path = table, *key.split(".")
            for step in path[:-1]:
                place = place[step]
            place[path[-1]] = value
            yield f"{kind}/{file}: {key} {what}", kind, {file: json.dumps(table).encode()}
    without_mean = {"rescale_factor": 1 / 255}
    for what, kind, files in (
        (
            "channels for terabytes",
            "hf",
            {"preprocessor_config.json": without_mean, "config.json": {"num_channels": 2**30}},
        ),
        ("a crop of nearly nothing", "timm", {"config.json": {"crop_pct": 5e-324}}),
        ("an older file's wrong mean", "timm", {"config.json": {"mean": "grey"}}),
    ):
        tables = {}
        for file, changes in files.items():
            table = json.loads(good(kind, file))
            older = table.pop("pretrained_cfg", {}) | table if kind == "timm" else table
            older = {key: value for key, value in older.items() if not key.startswith("image_m")}
            tables[file] = json.dumps(older | changes).encode()
        yield f"{kind}: {what}", kind, tables
    for what, text in {
        "no JSON": b"hidden_size = 24",
        "nothing": b"",
        "a list": b"[1]",
        "deep": b'{"a":' * 100_000,
        "not UTF-8": b"\xff{}",
        "5 MB": b'{"a": "' + b"x" * 5_000_000 + b'"}',
        "twice": b'{"model_type": "vit", "model_type": "bert"}',
        "another model": b'{"model_type": "bert"}',
    }.items():
        yield f"config.json: {what}", "hf", {"config.json": text}
    for what, places in {
        "outside": {"a": "../model.safetensors"},
        "absolute": {"a": "/etc/passwd"},
        "missing": {"a": "nothing.safetensors"},
        "a pickle": {"a": "pytorch_model.bin"},
        "no texts": {"a": 3},
        "a list": ["model.safetensors"],
        "none": None,
        "itself": {"a": "model.safetensors.index.json"},
        "of Windows": {"a": "..\\model.safetensors"},
    }.items():
        index = json.dumps({"weight_map": places}).encode()
        yield f"index: {what}", "hf", {"model.safetensors": None, "model.safetensors.index.json": index}


def cases():
    """{name: ({path: bytes}, what to load)}; each must be a CheckpointError."""
    found = {}
    for name, content in (*lists(), *lists_of_good_form()):
        found[f"safetensors: {name}"] = {"vit.safetensors": content}, "vit.safetensors"
    length = int.from_bytes(good("timm")[:8], "little")
    start = good("timm").index(b"}", 8) + 1  # behind the remarks, in which anything may stand
    rest = good("timm")[start:]
    for name, content in (*cut(rest, 30), *flipped(rest, 30, 8 + length - start)):
        content = good("timm")[:start] + content
        found[f"safetensors: {name}"] = {"model.safetensors": content, "config.json": good("timm", "config.json")}, ""
    for name, content in archives():
        found[name] = {"vit.npz": content}, "vit.npz"
    from test_interop import google_arrays

    arrays = google_arrays(L=1)
    whole = archive([(f"{name}.npy", array(values)) for name, values in arrays.items()])
    scale = "Transformer/encoderblock/LayerNorm_0/scale"
    for what, change in {
        "a class token of no side": {"cls": np.ones((), "f4")},
        "a class token of no number": {"cls": np.ones((1, 10**9, 0), "f4")},
        "places of no side": {"Transformer/posembed_input/pos_embedding": np.ones((), "f4")},
        "a billion layers of nothing": {scale: np.ones((10**9, 0), "f4")},
        "layers of no side": {scale: np.ones((), "f4")},
        "layer after layer, and together": {scale: np.ones((1, 24), "f4")},
        "a hidden layer of no side": {"pre_logits/kernel": np.ones((), "f4")},
        "patches of no pixel": {"embedding/kernel": np.ones((0, 0, 3, 24), "f4")},
        "patches that are no squares": {"embedding/kernel": np.ones((4, 2, 3, 24), "f4")},
        "a head of no class": {"head/kernel": np.ones((24, 0), "f4")},
        "no places": {"Transformer/posembed_input/pos_embedding": np.ones((1, 0, 24), "f4")},
        "places for no square": {"Transformer/posembed_input/pos_embedding": np.ones((1, 8, 24), "f4")},
    }.items():
        members = [(f"{name}.npy", array(values)) for name, values in (arrays | change).items()]
        found[f"npz: {what}"] = {"vit.npz": archive(members)}, "vit.npz"
    for name, content in cut(whole, 20):
        found[f"npz: {name}"] = {"vit.npz": content}, "vit.npz"
    for name, kind, files in settings():
        whole = {path.name: path.read_bytes() for path in (STORED / kind).iterdir()} | files
        found[name] = {path: content for path, content in whole.items() if content is not None}, ""
    return found


CASES = cases()


def write(case, folder):
    files, target = case
    for path, content in files.items():
        (folder / path).write_bytes(content)
    return folder / target


def test_there_are_enough_of_them():
    assert len(CASES) >= 400


@pytest.mark.parametrize("name", CASES)
def test_each_is_one_clear_error(name, tmp_path, monkeypatch):
    """Protects: a sentence that names the file, in little memory, without running anything or writing anywhere."""
    path = write(CASES[name], tmp_path)
    monkeypatch.chdir(tmp_path)
    before = [*tmp_path.parent.iterdir(), *tmp_path.rglob("*")]
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            tinyvit.load(path)
        assert tracemalloc.get_traced_memory()[1] < MOST
    finally:
        tracemalloc.stop()
    text = str(caught.value)
    assert str(tmp_path) in text and len(text) < 2500 and "Traceback" not in text
    assert all(character.isprintable() or character == "\n" for character in text)
    assert [*tmp_path.parent.iterdir(), *tmp_path.rglob("*")] == before


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on a process's memory")
def test_none_needs_memory_that_the_system_would_refuse():
    """All of them again in a process that may take 256 MB more than it has after its imports."""
    answer = subprocess.run(
        [sys.executable, __file__],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert answer.returncode == 0 and answer.stdout.split()[-2:] == [str(len(CASES)), "errors"], answer.stderr[-2000:]


def all_in_little_memory():
    import resource

    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 256 * 2**20,) * 2)
    errors = 0
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                tinyvit.load(write(case, Path(folder)))
            except CheckpointError as error:
                assert "memory" not in str(error).lower(), f"{name}: {error}"
                errors += 1
    print(errors, "errors")


@pytest.mark.parametrize("seed", range(60))
def test_a_flipped_bit_anywhere_is_an_error_or_a_model(seed, tmp_path):
    """Neither format notices all of them, as ours does by its hash; but no exception of another kind, ever."""
    from test_interop import google_arrays

    rng = np.random.default_rng(seed)
    npz = archive([(f"{name}.npy", array(values)) for name, values in google_arrays(L=1).items()], packed=seed % 3 == 2)
    content = bytearray(good("timm") if seed % 3 == 0 else npz)
    for at in rng.integers(0, len(content), 3).tolist():
        content[at] ^= 1 << int(rng.integers(8))
    path = tmp_path / ("vit.safetensors" if seed % 3 == 0 else "vit.npz")
    path.write_bytes(bytes(content))
    try:
        classifier = tinyvit.load(path)
    except CheckpointError as error:
        assert str(path) in str(error)
    else:
        assert np.isfinite(classifier.model.head.weight.data).all()


if __name__ == "__main__":
    all_in_little_memory()
