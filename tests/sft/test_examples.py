"""Rows of a run: order, prompts, padding, refusals."""

import collections
import dataclasses

import numpy as np
import pytest

from mmedexpert_jax.data.paradigms import PARADIGMS
from mmedexpert_jax.data.prompts import completion
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.models import load_processor
from mmedexpert_jax.sft.examples import Examples


@pytest.fixture(scope="module")
def processor(model_dir):
    return load_processor(model_dir)


def read(examples, processor):
    """(prompt's text, completion's text) of every row of every step."""
    for step in range(examples.steps):
        for micro in examples.micro_batches(step):
            rows = zip(micro.prompts.tokens, micro.prompts.lengths, micro.tokens, micro.lengths, strict=True)
            for prompt, prompt_length, tokens, length in rows:
                assert tokens[length - 1] == 388  # <|im_end|>
                yield step, processor.decode(prompt[:prompt_length]), processor.decode(tokens[:length])


def test_every_epoch_shows_every_case_once_and_half_of_the_prompts_are_neutral(cases, processor, make_config):
    examples = Examples(cases, processor, make_config(steps=0, epochs=2))
    assert examples.steps == 6 and examples.epoch(3) == 1.0
    rows = list(read(examples, processor))
    instructions = [PARADIGMS[name].instruction for name in PARADIGMS]
    asked = [[text in prompt for text in instructions].count(True) for _, prompt, _ in rows]
    assert set(asked) == {0, 1}
    for epoch in (0, 1):
        part = [row for row, (step, _, _) in enumerate(rows) if step // 3 == epoch]
        seen = collections.Counter(rows[row][2] for row in part)
        assert seen == collections.Counter(completion(case) for case in cases)
        assert sum(asked[row] for row in part) == len(cases) // 2
    texts = collections.Counter(prompt for _, prompt, _ in rows)
    assert max(texts.values()) < len(cases)  # each case under both prompts in turn


def test_a_prompt_asks_for_the_paradigm_of_its_trace(cases, processor, make_config):
    for _, prompt, answer in read(Examples(cases[:1], processor, make_config(steps=2)), processor):
        assert answer == completion(cases[0])
        assert PARADIGMS["intuitive"].instruction not in prompt


def test_shapes_are_few_and_known_beforehand(cases, processor, make_config):
    for buckets in (1, 3):
        examples = Examples(cases, processor, make_config(buckets=buckets))
        found = set()
        for step in range(examples.steps):
            for micro in examples.micro_batches(step):
                patches = micro.prompts.patches
                sizes = micro.prompts.tokens.shape[1], micro.tokens.shape[1], len(patches)
                found.add((*sizes, patches.shape[1] if len(patches) else 0))
        assert found == examples.shapes and len(found) <= 2 * buckets


def test_a_run_of_many_steps_begins_at_once(cases, processor, make_config):
    assert len(Examples(cases, processor, make_config(steps=10**9)).micro_batches(10**9 - 1)) == 2


def test_order_depends_on_the_seed_and_the_step_alone(cases, processor, make_config):
    first, again = (Examples(cases, processor, make_config(seed=3)) for _ in range(2))
    for one, two in zip(first.micro_batches(4), again.micro_batches(4), strict=True):
        np.testing.assert_array_equal(one.prompts.tokens, two.prompts.tokens)
        np.testing.assert_array_equal(one.tokens, two.tokens)
    other = Examples(cases, processor, make_config(seed=4))
    assert list(read(other, processor)) != list(read(first, processor))


def test_what_cannot_be_trained_on_is_named(cases, processor, make_config):
    silent = dataclasses.replace(cases[3], trace="", paradigm="")
    with pytest.raises(DataError, match=r"case-3.*no trace"):
        Examples([*cases[:3], silent], processor, make_config())
    with pytest.raises(DataError, match=r"case-0.*limit.*max_new_tokens"):
        Examples(cases, processor, make_config(max_new_tokens=5))
    with pytest.raises(DataError, match=r"case-0.*over the limit of 20"):
        Examples(cases, processor, make_config(max_prompt_length=20))


def test_a_part_of_an_epoch_is_one(cases, processor, make_config):
    examples = Examples(cases, processor, make_config(steps=0, epochs=0.5))
    assert examples.steps == 2 and examples.epoch(2) == pytest.approx(8 / 12)


def test_overlong_cases_are_left_out_where_that_is_asked(cases, processor, make_config, capsys):
    wordy = dataclasses.replace(cases[1], trace=cases[1].trace * 20)
    asking = dataclasses.replace(cases[4], question=cases[4].question * 60)
    given = [wordy, *cases[2:4], asking, *cases[5:]]
    with pytest.raises(DataError, match="case case-1"):
        Examples(given, processor, make_config())
    examples = Examples(given, processor, make_config(overlong="drop", steps=0, epochs=1))
    assert "2 of 11 training cases are over max_prompt_length 512 or max_new_tokens 128" in capsys.readouterr().out
    assert [case.id for case in examples.cases] == [case.id for case in (*cases[2:4], *cases[5:])]
    assert examples.steps == 3
    broken = dataclasses.replace(cases[3], trace="")
    with pytest.raises(DataError, match="no trace"):  # of another kind: refused in any case
        Examples([*cases[:3], broken], processor, make_config(overlong="drop"))
