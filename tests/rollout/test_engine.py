"""The engine against `generate` on each conversation alone."""

import os
import subprocess
import sys
from dataclasses import replace

import jax
import numpy as np
import pytest

from mmedexpert_jax.errors import DataError, NotFinite
from mmedexpert_jax.rollout import Engine, Settings, generate
from mmedexpert_jax.rollout import engine as engine_module
from mmedexpert_jax.rollout.buckets import Shape, Shapes, Size, buckets
from mmedexpert_jax.rollout.decode import programs

SETTINGS = Settings(num_samples=2, max_new_tokens=12, temperature=0.7, top_p=0.9, batch_size=2, seed=3)


@pytest.fixture(scope="module")
def engine(tiny, processor):
    return Engine(*tiny, processor, SETTINGS)


def test_answers_are_those_of_each_conversation_alone(engine, tiny, processor, prompts):
    answers = dict(engine.answer([*prompts, lambda: prompts[0]]))
    assert sorted(answers) == [0, 1, 2, 3]
    done = generate(
        *tiny,
        processor(prompts, min_length=64),
        key=jax.random.key(3),
        num_samples=2,
        max_new_tokens=12,
        temperature=0.7,
        top_p=0.9,
        ban=processor.special_vision_ids,
    )
    for number in range(3):
        expected = [
            processor.decode(tokens[:length])
            for tokens, length in zip(np.asarray(done.tokens[number]), np.asarray(done.lengths[number]), strict=True)
        ]
        assert [reply.text for reply in answers[number]] == expected
        assert [reply.tokens for reply in answers[number]] == np.asarray(done.lengths[number]).tolist()
        assert [reply.truncated for reply in answers[number]] == np.asarray(done.truncated[number]).tolist()


def test_no_answer_holds_a_token_of_images(tiny, processor, prompts):
    """As in training's rollouts, also where a model likes nothing better."""
    model, params = tiny
    rows = params["model"]["embed_tokens"]["weight"]  # tied: its rows are the output layer's, too
    rows = rows.at[np.array(processor.special_vision_ids)].multiply(30)
    likes = params | {"model": params["model"] | {"embed_tokens": {"weight": rows}}}
    marks = processor.tokenizer.convert_ids_to_tokens(processor.special_vision_ids)
    free = generate(model, likes, processor(prompts), key=jax.random.key(3), num_samples=2, max_new_tokens=12)
    assert np.isin(free.tokens, processor.special_vision_ids).mean() > 0.3
    for settings in (SETTINGS, replace(SETTINGS, temperature=0.0)):
        replies = dict(Engine(model, likes, processor, settings).answer(prompts))
        texts = [reply.text for several in replies.values() for reply in several]
        assert all(texts) and not [text for text in texts for mark in marks if mark in text]


def test_an_answer_depends_on_its_id_alone(engine, prompts, monkeypatch):
    ids = [7, 2**32 - 1, 11]
    first = dict(engine.answer(prompts, ids))
    monkeypatch.setattr(engine_module, "LOOKAHEAD", 1)
    monkeypatch.setattr(engine_module, "KEPT", 0)
    reverse = dict(engine.answer(prompts[::-1], ids[::-1]))
    assert [first[i] for i in range(3)] == [reverse[2 - i] for i in range(3)]
    assert first != dict(engine.answer(prompts, [8, 9, 10]))


def test_answers_do_not_depend_on_what_runs_beside_them(tiny, processor, prompts):
    """Eleven conversations, with none, one and two images, in two rows that are refilled, and in sixteen."""
    asked, ids = [prompts[i % 3] for i in range(11)], [100 + i for i in range(11)]
    few = dict(Engine(*tiny, processor, replace(SETTINGS, batch_size=1)).answer(asked, ids))
    many = dict(Engine(*tiny, processor, replace(SETTINGS, batch_size=8)).answer(asked[::-1], ids[::-1]))
    assert [few[i] for i in range(11)] == [many[10 - i] for i in range(11)]
    assert len({reply.text for replies in few.values() for reply in replies}) > 11


def test_a_second_set_of_conversations_compiles_nothing(engine, prompts):
    first = dict(engine.answer(prompts * 2))
    before = len(programs)
    assert dict(engine.answer(prompts * 2)) == first and len(programs) == before


def test_an_engine_with_other_settings_draws_from_the_same_key(tiny, processor, prompts):
    first = Engine(*tiny, processor, SETTINGS, key=jax.random.key(5))
    other = first.having(replace(SETTINGS, seed=9))
    assert dict(first.answer(prompts[:2])) == dict(other.answer(prompts[:2]))


def test_conversations_that_cannot_be_encoded(engine, prompts, tmp_path):
    broken = [{"role": "user", "content": [{"type": "image", "image": str(tmp_path / "none.png")}]}]
    with pytest.raises(DataError, match=r"item 9: .*none\.png"):
        list(engine.answer([broken], names=["item 9"]))
    refused = []
    answers = dict(engine.answer([prompts[0], broken], refuse=lambda number, error: refused.append((number, error))))
    assert list(answers) == [0] and [number for number, _ in refused] == [1]


def test_long_conversations_are_refused(tiny, processor, prompts):
    engine = Engine(*tiny, processor, Settings(max_prompt_length=10))
    with pytest.raises(DataError, match=r"conversation 0: a prompt of \d+ tokens .* over the limit of 10"):
        list(engine.answer(prompts))


def test_buckets_join_small_groups_and_keep_images_apart():
    sizes = [Size(100, 0, 0)] * 5 + [Size(30, 0, 0)] * 3 + [Size(90, 16, 1)] + [Size(20, 0, 0)] * 9
    found = buckets(sizes, 4)
    assert [[sizes[i] for i in group] for group in found] == [
        [Size(90, 16, 1)],
        [Size(100, 0, 0)] * 5,
        [Size(30, 0, 0)] * 3 + [Size(20, 0, 0)] * 9,
    ]
    assert sorted(np.concatenate(found)) == list(range(18))
    assert len(buckets([Size(100, 0, 0)] * 9 + [Size(30, 0, 0)], 4)) == 1


def test_a_shape_serves_again_where_it_wastes_little():
    shapes = Shapes(batch_size=8, devices=4)
    first = shapes.fit([Size(100, 50, 1)] * 9)
    assert first == Shape(rows=8, tokens=128, images=1, patches=64)
    assert shapes.fit([Size(90, 60, 1)] * 8) is first
    assert shapes.fit([Size(100, 50, 1)] * 3).rows == 4  # half of the work: a shape of its own
    assert shapes.fit([Size(100, 50, 2)] * 8) == Shape(8, 128, 2, 64)
    assert len(shapes.known) == 3


EIGHT = """
import jax
from mmedexpert_jax.models import load_model, load_processor
from mmedexpert_jax.rollout import Engine, Settings
from mmedexpert_jax.runtime.mesh import make_mesh
from PIL import Image

settings = Settings(max_new_tokens=6, batch_size=3)
model, params = load_model("mini")
picture = {"type": "image", "image": Image.new("RGB", (56, 56), (200, 30, 30))}
ask = lambda n: [{"role": "user", "content": [*[picture] * (n == 2), {"type": "text", "text": "Score? " * (1 + n)}]}]
prompts = [ask(n) for n in range(5)]
words = lambda engine: {n: [(r.text, r.tokens, r.truncated) for r in replies] for n, replies in engine.answer(prompts)}
alone = words(Engine(model, params, load_processor("mini"), settings))
mesh = make_mesh()
spread = Engine(model, load_model("mini", mesh=mesh)[1], load_processor("mini"), settings)  # on the weights' mesh
assert words(spread) == alone and len(alone) == 5
assert all(shape.rows % 4 == 0 for shape in spread._shapes.known)
print("ok")
"""


def test_rows_over_four_devices():
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run([sys.executable, "-c", EIGHT], env=environment, capture_output=True, text=True)
    assert done.stdout == "ok\n", done.stderr


def test_a_model_that_is_not_finite_has_no_answers(tiny, processor, prompts):
    """A diverged checkpoint would else be scored by whatever its tokens happen to be."""
    model, params = tiny
    norm = {"weight": params["model"]["norm"]["weight"].at[3].set(np.nan)}
    engine = Engine(model, params | {"model": params["model"] | {"norm": norm}}, processor, SETTINGS)
    with pytest.raises(NotFinite, match="probabilities are not finite"):
        dict(engine.answer(prompts[:1]))
