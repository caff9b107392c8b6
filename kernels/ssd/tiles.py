"""What happens inside one tile of SSD: up to 64 steps of one head, small enough to stay in the cache.

    y_i  = e_i C_i S + sum over j <= i of L_ij (C_i . B_j) xbar_j       `outputs`
    S'   = e_last S + sum over j of w_j B_j xbar_j                      `advance`

with S the state that enters (n, p), xbar_j = dt_j x_j, and three products of decays, all exponentials of sums of
log a over a stretch of steps:

    from_start  e_i    steps first to i
    to_end      w_j    steps j+1 to last
    L           L_ij   steps j+1 to i; 0 for j > i

Each is summed over its own stretch (for L one row from the row above it): never a difference of two long sums,
which after a reset of -1e4 has no digits left (Dao & Gu 2024, section 6; lesson 09 measures it).

Names: M is L times C Bᵀ, which is G; a name that ends in _T is transposed, time along its rows; d before a name is
the gradient of the loss by it. All buffers are TILE or a multiple of PAD wide; q is the number of steps in use.
"""

from __future__ import annotations

from ssmcourse.kernels.arrays import narrow, widen
from ssmcourse.kernels.ssd.products import A_LOWER, ALL, AS_IS, TRANSPOSED, multiply
from ssmcourse.kernels.threads import native
from ssmcourse.kernels.vector_math import exp, inner, sigmoid, summing

TILE = 64


# --- Between the operator's arrays and the tile's -------------------------------------------------
# `row` and `head` (or a group) choose from x (b, l, h, p) the part (l, p), from dt (b, l, h) the part (l,).
# Half types are in the operator's arrays only, as integers (arrays.py): converted as they are read and written.


@inner
def load(source, row, head, begin, q, out):
    for j in range(q):
        values, to = source[row, begin + j, head], out[j]
        for k in range(values.shape[0]):
            to[k] = widen(values[k])


@inner
def load_steps(source, row, head, begin, q, out):
    for j in range(q):
        out[j] = source[row, begin + j, head]


@inner
def copy(matrix, rows, cols, out):
    for j in range(rows):
        row, to = matrix[j], out[j]
        for k in range(cols):
            to[k] = row[k]


@inner
def clear(matrix):
    for j in range(matrix.shape[0]):
        row = matrix[j]
        for k in range(row.shape[0]):
            row[k] = 0


@native
def flush(matrix):
    """Zero for what is about to be a denormal: a state that fades among zeros would compute 30 times as long."""
    tiny = matrix.dtype.type(1e-37 if matrix.itemsize == 4 else 1e-307)
    for j in range(matrix.shape[0]):
        row = matrix[j]
        for k in range(row.shape[0]):
            row[k] = matrix.dtype.type(0) if abs(row[k]) < tiny else row[k]


@inner
def transpose(matrix, rows, cols, out):
    for k in range(cols):
        to = out[k]
        for j in range(rows):
            to[j] = matrix[j, k]


@inner
def scale_rows(matrix, factors, q):
    for j in range(q):
        values, factor = matrix[j], factors[j]
        for k in range(values.shape[0]):
            values[k] *= factor


@inner
def scale_columns(matrix, factors, q, rows):
    for k in range(rows):
        values = matrix[k]
        for j in range(q):
            values[j] *= factors[j]


@inner
def store_steps(values, row, head, begin, q, out):
    for j in range(q):
        out[row, begin + j, head] = values[j]


@inner
def store_transposed(values, q, n, part, row, begin, group, out):
    """Columns 0 to q of values (n, TILE) as the steps from `begin` on of out (parts, b, l, g, n)."""
    for j in range(q):
        to = out[part, row, begin + j, group]
        for k in range(n):
            to[k] = narrow(values[k, j], to[k])


@inner
def edges(log_a, from_start, to_end, q):
    """e and w."""
    from_start[0] = log_a[0]
    for i in range(1, q):
        from_start[i] = from_start[i - 1] + log_a[i]
    to_end[q - 1] = 0
    for j in range(q - 2, -1, -1):
        to_end[j] = to_end[j + 1] + log_a[j + 1]
    _exponentials(from_start, q)
    _exponentials(to_end, q)


@inner
def mask(log_a, G, sums, L, M, q):
    """L and M, below their diagonals and on them; `sums` is room for TILE numbers."""
    sums[:] = 0
    for i in range(q):
        _mask_row(log_a[i], G[i], sums, L[i], M[i], i)


@inner
def _exponentials(values, q):
    for j in range(q):
        values[j] = exp(values[j])


@inner
def _mask_row(step, G_i, sums, L_i, M_i, i):
    """Row i, from the sums of the row above. A diagonal of ones: no step lies between i and i."""
    for j in range(i):
        sums[j] += step
        L_i[j] = exp(sums[j])
        M_i[j] = L_i[j] * G_i[j]
    L_i[i] = 1
    M_i[i] = G_i[i]


@inner
def finish(Y, x, D, z, gated, row, head, begin, q, y):
    """y = Y + D x, times silu(z) where `gated`."""
    for j in range(q):
        t = begin + j
        if gated:
            _gated(Y[j], x[row, t, head], D[head], z[row, t, head], y[row, t, head])
        else:
            _with_skip(Y[j], x[row, t, head], D[head], y[row, t, head])


@inner
def _with_skip(Y, x, D, y):
    for k in range(y.shape[0]):
        y[k] = narrow(Y[k] + D[k] * widen(x[k]), y[k])


@inner
def _gated(Y, x, D, z, y):
    for k in range(y.shape[0]):
        gate = widen(z[k])
        y[k] = narrow((Y[k] + D[k] * widen(x[k])) * (gate * sigmoid(gate)), y[k])


# --- Forward --------------------------------------------------------------------------------------


@inner
def outputs(C, state, enters, from_start, M, xbar, Y, q, n, p):
    """Y (q, p), without D and z. A state that does not enter is zero."""
    if enters:
        multiply(C, AS_IS, state, Y, q, p, n, 0.0, ALL)
        scale_rows(Y, from_start, q)
        multiply(M, AS_IS, xbar, Y, q, p, q, 1.0, A_LOWER)
    else:
        multiply(M, AS_IS, xbar, Y, q, p, q, 0.0, A_LOWER)


@inner
def advance(state, B, xbar, from_start, to_end, enters, q, n, p):
    """The state after the tile, in place. xbar is scaled in place too."""
    scale_rows(xbar, to_end, q)
    multiply(B, TRANSPOSED, xbar, state, n, p, q, float(from_start[q - 1]) if enters else 0.0, ALL)
    flush(state)


# --- Gradient -------------------------------------------------------------------------------------


@inner
def undo_gate(dY, Y, x, D, z, row, head, begin, q, dz):
    """dz, and dY before the gate in place of that behind it; Y as `outputs` gave it."""
    for j in range(q):
        t = begin + j
        _undo_gate(dY[j], Y[j], x[row, t, head], D[head], z[row, t, head], dz[row, t, head])


@inner
def _undo_gate(dY, Y, x, D, z, dz):
    for k in range(dz.shape[0]):
        gate = widen(z[k])
        s = sigmoid(gate)
        dz[k] = narrow(dY[k] * (Y[k] + D[k] * widen(x[k])) * (s + gate * s * (1 - s)), dz[k])
        dY[k] *= gate * s


@summing
def through_state(dX, xbar, to_end, dto_end, q, p):
    """dX = w (B dS) in place of B dS, and its product with xbar: the gradient of log w."""
    for j in range(q):
        dX_j, xbar_j, w = dX[j], xbar[j], to_end[j]
        total = dX.dtype.type(0)
        for k in range(p):
            dX_j[k] *= w
            total += dX_j[k] * xbar_j[k]
        dto_end[j] = total


@summing
def through_mask(dM, L, M, sums, dG, dlog_a, q):
    """dG += dM L, and dlog_a: a step's gradient is the sum of dM M over all stretches that it is part of."""
    sums[:] = 0  # over row i and those below
    for i in range(q - 1, -1, -1):
        dM_i, L_i, M_i, dG_i = dM[i], L[i], M[i], dG[i]
        total = dM.dtype.type(0)
        for j in range(i):
            dG_i[j] += dM_i[j] * L_i[j]
            sums[j] += dM_i[j] * M_i[j]
            total += sums[j]
        dG_i[i] += dM_i[i]
        dlog_a[i] = total


@inner
def through_entry(E, C_T, from_start, dfrom_start, dC_T, q, n):
    """For E = S dYᵀ (n, q): dCᵀ += e E, and the gradient of log e."""
    dfrom_start[:] = 0
    for k in range(n):
        E_k, C_k, dC_k = E[k], C_T[k], dC_T[k]
        for i in range(q):
            part = from_start[i] * E_k[i]
            dC_k[i] += part
            dfrom_start[i] += part * C_k[i]


@summing
def dot(a, b, rows, cols):
    total = a.dtype.type(0)
    for j in range(rows):
        a_j, b_j = a[j], b[j]
        for k in range(cols):
            total += a_j[k] * b_j[k]
    return total


@inner
def sum_stretches(dlog_a, dfrom_start, dto_end, dwhole, q):
    """dlog_a += a step's share in the decays from the start (to it or beyond), to the end (from before it), of all."""
    behind = dwhole
    for i in range(q - 1, -1, -1):
        behind += dfrom_start[i]
        dlog_a[i] += behind
    before = dlog_a.dtype.type(0)
    for j in range(q):
        dlog_a[j] += before
        before += dto_end[j]


@summing
def finish_inputs(dX, dY, x, steps, D, row, head, begin, q, dx, ddt, here, dD):
    """dx and ddt from dX = dxbar, with what the skip D x adds; dD (h, p) is a running sum, `here` this tile's part."""
    # A loop for each result: of six arrays in one loop the compiler makes no SIMD.
    D_h, dD_h = D[head], dD[row, head]
    here[:] = 0
    for j in range(q):
        dX_j, dY_j, dx_j, step = dX[j], dY[j], dx[row, begin + j, head], steps[j]
        for k in range(dx_j.shape[0]):
            dx_j[k] = narrow(step * dX_j[k] + D_h[k] * dY_j[k], dx_j[k])
    for j in range(q):
        dX_j, x_j = dX[j], x[row, begin + j, head]
        total = dX.dtype.type(0)
        for k in range(x_j.shape[0]):
            total += dX_j[k] * widen(x_j[k])
        ddt[row, begin + j, head] = total
    for j in range(q):
        dY_j, x_j = dY[j], x[row, begin + j, head]
        for k in range(x_j.shape[0]):
            here[k] += dY_j[k] * widen(x_j[k])
    for k in range(dD_h.shape[0]):
        dD_h[k] += here[k]
