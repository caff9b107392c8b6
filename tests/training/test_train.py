"""The training loop: against a loop written here, and what it leaves as it was."""

import math
import signal
import threading

import pytest
import torch
from trainings import figures, small, with_training, write_words

from ssmcourse.models import LanguageModel
from ssmcourse.tasks.text import read_text
from ssmcourse.training import Config, TrainingError, train
from ssmcourse.training import loop as loop_module
from ssmcourse.training.data import TextSource
from ssmcourse.training.records import read_rows


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return write_words(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="module")
def trained(words):
    """Mamba, whose kernels are as exact as the rest."""
    return train(small(words, "M-"))


def test_losses_are_those_of_a_loop_by_hand(words, trained):
    """The same weights and batches, one plain AdamW for each kind of parameter, every formula written out."""
    config = small(words, "M-")
    torch.manual_seed(0)
    model = LanguageModel(config.model)
    source = TextSource(read_text(words), 4, 24, 0)
    optimizer = torch.optim.AdamW(
        model.parameter_groups(), betas=(0.9, 0.95), weight_decay=0.1, foreach=False
    )
    for step in range(1, 13):
        rate = 1e-2 * step / 2 if step <= 2 else 1e-2 * (1 + math.cos(math.pi * (step - 2) / 10)) / 2
        for group in optimizer.param_groups:
            group["lr"] = rate
        tokens, targets = source.batch(step)
        probabilities = model(tokens).softmax(-1).gather(2, targets[..., None])
        loss = -probabilities.log().mean()
        optimizer.zero_grad()
        loss.backward()
        norm = sum((p.grad**2).sum() for p in model.parameters()) ** 0.5
        for p in model.parameters():
            p.grad *= min(1.0, 1.0 / norm.item())
        optimizer.step()
        row = trained.history[step - 1]
        assert row.loss == pytest.approx(loss.item(), rel=1e-5)
        assert row.learning_rate == pytest.approx(rate, rel=1e-12)
    for mine, theirs in zip(model.parameters(), trained.model.parameters(), strict=True):
        assert (mine - theirs).abs().max() < 1e-4
    model.eval()
    data = read_text(words).validation.long()
    with torch.no_grad():
        pieces = [data[i : i + 25] for i in range(0, len(data) - 1, 24)]
        logs = [
            model(p[None, :-1])[0].log_softmax(-1).gather(1, p[1:, None]).double()
            for p in pieces
            if len(p) > 1
        ]
    assert trained.history[-1].validation_loss == pytest.approx(-torch.cat(logs).mean().item(), rel=1e-3)


def test_validation_is_at_its_steps_and_at_the_end(words, trained):
    assert [r.step for r in trained.history if r.validation_loss is not None] == [6, 12]
    run = train(small(words, "M-", steps=4, eval_every=3))
    assert [r.step for r in run.history if r.validation_loss is not None] == [3, 4]


def test_a_parameter_with_a_largest_rate_is_held_to_it(words):
    """AdamW's first step moves a parameter by its rate: 0.1, or what the layer allows."""
    config = small(words, "D", steps=1, warmup=0, learning_rate=0.1, min_learning_rate=0.1, weight_decay=0.0)
    model = train(config).model
    torch.manual_seed(0)
    before = dict(LanguageModel(model.config).named_parameters())
    held = {
        f"{prefix}.{name}": largest
        for prefix, module in model.named_modules()
        for name, largest in getattr(module, "max_learning_rate", {}).items()
    }
    assert len(held) >= 3
    for name, value in model.named_parameters():
        moved = (value - before[name]).abs().max().item()
        assert moved == pytest.approx(held.get(name, 0.1), rel=0.05), name


def test_it_learns(words):
    run = train(small(words, steps=60, learning_rate=3e-2, eval_every=60))
    assert run.history[-1].loss < 0.6 * run.history[0].loss
    assert run.history[-1].validation_accuracy > 0.2


def test_a_task_is_learnt():
    config = Config.from_dict(
        {
            "model": {"pattern": "M", "d_model": 16},
            "data": {"task": "copying", "arguments": {"symbols": 2, "kept": 1, "delay": 1}},
            "training": {"steps": 60, "batch_size": 32, "learning_rate": 3e-2, "warmup": 5},
        }
    )
    assert train(config).history[-1].validation_accuracy > 0.95


def test_bfloat16_is_near_float32(words):
    whole, half = (train(small(words, dtype=dtype)).history[-1].loss for dtype in ("float32", "bfloat16"))
    assert half != whole
    assert half == pytest.approx(whole, rel=0.05)


def test_the_seed_decides_and_global_state_is_left_alone(words, trained):
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    again = train(small(words, "M-", threads=2 if threads == 1 else 1, steps=1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.get_num_threads() == threads
    assert again.history[0].loss == pytest.approx(trained.history[0].loss, rel=1e-6)
    assert figures(train(small(words, "M-")).history) == figures(trained.history)
    assert train(small(words, "M-", seed=1, steps=1)).history[0].loss != trained.history[0].loss


def test_the_folder_holds_losses_and_a_model(tmp_path, words):
    run = train(small(words, out=str(tmp_path / "run")))
    assert read_rows(tmp_path / "run" / "loss.csv", 12) == run.history
    model = LanguageModel.from_pretrained(tmp_path / "run" / "model")
    tokens = torch.arange(20)[None]
    assert torch.equal(model(tokens), run.model(tokens))
    again = train(small(words, out=str(tmp_path / "run")))  # there is nothing left to do
    assert again.history == run.history
    assert torch.equal(again.model(tokens), run.model(tokens))


def test_callbacks_see_every_step(words):
    seen = []
    train(small(words, steps=3), callbacks=[lambda run: seen.append((run.step, run.ended, run.interrupted))])
    assert seen == [(1, False, False), (2, False, False), (3, True, False)]


def test_ctrl_c_saves_and_the_same_call_goes_on(tmp_path, words, trained):
    config = small(words, "M-", out=str(tmp_path))

    def press(run):
        if run.step == 7:
            signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.warns(UserWarning, match="training stopped at step 8 of 12; a checkpoint is in "):
        half = train(config, callbacks=[press])
    assert signal.getsignal(signal.SIGINT) is handler
    assert half.interrupted
    assert half.step == 8  # the step under way is brought to its end
    assert not (tmp_path / "model").exists()
    whole = train(config)
    assert not whole.interrupted
    assert figures(whole.history) == figures(trained.history)


def test_a_second_ctrl_c_stops_at_once(words):
    def press_twice(run):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(small(words), callbacks=[press_twice])


def test_it_runs_in_a_thread(words):
    found = []
    worker = threading.Thread(target=lambda: found.append(train(small(words, steps=2))))
    worker.start()
    worker.join()
    assert found[0].step == 2


def test_a_loss_that_is_no_number_stops_it(tmp_path, words):
    config = small(words, out=str(tmp_path), learning_rate=1e30, warmup=0, clip=float("inf"))
    with pytest.raises(
        TrainingError, match=r"the (loss|norm of the gradient) is (nan|inf) at step \d+"
    ) as error:
        train(config)
    assert "\n" not in str(error.value)
    assert "lower training.learning_rate" in str(error.value)


def test_a_gradient_that_is_no_number_never_reaches_the_weights(tmp_path, words, monkeypatch):
    """A finite loss whose gradient is none, at step 6: the checkpoint of step 5 stays, and goes on."""
    train(small(words, out=str(tmp_path / "whole")))
    config = small(words, out=str(tmp_path / "run"), checkpoint_every=1)
    clip = torch.nn.utils.clip_grad_norm_
    calls = []

    def poisoned(parameters, largest):
        calls.append(1)
        return torch.tensor(float("nan")) if len(calls) == 6 else clip(parameters, largest)

    monkeypatch.setattr(loop_module.nn.utils, "clip_grad_norm_", poisoned)
    with pytest.raises(TrainingError, match=r"gradient is nan at step 6, .*The checkpoint of step 5 is kept"):
        train(config)
    monkeypatch.undo()
    rows = train(config).history
    assert figures(rows) == figures(read_rows(tmp_path / "whole" / "loss.csv", 12))


def test_data_that_does_not_fit_is_refused(words):
    with pytest.raises(
        ValueError, match=r"training.length: got 9999 with a text of \d+ bytes, expected less"
    ):
        train(small(words, length=9999))
    with pytest.raises(FileNotFoundError, match="path: no/where does not exist"):
        train(small("no/where"))
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match=r"training.device: got cuda, expected cpu"):
            train(with_training(small(words), device="cuda"))
