"""The bug zoo: ten mistakes that public code has made, put into copies of the package; the tests must catch each one.

    python tests/bug_zoo.py

Chapter 02 of the course tells what each mistake does. Here each is one edit of the real source, in a temporary copy,
and then `tests/test_properties.py` must fail: in the one test that is named after the broken equation, and in no other.
So must an older test that knows nothing of this zoo. Exit code 0 means that 10 of 10 were caught.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROPERTIES = "tests/test_properties.py"
CHAPTER = ROOT / "notebooks" / "02-trust-but-check.ipynb"


@dataclass(frozen=True)
class Bug:
    """In `file` the text `old`, which occurs once, becomes `new`; then `test`, of test_properties.py, and `also`, from
    elsewhere, must fail."""

    name: str
    file: str
    old: str
    new: str
    test: str
    also: str


ZOO = [
    Bug(
        "patches by reshape alone", "nn/layers.py",
        "squares = images.reshape(B, rows, P, cols, P, C).transpose(0, 1, 3, 2, 4, 5)  #",
        "squares = images.reshape(B, rows, P, cols, P, C)  #",
        "test_eq1_each_patch_is_a_square_of_the_image",
        "tests/test_nn.py::test_patchify_cuts_squares_row_by_row",
    ),
    Bug(
        "positions on the batch axis", "models/vit.py",
        "z = z + self.positions()  # eq. 1",
        "z = z + self.positions().transpose(1, 0, 2)[:B]  # eq. 1",
        "test_eq1_a_position_belongs_to_a_token_not_to_an_image",
        "tests/test_vit.py::test_equations_1_to_4",
    ),
    Bug(
        "scores divided by √D", "functional.py",
        "    scale = float((qkv.shape[-1] // 3 // heads) ** -0.5)\n",
        "    scale = float((qkv.shape[-1] // 3) ** -0.5)\n",
        "test_eq6_scores_are_divided_by_the_root_of_a_heads_width",
        "tests/test_vit.py::test_equations_1_to_4",
    ),
    Bug(
        "softmax over the wrong axis", "kernels/attention.py",
        "p = softmax.numpy(q @ k.mT * qkv.dtype.type(scale))",
        "p = softmax.numpy((q @ k.mT * qkv.dtype.type(scale)).mT).mT",
        "test_eq6_each_token_shares_out_a_weight_of_1",
        "tests/test_vit.py::test_equations_1_to_4",
    ),
    Bug(
        "no output matrix W_O", "nn/layers.py",
        "return self.out(F.attention(self.qkv(x), heads=self.heads, maps=maps))",
        "return F.attention(self.qkv(x), heads=self.heads, maps=maps)",
        "test_eq8_every_head_reaches_every_output",
        "tests/test_vit.py::test_equations_1_to_4",
    ),
    Bug(
        "norm after the sum", "nn/layers.py",
        "        z = z + self.dropout(self.attention(self.norm1(z), maps=maps, bias=bias))\n"
        "        return z + self.mlp(self.norm2(z))\n",
        "        z = self.norm1(z + self.dropout(self.attention(z, maps=maps, bias=bias)))\n"
        "        return self.norm2(z + self.mlp(z))\n",
        "test_eq2_eq3_a_block_whose_parts_are_silent_is_the_identity",
        "tests/test_vit.py::test_equations_1_to_4",
    ),
    Bug(
        "layer norm over all tokens", "kernels/layernorm.py",
        "    mean = x.mean(axis=1)\n",
        "    mean = np.full(len(x), x.mean())\n",
        "test_layer_norm_looks_at_one_token_at_a_time",
        "tests/test_functional.py::test_fused_equals_composed[numpy-layer_norm]",
    ),
    Bug(
        "last token read as the class", "models/vit.py",
        "            return encoded[:, 0]\n",
        "            return encoded[:, -1]\n",
        "test_eq4_the_head_reads_the_class_token",
        "tests/test_vit.py::test_equations_1_to_4",
    ),
    Bug(
        "softmax twice in the loss", "kernels/cross_entropy.py",
        "    _check(logits, labels)\n    z = logits - logits.max(axis=1, keepdims=True)\n",
        "    _check(logits, labels)\n"
        "    logits = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)\n"
        "    z = logits - logits.max(axis=1, keepdims=True)\n",
        "test_cross_entropy_is_ln_C_without_an_opinion_and_0_with_certainty",
        "tests/test_functional.py::test_fused_equals_composed[numpy-cross_entropy]",
    ),
    Bug(
        "gradient overwritten, not added", "tensor.py",
        "arrived[parent] = memory.add(arrived[parent], part)  #",
        "arrived[parent] = part  #",
        "test_the_chain_rule_adds_up_the_paths",
        "tests/test_tensor.py::test_a_tensor_used_twice_gets_both_terms",
    ),
]  # fmt: skip


def copy(folder):
    """The package and its tests, as they lie here, into a folder."""
    for name in ("tinyvit", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.npz"))
    shutil.copy(ROOT / "pyproject.toml", folder)


def put(bug, folder):
    """Make the edit. Raises ValueError where its text is not found exactly once: then the package has moved on."""
    file = folder / "tinyvit" / bug.file
    text = file.read_text(encoding="utf-8")
    if text.count(bug.old) != 1:
        raise ValueError(
            f"tinyvit/{bug.file} must hold this text exactly once, but has it {text.count(bug.old)} times; "
            f"change the bug {bug.name!r} in tests/bug_zoo.py to fit the source:\n{bug.old}"
        )
    file.write_text(text.replace(bug.old, bug.new), encoding="utf-8")


def run(folder, *tests):
    """Run tests of a copy on the NumPy kernels: ({the tests that failed: first line of the failure}, all output)."""
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "-p", "no:cacheprovider", *tests]
    settings = {"TINYVIT_KERNELS": "numpy", "PYTHONPATH": str(folder), "PYTHONUTF8": "1", "COLUMNS": "250"}
    done = subprocess.run(command, cwd=folder, env=os.environ | settings, capture_output=True, encoding="utf-8")
    if done.returncode not in (0, 1):  # 1: tests failed; anything else: they did not run
        raise RuntimeError(f"pytest could not run {' '.join(tests)}:\n{done.stdout}{done.stderr}")
    failures = re.findall(r"^(?:FAILED|ERROR) (\S+)(?: - (.*))?$", done.stdout, re.M)
    return dict(failures), done.stdout


def verdict(bug, failures):
    """Whether the failures are those that must be, and what to print."""
    test = f"{PROPERTIES}::{bug.test}"
    own = {name for name in failures if name.startswith(PROPERTIES)}
    if own != {test}:
        return False, f"NOT CAUGHT as it must: {bug.test} should fail alone there, but {sorted(own) or 'nothing'} did"
    if bug.also not in failures:
        return False, f"NOT CAUGHT by {bug.also}"
    return True, failures[test]


def main():
    chapter = CHAPTER.read_text(encoding="utf-8")
    if unnamed := [bug.test for bug in ZOO if bug.test not in chapter]:
        print(f"{CHAPTER.name} must name the test that catches each bug; it lacks {', '.join(unnamed)}")
        return 1
    with tempfile.TemporaryDirectory() as scratch:
        healthy = Path(scratch, "healthy")
        copy(healthy)
        try:
            failures, said = run(healthy, PROPERTIES, *sorted({bug.also for bug in ZOO}))
        except RuntimeError as error:  # a test of `also` has another name now
            failures, said = True, error
        if failures:
            print(f"the package fails without any bug:\n{said}")
            return 1
        print("without a bug all these tests pass", flush=True)
        caught = 0
        for number, bug in enumerate(ZOO, 1):
            start, folder = time.perf_counter(), Path(scratch, str(number))
            copy(folder)
            try:
                put(bug, folder)
                fine, says = verdict(bug, run(folder, PROPERTIES, bug.also)[0])
            except (ValueError, RuntimeError) as error:  # the package has moved on, or no longer even imports
                fine, says = False, f"NOT CAUGHT: {error}"
            caught += fine
            print(f"\n{number:2} {bug.name}, in tinyvit/{bug.file}: {time.perf_counter() - start:.1f} s")
            print(f"   {bug.test}\n   {says}\n   also {bug.also}", flush=True)
    print(f"\n{caught} of {len(ZOO)} caught")
    return 0 if caught == len(ZOO) else 1


if __name__ == "__main__":
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")  # √ on Windows
    sys.exit(main())
