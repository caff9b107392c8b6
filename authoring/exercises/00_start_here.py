# %% [markdown]
# # Exercises 00: a memory of one number
#
# Three functions. Fill in a stub, run its cell, run the check below it. Nothing is lost when a check
# fails, and nothing you write here is ever overwritten. `hint("start.run_memory")` helps three times,
# `solution("start.run_memory")` opens after one honest try. Run a cell with **Shift + Enter**. A check judges the
# function as it was when its cell last ran to the end; if that cell shows an error, mend it first. The
# library's own version of what you are to write (`linear_scan`) may not be called; the check says so if you do.
#
# The lesson: [00 Start here](../notebooks/00_start_here.ipynb).

# %%
import torch
from ssmcourse import check, hint, progress, solution
from ssmcourse.explore import MatrixView, curves, show
from torch import Tensor

# %% [markdown]
# ## 1. `run_memory` (difficulty 1, 5 minutes)
#
# The memory of the lesson: $h_t = a\,h_{t-1} + x_t$, starting from nothing ($h_{-1} = 0$).
#
# | | shape | |
# |---|---|---|
# | `a` | a number | the part that is kept |
# | `x` | `(l,)` | the inputs, a floating-point tensor |
# | returns | `(l,)` | all the states $h_0 \ldots h_{l-1}$, in the dtype of `x` |
#
# Worked example: `run_memory(0.5, torch.tensor([1.0, 0, 2, 0]))` is `[1, 0.5, 2.25, 1.125]`. A loop is fine. `x` itself must
# not change, and gradients must flow back to `x`.


# %%
def run_memory(a: float, x: Tensor) -> Tensor:
    """h_t = a h_{t-1} + x_t for every step: x (l,) -> h (l,)."""
    ### BEGIN SOLUTION
    h, states = torch.zeros((), dtype=x.dtype), []
    for x_t in x:
        h = a * h + x_t
        states.append(h)
    return torch.stack(states)
    ### END SOLUTION


# %%
report = check(run_memory)
report

# %% [markdown]
# When it passes, the next cell draws the life of one input with *your* function, for three memories.

# %%
if report.passed:
    pulse = torch.zeros(40)
    pulse[0] = 1.0
    show(
        curves(
            {f"a = {a}": run_memory(a, pulse) for a in (0.5, 0.8, 0.95)},
            x_name="steps since the input arrived",
            y_name="what is left of it",
        ),
        alt="Three decaying curves: the closer a is to 1, the longer an input lives.",
    )

# %% [markdown]
# ## 2. `memory_matrix` (difficulty 1, 8 minutes)
#
# The same memory as a matrix: $M_{ij} = a^{i-j}$ on and below the diagonal, 0 above.
#
# | | shape | |
# |---|---|---|
# | `a` | a number | may be 0, may be negative |
# | `l` | an integer | the length |
# | returns | `(l, l)` | any floating dtype |
#
# Worked example: `memory_matrix(0.5, 3)` is `[[1, 0, 0], [0.5, 1, 0], [0.25, 0.5, 1]]`. Think about `a = 0`:
# what should remain?


# %%
def memory_matrix(a: float, l: int) -> Tensor:
    """M[i, j] = a ** (i - j) for i >= j, else 0: (l, l)."""
    ### BEGIN SOLUTION
    lag = torch.arange(l)[:, None] - torch.arange(l)[None, :]
    return torch.where(lag >= 0, torch.tensor(float(a)) ** lag.clamp(min=0), 0.0)
    ### END SOLUTION


# %%
report = check(memory_matrix)
report

# %%
MatrixView(memory_matrix(0.9, 24), title="your M, a = 0.9") if report.passed else None

# %% [markdown]
# ## 3. `gated_matrix` (difficulty 2, 12 minutes)
#
# Now every step has its own gate: $h_t = a_t h_{t-1} + x_t$, so input $j$ reaches output $i$ multiplied by all
# the gates in between, $M_{ij} = a_{j+1} a_{j+2} \cdots a_i$. The empty product, on the diagonal, is 1. The gate
# $a_0$ acts on the nothing before the first input and appears nowhere.
#
# | | shape | |
# |---|---|---|
# | `a` | `(l,)` | one gate a step, a floating-point tensor; any of them may be 0, or negative |
# | returns | `(l, l)` | in the dtype of `a` |
#
# Gradients must flow back to `a`. Worked example: `gated_matrix(torch.tensor([0.3, 0.5, 0.2, 2.0]))` is
#
# ```
# 1     0     0     0
# 0.5   1     0     0
# 0.1   0.2   1     0
# 0.2   0.4   2.0   1
# ```
#
# Row 2, column 0: $a_1 a_2 = 0.5 \cdot 0.2 = 0.1$. This matrix, with $a_t$ computed from the input, is the heart
# of Mamba.


# %%
def gated_matrix(a: Tensor) -> Tensor:
    """M[i, j] = a[j+1] * ... * a[i] for i >= j, else 0: a (l,) -> (l, l)."""
    ### BEGIN SOLUTION
    l = len(a)
    row = torch.zeros(l, dtype=a.dtype)
    rows = []
    for i in range(l):
        here = torch.arange(l) == i
        row = torch.where(here, torch.ones_like(row), a[i] * row)  # everything older passes through gate i
        rows.append(row)
    return torch.stack(rows)
    ### END SOLUTION


# %%
report = check(gated_matrix)
report

# %%
gates = torch.full((24,), 0.9)
gates[[8, 16]] = 0.0
MatrixView(gated_matrix(gates), title="your M with gates: two resets") if report.passed else None

# %% [markdown]
# ## Done?
#
# `progress()` shows what you have passed and what comes next.

# %% tags=["nbval-ignore-output"]
progress()
