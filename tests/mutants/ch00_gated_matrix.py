"""start.gated_matrix: wrong answers that learners write, and right ones in other styles."""

import math

import torch


def by_slices(a, first, last, above=0.0):
    """M[i, j] = the product of a[j + first : i + last], on and below the diagonal."""
    l = len(a)
    M = torch.full((l, l), above, dtype=a.dtype)
    for i in range(l):
        for j in range(i + 1):
            M[i, j] = torch.prod(a[j + first : i + last])
    return M


def one_step_early(a):
    return by_slices(a, 0, 0)


def own_gate(a):
    return by_slices(a, 0, 1)


def last_gate_missing(a):
    return by_slices(a, 1, 0)


def ones_above(a):
    return by_slices(a, 1, 1, above=1.0)


def upper(a):
    return by_slices(a, 1, 1).T


def columns_alike(a):
    gates = a.clone()
    gates[0] = 1.0
    return torch.tril(torch.cumprod(gates, 0)[:, None].expand(len(a), len(a)))


def last_gate_to_a_power(a):
    i = torch.arange(len(a))
    lag = i[:, None] - i
    return torch.where(lag >= 0, a[:, None] ** lag.clamp(min=0), torch.zeros_like(a))


def last_gate_alone(a):
    return torch.tril(a[:, None].expand(len(a), len(a)), -1) + torch.eye(len(a), dtype=a.dtype)


def added(a):
    sums = torch.cumsum(a, 0)
    return torch.tril(sums[:, None] - sums, -1) + torch.eye(len(a), dtype=a.dtype)


def empty_diagonal(a):
    return torch.tril(by_slices(a, 1, 1), -1)


def by_ratios(a):
    P = torch.cumprod(a, 0)
    return torch.tril(P[:, None] / P[None, :])


def nan_replaced(a):
    return torch.nan_to_num(by_ratios(a))


def one_row_in_the_list(a):
    row, rows = torch.zeros_like(a), []
    for i in range(len(a)):
        row *= a[i]
        row[i] = 1
        rows.append(row)
    return torch.stack(rows)


def first_gate_alone(a):
    return torch.eye(len(a), dtype=a.dtype) + torch.tril(a.roll(-1).expand(len(a), len(a)), -1)


def by_log_sums(a):
    """Right for gates above or at 0, as Mamba-2's segment sums are."""
    l = len(a)
    steps = torch.log(a)[:, None].expand(l, l).masked_fill(~torch.ones(l, l).bool().tril(-1), 0)
    return torch.exp(steps.cumsum(0)).tril()


def zeros_kept_off(a):
    return by_slices(torch.where(a == 0, torch.full_like(a, 1e-12), a), 1, 1)


def float32_always(a):
    return torch.tensor([[math.prod(a[j + 1 : i + 1].tolist()) if i >= j else 0.0 for j in range(len(a))]
                         for i in range(len(a))])  # fmt: skip


def by_floats(a):
    M = [[0.0] * len(a) for _ in a]
    for i, gate in enumerate(a):
        for j in range(i):
            M[i][j] = float(gate) * M[i - 1][j]
        M[i][i] = 1.0
    return torch.tensor(M, dtype=a.dtype)


MUTANTS = {
    "one_step_early": (one_step_early, "one step early"),
    "own_gate": (own_gate, "its own gate"),
    "last_gate_missing": (last_gate_missing, "the last gate is missing"),
    "ones_above": (ones_above, "above the diagonal stand ones"),
    "upper": (upper, "triangle is above the diagonal"),
    "columns_alike": (columns_alike, "all columns are alike"),
    "last_gate_to_a_power": (last_gate_to_a_power, "a[i] ** (i - j)"),
    "last_gate_alone": (last_gate_alone, "below the diagonal is a[i] alone"),
    "added": (added, "gates are added"),
    "empty_diagonal": (empty_diagonal, "the diagonal is empty"),
    "by_ratios": (by_ratios, "one cumulative product by another"),
    "nan_replaced": (nan_replaced, "NaN was replaced"),
    "one_row_in_the_list": (one_row_in_the_list, "all rows are the last one"),
    "first_gate_alone": (first_gate_alone, "a[j+1] alone"),
    "by_log_sums": (by_log_sums, "has no logarithm"),
    "zeros_kept_off": (zeros_kept_off, "behind a gate of 0 is exactly 0"),
    "float32_always": (float32_always, "without dtype="),
    "by_floats": (by_floats, "cuts the graph"),
}
PASS_EXAMPLE = {"nan_replaced", "by_ratios", "by_log_sums", "zeros_kept_off", "float32_always"}


def by_products(a):
    return by_slices(a, 1, 1)


def by_impulses(a):
    columns = []
    for j in range(len(a)):
        h, life = torch.zeros((), dtype=a.dtype), []
        for t in range(len(a)):
            h = a[t] * h + (1 if t == j else 0)
            life.append(h)
        columns.append(torch.stack(life))
    return torch.stack(columns, dim=1)


def by_masked_cumprod(a):
    """Column j: ones up to row j, then the gates; one cumulative product each."""
    l = len(a)
    below = torch.ones(l, l, dtype=torch.bool).tril(-1)
    return torch.where(below, a[:, None], torch.ones((), dtype=a.dtype)).cumprod(0).tril()


def recursive(a):
    if len(a) == 1:
        return torch.ones(1, 1, dtype=a.dtype)
    before = recursive(a[:-1])
    row = torch.cat([a[-1] * before[-1], torch.ones(1, dtype=a.dtype)])
    return torch.cat([torch.nn.functional.pad(before, (0, 1)), row[None]])


def by_inverse(a):
    eye = torch.eye(len(a), dtype=a.dtype)
    return torch.linalg.solve_triangular(eye - torch.diag(a[1:], -1), eye, upper=False)


RIGHT = {
    "by_products": by_products,
    "by_impulses": by_impulses,
    "by_masked_cumprod": by_masked_cumprod,
    "recursive": recursive,
    "by_inverse": by_inverse,
}
