"""Claims about what a layer can learn, tried at the smallest size that shows them.

    python benchmarks/experiments.py                  the names
    python benchmarks/experiments.py recall           one, or several, or all: minutes each on one thread

Every experiment is a function that trains its models and gives a dictionary of figures, which is kept under its name
in results/experiments.json, with the date and the machine. What would refute each claim stands in the tests,
tests/experiments/, which run shorter versions.

Batches, first weights and judgement are functions of the seed. All models of an experiment get the same batches.
"""

from __future__ import annotations

import datetime
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple
from unittest.mock import patch

import record
import torch
from torch import Tensor

from ssmcourse import nn
from ssmcourse.attention import attribution, h3_matrix, layer_attention, perturbation_curve
from ssmcourse.bench.timing import machine
from ssmcourse.convolution import fft_conv
from ssmcourse.models import LanguageModel
from ssmcourse.tasks.recall import AssociativeRecall
from ssmcourse.tasks.task import Task, accuracy
from ssmcourse.training import Config, Trained, train

JUDGED, JUDGED_AT_ONCE = 2048, 256  # rows for the accuracy of a trained model
ENOUGH = 0.995  # validation accuracy at which a training ends: the task is solved
Figures = dict[str, Any]


# --- Layers that stand in for those of the library ----------------------------------------------


class TimeInvariantMamba(nn.Mamba):
    """Mamba without selection: dt, B and C are made from a constant, so that they are the same at every step."""

    def select(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return super().select(torch.ones_like(x))


class ShortH3(nn.H3):
    """H3 by its matrix: the same function, some times as fast where sequences are as short as here."""

    def recall(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        kernel = self.ssm.kernel(q.shape[1])
        matrix = h3_matrix(q, k, self.shift_kernel, kernel, D_shift=self.D_shift, D_ssm=self.D)
        values = v.unflatten(2, (-1, self.head_dim)).transpose(1, 2)
        return (matrix @ values).transpose(1, 2).flatten(2)


class SumH3(nn.H3):
    """H3 with sums in place of both products: Q + SSM_diag(SSM_shift(K) + V)."""

    def recall(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        l, p = q.shape[1], self.head_dim
        taps = torch.nn.functional.pad(self.shift_kernel[:, :l], (0, max(l - self.shift_kernel.shape[1], 0)))
        filed = fft_conv(k, taps, self.D_shift) + v
        kernel, skip = self.ssm.kernel(l), self.D
        return q + fft_conv(filed, kernel.repeat_interleave(p, 0), skip.repeat_interleave(p))


@contextmanager
def standing_in(layers: Mapping[str, type]) -> Iterator[None]:
    """Within this, a model that asks ssmcourse.nn for a layer of a name gets another class."""
    with ExitStack() as stack:
        for name, other in layers.items():
            stack.enter_context(patch.object(nn, name, other))
        yield


# --- Trainings ----------------------------------------------------------------------------------


class Contestant(NamedTuple):
    """A model that is trained.

    options: of its layers, beside those that all have.
    instead: names of layers in ssmcourse.nn, and what stands in for them.
    longer: times the steps that the others get.
    """

    pattern: str
    options: Mapping[str, Mapping[str, Any]] = {}
    instead: Mapping[str, type] = {}
    longer: int = 1


class Question(NamedTuple):
    """What the models of an experiment learn and how: a task's name and sizes, and how wide they are."""

    task: str
    arguments: Mapping[str, int]
    d_model: int
    learning_rate: float
    batch_size: int = 64


def config(question: Question, contestant: Contestant, steps: int, seed: int) -> Config:
    """The training of a contestant."""
    options = dict(contestant.options)
    if "-" in contestant.pattern:
        options["-"] = {"hidden_features": 2 * question.d_model, "multiple_of": 1}
    steps = steps * contestant.longer
    return Config.from_dict(
        {
            "model": {
                "pattern": contestant.pattern,
                "d_model": question.d_model,
                "tie_embeddings": False,  # tied, the recall is learnt several times as slowly, or not at all
                "options": options,
            },
            "data": {"task": question.task, "arguments": dict(question.arguments)},
            "training": {
                "steps": steps,
                "batch_size": question.batch_size,
                "learning_rate": question.learning_rate,
                "warmup": min(100, steps),
                "weight_decay": 0.01,
                "seed": seed,
                "eval_every": 100,
                "device": "cpu",
            },
        }
    )


class Solved(Exception):  # noqa: N818  # no error: it ends a training
    """The task is solved."""


def learn(question: Question, contestant: Contestant, steps: int, seed: int) -> tuple[LanguageModel, Figures]:
    """Train until the task is solved, or for all the steps.

    Returns:
        The model, and its accuracy on rows of its own, the steps that it took, and the seconds.
    """
    latest: list[Trained] = []

    def end_if_solved(trained: Trained) -> None:
        latest[:] = [trained]
        right = trained.history[-1].validation_accuracy
        if right is not None and right >= ENOUGH:
            raise Solved

    started, asked = time.perf_counter(), config(question, contestant, steps, seed)
    with standing_in(contestant.instead), suppress(Solved):
        train(asked, callbacks=[end_if_solved])
    trained = latest[0]
    model = trained.model.eval()
    task = asked.data.make_task()
    assert task is not None
    return model, {
        "accuracy": judged(model, task),
        "steps": trained.step,
        "seconds": time.perf_counter() - started,
    }


@torch.no_grad()
def judged(model: LanguageModel, task: Task) -> float:
    """The accuracy on rows drawn for this alone, the same ones for every model."""
    tokens, targets = task.sample(JUDGED, torch.Generator().manual_seed(JUDGED))
    logits = torch.cat([model(part) for part in tokens.split(JUDGED_AT_ONCE)])
    return accuracy(logits, targets)


def compare(
    question: Question,
    contestants: Mapping[str, Contestant],
    steps: int,
    seeds: Sequence[int],
    look: Callable[[LanguageModel], Figures] | None = None,
) -> Figures:
    """Train every contestant from every seed: accuracies in the order of the seeds, with mean, least and largest.

    look: what else to say of a model; it is asked of every trained one, and of each after a single step.
    """
    found: Figures = {}
    for name, contestant in contestants.items():
        runs = []
        for seed in seeds:
            model, figures = learn(question, contestant, steps, seed)
            if look is not None:
                figures["seen"] = look(model)
                figures["seen_untrained"] = look(learn(question, contestant, 1, seed)[0])
            runs.append(figures)
            print(f"{question.task}, {name}, seed {seed}: {figures}", file=sys.stderr, flush=True)
        accuracies = [run["accuracy"] for run in runs]
        found[name] = {
            "pattern": contestant.pattern,
            "options": contestant.options,
            "accuracy": accuracies,
            "mean": statistics.mean(accuracies),
            "range": [min(accuracies), max(accuracies)],
            "parameters": sum(p.numel() for p in model.parameters()),
        }
        for key in [key for key in runs[0] if key != "accuracy"]:
            found[name][key] = [run[key] for run in runs]
    return {"seeds": list(seeds), "at_most_steps": steps, "question": question._asdict(), "models": found}


def some(contestants: Mapping[str, Contestant], names: Sequence[str] | None) -> Mapping[str, Contestant]:
    """Those that are among the names; all if None."""
    return {name: one for name, one in contestants.items() if names is None or name in names}


# --- What a layer can learn ---------------------------------------------------------------------

RECALL = Question("recall", {"pairs": 10, "keys": 10, "values": 10}, 32, 5e-3)
RECALLING = {
    "s4d": Contestant("D-D-", {"D": {"d_state": 32}}),
    "h3_one_channel_a_head": Contestant("H-H-", {"H": {"d_state": 32, "shift_size": 4}}, {"H3": ShortH3}),
    "h3": Contestant("H-H-", {"H": {"d_state": 32, "head_dim": 8, "shift_size": 4}}, {"H3": ShortH3}),
    "h3_without_shift": Contestant(
        "H-H-", {"H": {"d_state": 32, "head_dim": 8, "shift_size": 1}}, {"H3": ShortH3}
    ),
    "h3_sums_for_products": Contestant(
        "H-H-", {"H": {"d_state": 32, "head_dim": 8, "shift_size": 4}}, {"H3": SumH3}
    ),
    "mamba": Contestant("M-M-", {"M": {"d_state": 16}}),
    "mamba2": Contestant("2-2-", {"2": {"d_state": 32, "headdim": 16}}),
    "attention": Contestant("*-*-", {"*": {"num_heads": 2, "d_conv": 4}}),
}


def recall(
    steps: int = 2000, seeds: Sequence[int] = (0, 1, 2), names: Sequence[str] | None = None
) -> Figures:
    """Which layers look up the value that went with a key: two of each, with MLPs between."""
    return compare(RECALL, some(RECALLING, names), steps, seeds)


def attention_of_recall(
    steps: int = 2000, seeds: Sequence[int] = (0, 1, 2), names: Sequence[str] = ("mamba2", "h3")
) -> Figures:
    """What those that look it up read: where their implicit attention lies, and what masking does."""
    return compare(RECALL, some(RECALLING, names), steps, seeds, look)


COPYING = {
    "fixed": Question("copying", {"kept": 6, "delay": 48}, 48, 4e-3, batch_size=32),
    "random": Question("selective_copying", {"kept": 6, "length_before": 54}, 48, 4e-3, batch_size=32),
}
KEEPING = {
    "s4d": Contestant("DD", {"D": {"d_state": 32}}),
    "mamba_time_invariant": Contestant("MM", {"M": {"d_state": 16}}, {"Mamba": TimeInvariantMamba}),
    "mamba": Contestant("MM", {"M": {"d_state": 16}}),
}


def selective_copying(
    steps: int = 1500,
    seeds: Sequence[int] = (0, 1),
    names: Sequence[str] | None = None,
    places: Sequence[str] = ("fixed", "random"),
) -> Figures:
    """Keep six symbols among blanks, at fixed places or at random ones; there the time-invariant get longer as well."""
    patient = {
        f"{name}_3_times_the_steps": KEEPING[name]._replace(longer=3)
        for name in ("s4d", "mamba_time_invariant")
    }
    contestants = {"fixed": KEEPING, "random": KEEPING | patient}
    return {place: compare(COPYING[place], some(contestants[place], names), steps, seeds) for place in places}


def phonebook(people: int) -> Question:
    return Question("phonebook", {"people": people, "names": 40, "symbols": 40, "digits": 1}, 32, 5e-3)


def state_size(
    steps: int = 1500, seeds: Sequence[int] = (0, 1), names: Sequence[str] | None = None
) -> Figures:
    """Eight people in the phonebook, and Mamba-2 with states of more and more numbers."""
    contestants = {
        f"{n}x{p}": Contestant("2-2-", {"2": {"d_state": n, "headdim": p}})
        for n, p in ((8, 8), (16, 16), (64, 16))
    }
    return compare(phonebook(8), some(contestants, names), steps, seeds)


def hybrid(
    people: int = 8, steps: int = 1500, seeds: Sequence[int] = (0, 1), names: Sequence[str] | None = None
) -> Figures:
    """One attention layer among three recurrent ones of small state, no positions, beside four of one kind."""
    small = {"2": {"d_state": 8, "headdim": 8}}
    attention = {"*": {"num_heads": 2}}
    contestants = {
        "mamba2": Contestant("2222", small),
        "hybrid": Contestant("2*22", small | attention),
        "attention": Contestant("****", {"*": {"num_heads": 2, "rotary_emb_dim": 16}}),
    }
    return compare(phonebook(people), some(contestants, names), steps, seeds)


# --- What a layer that has learnt it reads ------------------------------------------------------

METHODS = ("raw", "rollout", "grad_rollout")


def look(model: LanguageModel, rows: int = 256) -> Figures:
    """For each way to attribute the answer: the weight on the pair asked for, and what masking does.

    on_key, on_value, on_pair: of the weights, whose sum is 1, those on the key, the value, both.
    on_query: the weight on the last token, which is the key again. on_pair_query_aside: without it.
    masking: `area` of these scores, beside that of random ones.
    """
    task = AssociativeRecall(**RECALL.arguments)
    tokens, targets = task.sample(rows, torch.Generator().manual_seed(rows))
    answer = targets[:, -1]
    key = (tokens[:, :-1] == tokens[:, -1:]).int().argmax(1, keepdim=True)
    scores = {method: attribution(model, tokens, answer, method).detach() for method in METHODS}
    scores |= single_layers(model, tokens, answer)
    chance = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(0))
    found: Figures = {"masking_random": area(model, tokens, chance, answer)}
    for name, row in scores.items():
        on_key, on_value = (row.gather(1, key + offset).mean().item() for offset in (0, 1))
        on_query = row[:, -1].mean().item()
        found[name] = {
            "on_key": on_key,
            "on_value": on_value,
            "on_pair": on_key + on_value,
            "on_query": on_query,
            "on_pair_query_aside": (on_key + on_value) / (1 - on_query),
            "masking": area(model, tokens, row, answer),
        }
    return found


def single_layers(model: LanguageModel, tokens: Tensor, answer: Tensor) -> dict[str, Tensor]:
    """For each layer i that mixes, the last token's row (b, l), sum 1.

    layer_i: of |α|, averaged over channels.
    grad_layer_i: of the positive part of α times the gradient of the answer's logit, averaged over channels, as in
        "grad_rollout", but without the other layers and the residual connections.
    contribution_i: the same with the positive part taken of the mean: channels may cancel each other.
    """
    seen: list[tuple[nn.SequenceLayer, Tensor, Tensor]] = []
    residual = model.backbone.enter(model.backbone.embedding(tokens))
    for block in model.backbone.layers:
        mixer: nn.SequenceLayer = block.mixer  # pyright: ignore
        x: Tensor = block.normed(residual)  # pyright: ignore
        if isinstance(mixer, nn.GatedMLP):
            residual = residual + mixer(x)
            continue
        inside: list[Tensor] = []
        last = mixer.get_submodule(mixer.readout)
        hook = last.register_forward_pre_hook(lambda _, given, kept=inside: kept.append(given[0]))
        residual = residual + mixer(x)
        hook.remove()
        seen.append((mixer, x.detach(), inside[0]))
    logit = model.head(residual)[:, -1].gather(1, answer[:, None]).sum()
    slopes = torch.autograd.grad(logit, [u for _, _, u in seen])
    rows: dict[str, Tensor] = {}
    with torch.no_grad():
        for i, ((mixer, x, _), slope) in enumerate(zip(seen, slopes, strict=True)):
            alpha = layer_attention(mixer, x)
            last_row = alpha.matrix[:, :, -1]  # (b, d, l)
            counts = last_row * slope[:, -1, mixer.mixed, None] * alpha.values.mT
            kinds = {
                "layer": last_row.abs().sum(1),
                "grad_layer": counts.clamp(min=0).sum(1),
                "contribution": counts.sum(1).clamp(min=0),
            }
            for name, row in kinds.items():
                rows[f"{name}_{i}"] = row / row.sum(-1, keepdim=True).clamp(min=torch.finfo(row.dtype).tiny)
    return rows


def area(model: LanguageModel, tokens: Tensor, scores: Tensor, answer: Tensor, masked: int = 5) -> float:
    """The answer's mean probability while 1, 2, ... tokens are masked, the query never: low if scores are good."""
    allowed = scores.clone()
    allowed[:, -1] = -torch.inf
    return perturbation_curve(model, tokens, allowed, answer, steps=masked)[:, 1:].mean().item()


# --- The command --------------------------------------------------------------------------------

EXPERIMENTS: dict[str, Callable[[], Figures]] = {
    "recall": recall,
    "attention_of_recall": attention_of_recall,
    "selective_copying": selective_copying,
    "hybrid": hybrid,
    "state_size": state_size,
}


def keep(name: str, figures: Figures, seconds: float) -> None:
    """Put the figures into results/experiments.json, beside those of the other experiments."""
    path = record.RESULTS / "experiments.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    others = {key: value for key, value in known.items() if key in EXPERIMENTS}
    dated = {"date": datetime.date.today().isoformat(), "machine": machine(), "seconds": seconds}
    record.store("experiments", quiet=True, **others | {name: dated | figures})


def main(names: Sequence[str]) -> int:
    wrong = [name for name in names if name not in EXPERIMENTS and name != "all"]
    if wrong or not names:
        print(*EXPERIMENTS, sep="\n")
        return 2 if wrong else 0
    torch.set_num_threads(1)
    for name in EXPERIMENTS if "all" in names else names:
        started = time.perf_counter()
        figures = EXPERIMENTS[name]()
        keep(name, figures, time.perf_counter() - started)
        print(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
