"""S4 and S4D against their equations in float64: a dense matrix, discretised by torch.linalg, one step at a time."""

from __future__ import annotations

import math

import pytest
import torch
from largest import Largest
from scrambled import check
from torch import Tensor

from ssmcourse.hippo import hippo_matrix
from ssmcourse.nn import S4, S4D
from ssmcourse.normal_plus_low_rank import nplr
from ssmcourse.s4 import s4d_init
from ssmcourse.tolerance import mismatch

D = 5


def draw(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same(got: Tensor, expected: Tensor, terms: int) -> None:
    problem = mismatch(got.detach(), expected.detach(), terms=terms)
    assert problem is None, str(problem)


# --- oracles --------------------------------------------------------------------------------------


def both(value: Tensor) -> Tensor:
    """The parameter's modes and their conjugates: (d, n, ...)."""
    half = torch.complex(value[..., 0], value[..., 1])
    return torch.cat([half, half.conj()], 1)


def dense(layer: S4 | S4D) -> tuple[Tensor, Tensor, Tensor]:
    """A (d, n, n), B and C (d, n) of continuous time, complex."""
    p = dict(layer.ssm.named_parameters())
    name = "Lambda" if isinstance(layer, S4) else "A"
    A = torch.diag_embed(both(torch.stack([-p[f"log_{name}_real"].exp(), p[f"{name}_imag"]], -1)))
    if isinstance(layer, S4):
        P = both(p["P"])
        A = A - P @ P.mH
    return A, both(p["B"]), both(p["C"])


def bilinear(A: Tensor, B: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    eye, half = torch.eye(A.shape[1], dtype=A.dtype), dt[:, None, None] / 2 * A
    return torch.linalg.solve(eye - half, eye + half), torch.linalg.solve(eye - half, dt[:, None] * B)


def hold(A: Tensor, B: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    """Zero-order hold as one matrix exponential: of (A, B; 0, 0)."""
    d, n = B.shape
    whole = torch.zeros(d, n + 1, n + 1, dtype=A.dtype)
    whole[:, :n, :n], whole[:, :n, n] = A, B
    whole = torch.linalg.matrix_exp(dt[:, None, None] * whole)
    return whole[:, :n, :n], whole[:, :n, n]


def by_steps(layer: S4 | S4D, x: Tensor, rule=bilinear, rate: float = 1.0) -> Tensor:
    A, B, C = dense(layer)
    A_bar, B_bar = rule(A, B, layer.ssm.log_dt.exp() * rate)
    h, ys = torch.zeros(len(x), *B.shape, dtype=A.dtype), []
    for x_t in x.unbind(1):
        h = torch.einsum("dmn,bdn->bdm", A_bar, h) + B_bar * x_t[..., None]
        ys.append((C * h).sum(-1).real + layer.D * x_t)
    y = torch.stack(ys, 1)
    if layer.out_proj is None:
        return y
    y = y * (1 + torch.erf(y / math.sqrt(2))) / 2
    values, gates = (y @ layer.out_proj.weight.T + layer.out_proj.bias).chunk(2, -1)
    return values * torch.sigmoid(gates)


def wide(layer):
    """In float64, every parameter moved a little, in eval mode."""
    layer = layer.double().eval()
    torch.manual_seed(3)
    with torch.no_grad():
        for value in layer.parameters():
            value.add_(0.1 * torch.randn_like(value))
    return layer


def made(name: str, **options):
    torch.manual_seed(0)
    return wide({"S4": S4, "S4D": S4D}[name](D, 6, **options))


CASES = [
    *(("S4", {"measure": measure}, bilinear) for measure in ("legs", "lagt", "legt", "fourier")),
    *(("S4D", {"init": init}, hold) for init in ("legs", "lin", "inv", "real", "random")),
    ("S4D", {"method": "bilinear"}, bilinear),
    ("S4", {"bare": True}, bilinear),
    ("S4D", {"bare": True, "dt_max": 2.0}, hold),
    ("S4", {"dt_min": 1.0, "dt_max": 2.0}, bilinear),
]


@pytest.mark.parametrize(("name", "options", "rule"), CASES, ids=str)
def test_it_is_the_loop(name, options, rule):
    layer, x = made(name, **options), draw(2, 40, D)
    same(layer(x), by_steps(layer, x, rule), 400)


@pytest.mark.parametrize(("name", "rule"), [("S4", bilinear), ("S4D", hold)])
def test_padding_packing_and_caches_all_at_once(name, rule):
    layer = made(name, dt_min=0.1, dt_max=1.0)
    with torch.no_grad():
        check(layer, lambda x: by_steps(layer, x[None], rule)[0], seed=5)


@pytest.mark.parametrize(("name", "rule"), [("S4", bilinear), ("S4D", hold)])
def test_the_rate_scales_time(name, rule):
    layer, x = made(name), draw(2, 30, D)
    layer.ssm.rate = 0.5
    same(layer(x), by_steps(layer, x, rule, rate=0.5), 400)
    y, cache = layer(x[:, :7], return_cache=True)
    z, cache = layer(x[:, 7:29], cache=cache, return_cache=True)
    last, _ = layer.step(x[:, 29], cache)
    same(torch.cat([y, z, last[:, None]], 1), by_steps(layer, x, rule, rate=0.5), 400)
    with pytest.raises(AssertionError):
        same(layer(x), by_steps(layer, x, rule), 400)


def test_s4_starts_as_hippo():
    """With C = C_real V, its answer to an impulse is that of the real HiPPO system."""
    torch.manual_seed(0)
    layer = S4(1, 8, bare=True, dtype=torch.float64)
    C_real, V = draw(8), nplr("legs", 8)[3]
    with torch.no_grad():
        layer.ssm.C.copy_(torch.view_as_real(C_real.to(V.dtype) @ V)[:4])
        layer.D.zero_()
    A, B = hippo_matrix("legs", 8)
    A_bar, B_bar = bilinear(A[None], B[None], layer.ssm.log_dt.exp())
    h, expected = B_bar[0], []
    for _ in range(30):
        expected.append(C_real @ h)
        h = A_bar[0] @ h
    same(layer(torch.eye(30, 1).double()[None])[0, :, 0], torch.stack(expected), 100)


# --- in float32 -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["S4", "S4D"])
def test_steps_do_not_drift_in_float32(name):
    layer = made(name, bare=True, dt_max=1e-3).float()
    x = draw(1, 1000, D).float()
    exact = made(name, bare=True, dt_max=1e-3)
    with torch.no_grad():
        exact.load_state_dict(layer.state_dict())
        expected = exact(x.double())
        cache, ys = layer.allocate_cache(1), []
        for x_t in x.unbind(1):
            y, cache = layer.step(x_t, cache)
            ys.append(y)
        same(torch.stack(ys, 1), expected, 1000)
        y, cache = layer(x[:, :500], return_cache=True)
        same(torch.cat([y, layer(x[:, 500:], cache=cache)], 1), expected, 1000)
    assert cache["state"].dtype == torch.complex64


@pytest.mark.parametrize("name", ["S4", "S4D"])
def test_a_long_prompt_takes_no_state_for_every_step(name):
    torch.manual_seed(0)
    layer, l = {"S4": S4, "S4D": S4D}[name](4, 64), 16_384
    with torch.inference_mode(), Largest() as largest:
        _, cache = layer(torch.randn(1, l, 4), return_cache=True)
        layer(torch.randn(1, l, 4), cache=cache)
    assert largest.numel <= 5 * l * 4  # l * 4 * 32 would be a state for every step


# --- parameters -----------------------------------------------------------------------------------


def test_names_and_shapes():
    shared = {
        "D": (D,),
        "ssm.log_dt": (D,),
        "ssm.B": (D, 3, 2),
        "ssm.C": (D, 3, 2),
        "out_proj.weight": (2 * D, D),
        "out_proj.bias": (2 * D,),
    }
    of_s4 = {"ssm.log_Lambda_real": (D, 3), "ssm.Lambda_imag": (D, 3), "ssm.P": (D, 3, 2, 2)}
    of_s4d = {"ssm.log_A_real": (D, 3), "ssm.A_imag": (D, 3)}
    for layer, own in ((S4(D, 6, measure="legt"), of_s4), (S4D(D, 6), of_s4d)):
        found = {name: tuple(value.shape) for name, value in layer.state_dict().items()}
        assert found == shared | own
    assert "out_proj.weight" not in S4D(D, 6, bare=True).state_dict()


@pytest.mark.parametrize("layer", [S4(D, 6), S4D(D, 6)], ids=["S4", "S4D"])
def test_what_the_optimiser_is_told(layer):
    names = {id(value): name for name, value in layer.named_parameters()}
    told = {
        names[id(value)]: (group.get("weight_decay"), group.get("max_lr"))
        for group in layer.parameter_groups()
        for value in group["params"]
    }
    ordinary = {name for name, rule in told.items() if rule == (None, None)}
    assert ordinary == {"ssm.C", "out_proj.weight"}
    special = {name for name, rule in told.items() if rule == (0.0, 1e-3)}
    assert special == {name for name in told if name.startswith("ssm.") and name != "ssm.C"}


def test_the_first_values():
    torch.manual_seed(0)
    layer = S4D(20_000, 6, dt_min=1e-4, dt_max=1.0, bare=True)
    log_dt = layer.ssm.log_dt.detach().double()
    assert log_dt.min() >= math.log(1e-4) - 1e-6
    assert log_dt.max() <= 1e-6
    counts = torch.histc(log_dt, 4, math.log(1e-4), 0.0)  # a quarter for each power of ten
    assert (counts / 5000 - 1).abs().max() < 0.05
    assert layer.ssm.C.var().item() == pytest.approx(0.5, rel=0.03)
    assert layer.D.var().item() == pytest.approx(1.0, rel=0.05)
    for init in ("legs", "lin", "inv", "real"):
        ssm = S4D(2, 6, init=init, dtype=torch.float64).ssm
        A, B = s4d_init(init, 6)
        same(ssm.A, A.expand(2, -1), 1)
        same(torch.view_as_complex(ssm.B), B.expand(2, -1), 1)
    Lambda, P, B, _ = nplr("lagt", 6)
    ssm = S4(2, 6, measure="lagt", dtype=torch.float64).ssm
    for got, expected in (
        (ssm.Lambda, Lambda),
        (torch.view_as_complex(ssm.P), P),
        (torch.view_as_complex(ssm.B), B),
    ):
        same(got, expected[:3].expand_as(got), 1)


@pytest.mark.parametrize("name", ["S4", "S4D"])
def test_the_seed_decides(name):
    layers = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        layers.append({"S4": S4, "S4D": S4D}[name](D, 6).state_dict())
    first, again, other = layers
    assert all(torch.equal(first[key], again[key]) for key in first)
    drawn = ["D", "ssm.log_dt", "ssm.C", "out_proj.weight", "out_proj.bias"]
    assert all(not torch.equal(first[key], other[key]) for key in drawn)


@pytest.mark.parametrize("measure", ["legt", "fourier"])
def test_modes_that_do_not_fade_start_as_ones_that_do_slowly(measure):
    """Their real part is 0, which has no logarithm."""
    ssm = S4(D, 6, measure=measure, dtype=torch.float64).ssm
    same(ssm.Lambda.real, torch.full((D, 3), -1e-4, dtype=torch.float64), 1)
    assert all(value.isfinite().all() for value in ssm.parameters())


def test_no_step_of_the_optimiser_makes_it_unstable():
    for layer, parameter in ((S4(D, 6), "log_Lambda_real"), (S4D(D, 6), "log_A_real")):
        with torch.no_grad():
            getattr(layer.ssm, parameter).sub_(20.0)
        y = layer(torch.ones(1, 5000, D))
        assert y.isfinite().all()
        A, B, _ = dense(layer.double())
        A_bar, _ = bilinear(A, B, layer.ssm.dt)
        assert torch.linalg.eigvals(A_bar).abs().max() <= 1


def test_dtype_and_device():
    layer = S4(D, 6, dtype=torch.bfloat16)
    assert {value.dtype for value in layer.parameters()} == {torch.bfloat16}
    assert layer.allocate_cache(2)["state"].dtype == torch.complex64
    assert {value.device.type for value in S4D(D, 6, device="meta").parameters()} == {"meta"}


def test_dropout_is_for_training():
    torch.manual_seed(0)
    layer, x = S4D(D, 6, dropout=0.5), draw(1, 20, D).float()
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: S4(0), "d_model: got 0, expected an integer of 1 or more"),
        (lambda: S4(D, 2.0), "d_state: got 2.0, expected an integer of 1 or more"),
        (lambda: S4D(D, 7), "d_state: got 7, expected an even number"),
        (lambda: S4(D, 7), "d_state: got 7, expected an even number"),
        (lambda: S4(D, measure="lmu"), "measure: got 'lmu', expected one of legs, lagt, legt, fourier"),
        (lambda: S4D(D, init="hippo"), "init: got 'hippo', expected one of"),
        (lambda: S4D(D, method="euler"), "method: got 'euler', expected one of zoh, bilinear"),
        (lambda: S4D(D, dt_min=0.0), "dt_min: got 0.0, expected a positive number"),
        (lambda: S4(D, dt_max=math.inf), "dt_max: got inf, expected a positive number"),
        (lambda: S4(D, dt_min=0.2), "dt_min: got 0.2, expected no more than dt_max 0.1"),
        (lambda: S4(D, dropout=1.0), "dropout: got 1.0, expected a number from 0 up to 1"),
    ],
)
def test_one_clear_line(make, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        make()


def test_the_cache_of_another_layer_is_refused():
    layer, x = S4(D, 6), draw(2, 3, D).float()
    for other in (S4(D, 8).allocate_cache(2), {"conv": torch.zeros(2, 3)}):
        with pytest.raises(ValueError, match=r"^cache: got one with .*, expected "):
            layer(x, cache=other)
        with pytest.raises(ValueError, match=r"^cache: got one with .*, expected "):
            layer.step(x[:, 0], other)


# --- does it learn --------------------------------------------------------------------------------


def losses_of_a_delay(**options) -> tuple[float, float]:
    """A small model learns to say what came 8 steps ago: the first loss, and the last."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(1, 32), S4D(32, 32, **options), torch.nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    found = []
    for _ in range(200):
        x = torch.randn(16, 64, 1)
        y = torch.nn.functional.pad(x, (0, 0, 8, 0))[:, :64]
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found[0], sum(found[-10:]) / 10


@pytest.mark.slow
def test_it_learns_a_delay_but_not_with_steps_of_the_wrong_size():
    first, last = losses_of_a_delay()
    assert last < first / 10
    for lo, hi in ((10.0, 100.0), (1e-5, 1e-4)):  # remembers one step; cannot tell 8 steps from 64
        _, blind = losses_of_a_delay(dt_min=lo, dt_max=hi)
        assert blind > 0.5 * first
