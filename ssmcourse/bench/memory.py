"""Peak memory of one contestant: what a process of its own needs beyond what it needed when it was warm.

The process imports everything, runs a short sequence forward and backward, and looks at its size. Then it makes
the inputs, runs once, and looks at the largest size that it has had since. So the inputs, the outputs and the
gradients are in it, and what is compiled at the first call is not.
"""

from __future__ import annotations

import gc
from pathlib import Path

import torch

from ssmcourse.bench import contestants
from ssmcourse.bench.operators import Operator
from ssmcourse.bench.peers import Peer

WARM_LENGTH = 320  # more than one chunk


def weigh(op: Operator, numbers: tuple[int, ...], who: str) -> dict[str, float]:
    """Run `who` once at these sizes, forward and backward; call it in a fresh process.

    Returns:
        `mb`, the peak in MB (10^6 bytes) beyond the warm process; `needed_mb`, the size of inputs and outputs
        and of their gradients; `ratio`, the one over the other.
    Raises:
        ValueError: nobody of that name, or the system does not tell the size of a process.
    """
    peer = _find(op, who)
    # Twice: the second run grows whatever the allocator keeps for the next time.
    for _ in range(2):
        _run(op, numbers, peer, min(op.length(numbers), WARM_LENGTH))
    gc.collect()
    before = _resident()
    needed, peak = _run(op, numbers, peer, None)
    grown = peak - before
    return {"mb": grown / 1e6, "needed_mb": needed / 1e6, "ratio": grown / needed}


def _find(op: Operator, who: str) -> Peer:
    there = [*contestants.ours(op), *contestants.rivals(op)[0]]
    for peer in there:
        if peer.name == who:
            return peer
    raise ValueError(f"who: got {who!r}, expected one of {', '.join(peer.name for peer in there)}")


def _run(op: Operator, numbers: tuple[int, ...], peer: Peer, l: int | None) -> tuple[int, int]:
    """One run at length `l`: the bytes of inputs, outputs and gradients, and the peak meanwhile."""
    inputs = op.inputs(numbers, l=l)
    options = op.options(op.sizes(numbers) | ({} if l is None else {"l": l}))
    weight = torch.randn(inputs[op.like].shape, generator=torch.Generator().manual_seed(1))
    needed = 2 * sum(t.numel() * t.element_size() for t in [*inputs.values(), weight])
    entry = contestants.enter(peer, inputs, options, weight)
    del inputs, weight  # a contestant that wants them otherwise has its own
    entry.prepare("both")
    gc.collect()
    _forget_peak()
    result = entry.both()
    peak = _peak()
    del result
    return needed, peak


STATUS = Path("/proc/self/status")


def _resident() -> int:
    if STATUS.is_file():
        return _field("VmRSS")
    return _peak()


def _peak() -> int:
    if STATUS.is_file():
        return _field("VmHWM")
    try:
        import resource
        import sys
    except ImportError:
        raise ValueError("memory: this system does not tell how large a process has been") from None
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _forget_peak() -> None:
    """Linux: the largest size starts anew from the present one."""
    if STATUS.is_file():
        Path("/proc/self/clear_refs").write_text("5")


def _field(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])
