# %% [markdown]
# # 00 Start here: a memory of one number
#
# What is the smallest machine that remembers anything? This lesson builds it, draws it, and lets you write it
# yourself. The drawing is a triangle. You will meet it again in most lessons, up to Mamba, where it looks only a
# little different.
#
# Twenty-five minutes, and as long again for the exercises. Run a cell with **Shift + Enter** and change what you
# like: this is your own copy, in `work/`, and nothing overwrites it. (Numbers above 01 point to lessons that are
# still being written.)

# %%
import torch

from ssmcourse import explore, linear_scan, predict
from ssmcourse.explore import MatrixView, curves, show, stored_result

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)

# %% [markdown]
# ## Predict
#
# Here is a memory of one number. At every step it keeps a part `a` of what it holds and adds what
# comes in:
#
# $$h_t = a\,h_{t-1} + x_t$$
#
# Take `a = 0.5`. Feed it a single 1, then zeros. **After how many steps is less than a hundredth
# left?** And with `a = 0.9`? Put a number in place of each `None`, then run the cell. A guess costs
# nothing; it waits here until the answer comes.

# %%
predict("start.half", None, question="a = 0.5: after how many steps is less than 1/100 left?")

# %%
predict("start.nine_tenths", None, question="a = 0.9: after how many steps is less than 1/100 left?")

# %% [markdown]
# ## Derive
#
# **Step 1. Run it.** The loop below is the memory, all of it.


# %%
def run(a, x):
    """h_t = a h_{t-1} + x_t, starting from nothing; x (l,) -> h (l,)."""
    h, out = torch.zeros(()), []
    for x_t in x:
        h = a * h + x_t
        out.append(h)
    return torch.stack(out)


pulse = torch.zeros(8)
pulse[0] = 1.0
print(run(0.5, pulse))

# %% [markdown]
# The 1 came in at step 0. One step later half of it is left, then a quarter. Count until it drops
# below a hundredth:


# %%
def life(a, left=0.01):
    """Steps until less than `left` remains of an input."""
    steps, h = 0, 1.0
    while h >= left:
        steps, h = steps + 1, a * h
    return steps


predict.show("start.half", life(0.5))

# %%
predict.show("start.nine_tenths", life(0.9))

# %% [markdown]
# Seven steps with `a = 0.5`, forty-four with `a = 0.9`: keeping nine tenths instead of half makes the memory
# reach back six times as far. With 0.99 it would be 459. Nearly all of a memory's reach lies in the last tenth,
# between 0.9 and 1.
#
# **Step 2. Every input lives the same life.** The numbers above belong to an input that arrived at
# step 0. What about one that arrives at step 3?

# %%
later = torch.zeros(8)
later[3] = 1.0
print(run(0.5, later))

# %% [markdown]
# The same life, three places further down. So write the life of the first input as a column, and next
# to it the column of each later input, shifted down one place more:

# %%
l = 8
M = torch.stack(
    [run(0.5, one_hot) for one_hot in torch.eye(l)], dim=1
)  # (l, l): column j is the life of input j
print(M)

# %% [markdown]
# **Step 3. This triangle is the memory.** Row $i$ says what the output at step $i$ is made of. Column
# $j$ says what became of input $j$. Above the diagonal stand zeros: nothing is remembered before it
# happens. Move the mouse over the picture, or click it and use the arrow keys.

# %%
MatrixView(M, title="M for a = 0.5", row_name="output i", column_name="input j")

# %% [markdown]
# If the triangle really is the memory, then multiplying by it must give what the loop gives, for any
# input and not only for single ones. Here is a claim; the next cell tests it.

# %%
torch.manual_seed(0)
x = torch.randn(l)
difference = (run(0.5, x) - M @ x).abs().max()
print("the loop and the matrix agree to 1e-15:", bool(difference < 1e-15))
assert difference < 1e-15

# %% [markdown]
# Two programs, one map. The loop walks along the sequence and carries one number. The matrix holds all
# the answers at once and carries nothing. **For a given input, every layer of this course is such a map**,
# $y = Mx$ with $M$ lower triangular. Most algorithms of this course compute $Mx$ without writing $M$ down; some
# write only blocks of it. But $M$ is what we look at, and what we test against.
#
# **Step 4. The formula.** How does input $j$ reach output $i$? It is multiplied by $a$ once for each
# step in between, so
#
# $$M_{ij} = a^{\,i-j}\quad (i \ge j), \qquad M_{ij} = 0 \quad (i < j).$$
#
# With numbers: input 1 reaches output 3 after two steps, $M_{31} = 0.5^2 = 0.25$.

# %%
i, j = torch.arange(l)[:, None], torch.arange(l)[None, :]
by_formula = torch.where(i >= j, 0.5 ** (i - j).clamp(min=0), 0.0)
print("M[3, 1] =", M[3, 1].item())
assert torch.equal(by_formula, M)

# %% [markdown]
# **Step 5. Where `a` comes from.** Think of the memory as a leaking tank in continuous time,
# $h'(t) = A\,h(t)$ with $A < 0$. Left alone for a time $\Delta$ it keeps the part
#
# $$a = e^{\Delta A}.$$
#
# $A$ says how fast it leaks, $\Delta$ how much time passes between two inputs. With $A = -1$ and
# $\Delta = 0.1$: $a = e^{-0.1} = 0.905$. The tank is half empty after $\ln 2 / 0.1 \approx 6.9$ steps.
# For the decay only the product $\Delta A$ matters: a slow leak looked at rarely equals a fast leak looked at
# often. (How much of an input gets in is a question of its own, for lesson 02.) The cell lets the tank leak in a
# hundred thousand tiny steps and compares.

# %%
A, dt = torch.tensor(-1.0), torch.tensor(0.1)
a = torch.exp(dt * A)
half_life = torch.log(torch.tensor(2.0)) / (-dt * A)
leaked = (1 + A * dt / 100_000) ** 100_000  # h loses A h dt / 100,000 a hundred thousand times
print(f"a = {a:.4f}, leaking in tiny steps {leaked:.4f}, half-life {half_life:.2f} steps")
assert torch.isclose(a, leaked, rtol=1e-5)
assert torch.isclose(a**half_life, torch.tensor(0.5))

# %% [markdown]
# **Step 6. Several numbers.** One number can only fade. Give the memory $n$ numbers that leak at
# different speeds, and read them with weights $C$: $y_t = \sum_k C_k h_{k,t}$. The life of an input is
# now a mix of decays, and a mix can do more: rise first, then fade.

# %%
decays = torch.tensor([0.95, 0.8])
C = torch.tensor([1.0, -1.0])
lags = torch.arange(40)
kernel = (C[:, None] * decays[:, None] ** lags).sum(0)  # (40,): the life of one input
show(
    curves(
        {"0.95 minus 0.8": kernel, "0.95 alone": decays[0] ** lags},
        x=lags,
        x_name="steps since the input arrived",
        y_name="what is left of it",
    ),
    alt="The difference of two decays starts at 0, rises to 0.5 after nine steps, then fades; one decay only fades.",
)

# %% [markdown]
# Now $M_{ij} = \sum_k C_k a_k^{\,i-j}$. It still has one number per distance: it is constant along its diagonals,
# because an input's life does not depend on *when* it arrives. Such a matrix is a convolution, and that is what S4,
# the structured state space model, is made of (lesson 03). The test: run the two numbers and read them with $C$;
# multiply by the matrix; convolve with the kernel; compare all three.

# %%
M_mix = torch.where((lags[:, None] >= lags), kernel[(lags[:, None] - lags).clamp(min=0)], 0.0)
x = torch.randn(40)
convolved = torch.stack([(kernel[: t + 1].flip(0) * x[: t + 1]).sum() for t in range(40)])
by_loop = sum(c * run(a, x) for c, a in zip(C, decays, strict=True))
difference = torch.stack([M_mix @ x - convolved, M_mix @ x - by_loop]).abs().max()
print("loop, matrix and convolution agree to 1e-14:", bool(difference < 1e-14))
assert difference < 1e-14

# %% [markdown]
# **Step 7. Let the input decide.** So far the memory forgets on a fixed schedule, whatever it reads.
# Now give every step its own $a_t$:
#
# $$h_t = a_t\,h_{t-1} + x_t, \qquad M_{ij} = a_{j+1}\,a_{j+2}\cdots a_i.$$
#
# With numbers: if $a_2 = 0.9$ and $a_3 = 0.5$, then $M_{31} = 0.9 \cdot 0.5 = 0.45$. A gate near 1 holds
# everything; a gate of 0 wipes the slate. Below we set the gates by hand: hold, and forget at steps 10 and 22, as
# if a full stop had been read there. In Mamba the input itself computes them. `linear_scan` is the library's loop
# for this; it takes a batch of sequences, hence `[None]` for a batch of one, and `[0]` to take it out again.

# %%
gates = torch.full((32,), 0.93)
gates[[10, 22]] = 0.0
M_gated = torch.stack([linear_scan(gates[None], e[None])[0] for e in torch.eye(32)], dim=1)
MatrixView(M_gated, title="M with a gate for every step", row_name="output i", column_name="input j")

# %% [markdown]
# The columns are no longer copies of each other. Input 9 lives for one step, input 11 for eleven. From row 10
# on, nothing of what came before is seen: the memory has started a new paragraph. **A memory that decides by what
# it reads what to keep: this is selection, which Mamba adds to state space models.** (An LSTM's gates did it before,
# but could not be computed in parallel.) Do the scan and the product formula agree?


# %%
def product(i, j):
    return torch.prod(gates[j + 1 : i + 1])  # the empty product is 1


by_products = torch.tensor([[product(i, j) if i >= j else 0.0 for j in range(32)] for i in range(32)])
difference = (M_gated - by_products).abs().max()
print("the scan and the products agree to 1e-15:", bool(difference < 1e-15))
assert difference < 1e-15

# %% [markdown]
# ## Implement
#
# Your turn, in [the exercises of this lesson](../exercises/00_start_here.ipynb). Each is a function of
# a few lines with instant checks, three hints, and a solution that opens after one honest try.
#
# | exercise | you write | difficulty | minutes | it unlocks |
# |---|---|---|---|---|
# | `run_memory` | the loop | 1 | 5 | the life of one input, drawn by your function |
# | `memory_matrix` | $M$ from one number | 1 | 8 | the picture, drawn by your own function |
# | `gated_matrix` | $M$ from a sequence of gates | 2 | 12 | the matrix inside Mamba, lesson 05 |
#
# ## See
#
# The memory of step 5, alive. Drag $A$ and $\Delta$, choose an input, and watch the curve and the
# triangle change together. Click a slider and use the arrow keys for small steps.

# %%
explore.memory()

# %% [markdown]
# Three things to try. Make $\Delta$ four times larger and $A$ four times smaller: once both are
# set, everything stands where it stood, as step 5 promised. Choose the two pulses and find the $A$ at which the first is just gone when the second
# arrives. Then tick *let Δ depend on the input*: a large input
# makes its own step long, and so wipes what came before it. Look for the columns that stop being copies.
#
# ## Measure
#
# The matrix and the loop give the same numbers. What do they cost? From the formulas:
#
# | | multiply-adds | numbers stored |
# |---|---|---|
# | the matrix, $l \times l$ | $l^2$ (half are zeros, still multiplied) | $l^2$ |
# | the loop | $l$ | 1, beside the outputs |
#
# For $l = 4096$ that is 16.8 million against 4,096, and 134 MB against 8 bytes in float64. So the loop
# should win by a factor of thousands. Two things will eat most of that: the matrix's products do not wait
# for each other while the loop's steps do (lesson 06 removes that), and every call has a fixed price. The
# next cell times both on your machine.

# %% tags=["timing"]
from time import perf_counter


def median_ms(f, rounds=7):
    times = []
    for _ in range(rounds):
        start = perf_counter()
        f()
        times.append(1e3 * (perf_counter() - start))
    return sorted(times)[rounds // 2]


l = 4096
x = torch.randn(l)
a_all = torch.full((1, l), 0.9)
lags = torch.arange(l)
M_big = torch.where(lags[:, None] >= lags, 0.9 ** (lags[:, None] - lags).clamp(min=0), 0.0)
linear_scan(a_all, x[None])  # the first call compiles
dense, scan = median_ms(lambda: M_big @ x), median_ms(lambda: linear_scan(a_all, x[None]))
print(f"M @ x: {dense:.2f} ms, the library's scan: {scan:.3f} ms, ratio {dense / scan:.0f}")

# %% [markdown]
# The stored figure below comes from a dated run of `benchmarks/memory.py`, with its machine named. At short
# lengths the matrix wins, because a call to the scan costs some fifty-five microseconds whatever it does. Then the square
# of the length takes over.

# %%
result = stored_result("memory")
print(result["date"], "|", result["machine"])
show(
    curves(
        {"M @ x": result["dense_ms"], "linear_scan": result["scan_ms"]},
        x=result["length"],
        x_name="length l",
        y_name="milliseconds (median of 15)",
        log_x=True,
        log_y=True,
    ),
    alt="Time against length: the dense product rises from a microsecond to 7 milliseconds, the scan from 53 to 112 "
    "microseconds.",
)

# %% [markdown]
# ## Break it
#
# **Turn `a` past 1.** The tank no longer leaks, it grows. How long does a float32 last?

# %%
grown = linear_scan(
    torch.full((1, 1200), 1.1, dtype=torch.float32), torch.ones(1, 1200, dtype=torch.float32)
)[0]
print("h at steps 10, 100, 900:", [f"{grown[k]:.3g}" for k in (10, 100, 900)])
print("first infinity at step", int(grown.isinf().nonzero()[0]))

# %% [markdown]
# $1.1^{l}$ passes the largest float32, $3.4 \cdot 10^{38}$, at about $l = 931$; the sum of all the inputs
# gets there two dozen steps earlier. That is why $a = e^{\Delta A}$ with $A < 0 < \Delta$: it
# lies between 0 and 1. Mamba does not leave the signs to chance, it trains $\log(-A)$ and puts $\Delta$ through a
# softplus, $\log(1 + e^z)$, which is always positive. The safety has a price. Such an $a$ is never
# negative, so no single number of this memory can flip back and forth, and lesson 13 shows what that
# makes impossible.
#
# **Take away the gate.** Is selection needed, or would a clever fixed memory do? A task: values arrive,
# some carry a flag, and the output must be *the last flagged value*. A gated memory does it exactly: at
# a flag, forget everything and take the value; else hold. Against it stands the best fixed memory: for *each* of the last
# 32 steps its own free weight, on the values, on the flags and on the flagged values, all fitted by least squares. If the
# fixed memory comes near zero error, our claim is wrong.


# %%
def flagged_task(seed, l=4000):
    """values (l,), flags (l,) of which one in five is set, target (l,): the last flagged value."""
    g = torch.Generator().manual_seed(seed)
    values, flags = torch.randn(l, generator=g), (torch.rand(l, generator=g) < 0.2).double()
    flags[0] = 1.0
    last = torch.cummax(torch.arange(l) * flags.long(), 0).values
    return values, flags, values[last]


def lagged(x, n=32):
    return torch.stack([torch.cat([torch.zeros(k), x[: len(x) - k]]) for k in range(n)], dim=1)  # (l, n)


def relative_error(y, target):
    return ((y - target).square().mean() / target.var()).item()


# %%
fixed, gated = [], []
for seed in range(5):
    (v, f, target), (v2, f2, target2) = flagged_task(seed), flagged_task(100 + seed)
    seen = torch.cat([lagged(v), lagged(f), lagged(v * f)], 1)  # (4000, 96)
    weights = torch.linalg.lstsq(seen, target[:, None]).solution
    seen2 = torch.cat([lagged(v2), lagged(f2), lagged(v2 * f2)], 1)
    fixed.append(relative_error((seen2 @ weights)[:, 0], target2))
    gated.append(relative_error(linear_scan((1 - f2)[None], (f2 * v2)[None])[0], target2))
print(f"best fixed memory: {min(fixed):.2f} to {max(fixed):.2f} over 5 seeds")
print(f"gated memory:      {min(gated):.2f} to {max(gated):.2f}")
assert min(fixed) > 0.3 and max(gated) < 1e-20

# %% [markdown]
# An error of 1 means "no better than always answering the mean". The fixed memory's error is just under one half, on data
# it was not fitted to, by trusting recent flagged values more. It cannot do better: how far back the last flag lies
# differs from step to step, and its weights do not. The gate reads the flag. Mamba's paper makes the same point
# with a harder task, selective copying (Gu and Dao 2023, Table 1); lesson 05 trains on it.
#
# ## Remember
#
# 1. A memory of one number: $h_t = a h_{t-1} + x_t$.
# 2. As a matrix: $M_{ij} = a^{i-j}$ on and below the diagonal. Rows: what an output is made of. Columns:
#    the life of an input.
# 3. $a = e^{\Delta A}$ with $A < 0$: for the decay only $\Delta A$ matters, and $a$ stays between 0 and 1.
# 4. Fixed $a$: constant diagonals, a convolution. Gates $a_t$: $M_{ij} = a_{j+1} \cdots a_i$, columns differ.
# 5. The loop costs $l$, the matrix $l^2$, and they are the same map.
#
# **Ask yourself**
#
# <details><summary>With a = 0.99, about how many steps until half is left?</summary>
# ln 2 / −ln 0.99 ≈ 69. A rule of thumb: 0.7 / (1 − a).</details>
#
# <details><summary>What does M look like when every gate is 0? When every gate is 1?</summary>
# All zeros but the diagonal: the identity, no memory. All ones on and below the diagonal: a running sum that
# never forgets.</details>
#
# <details><summary>Row 20 of a gated M is zero up to column 14. What happened?</summary>
# The gate at step 15 was 0: everything before it was wiped, the input of step 15 itself came in after.</details>
#
# **The letters of this course.** The papers disagree about names. We keep one set:
#
# | here | meaning | in the S4 papers | in the Mamba papers |
# |---|---|---|---|
# | `x`, `y` | input and output of a layer | $u$, $y$ | $x$, $y$ |
# | `h` | the state, what is remembered | $x$ | $h$ |
# | `dt` | $\Delta$, the time of one step | $\Delta$ | $\Delta$ |
# | `A`, `B`, `C`, `D` | continuous parameters, the minus inside `A` | the same | the same |
# | `A_bar`, `B_bar` | after discretisation | $\bar A$, $\bar B$ | $\bar A$, $\bar B$ |
# | b, l, d, n | batch, length, channel, state size | B, L, H, N | B, L, D, N |
#
# **Where next.** One number remembers one thing: a faded sum. How would you choose 64 numbers so that
# together they remember a *whole past*? [Lesson 01](01_hippo.ipynb) answers with HiPPO. To put it into
# your `work/` folder, run `ssmcourse next` in a terminal.
