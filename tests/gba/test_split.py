"""The batch over devices: what is accepted, and that the mend is the least that is."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.gba.split import micro_batch, packed_length, prompts
from mmedexpert_jax.launch import load_config
from mmedexpert_jax.models.packing import capacity

SMALL = st.integers(1, 6)


def batch(groups, micro, minibatches, paradigms, group_by):
    fields = {"prompts_per_step": groups, "micro_batch": micro, "minibatches": minibatches, "group_by": group_by}
    config = CONFIG.copy_and_resolve_references().unlock()
    config.update(fields | {"paradigms_per_query": paradigms})
    return config


CONFIG = load_config("configs/gba.py")


def splits(config, devices) -> bool:
    """Each of the minibatches as whole micro-batches on every device, worked out by dealing the prompts."""
    if config.prompts_per_step % config.minibatches:
        return False
    minibatch = prompts(config) // config.minibatches
    size = config.micro_batch or max(1, minibatch // devices)
    return [minibatch - start for start in range(0, minibatch, size * devices)][-1] == size * devices


@given(SMALL, st.integers(0, 4), st.integers(1, 3), st.integers(1, 4), st.sampled_from(["prompt", "query"]), SMALL)
def test_a_batch_is_split_evenly_or_the_least_change_is_named(groups, micro, minibatches, paradigms, group_by, devices):
    groups *= 1 if group_by == "query" else paradigms  # validation sees to that
    config = batch(groups, micro, minibatches, paradigms, group_by)
    if splits(config, devices):
        size = micro_batch(config, devices)
        assert prompts(config) % (size * devices * minibatches) == 0 and size == (config.micro_batch or size)
        return
    with pytest.raises(ConfigError) as refused:
        micro_batch(config, devices, "gba.")
    field, value = re.search(r"set --config\.gba\.(\w+)=(\d+)$", str(refused.value)).groups()
    less = range(int(value) + 1, config.micro_batch) if field == "micro_batch" else range(groups, int(value))
    for other in less:
        config[field] = other
        assert not splits(config, devices) or other % (paradigms if group_by == "prompt" else 1)
    config[field] = int(value)
    assert splits(config, devices)


def test_eight_prompts_on_sixteen_devices():
    config = load_config("configs/gba.py:qwen2_vl_2b")
    with pytest.raises(
        ConfigError, match=r"config\.prompts_per_step=8, .*devices 16.*; set --config.prompts_per_step=16$"
    ):
        micro_batch(config, 16)
    assert [micro_batch(config, devices) for devices in (1, 2, 4, 8)] == [1, 1, 1, 1]


@given(st.integers(0, 5000), st.integers(0, 5000), st.integers(1, 5000), st.integers(1, 64))
def test_a_packed_length_holds_what_is_needed_and_is_kept_while_it_fits(needed, held, full, sizes):
    needed, work = min(needed, full), np.array([needed, 2 * needed, 3 * needed])
    length = packed_length(needed, work, held, full, sizes)
    assert needed <= length and (length == held or length <= capacity(full, full, sizes))
    assert packed_length(needed, work, length, full, sizes) == length  # the same step again
    assert length == held or not needed <= held <= 1.5 * needed
    assert packed_length(needed, work, held, full, 0) == 0  # rows stay padded


def test_steps_of_one_kind_have_one_packed_length_or_two():
    """The paper's 1,000 prompts by 8: 31 steps of 32, whose tokens differ by some 5 %."""
    counts = []
    for seed in range(20):
        rng, lengths = np.random.default_rng(seed), [0]
        for _ in range(31):
            work = np.minimum(rng.geometric(1 / 300, (32, 8)) - 1, 1023).sum(1)
            lengths.append(packed_length(int(work.sum() / 8), work, lengths[-1], 32 * 1023, 64))
        counts.append(len({*lengths[1:]}))
    assert np.mean(counts) < 1.5
