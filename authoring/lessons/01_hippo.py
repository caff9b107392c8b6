# %% [markdown]
# # 01 HiPPO: which 64 numbers hold a whole past?
#
# A signal comes in, sample by sample, for as long as you like. You may keep 64 numbers. At any moment
# somebody may ask what the signal looked like, *all of it, since the beginning*. Which 64 numbers do you
# keep, and how do you update them without ever looking back?
#
# Draw the past as a polynomial, and say what "close" shall mean: then the best 64 numbers are determined, and they
# follow a differential equation. Gu, Dao, Ermon, Rudra and Ré found it in 2020 and called it HiPPO, for high-order polynomial projection operators. S4
# (lesson 03) starts from its matrix. Here we derive it, every step with a cell that checks it. An hour, and about as
# long for the exercises.

# %%
import sympy as sp
import torch

from ssmcourse import explore, hippo_matrix, hippo_project, hippo_reconstruct, predict
from ssmcourse.explore import MatrixView, curves, show, stored_result
from ssmcourse.tasks.signals import band_limited_noise, photo_row

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
torch.set_printoptions(precision=3, sci_mode=False)

# %% [markdown]
# ## Predict
#
# The signal is noise with no more than 16 cycles in the whole record, in 2,000 samples. You keep 64 numbers,
# updated once a sample. At the end you draw the whole past from them. **How large is the error**, as a
# part of the signal's own variance? Half (0.5)? A hundredth?

# %%
predict(
    "hippo.error", None, question="64 numbers for 2,000 samples: relative squared error of the whole past?"
)

# %% [markdown]
# The same signal, recorded at half the rate: 1,000 samples. Nothing is retuned. **By how many per cent
# do the 64 numbers at the end change?**

# %%
predict(
    "hippo.rate", None, question="The same signal at half the sampling rate: change of the numbers, in %?"
)

# %% [markdown]
# ## Derive
#
# *Letters, as in the HiPPO paper:* $f$ is the input, $x$ a moment of the past, $c$ the numbers that are kept (the
# state), $N$ how many. $c_n$ is one of them; in step 7, $c_k$ are all of them after sample $k$.
#
# **Step 1. One number.** If you may keep a single number about the past, keep its mean:
#
# $$c(t) = \frac1t\int_0^t f(x)\,dx.$$
#
# To update it without looking back, differentiate. The product rule gives two terms, one for the factor
# $1/t$ and one for the upper limit of the integral:
#
# $$c'(t) = -\frac1{t^2}\int_0^t f\,dx + \frac1t f(t) = \frac1t\bigl(-c(t) + f(t)\bigr).$$
#
# With numbers: after 4 seconds the mean is 2, and now $f = 10$. Then $c' = (10-2)/4 = 2$ per second.
# In steps of one sample, $c_k = c_{k-1} + (f_k - c_{k-1})/k$, the running mean. It needs no past.

# %%
f = torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0])
c = torch.tensor(0.0)
for k, f_k in enumerate(f, start=1):
    c = c + (f_k - c) / k
    print(f"after {k} samples: kept {c:.4f}, mean {f[:k].mean():.4f}")
assert torch.isclose(c, f.mean())

# %% [markdown]
# The factor $1/k$ is a gate: $c_k = (1 - \gamma)\,c_{k-1} + \gamma f_k$ with $\gamma = 1/k$. The longer the past, the
# less a new sample moves it. Keep this line in mind; Mamba will compute $\gamma$ from the input.
#
# **Step 2. Two numbers, then N.** The mean knows the height of the past. A second number can hold its
# slope, a third its bend. Ask for the polynomial of degree less than $N$ that is closest to $f$ on
# $[0, t]$, all instants of the past weighted equally. The best tools are Legendre polynomials $P_n$,
# because they are orthogonal under exactly that weighting. Stretched to $[0, t]$ and normalised:
#
# $$g_n(t, x) = \sqrt{2n+1}\;P_n\!\left(\frac{2x}{t} - 1\right), \qquad \frac1t\int_0^t g_n g_k\,dx = \begin{cases}1 & n = k\\ 0 & n \ne k\end{cases}$$


# %%
def legendre_basis(n, points):
    """g_0 .. g_{n-1} at points in [0, 1] of the window: (points,) -> (points, n)."""
    z = 2 * points - 1
    P = [torch.ones_like(z), z]
    for k in range(1, n - 1):
        P.append(((2 * k + 1) * z * P[k] - k * P[k - 1]) / (k + 1))  # Bonnet's recursion
    return torch.stack(P[:n], dim=1) * torch.sqrt(2 * torch.arange(n) + 1.0)


points = (torch.arange(20_000) + 0.5) / 20_000  # midpoints
g = legendre_basis(6, points)
print((g.T @ g / len(points)).round(decimals=3) + 0.0)  # the table of all inner products
assert torch.allclose(g.T @ g / len(points), torch.eye(6), atol=1e-6)

# %% [markdown]
# For an orthonormal basis the best coefficients are inner products, and the best approximation is the sum:
#
# $$c_n(t) = \frac1t\int_0^t f(x)\,g_n(t, x)\,dx, \qquad \hat f(x) = \sum_n c_n(t)\,g_n(t, x).$$
#
# Best, really? The next cell pits the inner products against a least-squares solver, which knows nothing
# of Legendre.

# %%
signal = band_limited_noise(20_000, cycles=3, seed=0)
by_projection = g.T @ signal / len(points)  # (6,)
powers = points[:, None] ** torch.arange(6)  # 1, x, x^2, ...
by_solver = powers @ torch.linalg.lstsq(powers, signal[:, None]).solution[:, 0]
gap = (g @ by_projection - by_solver).abs().max()
print("the two approximations agree to 1e-5:", bool(gap < 1e-5))
assert gap < 1e-5

# %%
show(
    curves(
        {"the past": signal[::100], "6 numbers": (g @ by_projection)[::100]},
        x=points[::100],
        x_name="position in the past (0 oldest, 1 now)",
        y_name="signal",
    ),
    alt="A smooth random signal and its best polynomial of degree five, which follows its large bends.",
)

# %% [markdown]
# **Step 3. Differentiate the projection.** As in step 1, but now $t$ stands in three places: in the
# factor, in the limit, and inside $g_n$, since the ruler itself is stretched as time goes on:
#
# $$c_n' = \underbrace{-\frac1t c_n}_{\text{factor}} + \underbrace{\frac1t f(t)\,g_n(t,t)}_{\text{limit}}
# + \underbrace{\frac1t\int_0^t f(x)\,\frac{\partial g_n}{\partial t}(t,x)\,dx}_{\text{ruler}}.$$
#
# The limit term is easy: at $x = t$ the argument of $P_n$ is 1, and $P_n(1) = 1$, so $g_n(t,t) =
# \sqrt{2n+1}$. The hard one is the ruler. With $z = 2x/t - 1$, the chain rule gives
# $\partial z/\partial t = -2x/t^2 = -(z+1)/t$, so
#
# $$\frac{\partial g_n}{\partial t} = -\frac{\sqrt{2n+1}}{t}\,(z+1)\,P_n'(z).$$
#
# This is a polynomial of degree $n$ in $z$, so it must be a mix of $P_0 \ldots P_n$. Which mix? Let SymPy
# say it for the first few:

# %%
z = sp.symbols("z")


def in_legendre(polynomial, n):
    """Coefficients of a polynomial in P_0 .. P_n, exact."""
    return [
        sp.Rational(2 * k + 1, 2) * sp.integrate(sp.expand(polynomial * sp.legendre(k, z)), (z, -1, 1))
        for k in range(n + 1)
    ]


for n in range(6):
    print(n, in_legendre((z + 1) * sp.diff(sp.legendre(n, z), z), n))

# %% [markdown]
# The pattern is plain: the coefficient of $P_n$ is $n$, and below it stand the odd numbers $2k+1$:
#
# $$(z+1)\,P_n'(z) = n\,P_n(z) + \sum_{k<n}(2k+1)\,P_k(z).$$
#
# (To prove it for all $n$, add the two classical recursions $z P_n' - P_{n-1}' = n P_n$ and $P_n' + P_{n-1}' =
# \sum_{k<n}(2k+1)P_k$. The cell checks both, and their sum, for $n = 1 \ldots 11$.)

# %%
for n in range(1, 12):
    P, dP, dP1 = sp.legendre(n, z), sp.diff(sp.legendre(n, z), z), sp.diff(sp.legendre(n - 1, z), z)
    odd_sum = sum((2 * k + 1) * sp.legendre(k, z) for k in range(n))
    assert sp.expand(z * dP - dP1 - n * P) == 0
    assert sp.expand(dP + dP1 - odd_sum) == 0
    assert sp.expand((z + 1) * dP - n * P - odd_sum) == 0
print("both recursions and the identity hold exactly for n = 1 .. 11")

# %% [markdown]
# **Step 4. Put it together.** Every $P_k$ in the ruler term, under the integral with $f$, is a
# coefficient that we already keep: $\frac1t\int f\,P_k\,dx = c_k/\sqrt{2k+1}$. So the past drops out:
#
# $$c_n' = \frac1t\Bigl(-c_n - n\,c_n - \sum_{k<n}\sqrt{2n+1}\,\sqrt{2k+1}\;c_k + \sqrt{2n+1}\,f(t)\Bigr),$$
#
# or, as a matrix,
#
# $$\boxed{\;c'(t) = \frac1t\bigl(A\,c(t) + B\,f(t)\bigr)\;}\qquad
# A_{nk} = -\begin{cases}\sqrt{(2n+1)(2k+1)} & n > k\\ n+1 & n = k\\ 0 & n < k\end{cases}\qquad
# B_n = \sqrt{2n+1}.$$
#
# This is HiPPO-LegS, the *scaled Legendre* memory (paper, Theorem 2). We put the minus inside $A$, as S4 does. For $N = 1$ it says
# $c' = (f - c)/t$, and we are back at the running mean. For $N = 3$, in numbers:

# %%
A, B = hippo_matrix("legs", 3)
print(A + 0.0)  # + 0.0 turns -0 into 0
print(B)
assert torch.isclose(A[2, 1], -torch.sqrt(torch.tensor(5.0 * 3.0)))

# %% [markdown]
# Does the equation hold for a real past? Take $f(x) = x^2$: all integrals can be done exactly, so both
# sides can be compared symbol by symbol.

# %%
t, x = sp.symbols("t x", positive=True)
f_sym = x**2
c_sym = [
    sp.integrate(f_sym * sp.sqrt(2 * n + 1) * sp.legendre(n, 2 * x / t - 1), (x, 0, t)) / t for n in range(4)
]
for n in range(4):
    right = (
        sum(
            -(n + 1) * c_sym[k] if n == k else -sp.sqrt((2 * n + 1) * (2 * k + 1)) * c_sym[k]
            for k in range(n + 1)
        )
        + sp.sqrt(2 * n + 1) * t**2
    )
    assert sp.simplify(sp.diff(c_sym[n], t) - right / t) == 0
print("c' = (A c + B f) / t holds exactly for f = x^2 and n = 0 .. 3")

# %% [markdown]
# Look at the matrix for $N = 32$. It is lower triangular: a coarse number never needs to know a fine
# one. Each row is stronger than the one above, because fine detail must be rewritten faster as the ruler
# stretches. (This triangle is not the $M$ of lesson 00: its rows and columns are the kept numbers, not time steps.)

# %%
A32, _ = hippo_matrix("legs", 32)
MatrixView(A32, title="A of HiPPO-LegS", row_name="changes number n", column_name="number k")

# %% [markdown]
# **Step 5. A sliding window instead: LegT, *translated Legendre*.** LegS weighs the whole past equally. Often only the last
# $\theta$ seconds matter. Move the window: weight $1/\theta$ on $[t-\theta, t]$. Now the ruler does not
# stretch, it slides, and *both* limits of the integral move:
#
# $$c_n' = \frac1\theta\Bigl(\sqrt{2n+1}\,f(t) - (-1)^n\sqrt{2n+1}\;f(t-\theta)\Bigr) + \text{(ruler)}.$$
#
# Here is a difficulty: $f(t-\theta)$ is the sample that leaves the window, and we threw it away long ago.
# All we have is our own approximation of it, so we use that: $f(t-\theta)\approx\sum_k c_k\sqrt{2k+1}\,(-1)^k$.
# The rest goes as before, with $P_n' = (2n-1)P_{n-1} + (2n-5)P_{n-3} + \dots$ for the ruler, and gives
# (Theorem 1; the paper's numbers are ours times $(-1)^n\sqrt{2n+1}$, the scaling of the Legendre Memory Unit, `lmu`,
# of Voelker, Kajić and Eliasmith 2019, who had this system first)
#
# $$A_{nk} = -\frac1\theta\sqrt{(2n+1)(2k+1)}\begin{cases}1 & n \ge k\\ (-1)^{n-k} & n < k\end{cases}\qquad B_n = \frac1\theta\sqrt{2n+1}.$$
#
# The next cell builds the two parts separately, the limits and the ruler, and compares their sum; then the paper's
# scaling with `lmu`.

# %%
N, theta = 8, 2.0
n = torch.arange(N)
root, sign = torch.sqrt(2.0 * n + 1), (-1.0) ** n
leaving = -torch.outer(sign * root, sign * root)  # -g_n(old end) g_k(old end)
ruler = torch.tensor(
    [
        [-2 * ((2 * k + 1) * root[r] / root[k] if k < r and (r - k) % 2 else 0.0) for k in range(N)]
        for r in range(N)
    ]
)
A_legt, B_legt = hippo_matrix("legt", N, theta=theta)
print("limits and ruler make A:", torch.allclose((leaving + ruler) / theta, A_legt, rtol=1e-12))
assert torch.allclose((leaving + ruler) / theta, A_legt, rtol=1e-12)
assert torch.allclose(root / theta, B_legt, rtol=1e-12)
scaling = sign * root
A_lmu, _ = hippo_matrix("lmu", N, theta=theta)
assert torch.allclose(scaling[:, None] * A_legt / scaling, A_lmu, rtol=1e-12)
for r in range(1, 9):  # the identity that the ruler rests on
    odd = sum((2 * k + 1) * sp.legendre(k, z) for k in range(r - 1, -1, -2))
    assert sp.expand(sp.diff(sp.legendre(r, z), z) - odd) == 0

# %% [markdown]
# **Step 6. A fading past: LagT, *translated Laguerre*.** One more choice of what matters: weight $e^{-s}$ for what is
# $s = t - x$ old, recent things more, nothing ever quite forgotten. The polynomials that are orthogonal under this
# weight are Laguerre's, $L_n(s)$, and the numbers are $c_n = \int_{-\infty}^t f(x)\,L_n(s)\,e^{-s}\,dx$. Differentiate: the limit
# gives $f(t)\,L_n(0) = f(t)$, the rest $\int f\,(L_n' - L_n)\,e^{-s}dx$, and $L_n' = -\sum_{k<n} L_k$. So
#
# $$c_n' = f - c_n - \sum_{k<n} c_k,$$
#
# the simplest matrix of all: $-1$ on and below the diagonal, $B_n = 1$.

# %%
s = sp.symbols("s")
for n in range(1, 9):
    smaller = sum(sp.laguerre(k, s) for k in range(n))
    assert sp.expand(sp.diff(sp.laguerre(n, s), s) + smaller) == 0
    assert sp.laguerre(n, 0) == 1
A_lagt, B_lagt = hippo_matrix("lagt", 4)
assert torch.equal(A_lagt, -torch.ones(4, 4).tril()) and torch.equal(B_lagt, torch.ones(4))
print(A_lagt + 0.0)

# %% [markdown]
# The three choices, drawn as what they weigh. The papers call such a weighting a *measure*:

# %%
past = torch.linspace(0, 4, 200)  # seconds; now is t = 4
show(
    curves(
        {
            "LegS: all equally": torch.full_like(past, 0.25),
            "LegT, θ = 1": (past >= 3).double(),
            "LagT: fading": torch.exp(past - 4),
        },
        x=past,
        x_name="time x (s); now is 4",
        y_name="weight of the past",
    ),
    alt="Three weightings of the past: a flat line over all of it, a box over the last second, a rising exponential.",
)

# %% [markdown]
# **Step 7. From the equation to steps.** Samples come one at a time; sample $k$ arrives at $t = k\Delta$.
# The obvious rule, forward Euler, multiplies the right side by $\Delta$. Then $\Delta$ meets $1/t =
# 1/(k\Delta)$ and disappears:
#
# $$c_k = c_{k-1} + \frac1k\bigl(A\,c_{k-1} + B\,f_k\bigr).$$
#
# There is no step size left to tune. But at $k = 1$ the matrix $I + A$ has entries down to about $-2N$, so Euler's
# first steps overshoot. **Bilinear** keeps $1/t$ at $1/k$ and takes the mean of $Ac$ before and
# after,
#
# $$c_k = c_{k-1} + \frac1k\Bigl(A\,\frac{c_{k-1} + c_k}{2} + B\,f_k\Bigr),$$
#
# which has $c_k$ on both sides: solve for it. Backward Euler takes $Ac$ after. Zero-order hold solves the equation
# exactly for a sample that is held from $t = k$ to $k + 1$ (from $k - 1$ to $k$ would be infinite for $k = 1$), with $\ln\frac{k+1}{k}$ in place of $1/k$ (paper, appendix
# B.3). Lesson 02 compares the rules; here they run on the same signal:

# %%
signal = band_limited_noise(2000, cycles=16, seed=1)
largest = {}
for method in ("euler", "backward", "bilinear", "zoh"):
    c = hippo_project(signal, 16, "legs", method=method)  # (2000, 16): all numbers at all times
    largest[method] = c.abs().max().item()
    print(f"{method:9s} largest number ever held: {largest[method]:.3g}")
assert largest["euler"] > 1e6 and max(largest["bilinear"], largest["zoh"], largest["backward"]) < 10

# %% [markdown]
# At $N = 16$ Euler overshoots by nine orders of magnitude before $k$ is large enough to calm it. Where does it begin?

# %%
for n in (2, 4, 8, 16, 32):
    c = hippo_project(signal, n, "legs", method="euler")
    print(f"N = {n:2d}: largest number ever held by Euler {c.abs().max():.1e}")

# %% [markdown]
# The paper prints Euler's rule (eq. 4) and lists the others in its appendix. From here on we use the bilinear one.
#
# ## Implement
#
# [The exercises of this lesson](../exercises/01_hippo.ipynb) rebuild all of it.
#
# | exercise | you write | difficulty | minutes | it unlocks |
# |---|---|---|---|---|
# | `project_window` | the best numbers, by inner products | 2 | 10 | the curves of exercise 2 |
# | `reconstruct_window` | the past, from the numbers | 2 | 10 | a past drawn from your numbers |
# | `legs_matrix` | $A$ and $B$ of LegS | 2 | 10 | its picture, and exercise 4 |
# | `legs_step` | one bilinear step of LegS | 3 | 15 | a memory of 400 samples, run by your step |
# | `legt_matrix` | $A$ and $B$ of LegT | 3 | 15 | its picture |
#
# ## See
#
# Choose a signal or draw one, and drag the time. The curve below the signal is drawn from the numbers
# alone; the shading is what the measure weighs; the strip shows the numbers.

# %%
explore.hippo()

# %% [markdown]
# Try this. Let $t$ run to the end with LegT and a small $\theta$: a cliff, and behind it nothing. Change to
# LegS: the whole past, a little blurred. Now press ×½: the same signal with half the samples. LegS's numbers
# move a little, LegT's a lot, because its window is counted in samples.
#
# ## Measure
#
# First the answer to the first prediction. $N = 64$, 2,000 samples, bilinear rule; the numbers at the end
# are asked for the whole past:


# %%
def relative_error(estimate, truth):
    return ((estimate - truth).square().mean() / truth.var()).item()


where = (torch.arange(2000) + 0.5) / 2000  # the middle of each sample's step
c = hippo_project(signal, 64, "legs", last_only=True)  # (64,)
whole = hippo_reconstruct(c, where, "legs")
print(f"LegS, N = 64, the whole past: {relative_error(whole, signal):.1e}")
assert relative_error(whole, signal) < 1e-3

# %%
predict.show("hippo.error", round(relative_error(whole, signal), 5))

# %%
over_seeds = []
for seed in range(10):
    other = band_limited_noise(2000, cycles=16, seed=seed)
    over_seeds.append(
        relative_error(hippo_reconstruct(hippo_project(other, 64, last_only=True), where), other)
    )
over_seeds.sort()
print(
    f"ten signals: from {over_seeds[0]:.1e} to {over_seeds[-1]:.1e}, half of them under {over_seeds[5]:.1e}"
)

# %% [markdown]
# About a thousandth of the variance or less, from one number for every thirty samples. Is that what 64 numbers can
# do? Sixteen cycles need at least $2\cdot16 = 32$ numbers by Nyquist's count, and polynomials about $\pi$ a cycle, 50.
# Three curves against $N$: one step a sample, each sample held for eight small steps, and the best polynomial there
# is, fitted to the whole record at once.

# %%
from ssmcourse.hippo import hippo_basis


def remembered(f, n, held):
    """The whole past of f from n numbers, with `held` steps a sample."""
    at = (torch.arange(len(f)) + 0.5) / len(f)
    return hippo_reconstruct(hippo_project(f.repeat_interleave(held), n, last_only=True), at)


def best(f, n):
    at = (torch.arange(len(f)) + 0.5) / len(f)
    Q = torch.linalg.qr(hippo_basis("legs", n, at)).Q  # (l, n), orthonormal on the samples themselves
    return Q @ (Q.T @ f)


numbers = [16, 24, 32, 40, 48, 56, 64, 80]
rivals = {
    "one step a sample": lambda n: remembered(signal, n, 1),
    "eight steps": lambda n: remembered(signal, n, 8),
    "best polynomial": lambda n: best(signal, n),
}
errors = {name: [relative_error(f(n), signal) for n in numbers] for name, f in rivals.items()}
show(
    curves(errors, x=numbers, x_name="numbers kept, N", y_name="error / variance", log_y=True),
    alt="Three errors fall together from 0.65 at N = 16 to 0.02 at N = 48; then one step a sample stays at 1e-4, "
    "eight steps at 2e-6, and the best polynomial falls on.",
)
assert errors["one step a sample"][6] > 10 * errors["eight steps"][6] > 10 * errors["best polynomial"][6]

# %% [markdown]
# Up to $N = 48$ the three agree: there the numbers are too few. Beyond, the floor of the first curve is the *step's*, not
# the numbers': the bilinear rule is only so exact.

# %% [markdown]
# **Something real.** A row of a photograph (scikit-learn's temple in China, row 200, 640 pixels) has edges,
# and edges are what polynomials like least. Proposition 6 promises a fast fall of the error only to smooth
# signals. The same three again:

# %%
row = photo_row(200)  # (640,) brightness, mean 0, variance 1
for n in (16, 64, 128, 192):
    row_errors = [
        relative_error(e, row) for e in (remembered(row, n, 1), remembered(row, n, 8), best(row, n))
    ]
    print(
        f"N = {n:3d}: one step {row_errors[0]:.3f}, eight steps {row_errors[1]:.3f}, best {row_errors[2]:.3f}"
    )

# %%
show(
    curves(
        {"the row": row, "16 numbers": remembered(row, 16, 8), "128 numbers": remembered(row, 128, 8)},
        x=torch.arange(640),
        x_name="pixel",
        y_name="brightness (standard deviations)",
    ),
    alt="A row of pixels with sharp edges; 16 numbers follow its broad shape, 128 follow it closely, ring beside the "
    "edges and miss the fine texture.",
)

# %% [markdown]
# Two things to see. The error falls slowly, from 0.17 to 0.11 when $N$ goes from 16 to 64: a photograph is
# not smooth. And more numbers are not always better: with one step a pixel, 192 numbers do *worse* than
# 128. The finest numbers change so fast that one step a pixel is too coarse for the bilinear rule; eight small
# steps bring the memory close to the best polynomial. The theory is about the differential equation; the step is ours
# to answer for, and lesson 02 does.

# %% [markdown]
# **What a step costs.** Written as a matrix, a step is $N^2$ multiply-adds, plus the solve of a triangular
# system. But LegS has structure: below the diagonal, $A_{nk}$ is a product of a factor of $n$ and a factor of
# $k$, so both the product and the solve are running sums, in $O(N)$ (paper, Proposition 4). The library runs that
# compiled. The dated run of `benchmarks/hippo.py` compares it with the leanest loop of dense matrices in torch, timed on
# fewer samples and given per sample. The ratio holds both gains, the count and the compiler's, and does not tell them
# apart:

# %%
result = stored_result("hippo")
print(result["date"], "|", result["machine"])
speed = result["speed"]
print(f"compiled, a million samples: {speed['compiled_us_per_sample']:.2f} microseconds a sample")
print(
    f"dense loop, {result['samples']['dense']:,} samples: {speed['dense_loop_us_per_sample']:.1f}, "
    f"{speed['dense_loop_over_compiled']:.0f} times as long"
)

# %% [markdown]
# ## Break it
#
# **Turn the sampling rate.** Take every second sample of the same signal and change nothing else. LegS has
# no $\Delta$ to get wrong: its numbers describe a *shape*, stretched over however many samples there were
# (Proposition 3). LegT's window of 500 samples suddenly spans twice the time.


# %%
def change(measure, first, **window):
    """Per cent by which the 64 numbers change when only samples first, first + 2, ... are kept."""
    full = hippo_project(signal, 64, measure, last_only=True, **window)
    half = hippo_project(signal[first::2], 64, measure, last_only=True, **window)
    return 100 * ((full - half).norm() / full.norm()).item()


legs = [change("legs", first) for first in (0, 1)]
legt = [change("legt", first, theta=500.0) for first in (0, 1)]
print(f"LegS: {legs[0]:.1f} % and {legs[1]:.1f} %, without and with the last sample")
print(f"LegT, window of 500 samples: {legt[0]:.0f} % and {legt[1]:.0f} %")
assert max(legs) < 5 and min(legt) > 50

# %%
predict.show("hippo.rate", round(max(legs), 1))

# %% [markdown]
# This is the property behind the paper's Table 2, where models are trained at one sampling rate and tested
# at another. We tested the mechanism, not their task.
#
# **Turn the window too short.** LegT with $\theta$ a quarter of the record, asked for the whole past and for
# its own window:

# %%
c = hippo_project(signal, 64, "legt", theta=500.0, last_only=True)
inside = hippo_reconstruct(c, (torch.arange(500) + 0.5) / 500, "legt", theta=500.0)
guess = torch.cat([torch.zeros(1500), inside])  # it knows nothing of what is older
print(f"inside its window: {relative_error(inside, signal[-500:]):.1e}")
print(f"the whole past:    {relative_error(guess, signal):.2f}")
assert relative_error(inside, signal[-500:]) < 1e-2 < 0.3 < relative_error(guess, signal)
print(f"energy in the first three quarters: {signal[:1500].square().sum() / signal.square().sum():.2f}")

# %% [markdown]
# **Drop the $1/t$.** S4 uses the matrix of LegS in $h' = Ah + Bx$, without the $1/t$. That is a time-invariant
# system, and its memory no longer stretches: its first number obeys $c_0' = -c_0 + f$, the leaking tank of lesson 00.
# Feed both memories a single pulse, early or late in a record of length 10 (in units where the tank's $A$ is $-1$), and
# look at that first number at the end, times the number of samples.

# %%
A64, B64 = hippo_matrix("legs", 64)
l = 2000
for place in (0.1, 0.3, 0.5, 0.7, 0.9):
    pulse = torch.zeros(l)
    pulse[int(place * l)] = 1.0
    scaled = l * hippo_project(pulse, 64, "legs", last_only=True)[0]  # with 1/t
    age = torch.tensor(10 * (1 - place))
    tank = (torch.matrix_exp(age * A64) @ B64)[0]  # without
    assert torch.isclose(tank, torch.exp(-age)) and 0.99 < scaled < 1.01
    print(f"pulse at {place:.1f} of the record: with 1/t {scaled:.3f}, without {tank:.4f}")

# %% [markdown]
# With $1/t$ the first number, the mean, gives an early pulse the weight of a late one. Without, the earliest counts three
# thousand times less than the latest. (For all 64 numbers together, Proposition 5 says that a pulse counts in the order
# of $1/t$ wherever it lies.) Both are called "LegS" in papers and in code. That is the first thing to check when somebody
# says that S4 remembers its whole past.
#
# ## Remember
#
# 1. HiPPO: keep the coefficients of the best polynomial approximation of the past, under a weighting of the past.
# 2. Differentiate the projection: the past drops out and an ODE in the coefficients is left.
# 3. LegS weighs all of the past equally, LegT a window, LagT a fading tail. Only LegS has no time scale.
# 4. Forward Euler on LegS overshoots, a thousandfold already at $N = 8$; bilinear does not, and costs $O(N)$ a step.
# 5. $N = 1$ is the running mean, a gated update with $\gamma = 1/k$: the seed of Mamba's gate.
#
# **Ask yourself**
#
# <details><summary>Why does LegT need an approximation that LegS does not?</summary>
# Its window has a second end that moves: the sample leaving it is no longer known. LegS's window starts at
# 0 and never loses a sample.</details>
#
# <details><summary>A is lower triangular. What are its eigenvalues?</summary>
# The diagonal: −1, −2, …, −N. All negative, so the memory is stable.</details>
#
# <details><summary>Where did Δ go, and when does it come back?</summary>
# It cancelled against t = kΔ. It returns as soon as the 1/t is dropped, in S4, and in Mamba it becomes a
# function of the input.</details>
#
# **Where next.** We replaced a differential equation by steps in four ways and saw one of them explode.
# Which rule may one trust, and why does Mamba's code use one for $A$ and another for $B$? That is lesson 02.
# For the sources: `ssmcourse.hippo` holds all of this lesson. The paper: Gu et al., *HiPPO: Recurrent Memory
# with Optimal Polynomial Projections*, NeurIPS 2020, arXiv 2008.07669.
