"""The code of the experiments on a handful of steps: the layers that stand in, the trainings, what is measured."""

from __future__ import annotations

import json

import pytest
import torch
from experiments_script import loaded
from torch import Tensor

from ssmcourse import nn
from ssmcourse.models import LanguageModel
from ssmcourse.tolerance import mismatch

experiments = loaded()


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def same(got: Tensor, expected: Tensor) -> None:
    found = mismatch(got.detach(), expected.detach(), terms=64)
    assert found is None, str(found)


def h3_by_loops(layer: nn.H3, x: Tensor, *, sums: bool) -> Tensor:
    """Algorithm 1 of the paper, an entry at a time, with sums or with products."""
    q, k, v = layer.q_proj(x)[0], layer.k_proj(x)[0], layer.v_proj(x)[0]
    l, d, p = len(q), q.shape[1], layer.head_dim
    kernel, taps = layer.ssm.kernel(l), layer.shift_kernel
    y = torch.zeros_like(q)
    k_bar = layer.D_shift * k
    for t in range(l):
        for lag in range(min(t + 1, taps.shape[1])):
            k_bar[t] = k_bar[t] + taps[:, lag] * k[t - lag]
    for t in range(l):
        for c in range(d):
            head = c // p
            mine = range(head * p, (head + 1) * p)
            y[t, c] = q[t, c] if sums else 0.0
            for s in range(t + 1):
                kept = kernel[head, t - s] + (layer.D[head] if s == t else 0.0)
                filed = k_bar[s, c] + v[s, c] if sums else sum(q[t, i] * k_bar[s, i] for i in mine) * v[s, c]
                y[t, c] += kept * filed
    return layer.out_proj(y)[None]


@pytest.mark.parametrize(("name", "sums"), [("ShortH3", False), ("SumH3", True)])
@pytest.mark.parametrize("shift_size", [1, 3, 9])
@torch.no_grad()
def test_h3_that_stands_in(name: str, sums: bool, shift_size: int) -> None:
    torch.manual_seed(0)
    layer = getattr(experiments, name)(4, 4, 2, shift_size, dtype=torch.float64)
    x = drawn(1, 5, 4)
    same(layer(x), h3_by_loops(layer, x, sums=sums))
    if not sums:
        whole = nn.H3(4, 4, 2, shift_size, dtype=torch.float64)
        whole.load_state_dict(layer.state_dict())
        same(layer(x), whole(x))


@torch.no_grad()
def test_mamba_that_stands_in_is_a_convolution_between_its_branches() -> None:
    """Scan of what the convolution gives, by a kernel read off an impulse: no step size depends on the input."""
    torch.manual_seed(0)
    layer = experiments.TimeInvariantMamba(4, d_state=3, dtype=torch.float64)
    assert layer.state_dict().keys() == nn.Mamba(4, d_state=3).state_dict().keys()
    layer.out_proj = torch.nn.Identity()
    layer.d_model = 4
    x = drawn(1, 6, 4)
    branch, z = layer.in_proj(x).chunk(2, -1)
    u = torch.nn.functional.silu(layer.conv1d(branch.mT)[..., :6].mT)
    dt, B, C = (part[0, 0] for part in layer.select(u))
    dt = torch.nn.functional.softplus(dt + layer.dt_proj.bias)
    kernel = torch.stack(
        [((dt[:, None] * layer.A() * lag).exp() * dt[:, None] * B * C).sum(1) for lag in range(6)]
    )
    y = torch.stack([sum(kernel[t - s] * u[:, s] for s in range(t + 1)) for t in range(6)], 1)
    same(layer(x), (y + layer.D * u) * torch.nn.functional.silu(z))


def test_a_name_stands_for_another_class_within_and_not_after() -> None:
    before = nn.H3
    contestant = experiments.RECALLING["h3_sums_for_products"]
    with experiments.standing_in(contestant.instead):
        made = LanguageModel(experiments.config(experiments.RECALL, contestant, 1, 0).model)
    assert type(made.backbone.layers[0].mixer) is experiments.SumH3
    assert nn.H3 is before


ATTENTION = experiments.Contestant("*-", {"*": {"num_heads": 2}})


def test_a_comparison_says_what_it_did() -> None:
    def compared(seeds, look=None):
        found = experiments.compare(experiments.RECALL, {"attention": ATTENTION}, 2, seeds, look)
        assert found["seeds"] == list(seeds)
        return found["models"]["attention"]

    both = compared((0, 1))
    assert both["steps"] == [2, 2]
    assert both["accuracy"][0] != both["accuracy"][1]
    assert both["range"] == [min(both["accuracy"]), max(both["accuracy"])]
    assert both["mean"] == pytest.approx(sum(both["accuracy"]) / 2)
    again = compared((1,), lambda model: float(model.lm_head.weight.detach().sum()))
    assert again["accuracy"] == both["accuracy"][1:]
    assert again["seen"] != again["seen_untrained"]


def test_the_patient_get_longer() -> None:
    patient = ATTENTION._replace(longer=3)
    assert experiments.learn(experiments.RECALL, patient, 1, 0)[1]["steps"] == 3


def test_a_training_ends_when_the_task_is_solved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments, "ENOUGH", 0.0)
    easy = experiments.Question("recall", {"pairs": 1, "keys": 1, "values": 1}, 8, 1e-2, batch_size=4)
    _, figures = experiments.learn(easy, ATTENTION, 300, 0)
    assert figures["steps"] == 100  # the first judgement


class Pointing:
    """What stands in for `attribution`: all weight on one token of the pair asked for."""

    def __init__(self, offset: int) -> None:
        self.offset = offset

    def __call__(self, model: LanguageModel, tokens: Tensor, target: Tensor, method: str) -> Tensor:
        scores = torch.zeros(tokens.shape)
        for row, line in enumerate(tokens.tolist()):
            scores[row, line.index(line[-1]) + self.offset] = 1.0
        return scores


@pytest.mark.parametrize(("offset", "place"), [(0, "on_key"), (1, "on_value")])
def test_weight_is_counted_where_it_lies(offset: int, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = experiments.learn(experiments.RECALL, ATTENTION, 1, 0)
    monkeypatch.setattr(experiments, "attribution", Pointing(offset))
    found = experiments.look(model, 16)["raw"]
    assert found[place] == found["on_pair"] == pytest.approx(1.0)


def test_a_single_layer_has_the_weights_of_its_softmax() -> None:
    """One attention layer: |α| is the softmax, and what counts for the answer follows from the gradient by hand."""
    model, _ = experiments.learn(experiments.RECALL, ATTENTION, 1, 0)
    model = model.double()
    tokens = torch.randint(0, 20, (2, 21), generator=torch.Generator().manual_seed(0))
    answer = torch.tensor([10, 11])
    rows = experiments.single_layers(model, tokens, answer)
    assert rows.keys() == {"layer_0", "grad_layer_0", "contribution_0"}
    first, second = model.backbone.layers
    residual = model.backbone.embedding(tokens)
    q, k, v = first.mixer.in_proj(first.normed(residual)).unflatten(2, (3, 2, 16)).unbind(2)
    weights = torch.einsum("bhp,bjhp->bhj", q[:, -1], k).div(4.0).softmax(-1)
    same(rows["layer_0"], weights.mean(1))
    u = torch.einsum("bhj,bjhp->bhp", weights, v).flatten(1).detach().requires_grad_()
    after = residual[:, -1] + first.mixer.out_proj(u)
    logits = model.head(after + second.mixer(second.normed(after[:, None]))[:, 0])
    same(logits, model(tokens)[:, -1])
    (slope,) = torch.autograd.grad(logits.gather(1, answer[:, None]).sum(), u)
    counts = torch.einsum("bhj,bjhp,bhp->bjhp", weights, v, slope.unflatten(1, (2, 16))).flatten(2)
    for name, row in (
        ("grad_layer_0", counts.clamp(min=0).sum(2)),
        ("contribution_0", counts.sum(2).clamp(min=0)),
    ):
        same(rows[name], row / row.sum(1, keepdim=True))


def test_the_query_is_never_masked() -> None:
    model, _ = experiments.learn(experiments.RECALL, ATTENTION, 1, 0)
    tokens = torch.randint(0, 20, (2, 21), generator=torch.Generator().manual_seed(0))
    plain = torch.arange(21.0).flip(0).expand(2, 21)
    proud = plain.clone()
    proud[:, -1] = 99.0
    answer = torch.tensor([10, 11])
    assert experiments.area(model, tokens, plain, answer) == experiments.area(model, tokens, proud, answer)


def test_one_experiment_is_kept_beside_another(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments.record, "RESULTS", tmp_path)
    experiments.keep("recall", {"found": 0.123456}, 1.0)
    experiments.keep("hybrid", {"found": 2}, 2.0)
    kept = json.loads((tmp_path / "experiments.json").read_text())
    assert kept["recall"]["found"] == 0.1235
    assert kept["hybrid"]["seconds"] == 2.0
    assert {"date", "machine"} <= kept["recall"].keys()


def test_the_command_names_the_experiments(capsys: pytest.CaptureFixture[str]) -> None:
    assert experiments.main([]) == 0
    assert capsys.readouterr().out.split() == list(experiments.EXPERIMENTS)
    assert experiments.main(["no such"]) == 2
