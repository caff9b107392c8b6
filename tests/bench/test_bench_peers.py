"""Who takes part in `ssmcourse bench`, and that all compute the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssmcourse.bench import contestants, judge
from ssmcourse.bench.operators import OPERATORS
from ssmcourse.bench.peers import PEERS
from ssmcourse.tolerance import mismatch

SMALL = {
    "selective_scan": (2, 70, 8, 4),
    "ssd": (1, 70, 2, 8, 4, 16),
    "linear_scan": (2, 70, 16),
    "causal_conv1d": (2, 70, 8, 4),
    "linear_attention": (1, 64, 2, 4, 8),
    "wkv4": (2, 70, 8),
    "s4_kernel": (3, 8, 70),
    "s4d_kernel": (3, 8, 70),
    "selective_scan_matrix": (1, 12, 3, 4),
}


def everyone():
    return [(p.operator, p.name) for p in PEERS]


def test_every_operator_is_small_here_and_has_a_plain_rival():
    assert set(SMALL) == set(OPERATORS)
    for name in OPERATORS:
        assert any(p.operator == name and not p.package for p in PEERS)
    assert len(set(everyone())) == len(PEERS)


@pytest.mark.parametrize(("operator", "name"), everyone())
def test_a_peer_computes_what_the_oracle_does_and_its_gradients(operator, name):
    """What is not installed is skipped: nothing of the extra [bench] is needed to test the rest."""
    op, (peer,) = OPERATORS[operator], [p for p in PEERS if (p.operator, p.name) == (operator, name)]
    if peer.module:
        pytest.importorskip(peer.module.partition(".")[0])
    rows = {name: {}}
    judge.check(op, SMALL[operator], op.inputs(SMALL[operator]), [peer], rows)
    for direction in ("forward", "both")[: 1 + op.backward]:
        assert rows[name][direction]["valid"], rows
        assert rows[name][direction]["error"] < 1e-3


@pytest.mark.parametrize("operator", OPERATORS)
def test_ours_are_right(operator):
    op = OPERATORS[operator]
    team = contestants.ours(op)
    rows = {peer.name: {} for peer in team}
    judge.check(op, SMALL[operator], op.inputs(SMALL[operator]), team, rows)
    for row in rows.values():
        assert row["forward"]["valid"], rows
        assert not op.backward or row["both"]["valid"], rows


def test_a_quadratic_algorithm_does_not_run_on_long_sequences():
    op = OPERATORS["ssd"]
    short, long = ([peer.name for peer in contestants.ours(op, l)] for l in (1024, 1025))
    assert set(short) - set(long) == {"ours, quadratic"}
    assert long[0] == short[0] == "ours, cpu"


def test_the_oracle_of_the_scans_is_their_dense_matrix():
    """M[t, s] = a_t ... a_{s+1}, filled in entry by entry."""
    inputs = OPERATORS["linear_scan"].inputs((1, 9, 2), torch.float64)
    got = OPERATORS["linear_scan"].oracle(**inputs)
    a, b = (t[0].numpy() for t in inputs.values())
    for k in range(2):
        M = np.array([[np.prod(a[s + 1 : t + 1, k]) * (s <= t) for s in range(9)] for t in range(9)])
        assert mismatch(got[0, :, k], M @ b[:, k], terms=9) is None
    op = OPERATORS["selective_scan"]
    inputs = op.inputs((1, 9, 2, 3), torch.float64)
    x = inputs.pop("x")
    M = OPERATORS["selective_scan_matrix"].oracle(**inputs)
    assert mismatch(op.oracle(x, **inputs), torch.einsum("bdij,bjd->bid", M, x), terms=9) is None
