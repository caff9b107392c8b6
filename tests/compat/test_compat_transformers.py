"""Mamba and Mamba-2 of `transformers`: same logits, gradients, caches and texts, by `accelerate` and by `install`."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch
from official_loops import assert_close

from ssmcourse.compat import accelerate

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

COMMON = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 40}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
KINDS = {
    "mamba": (transformers.MambaConfig, transformers.MambaForCausalLM, {"state_size": 4}),
    "mamba, bias": (
        transformers.MambaConfig,
        transformers.MambaForCausalLM,
        {"state_size": 4, "use_bias": True, "use_conv_bias": False, "conv_kernel": 3},
    ),
    "mamba2": (
        transformers.Mamba2Config,
        transformers.Mamba2ForCausalLM,
        {"state_size": 4, "num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 8} | SPECIAL,
    ),
    "mamba2, groups": (
        transformers.Mamba2Config,
        transformers.Mamba2ForCausalLM,
        {"state_size": 4, "num_heads": 4, "head_dim": 8, "n_groups": 2, "chunk_size": 8, "use_bias": True,
         "time_step_limit": (0.02, 0.08)} | SPECIAL,
    ),
}  # fmt: skip


def make(kind):
    """A model and the same one with our operators, in evaluation mode."""
    config, model, options = KINDS[kind]
    torch.manual_seed(0)
    theirs = model(config(**COMMON, **options)).eval()
    return theirs, accelerate(copy.deepcopy(theirs))


def tokens(b=2, l=19):
    return torch.randint(3, 40, (b, l), generator=torch.Generator().manual_seed(1))


def uses_ours(model):
    return all("forward" in vars(m) for m in model.modules() if type(m).__name__.endswith("Mixer"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("train", [True, False])
def test_logits_and_gradients(kind, train):
    theirs, ours = make(kind)
    x = tokens()
    results = []
    for model in (theirs, ours):
        model.train(train)
        output = model(x, labels=x, use_cache=False)
        output.loss.backward()
        results.append(output.logits)
    assert uses_ours(ours)
    assert not uses_ours(theirs)
    assert_close(results[1], results[0], 200)
    for (name, own), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert own.grad is not None, name
        assert_close(own.grad, other.grad, 1000)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_on_the_left(kind):
    theirs, ours = make(kind)
    mask = torch.ones(2, 19, dtype=torch.int64)
    mask[0, :6] = 0
    with torch.no_grad():
        assert_close(
            ours(tokens(), attention_mask=mask).logits, theirs(tokens(), attention_mask=mask).logits, 200
        )
    texts = [
        model.generate(tokens(), attention_mask=mask, max_new_tokens=8, min_new_tokens=8, do_sample=False)
        for model in (theirs, ours)
    ]
    assert torch.equal(*texts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompt", [1, 2, 12])
def test_generation_and_its_caches(kind, prompt):
    theirs, ours = make(kind)
    caches, logits = [], []
    for model in (theirs, ours):
        with torch.no_grad():
            output, steps = model(tokens()[:, :prompt], use_cache=True), []
            for t in range(prompt, 19):
                steps.append(output.logits[:, -1])
                output = model(tokens()[:, t : t + 1], cache=output.cache, use_cache=True)
        caches.append(output.cache)
        logits.append(torch.stack([*steps, output.logits[:, -1]], 1))
    assert_close(logits[1], logits[0], 200)
    for layer in range(2):
        assert_close(caches[1].get_conv_state(layer), caches[0].get_conv_state(layer), 200)
        assert_close(caches[1].get_recurrent_state(layer), caches[0].get_recurrent_state(layer), 200)
    if "limit" not in str(KINDS[kind]):  # theirs leaves dt_limit out of a step
        with torch.no_grad():
            whole = ours(tokens(), use_cache=False).logits[:, prompt - 1 :]
        assert_close(logits[1], whole, 200)


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_a_second_chunk_goes_on_as_theirs_does(kind):
    """Theirs forgets the recurrent state of Mamba there, and keeps it of Mamba-2."""
    theirs, ours = make(kind)
    with torch.no_grad():
        got, expected = (
            model(tokens()[:, 9:], cache=model(tokens()[:, :9], use_cache=True).cache, use_cache=True).logits
            for model in (ours, theirs)
        )
    assert_close(got, expected, 200)


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_half_precision(kind):
    theirs, ours = (model.to(torch.bfloat16) for model in make(kind))
    with torch.no_grad():
        got = ours(tokens(), use_cache=False).logits
        expected = theirs(tokens(), use_cache=False).logits
    assert_close(got.to(torch.bfloat16), expected, 4)


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_steps_with_gradients_are_left_to_the_original(kind):
    """Their own states are written into, so that its backward fails; ours would leave gradients out in silence."""
    for model in make(kind):
        with torch.no_grad():
            cache = model(tokens()[:, :9], use_cache=True).cache
        logits = model(tokens()[:, 9:10], cache=cache, use_cache=True).logits
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            logits.sum().backward()


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
def test_a_cache_of_another_batch_is_an_error_as_before(kind):
    for model in make(kind):
        with torch.no_grad(), pytest.raises(RuntimeError):
            model(tokens()[:, 9:10], cache=model(tokens(3), use_cache=True).cache, use_cache=True)


def test_packed_sequences_of_mamba2():
    theirs, ours = (model.backbone for model in make("mamba2"))
    marks = torch.tensor([[0] * 5 + [1] * 14], dtype=torch.int32)
    x = tokens(1)
    with torch.no_grad():
        packed = ours(x, seq_idx=marks, use_cache=False).last_hidden_state
        alone = [ours(part, use_cache=False).last_hidden_state for part in x.split([5, 14], 1)]
        for model, cached in ((theirs, False), (ours, True)):
            with pytest.raises(ValueError, match="packed sequences"):
                model(x, seq_idx=marks, use_cache=cached)
    assert_close(packed, torch.cat(alone, 1), 200)


def test_another_activation_is_left_to_the_original():
    config, model, options = KINDS["mamba"]
    theirs = model(config(**COMMON, **options, hidden_act="gelu")).eval()
    ours = accelerate(copy.deepcopy(theirs))
    with torch.no_grad():
        assert torch.equal(ours(tokens(), use_cache=False).logits, theirs(tokens(), use_cache=False).logits)


def test_copies_and_pickles():
    _, ours = make("mamba")
    again = copy.deepcopy(ours)
    mixer = again.backbone.layers[0].mixer
    assert mixer.forward.__self__ is mixer
    with torch.no_grad():
        expected = ours(tokens(), use_cache=False).logits
        assert torch.equal(again(tokens(), use_cache=False).logits, expected)
        loaded = pickle.loads(pickle.dumps(ours))
        assert_close(loaded(tokens(), use_cache=False).logits, expected, 200)
    assert accelerate(again) is again


def test_a_model_without_their_layers_is_refused():
    with pytest.raises(ValueError, match="Linear"):
        accelerate(torch.nn.Linear(2, 2))


def test_install_before_the_import_does_the_same_for_all():
    code = """
        import warnings; warnings.simplefilter("ignore")
        import copy, torch
        from ssmcourse import compat
        compat.install()
        from transformers import Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM
        from transformers.models.mamba import modeling_mamba
        from transformers.models.mamba2 import modeling_mamba2
        from transformers.models.falcon_mamba import modeling_falcon_mamba
        from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn
        common = dict(hidden_size=16, num_hidden_layers=2, vocab_size=40, state_size=4)
        heads = dict(num_heads=4, head_dim=8, n_groups=1, pad_token_id=0, bos_token_id=1, eos_token_id=2)
        x = torch.randint(3, 40, (2, 19))
        for model in (MambaForCausalLM(MambaConfig(**common)), Mamba2ForCausalLM(Mamba2Config(**common, **heads))):
            mixer = type(model.backbone.layers[0].mixer)
            ours = mixer.forward
            assert ours.original is not ours
            loss = model(x, labels=x).loss
            loss.backward()
            gradients = [p.grad.clone() for p in model.parameters()]
            model.zero_grad()
            mixer.forward = ours.original  # it has our functions, since they were there when it was imported
            other = model(x, labels=x).loss
            other.backward()
            torch.testing.assert_close(other, loss, rtol=1e-5, atol=1e-5)
            for p, g in zip(model.parameters(), gradients):
                torch.testing.assert_close(p.grad, g, rtol=1e-3, atol=1e-5)
            mixer.forward = ours
            assert compat.accelerate(model) is model and "forward" not in vars(model.backbone.layers[0].mixer)
        cells = [c.cell_contents for c in modeling_falcon_mamba.mamba_inner_fn.__closure__]
        assert mamba_inner_fn in cells
        compat.uninstall()
        assert not hasattr(modeling_mamba.MambaMixer.forward, "original")
        assert not hasattr(modeling_mamba2.Mamba2Mixer.forward, "original")
        warnings.simplefilter("error")
        try:
            compat.install()
        except UserWarning as warning:
            assert "accelerate" in str(warning)
        else:
            raise AssertionError("no warning that it is late")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
