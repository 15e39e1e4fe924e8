"""What is evaluated is what was trained, on a bfloat16 base too (truth: the deltas unfolded, in float32)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmedexpert_jax import lora as adapters
from mmedexpert_jax.medeval.backends.jax_engine import JaxBackend
from mmedexpert_jax.models import load_model, load_policy, load_processor
from mmedexpert_jax.rollout import Settings, completion_logprobs
from mmedexpert_jax.runtime import Run
from mmedexpert_jax.sft import train
from mmedexpert_jax.train.policy import Policy

PROMPT = [{"role": "user", "content": "A woman has a rate of 32. What is her score?"}]


def exact(tree):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


@pytest.fixture(scope="module")
def logprobs(model_dir):
    """Log-probabilities of fixed tokens under weights, whatever their dtype, computed in float32."""
    model, processor = load_policy(model_dir)[0], load_processor(model_dir)
    tokens = np.random.default_rng(0).integers(0, 380, (1, 4, 24), np.int32)
    lengths = np.full((1, 4), 24, np.int32)

    def of(params, lora=None):
        with jax.default_matmul_precision("highest"):
            return completion_logprobs(model, exact(params), processor([PROMPT]), tokens, lengths, lora=lora)

    return of


@pytest.mark.parametrize("lr", [1e-6, 1.2e-5])
def test_every_reader_sees_the_change_that_was_trained(cases, make_config, logprobs, lr, model_dir, recwarn):
    config = make_config(**{"model.dtype": "bfloat16", "lr": lr, "steps": 30, "warmup_steps": 0, "lora.rank": 16})
    seen = {}
    with Run.open(config.workdir, config) as run:
        path = train(config, run, lambda params, step, lora: seen.update({step: (params, lora)}) or {}, cases=cases)
    base = load_model(model_dir, dtype="bfloat16")[1]
    before = logprobs(base)
    trained = np.asarray(logprobs(base, adapters.load_peft(path, base)) - before)
    size = np.sqrt(np.mean(trained**2))
    assert size > 1e-6

    backend = JaxBackend(str(run.path), "bfloat16", Settings())
    backend._engine(1)
    readers = {
        "held-out evaluation": seen[30],
        "a run by its path": load_policy(run.path, dtype="bfloat16")[1:],
        "an adapter by its path": load_policy(path, dtype="bfloat16")[1:],
        "the evaluate job": backend._engines[1]._network[1:],
        "a run that goes on from it": _start(run.path, config),
    }
    for name, (params, lora) in readers.items():
        change = np.asarray(logprobs(params, lora) - before)
        assert params["model"]["embed_tokens"]["weight"].dtype == jnp.bfloat16, name
        np.testing.assert_allclose(np.sqrt(np.mean((change - trained) ** 2)) / size, 0, atol=0.02, err_msg=name)
    folded = load_model(path, dtype="bfloat16")[1]
    assert np.sqrt(np.mean((logprobs(folded) - before - trained) ** 2)) > 0.1 * size
    assert "of the deltas" in str(recwarn.pop(UserWarning).message)


def _start(path, config):
    """The policy of a run over an adapter before its first step, its own deltas still zero."""
    _, params, lora = load_policy(path, dtype="bfloat16")
    base = Policy.of(params, lora)
    fresh = base.trainable(config, jax.random.key(0))
    current = base.trained(fresh, None)
    assert current.lora.rank == lora.rank + fresh.rank
    return current.params, current.lora
