"""SSD in Triton against a loop over the steps of its definition: in the interpreter, or on a GPU where there is one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from operator_table import Case, among_nans, assert_agrees, random, results_and_gradients
from test_ssd import BARE, RESETS, TABLE, by_steps, case, inputs, packed
from test_ssd_half import HALF_TABLE
from torch import Tensor

from ssmcourse.duality import ssd, ssd_state_update
from ssmcourse.kernels import runtime
from ssmcourse.scan import backends
from ssmcourse.tolerance import mismatch

if "triton" not in backends("ssd"):
    pytest.skip("Triton does not run on this machine", allow_module_level=True)

from ssmcourse.kernels.ssd import triton as module
from ssmcourse.kernels.ssd import triton_backward, triton_backward_groups, triton_forward
from ssmcourse.kernels.ssd.triton_tiles import Blocks
from ssmcourse.kernels.state_update import triton_ssd

KERNELS = triton_forward, triton_backward, triton_backward_groups
DEVICE = runtime.device_type("triton")
INTERPRETED = runtime.triton_mode() == "interpreted"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="needs Triton's interpreter")
FEW = {"b": 1, "h": 2, "g": 1}  # few programs: the interpreter takes 8 ms for each


def there(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its tensors on Triton's device, and its results back here."""

    def moved(**given: Any) -> tuple[Tensor, ...]:
        results = function(**{k: v.to(DEVICE) if isinstance(v, Tensor) else v for k, v in given.items()})
        return tuple(r.cpu() for r in (results if isinstance(results, tuple) else (results,)))

    return moved


in_triton = there(functools.partial(ssd, backend="triton"))


def check(row: Case, **more: Any) -> None:
    assert_agrees(in_triton, by_steps, row.make(), terms=row.terms, **row.options, **more)


QUICK = [
    *(case(f"l={l}", l=l, **FEW) for l in (1, 2, 3, 16, 17)),
    case("float32", dtype=torch.float32, D="h", **FEW),
    case("nothing optional", {"return_final_state": False, "dt_softplus": False}, **BARE, **FEW),
    case("groups of two heads", l=5, b=2, z=False),
    case("16 states", {"dt_limit": (0.3, 0.9)}, n=16, p=4, b=2, h=1, g=1, initial=False),
    case("more than a tile", n=33, p=17, b=1, h=1, g=1),
    case("packed", {"seq_idx": packed(2, 35)}, l=35, h=1, g=1),
    case("packed, no states", {"seq_idx": packed(1, 35), "return_final_state": False}, l=35, b=1, h=1, g=1),
    case("each step a sequence", {"seq_idx": torch.arange(9)[None]}, l=9, **FEW),
    case("not contiguous", wrap=among_nans, **FEW),
]


@pytest.mark.parametrize("row", QUICK, ids=lambda row: row.name)
def test_quick_table(row):
    check(row)


@pytest.mark.slow
@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_table(row):
    check(row)


# --- Tiles and chunks of other sizes --------------------------------------------------------------------

SMALL = Blocks(16, 4, 4, 2, 8)  # a chunk of four tiles, and several tiles of n and p


@interpreted
@pytest.mark.parametrize("pack", [False, True])
def test_small_tiles(monkeypatch, pack):
    monkeypatch.setattr(module, "blocks", lambda n, p, dtype: SMALL)
    options = {"seq_idx": torch.tensor([[0] * 3 + [1] * 15 + [2] * 2])} if pack else {}
    check(case("small tiles", options, b=1, h=1, g=1, l=20))


@interpreted
@pytest.mark.slow
@pytest.mark.parametrize("l", [3, 17, 33])
@pytest.mark.parametrize("pack", [False, True])
def test_small_tiles_at_every_length(monkeypatch, pack, l):
    monkeypatch.setattr(module, "blocks", lambda n, p, dtype: SMALL)
    check(case("small tiles", {"seq_idx": packed(1, l)} if pack else {}, b=1, l=l, h=2, g=1))


@interpreted
@pytest.mark.parametrize("chunk", [8, 32, 64, 128])
def test_the_result_does_not_depend_on_the_chunk(monkeypatch, chunk):
    monkeypatch.setattr(
        module, "blocks", lambda n, p, dtype: Blocks(chunk, min(32, chunk), 8, 4, min(64, chunk))
    )
    made = inputs(b=1, l=65, h=1, g=1)
    options = {"dt_softplus": True, "return_final_state": True}
    whole = ssd(**made, **options, backend="reference")
    for got, expected in zip(in_triton(**made, **options), whole, strict=True):
        assert mismatch(got, expected, terms=65) is None


@pytest.mark.parametrize("split", [1, 16, 39])
def test_pieces_that_pass_their_state_on_are_the_whole(split):
    made = inputs(l=40, **FEW)
    options = {"dt_softplus": True, "return_final_state": True}
    y, final = ssd(**made, **options, backend="reference")
    state, parts = made["initial_state"], []
    for piece in (slice(0, split), slice(split, 40)):
        given = {k: v[:, piece] if k in ("x", "dt", "B", "C", "z") else v for k, v in made.items()}
        part, state = in_triton(**given | {"initial_state": state}, **options)
        parts.append(part)
    assert mismatch(torch.cat(parts, 1), y, terms=40) is None
    assert mismatch(state, final, terms=40) is None


# --- Half types -----------------------------------------------------------------------------------------


def check_half(dtype: torch.dtype, sizes: dict, options: dict) -> None:
    row = case("half", dtype=dtype, **sizes)

    def oracle(**wide):
        y, final = by_steps(**wide)  # rounded, so that the gradients that come in are rounded as well
        return y.to(dtype), final.float()

    made, options = row.make(), row.options | options
    got, weights = results_and_gradients(in_triton, made, options)
    wide = {name: t.to(torch.promote_types(t.dtype, torch.float64)) for name, t in made.items()}
    expected, _ = results_and_gradients(oracle, wide, options, weights)
    for name, value in got.items():
        # Tensor cores multiply rounded matrices, which float32 gradients show; the interpreter's are not rounded.
        problem = mismatch(value if INTERPRETED else value.to(dtype), expected[name], terms=row.terms)
        assert problem is None, f"{name}: {problem}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half(dtype):
    check_half(dtype, {"l": 17, **FEW}, {})


@pytest.mark.slow
@pytest.mark.parametrize("row", [name for name in HALF_TABLE if name != "wider parameters"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_table(dtype, row):
    sizes, options = HALF_TABLE[row]
    check_half(dtype, sizes | ({"l": 200} if row == "spans" else {}), options)


def test_parameters_wider_than_activations():
    made = inputs(dtype=torch.float32, l=5, **FEW)
    made["A"] = made["A"].double()
    assert_agrees(in_triton, by_steps, made, terms=100, dt_softplus=True)


# --- Properties -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "where"), [(torch.float32, 0), (torch.float32, 20), (torch.float64, 31)], ids=str
)
def test_a_reset_and_small_steps_after_it(monkeypatch, dtype, where):
    """log a is -1e4 once, then -0.01 a step: a difference of cumulative sums has no digits left for these."""
    if INTERPRETED:  # the rest of the sequence is in the reset's chunk
        monkeypatch.setattr(module, "blocks", lambda n, p, dtype: Blocks(64, 32, 8, 4, 32))
    check_reset(dtype, where, 60)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "where"), RESETS, ids=str)
def test_resets(dtype, where):
    check_reset(dtype, where, 100)


def check_reset(dtype: torch.dtype, where: int, l: int) -> None:
    made = inputs(b=1, l=l, h=2, g=1, dtype=dtype, **BARE)
    made["A"] = torch.tensor([-1.0, -1.0], dtype=dtype)
    made["dt"] = torch.full((1, l, 2), 0.01, dtype=dtype)
    made["dt"][:, where] = 1e4
    made["x"][:, where] *= 1e-4
    assert_agrees(in_triton, by_steps, made, terms=l, return_final_state=True)


def test_extreme_steps_give_finite_numbers():
    made = inputs(b=1, l=40, g=1, dtype=torch.float32, dt_bias=False)
    made["dt"] = torch.linspace(0, 100, 160).reshape(1, 4, 40).mT.contiguous()
    made["dt"][:, ::3] = 0
    made["A"] = -torch.tensor([1e4, 1.0, 1e-3, 0.0])
    assert_agrees(in_triton, by_steps, made, terms=40 * 12, return_final_state=True)


def test_a_step_that_forgets_everything():
    """A = -inf: each step starts anew, and no infinity meets a zero."""
    made = inputs(l=20, dtype=torch.float32, **FEW)
    made["A"] = torch.tensor([-torch.inf, -1.0])
    made["dt"] = made["dt"].abs() + 0.1
    got, final = in_triton(**made, return_final_state=True)
    expected, state = by_steps(**made, return_final_state=True)
    assert mismatch(got, expected, terms=20) is None
    assert mismatch(final, state, terms=20) is None


def test_one_result_alone_has_gradients():
    made = {k: v.requires_grad_() for k, v in inputs(**FEW).items()}
    _, final = in_triton(**made, return_final_state=True)
    weight = random(final.shape, seed=20)
    wanted = [k for k in made if k not in ("C", "D", "z")]
    got = torch.autograd.grad((final * weight).sum(), [made[k] for k in wanted])
    _, expected = by_steps(**made, return_final_state=True)
    for name, g, e in zip(
        wanted, got, torch.autograd.grad((expected * weight).sum(), [made[k] for k in wanted]), strict=True
    ):
        assert mismatch(g, e, terms=200) is None, name


def test_gradients_are_the_same_bits_every_time():
    leaves = {k: v.to(DEVICE).requires_grad_() for k, v in inputs(l=20, dtype=torch.float32, **FEW).items()}

    def gradients() -> tuple[Tensor, ...]:
        y = ssd(**leaves, dt_softplus=True, backend="triton")
        return torch.autograd.grad(y.sum(), list(leaves.values()))

    assert all(torch.equal(a, b) for a, b in zip(gradients(), gradients(), strict=True))


@interpreted
def test_opcheck():
    arguments = operands(inputs(b=1, l=5, h=1, g=1, dtype=torch.float32))
    torch.library.opcheck(torch.ops.ssmcourse.ssd_triton.default, (*arguments, None, 1, False))


def operands(made: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """As the operator takes them, ready made."""
    x, dt, A, B, C = (made[k] for k in ("x", "dt", "A", "B", "C"))
    dt = dt.abs().float()
    return x, dt, dt * A, B, C, made["D"], made["z"], made["initial_state"]


@interpreted
@pytest.mark.parametrize("pack", [False, True])
def test_programs_stay_in_bounds_and_out_of_each_others_way(pack):
    from ssmcourse.kernels.sanitizer.programs import watch_programs

    options = {"seq_idx": packed(1, 18)} if pack else {}
    with watch_programs() as report:
        check(case("watched", options, l=18, **FEW))
    assert report, str(report)
    kernels = {k for m in KERNELS for k in vars(m) if k.endswith("_kernel")}
    assert {name for name, _ in report.launches} == kernels


# --- Cost -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_bytes_of_the_forward(monkeypatch, dtype):
    """Each array once a launch, at the sizes of a model: no more than four times the inputs and outputs."""
    b, l, h, p, n = 1, 4096, 24, 64, 128
    moved = []

    def launch(given, kernel, grid, *arguments, **constants):
        if kernel is triton_forward.state_passing_kernel:  # in place: of the rest it reads next to nothing
            moved.append(2 * arguments[0].nbytes)
        elif 0 not in grid:
            arrays = {
                t.data_ptr(): t.nbytes for t in arguments if isinstance(t, Tensor) and t is not given.number
            }
            moved.append(sum(arrays.values()))

    monkeypatch.setattr(module, "launch", launch)
    monkeypatch.setattr(module, "blocks", lambda *_: Blocks(256, 64, 64, 64, 128))
    x, BC = torch.empty(b, l, h, p, dtype=dtype), torch.empty(2, b, l, 1, n, dtype=dtype)
    dt, log_a = torch.empty(2, b, l, h)
    y, _, _ = module.forward(x, dt, log_a, *BC, None, None, None, None, 0, False)
    least = sum(t.nbytes for t in (x, dt, log_a, BC, y))
    assert len(moved) == 5
    assert sum(moved) <= 4 * least, sum(moved) / least


def test_no_array_is_larger_than_the_input(monkeypatch):
    """A state for a chunk, not for a step: forward and backward."""
    b, l, h, p, n = 1, 4096, 24, 64, 128
    seen = []

    def launch(given, kernel, grid, *arguments, **constants):
        seen.extend(t.numel() for t in arguments if isinstance(t, Tensor))

    monkeypatch.setattr(module, "launch", launch)
    monkeypatch.setattr(module, "blocks", lambda *_: Blocks(256, 64, 64, 64, 128))
    x, BC, steps = torch.empty(b, l, h, p), torch.empty(2, b, l, 1, n), torch.empty(2, b, l, h)
    given = (x, *steps, *BC, None, None, None, None, 0, True)
    module.gradient((torch.empty_like(x), None), module.forward(*given), *given)
    assert max(seen) == x.numel()


@pytest.mark.parametrize(
    ("sizes", "what"),
    [
        ({"h": 70000}, "70000 heads"),
        ({"p": 2**13, "n": 2**12}, "p = 8192 and n = 4096"),
        ({"h": 2**13, "p": 2**15}, "268435456 numbers a step"),
    ],
    ids=str,
)
def test_what_the_kernels_cannot_take(sizes, what):
    h, p, n = (sizes.get(k, 1) for k in ("h", "p", "n"))
    x, dt, B = (torch.empty(shape, device="meta") for shape in ((1, 1, h, p), (1, 1, h), (1, 1, 1, n)))
    with pytest.raises(ValueError, match=f"got {what}, expected .* pass backend='chunked'"):
        module.refuse(x, dt, B)


# --- One step -------------------------------------------------------------------------------------------


def step_inputs(dtype: torch.dtype, leave_out: tuple[str, ...] = (), **sizes: int) -> dict[str, Tensor]:
    made = inputs(l=1, dtype=dtype, **sizes)
    step = {
        k: v[:, 0] if k in ("x", "dt", "B", "C", "z") else v for k, v in made.items() if k not in leave_out
    }
    return {"state": step.pop("initial_state"), **step}


def update(
    state, x, dt, A, B, C, D=None, z=None, dt_bias=None, *, dt_softplus=False, dt_limit=(0.0, torch.inf)
) -> tuple[Tensor, Tensor]:
    D = D[:, None].expand(x.shape[1:]) if D is not None and D.ndim == 1 else D
    return triton_ssd.ssd_state_update(
        state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, *map(float, dt_limit)
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("leave_out", "options"),
    [((), {"dt_softplus": True, "dt_limit": (0.2, 0.8)}), (("D", "z", "dt_bias"), {})],
    ids=["everything", "nothing optional"],
)
def test_a_step(dtype, leave_out, options):
    made = step_inputs(dtype, leave_out, p=17, b=1, h=2)

    def oracle(**wide):
        y, state = ssd_state_update(**wide)
        return y.to(dtype), state.to(made["state"].dtype)

    assert_agrees(there(update), oracle, made, terms=30, **options)


def test_a_step_is_one_launch(monkeypatch):
    launches = []

    class Counted:
        def __getitem__(self, grid):
            launches.append(grid)
            return triton_ssd_kernel[grid]

    triton_ssd_kernel = triton_ssd.ssd_update_kernel
    monkeypatch.setattr(triton_ssd, "ssd_update_kernel", Counted())
    update(**{k: v.to(DEVICE) for k, v in step_inputs(torch.float32).items()})
    assert len(launches) == 1


# --- Compiled for GPUs that are not here ----------------------------------------------------------------


@pytest.mark.parametrize("given", [BARE, {}], ids=["nothing optional", "everything"])
def test_what_is_launched_is_what_is_compiled(monkeypatch, given):
    """The types of all arrays that a kernel reads, for bfloat16: only a GPU's compiler would mind a wrong one."""
    launched = {}

    def launch(_, kernel, grid, *arguments, **constants):
        names = inspect.signature(kernel.fn).parameters
        types = {n: TYPES[t.dtype] for n, t in zip(names, arguments, strict=False) if isinstance(t, Tensor)}
        launched[kernel.__name__] = types
        assert set(constants) == {n for n, p in names.items() if "constexpr" in str(p.annotation)}

    monkeypatch.setattr(module, "launch", launch)
    monkeypatch.setattr(module, "INTERPRETED", False)
    row = case("", dtype=torch.bfloat16, **given)
    options = row.options if not given else {"dt_softplus": True}
    everything = {"seq_idx": packed(2, 17)} if not given else {}
    assert_launches(row.make(), options | everything)
    unread = {"D_ptr", "z_ptr", "dz_ptr", "ends_ptr", "number_ptr", "dD_ptr"} if given else set()
    compiled = {c.kernel.__name__: c.signature for m in KERNELS for c in m.compilations()}
    assert launched.keys() == compiled.keys()
    for name, types in launched.items():
        expected = {k: v for k, v in compiled[name].items() if k in types and k not in unread}
        assert {k: v for k, v in types.items() if k not in unread} == expected, name


def assert_launches(made: dict[str, Tensor], options: dict[str, Any]) -> None:
    leaves = {k: v.requires_grad_() for k, v in made.items()}
    results = ssd(**leaves, **options, backend="triton")
    results = results if isinstance(results, tuple) else (results,)
    torch.autograd.grad([r.sum() for r in results], list(leaves.values()))


TYPES = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int32: "*i32", torch.int64: "*i64"}
