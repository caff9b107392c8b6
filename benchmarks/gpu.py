"""Every GPU kernel on a GPU: its test table, its time, its memory. One command, one dated file.

    python benchmarks/gpu.py               # all of it, on a machine with a CUDA GPU: some ten minutes
    python benchmarks/gpu.py --rehearse    # tiny, on any machine, to see that the script itself works; stores nothing

Times are medians by CUDA events, after a warm-up that also tunes; peers run in the same turns. Bytes are those of
inputs and outputs, held against what a copy moves on this GPU, and operations against its matrix products. Peers
(mamba-ssm, causal-conv1d, flash-linear-attention) are measured where they are installed, and only where their result
is right. Nothing that was not measured here is stored.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import record
import torch
from torch import Tensor
from torch.nn import functional

import ssmcourse
from ssmcourse.bench.operators import OPERATORS, Work
from ssmcourse.kernels import runtime

LENGTHS = [512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536, 131_072]
ROUNDS = 20


class Case(NamedTuple):
    """An operator at sizes that a model has; `l` is added. `dtype` is of the activations."""

    operator: str
    sizes: dict[str, int]
    dtype: torch.dtype = torch.float32


CASES = (
    Case("linear_scan", {"b": 2, "d": 1536}),
    Case("causal_conv1d", {"b": 2, "d": 1536, "w": 4}, torch.bfloat16),
    Case("selective_scan", {"b": 2, "d": 1536, "n": 16}),
    Case("ssd", {"b": 1, "h": 24, "p": 64, "n": 128, "q": 256}, torch.bfloat16),
)
TINY = {"b": 1, "d": 4, "w": 4, "n": 4, "h": 1, "p": 16, "q": 16}
Run = Callable[[], Tensor]


class Machine:
    """Where it runs and how time is taken there."""

    def __init__(self, rehearsal: bool) -> None:
        self.rehearsal = rehearsal
        self.device = "cpu" if rehearsal else "cuda"

    def seconds(self, run: Run) -> float:
        """Of one call."""
        if self.rehearsal:
            began = time.perf_counter()
            run()
            return time.perf_counter() - began
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def medians(self, runs: dict[str, Run]) -> dict[str, float]:
        """Milliseconds of each, in turns."""
        rounds = 1 if self.rehearsal else ROUNDS
        for run in runs.values():
            run()
        laps: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name, run in runs.items():
                laps[name].append(1e3 * self.seconds(run))
        return {name: statistics.median(times) for name, times in laps.items()}

    def peak(self, run: Run) -> int | None:
        """Bytes that a call needs at most beyond what is there before it."""
        if self.rehearsal:
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def limits(self) -> dict[str, float]:
        """Gigabytes a second of a copy (read and written), and teraflops of bfloat16 matrix products."""
        size, side = (1 << 16, 64) if self.rehearsal else (1 << 28, 8192)
        source = torch.empty(size, device=self.device)
        target = torch.empty_like(source)
        a = torch.randn(side, side, device=self.device, dtype=torch.bfloat16)
        ms = self.medians({"copy": lambda: target.copy_(source), "matmul": lambda: a @ a})
        return {"copy_GB_s": 8e-6 * size / ms["copy"], "matmul_TFLOP_s": 2e-9 * side**3 / ms["matmul"]}


# --- Ours and the peers -------------------------------------------------------------------------------


def inputs_of(case: Case, l: int, device: str) -> dict[str, Tensor]:
    """As ssmcourse.bench draws them; activations of the case's dtype, parameters in float32."""
    made = OPERATORS[case.operator].make(case.sizes | {"l": l}, torch.Generator().manual_seed(0))
    activations = {"a", "b", "x", "B", "C", "weight"}
    return {
        name: t.to(device, case.dtype if name in activations else torch.float32).contiguous()
        for name, t in made.items()
    }


def ours(case: Case, l: int, inputs: dict[str, Tensor]) -> Run:
    function = getattr(ssmcourse, case.operator)
    options = OPERATORS[case.operator].options(case.sizes | {"l": l})
    return lambda: function(**inputs, **options, backend="triton")


def peers(case: Case, inputs: dict[str, Tensor]) -> Iterator[tuple[str, Run, bool]]:
    """(name, call, is its result to be ours?) of each that is installed."""
    i = inputs
    if case.operator == "causal_conv1d":
        with contextlib.suppress(ImportError):
            conv = importlib.import_module("causal_conv1d").causal_conv1d_fn
            x = i["x"].mT.contiguous()
            yield "causal-conv1d", lambda: conv(x, i["weight"]).mT, True
    if case.operator == "selective_scan":
        with contextlib.suppress(ImportError):
            scan = importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
            x, dt, B, C = (i[k].mT.contiguous() for k in ("x", "dt", "B", "C"))
            yield "mamba-ssm", lambda: scan(x, dt, i["A"], B, C).mT, True
    if case.operator == "ssd":
        with contextlib.suppress(ImportError):
            ssd = importlib.import_module("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined
            yield "mamba-ssm", lambda: ssd(i["x"], i["dt"], i["A"], i["B"], i["C"], case.sizes["q"]), True
        with contextlib.suppress(ImportError):
            gla = importlib.import_module("fla.ops.simple_gla").chunk_simple_gla
            heads = i["x"].shape[2]
            q, k = (i[name].expand(-1, -1, heads, -1).contiguous() for name in ("C", "B"))
            gates, values = i["dt"] * i["A"], (i["x"] * i["dt"][..., None]).to(i["x"].dtype)
            yield "flash-linear-attention", lambda: gla(q, k, values, g=gates, scale=1.0)[0], True
        heads_first = i["x"].transpose(1, 2).contiguous()
        attend = functional.scaled_dot_product_attention
        yield (
            "torch's attention of equal width",
            lambda: attend(heads_first, heads_first, heads_first, is_causal=True),
            False,
        )


def with_backward(run: Run, inputs: dict[str, Tensor]) -> Run:
    leaves = [t for t in inputs.values() if t.is_floating_point()]

    def both() -> Tensor:
        for leaf in leaves:
            leaf.requires_grad_(True)
            leaf.grad = None
        y = run()
        y.backward(torch.ones_like(y))
        return y.detach()

    return both


# --- Measuring ----------------------------------------------------------------------------------------


def measure(machine: Machine, case: Case, l: int, limits: dict[str, float]) -> dict[str, Any]:
    inputs = inputs_of(case, l, machine.device)
    runs, wrong = {"ours": ours(case, l, inputs)}, {}
    expected = runs["ours"]().float()
    for name, run, same in peers(case, inputs):
        error = float((run().float() - expected).abs().max() / expected.abs().max()) if same else 0.0
        if error <= 3e-2:
            runs[name] = run
        else:
            wrong[name] = error
    forward = machine.medians(runs)
    ours_both = with_backward(runs["ours"], inputs)
    both = machine.medians({"ours": ours_both})
    work = OPERATORS[case.operator].work
    work_forward = work(case.sizes | {"l": l})[0] if work else Work()
    moved = work_forward.bytes * case.dtype.itemsize / 4  # counted in float32
    return {
        "l": l,
        "forward_ms": forward,
        "with_backward_ms": both,
        "wrong": wrong,
        "share_of_copy": moved / (forward["ours"] * 1e6) / limits["copy_GB_s"],
        "share_of_matmul": work_forward.flops / (forward["ours"] * 1e9) / limits["matmul_TFLOP_s"],
        "peak_bytes": machine.peak(ours_both),
    }


def tests(machine: Machine) -> dict[str, Any]:
    """The test table of every kernel on the GPU: the same tests that elsewhere run interpreted."""
    if machine.rehearsal:
        return {"rehearsal": True}
    environment = os.environ | {"TRITON_INTERPRET": "0", "NUMBA_ENABLE_CUDASIM": "0"}
    folder = Path(__file__).resolve().parent.parent
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        asked = ["tests/kernels", "-k", "triton or numba_cuda", f"--junitxml={report}"]
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", *asked], cwd=folder, env=environment, check=False
        )
        root = ElementTree.parse(report).getroot()
    suite = root if root.tag == "testsuite" else root[0]
    return {key: int(suite.attrib[key]) for key in ("tests", "failures", "errors", "skipped")}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, on any machine; stores nothing")
    rehearsal = parser.parse_args().rehearse
    if not rehearsal and not runtime.has_cuda():
        print("there is no CUDA GPU here that torch can use: run it where there is one, or with --rehearse")
        return 2
    machine = Machine(rehearsal)
    limits = machine.limits()
    results = {}
    for case in CASES:
        if rehearsal:
            case = case._replace(sizes={k: TINY[k] for k in case.sizes}, dtype=torch.float32)
        lengths = [17] if rehearsal else LENGTHS
        results[case.operator] = {
            "sizes": case.sizes,
            "dtype": str(case.dtype).removeprefix("torch."),
            "measured": [measure(machine, case, l, limits) for l in lengths],
        }
        print(json.dumps(results[case.operator]["measured"][-1]))
    if rehearsal:
        return 0
    gpu = torch.cuda.get_device_name()
    record.store("gpu", gpu=gpu, limits=limits, tests=tests(machine), operators=results)
    plot(results, Path(record.RESULTS) / "gpu.png", gpu)
    return 0


def plot(results: dict[str, Any], path: Path, gpu: str) -> None:
    """Milliseconds against length, one panel an operator."""
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(results), figsize=(4 * len(results), 3.5), squeeze=False)
    for panel, (name, result) in zip(panels[0], results.items(), strict=True):
        rows = result["measured"]
        for who in rows[0]["forward_ms"]:
            known = [(row["l"], row["forward_ms"][who]) for row in rows if who in row["forward_ms"]]
            panel.loglog(*zip(*known, strict=True), marker="o", label=who)
        panel.set(title=f"{name}, {result['dtype']}", xlabel="length", ylabel="milliseconds, forward")
        panel.legend(fontsize="small")
    figure.suptitle(gpu)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
