"""GPU kernels compiled for GPUs that are not here: all of ours are sound, and what is not is noticed."""

from __future__ import annotations

import json
import os
import sys

import fresh
import pytest

from ssmcourse.kernels import compiling, compiling_numba, runtime
from ssmcourse.kernels.assembling import TARGETS, Compiled, occupancy

if runtime.triton_mode() == "absent":
    pytest.skip(runtime.why_absent("triton"), allow_module_level=True)

DISAPPOINTING = """
import json, sys
sys.path.insert(0, {folder!r})
import kernels_to_compile
from ssmcourse.kernels import compiling
from ssmcourse.kernels.assembling import TARGETS
compiling.modules = lambda: [kernels_to_compile]
found = [compiling.compiled(c, t) for c in compiling.compilations() for t in TARGETS[:2]]
print(json.dumps([compiling.uncompiled(), [r._asdict() for r in found]]))
"""


@pytest.fixture(scope="module")
def disappointing():
    """What is said of the kernels of kernels_to_compile.py, in a process in which Triton compiles."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "NUMBA_ENABLE_CUDASIM": "0"}
    done = fresh.run(DISAPPOINTING.format(folder=os.path.dirname(__file__)), environment)
    assert done.status == 0, done.err
    uncompiled, rows = json.loads(done.out)
    return uncompiled, {(row["name"], row["target"]): row for row in rows}


@pytest.mark.parametrize("target", ["sm_80", "sm_90"])
def test_what_would_disappoint_on_a_gpu_is_noticed(disappointing, target):
    problems = {name: row["problems"] for (name, t), row in disappointing[1].items() if t == target}
    assert problems["right"] == problems["may spill"] == []
    (upcast,) = problems["upcast"]
    assert upcast.startswith("a product of half-precision matrices became ")
    assert "tf32" in upcast
    assert [p.split()[0] for p in problems["spills"]] == ["spills"]
    assert any(p.startswith("wants ") and "bytes of shared memory" in p for p in problems["too large"])


@pytest.mark.parametrize(("target", "instruction"), [("sm_80", "mma.sync bf16"), ("sm_90", "wgmma.mma bf16")])
def test_tensor_core_code_is_found(disappointing, target, instruction):
    row, tile = disappointing[1]["right", target], 2 * 64 * 32
    assert row["tensor_cores"] == instruction
    assert row["stored"] == 4 * 64 * 64
    assert row["loaded"] in (2 * tile, 3 * tile, 4 * tile)  # twice what the loop asks for ahead of its use
    assert 16 < row["registers"] < 256
    assert 0 < row["occupancy"] <= 1


def test_a_kernel_that_nothing_compiles_is_noticed(disappointing):
    assert disappointing[0] == ["kernels_to_compile.forgotten_kernel"]


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "expected"),
    [(32, 0, 4, 1.0), (64, 0, 4, 0.5), (128, 0, 4, 0.25), (255, 0, 8, 0.125), (32, 100 * 1024, 8, 0.25)],
)
def test_occupancy(registers, shared, warps, expected):
    """By the tables of the CUDA programming guide, for sm_90."""
    assert occupancy(registers, shared, warps, TARGETS[1]) == expected


def test_the_table_ends_with_what_is_wrong():
    row = Compiled(
        "ssd.scan_kernel bf16", "sm_90", 128, 8, 4096, 0.25, "mma.sync tf32", 16, 32, ("spills 8 bytes",)
    )
    head, line, error = compiling.table([row]).splitlines()
    assert head.split() == [
        "kernel",
        "target",
        "registers",
        "spilled",
        "shared",
        "occupancy",
        "loads",
        "stores",
        "tensor",
        "cores",
    ]
    assert line.split() == [
        "ssd.scan_kernel",
        "bf16",
        "sm_90",
        "128",
        "8",
        "4,096",
        "25%",
        "16",
        "32",
        "mma.sync",
        "tf32",
    ]
    assert error == "error: ssd.scan_kernel bf16 for sm_90: spills 8 bytes"


# --- Numba CUDA --------------------------------------------------------------------------------------

NUMBA = """
import json, sys
sys.path.insert(0, {folder!r})
from ssmcourse.kernels import compiling_numba
from ssmcourse.kernels.assembling import TARGETS
why = compiling_numba.why_not(TARGETS[1])
if why:
    print(json.dumps([why, [], []]))
    sys.exit()
import kernels_to_compile_numba
compiling_numba.modules = lambda: [kernels_to_compile_numba]
rows = [compiling_numba.compiled(c, TARGETS[1]) for c in compiling_numba.compilations()]
print(json.dumps(["", compiling_numba.uncompiled(), [r._asdict() for r in rows]]))
"""


@pytest.fixture(scope="module")
def disappointing_numba():
    """What is said of the kernels of kernels_to_compile_numba.py, in a process in which Numba compiles."""
    environment = os.environ | {"TRITON_INTERPRET": "0", "NUMBA_ENABLE_CUDASIM": "0"}
    done = fresh.run(NUMBA.format(folder=os.path.dirname(__file__)), environment)
    assert done.status == 0, done.err
    why, uncompiled, rows = json.loads(done.out)
    if why:
        pytest.skip(why)
    return uncompiled, {row["name"]: row for row in rows}


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("constant", "computes in float64, and no argument is"),
        ("array", "has an array of 256 bytes in memory"),
        ("calls", "calls a function"),
        ("too many threads", "cannot start: 1024 threads of "),
        ("spills", "spills "),
        ("too large", "wants 65,536 bytes of shared memory"),
    ],
)
def test_what_numba_makes_of_it_is_noticed(disappointing_numba, name, problem):
    assert any(p.startswith(problem) for p in disappointing_numba[1][name]["problems"])


def test_numba_kernels_that_are_right(disappointing_numba):
    uncompiled, rows = disappointing_numba
    assert uncompiled == ["kernels_to_compile_numba.forgotten_kernel"]
    for name in ("right", "constant asked for", "fewer threads"):
        assert rows[name]["problems"] == []
    right = rows["right"]
    assert (right["loaded"], right["stored"], right["tensor_cores"]) == (4 * 128, 4 * 128, "")
    assert right["occupancy"] == 1
    assert rows["fewer threads"]["spilled"] == 0 < rows["spills"]["spilled"]


def test_where_numba_cannot_compile_a_line_says_so():
    fails = {80: "no NVVM", 90: "no NVVM", 100: "too old"}
    there = compiling._Everything(["ssd", "linear_scan.numba_cuda"], {0, 1}, 1, fails)
    assert compiling._left_out(there) == (
        "left out: the kernels in Numba CUDA for sm_80, sm_90: no NVVM",
        "left out: the kernels in Numba CUDA for sm_100: too old",
    )
    assert compiling.table([], compiling._left_out(there)).splitlines()[1:] == list(
        compiling._left_out(there)
    )


def test_a_numba_that_is_broken_is_a_finding(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    assert compiling_numba.why_not(TARGETS[0]).startswith("import of numba halted")


# --- Ours --------------------------------------------------------------------------------------------


def problems_of(results: list[Compiled]) -> list[str]:
    return [f"{r.name} for {r.target}: {p}" for r in results for p in r.problems]


def test_every_kernel_of_ours_compiles_and_is_sound():
    """One way to launch each, Triton's for all targets."""
    results, left_out = compiling.compile_all(quick=True)
    assert {r.target for r in results} == {t.name for t in TARGETS}
    of_numba = [r for r in results if ".numba_cuda." in r.name]
    assert {r.target for r in of_numba} <= {"sm_90"}
    assert len({r.name for r in of_numba}) == len(of_numba) == (0 if left_out else 8)
    of_triton = [r for r in results if r not in of_numba]
    assert len({r.name for r in of_triton}) * len(TARGETS) == len(of_triton)
    assert not problems_of(results)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_kernel_of_ours_compiles_in_every_configuration():
    assert not problems_of(compiling.compile_all().compiled)
