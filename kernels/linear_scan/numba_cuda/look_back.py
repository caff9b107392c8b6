"""Rung 7: any length in a single pass, with decoupled look-back (Merrill & Garland 2016).

A tile needs the state that its predecessor ends with. Instead of a kernel of its own for that, a block asks:

    1. take a ticket, which says which tile is mine: tiles before mine are then in work already, or done
    2. scan my tile (rung 5); publish its total, a pair: status TOTAL
    3. look back from tile to tile, to the nearest one whose last state is known; then come forward through the totals
    4. publish my own last state: status STATE; then go through my steps from the state that enters

The look-back is short: those who are waited for publish their totals without waiting for anybody. What a block
publishes lies in memory first; then comes a fence; then the status changes, one word and atomically. Who reads the status
has a fence too before reading the rest. One warp looks back, a lane a channel: lane 0 reads the status for all.

Merrill & Garland combine totals while they go back. How far they go is chance, and with it how their floats are rounded.
Coming forward does, for every tile on the way, what that tile does itself: the same bits in every run.

Arrays: a, b, h (b, l, d); initial_state (b, d); ticket (1,) and status (blocks,) of int32, zero at first; published
(3, blocks, 32): a tile's total gate, total state, last state. Grid: a block a tile, b ceil(d / 32) ceil(l / (segments
STEPS)) of them; tickets go through all rows and strips before the next tile of any. Shared: 128 numbers a segment and 33.
Bytes: a and b once, h once, and some 6 numbers a tile and channel. Work: as rung 5, and the look-back.
"""

# pyright: reportCallIssue=false, reportIndexIssue=false

from __future__ import annotations

import torch
from numba import cuda, int32
from torch import Tensor

from ssmcourse.kernels.linear_scan.numba_cuda import several_steps
from ssmcourse.kernels.linear_scan.numba_cuda.launch import SIMULATED, WARP, launch, like
from ssmcourse.kernels.linear_scan.numba_cuda.several_steps import (
    MOST_SEGMENTS,
    STEPS,
    first_step,
    load_steps,
    scan_tile,
    tile_of,
    walk,
)
from ssmcourse.kernels.linear_scan.numba_cuda.steps import device, times
from ssmcourse.kernels.linear_scan.numba_cuda.warp_shuffles import ALL_LANES

SEGMENTS = 2 if SIMULATED else MOST_SEGMENTS
NOTHING, TOTAL, STATE = 0, 1, 2  # what a tile has published
GATES, STATES, LAST = 0, 1, 2  # where


@device
def take_ticket(ticket):
    """The number of this block's tile: blocks start in any order, tickets are given in one."""
    mine = cuda.shared.array(1, int32)
    if cuda.threadIdx.x == 0 and cuda.threadIdx.y == 0:
        mine[0] = cuda.atomic.add(ticket, 0, 1)
    cuda.syncthreads()
    return mine[0]


@device
def announce(status, block, what, lane):
    """Let others see what the lanes of this warp have written: lane 0 speaks for all."""
    cuda.syncwarp()
    if lane == 0:
        cuda.threadfence()
        cuda.atomic.exch(status, block, what)


@device
def ask(status, block, lane):
    """Wait until a tile has published something, and say what, to all lanes."""
    seen = int32(NOTHING)
    if lane == 0:
        while seen == NOTHING:
            seen = cuda.atomic.add(status, block, 0)
        cuda.threadfence()
    seen = cuda.shfl_sync(ALL_LANES, seen, 0)
    cuda.syncwarp()
    return seen


@device
def look_back(status, published, block, sequences, lane):
    """The state that enters this tile; its predecessors are `sequences` blocks apart."""
    known = block - sequences
    while ask(status, known, lane) == TOTAL:
        known -= sequences
    state = published[LAST, known, lane]
    while known < block - sequences:
        known += sequences
        state = times(published[GATES, known, lane], state) + published[STATES, known, lane]
    return state


@device
def hand_over(status, published, block, sequences, initial, gate, state, lane):
    """One warp: from the total of the tile to the state that enters, by way of what the tiles before it publish."""
    entering = initial
    if block >= sequences:
        published[GATES, block, lane], published[STATES, block, lane] = gate, state
        announce(status, block, TOTAL, lane)
        entering = look_back(status, published, block, sequences, lane)
    published[LAST, block, lane] = times(gate, entering) + state
    announce(status, block, STATE, lane)
    return entering


@cuda.jit
def look_back_kernel(a, b, initial_state, h, ticket, status, published, reverse):
    rows, _, d = b.shape
    gates = cuda.local.array(STEPS, a.dtype)
    inputs = cuda.local.array(STEPS, a.dtype)
    shared = cuda.shared.array(0, a.dtype)
    states = cuda.shared.array(WARP, a.dtype)
    lane = cuda.threadIdx.x
    block = take_ticket(ticket)
    tile, i, k = tile_of(block, rows, d)
    first = first_step(tile)
    gate, state = load_steps(a, b, i, first, k, reverse, gates, inputs)
    gate, state, total_gate, total_state = scan_tile(gate, state, shared)
    if cuda.threadIdx.y == 0:
        initial = initial_state[i, k] if k < d else a.dtype.type(0)
        sequences = rows * ((d + WARP - 1) // WARP)
        states[lane] = hand_over(status, published, block, sequences, initial, total_gate, total_state, lane)
    cuda.syncthreads()
    walk(gates, inputs, times(gate, states[lane]) + state, h, i, first, k, reverse)


def scan(
    a: Tensor, b: Tensor, initial_state: Tensor, h: Tensor, reverse: bool, segments: int = SEGMENTS
) -> None:
    """Fill h."""
    blocks, threads, shared = several_steps.tiles(b, segments)
    words = torch.zeros(1 + blocks, dtype=torch.int32, device=b.device)
    published = like(b, 3, blocks, WARP)
    launch(
        look_back_kernel, blocks, threads, a, b, initial_state, h, words[:1], words[1:], published, reverse,
        shared=shared,
    )  # fmt: skip
