"""How prompts are split, padded and encoded: little is computed for nothing, and each is encoded once a visit."""

import json
from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmedexpert_jax.data import load_cases
from mmedexpert_jax.data.places import InFolder
from mmedexpert_jax.gba import trainer
from mmedexpert_jax.gba.batches import Batches, cut
from mmedexpert_jax.gba.guidelines import Guidelines, Prompt
from mmedexpert_jax.gba.padding import PromptSize, deal, levels
from mmedexpert_jax.launch import load_config
from mmedexpert_jax.models import load_processor
from mmedexpert_jax.processing.images import ImageRef

STEPS = 6


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """24 cases of 10 to 80 words: one with six images, three with one."""
    folder = tmp_path_factory.mktemp("mixed")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (56, 56, 3), np.uint8)).save(folder / "a.png")
    images = {0: ["a.png"] * 6, 7: ["a.png"], 8: ["a.png"], 15: ["a.png"]}
    rows = [
        {
            "id": f"case-{i}", "question": "Why? " * (10 + 3 * i), "options": ["1", "2"], "answer": "A",
            "specialty": "AM", "task": "score", "images": images.get(i, []),
        }
        for i in range(24)
    ]  # fmt: skip
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return load_cases(str(folder / "train.jsonl"), "train")


@pytest.fixture(scope="module")
def pictured(mixed):
    """36 cases of 10 to 80 words, of which half have one image to three."""
    counts = (0, 1, 0, 2, 0, 1, 0, 3, 1, 0, 2, 0)
    texts = [mixed[i % 24] for i in range(36)]
    image = mixed[0].images[0]
    return [replace(case, id=f"p-{i}", images=(image,) * counts[i % 12]) for i, case in enumerate(texts)]


@pytest.mark.parametrize(("part", "devices", "minibatches"), [(1, 1, 1), (2, 1, 1), (1, 2, 2), (1, 4, 1)])
def test_mixed_data_computes_little_for_nothing(mixed, tiny_model_dir, part, devices, minibatches):
    guidelines = Guidelines(mixed, seed=0, groups=8, num_samples=2)
    batches = Batches(load_processor(tiny_model_dir), guidelines, STEPS, part, 2048, devices, minibatches)
    real, read, updated = np.zeros(2), np.zeros(2), np.zeros(2)
    shapes = set()
    for step in range(STEPS):
        _, encoded = batches.ahead(step)
        real += [sum(len(e.tokens) for e in encoded), sum(len(p) for e in encoded for p, _ in e.images)]
        reads = batches.prompt_batches(encoded)
        assert sorted(np.concatenate([rows for rows, _ in reads])) == [*range(8)]
        for rows, batch in reads:
            part_batch = batches.collate([encoded[i] for i in rows], devices)
            read += [batch.tokens.size, batch.patches[..., 0].size]
            updated += [part_batch.tokens.size, part_batch.patches[..., 0].size]
            assert len(batch.patches) % devices == 0
            np.testing.assert_array_equal(batch.lengths, [len(encoded[i].tokens) for i in rows])
            shapes.add((batch.tokens.shape, batch.patches.shape))
    if devices == 1:  # a step of eight prompts is a micro-batch or two on several
        assert np.all(read <= real * [1.2, 1.3]) and np.all(updated <= real * [1.2, 1.3])
    assert len(shapes) <= 12


@pytest.mark.parametrize(("part", "devices"), [(2, 2), (4, 2), (2, 4)])
def test_so_it_does_over_several_devices(pictured, tiny_model_dir, part, devices):
    """Where rows have up to three images, and a step has a few rows for each device."""
    processor = load_processor(tiny_model_dir)
    batches = Batches(processor, Guidelines(pictured, 0, 32, 2), 3, part, 2048, devices)
    real, read, updated = np.zeros(2), np.zeros(2), np.zeros(2)
    for step in range(3):
        encoded = batches.encoded(step)[1]
        real += [sum(len(e.tokens) for e in encoded), sum(len(p) for e in encoded for p, _ in e.images)]
        for rows, batch in batches.prompt_batches(encoded):
            shards = batches.collate([encoded[i] for i in rows], devices)
            read += [batch.tokens.size, batch.patches[..., 0].size]
            updated += [shards.tokens.size, shards.patches[..., 0].size]
            np.testing.assert_array_equal(shards.lengths, [len(encoded[i].tokens) for i in rows])
    bounds = [1.2, 1.3]
    assert np.all(read <= real * bounds), read / real
    assert np.all(updated <= real * bounds), updated / real


@pytest.mark.parametrize(("part", "devices"), [(1, 1), (4, 1), (2, 2)])
def test_images_of_unlike_sizes_stand_side_by_side(mixed, tiny_model_dir, tmp_path, part, devices):
    """Up to three images in a row, with sides of two to eight merged patches."""
    rng, cases = np.random.default_rng(0), []
    for side in range(2, 9):
        Image.new("RGB", (28 * side, 28 * side)).save(tmp_path / f"{side}.png")
    for i in range(64):
        names = [f"{side}.png" for side in rng.integers(2, 9, rng.integers(0, 4))]
        images = tuple(ImageRef(name, InFolder(tmp_path / name)) for name in names)
        cases.append(replace(mixed[1 + i % 23], id=f"u-{i}", images=images))
    batches = Batches(load_processor(tiny_model_dir), Guidelines(cases, 0, 32, 2), 2, part, 2048, devices)
    real, computed, shapes = np.zeros(2), np.zeros(2), set()
    for step in range(2):
        encoded = batches.encoded(step)[1]
        real += [sum(len(e.tokens) for e in encoded), sum(len(p) for e in encoded for p, _ in e.images)]
        for _, batch in batches.prompt_batches(encoded):
            computed += [batch.tokens.size, batch.patches[..., 0].size]
            shapes.add((batch.tokens.shape, batch.patches.shape, batch.patch_places.shape))
    assert np.all(computed <= real * [1.2 if part == 1 else 1.25, 1.3]), computed / real
    assert any(places for *_, (places, _) in shapes) and len(shapes) <= 16


def test_a_row_of_very_many_images_is_shared_out(mixed, tiny_model_dir):
    """Twelve images in one row, of which each of four devices computes three."""
    cases = [
        replace(mixed[0], id="many", images=mixed[0].images[:1] * 12),
        *[replace(mixed[9], id=f"t{i}") for i in range(3)],
    ]
    batches = Batches(load_processor(tiny_model_dir), Guidelines(cases, 0, 4, 2), 1, 1, 4096, 4)
    encoded = batches.encoded(0)[1]
    ((_, batch),) = batches.prompt_batches(encoded)
    real = sum(len(patches) for one in encoded for patches, _ in one.images)
    assert len(batch.patches) == 12 and batch.patches[..., 0].size <= 1.3 * real
    assert batch.vision_index.max() < len(batch.patches) * batch.patches.shape[1] // 4
    first, last = cut(np.arange(7), [PromptSize(n, 16, 50) for n in (3, 0, 1, 2, 0, 0, 1)], 4)
    assert len(first) == 4 and last.tolist() == [6, 3, 0]


def test_a_visit_encodes_each_prompt_once(mixed, tiny_model_dir, monkeypatch):
    batches = Batches(load_processor(tiny_model_dir), Guidelines(mixed, 0, 8, 2), STEPS, 2, 2048)
    seen = []
    encode = batches.encode
    monkeypatch.setattr(batches, "encode", lambda prompt: seen.append(prompt.case.id) or encode(prompt))
    for step in range(3):
        prompts, encoded = batches.ahead(step)
        for rows, _ in batches.prompt_batches(encoded):
            batches.collate([encoded[i] for i in rows])
    assert [prompt.case.id for prompt in prompts] == seen[16:24] and len(seen) <= 8 * (3 + 2)


def test_equal_prompts_have_one_shape(tiny_model_dir, mixed):
    prompts = [SimpleNamespace(prompts=lambda step: Guidelines(mixed[9:10], 0, 4, 2).prompts(step))]
    batches = Batches(load_processor(tiny_model_dir), prompts[0], STEPS, 2, 2048)
    assert (
        len({batch.tokens.shape for s in range(4) for _, batch in batches.prompt_batches(batches.encoded(s)[1])}) == 1
    )


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 4)), min_size=1, max_size=8), st.floats(1, 2))
def test_levels_are_the_fewest_and_of_these_the_best(pairs, waste):
    values, weights = zip(*pairs, strict=True)
    real = sum(value * weight for value, weight in pairs)

    def padded(chosen):
        return sum(min(level for level in chosen if level >= value) * weight for value, weight in pairs)

    found = levels(values, weights, real, waste)
    distinct, top = sorted(set(values)), max(values)
    choices = [(*less, top) for size in range(6) for less in combinations(distinct[:-1], size)]
    least = min(padded(choice) for choice in choices if len(choice) <= len(found))
    assert found == sorted(set(found)) and found[-1] == top and padded(found) == pytest.approx(least)
    enough = [choice for choice in choices if padded(choice) <= waste * real * (1 - 1e-9)]
    assert not enough or len(found) <= min(map(len, enough))


def test_rows_are_cut_by_size():
    sizes = [
        PromptSize(1, 16, 50),
        PromptSize(0, 0, 90),
        PromptSize(0, 0, 20),
        PromptSize(6, 16, 90),
        PromptSize(1, 8, 60),
    ]
    assert [part.tolist() for part in cut(np.array([0, 1, 2, 3, 4]), sizes, 2)] == [[2, 1], [4, 0], [3]]
    assert [part.tolist() for part in cut(np.array([3, 1]), sizes, 2)] == [[1, 3]]


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30), st.integers(1, 5))
def test_rows_are_dealt_whole_and_in_their_order(work, part):
    rows = np.arange(len(work))[::-1] * 2
    parts = deal(rows, np.repeat(work, 2), part)
    assert sorted(np.concatenate(parts)) == sorted(rows) and all(np.all(np.diff(one) < 0) for one in parts)
    assert [len(one) for one in parts] == [len(rows[i : i + part]) for i in range(0, len(rows), part)]
    alike = deal(rows, np.full(2 * len(work), 7), part)
    assert part > 1 or [*map(list, alike)] == [[row] for row in rows]


@given(st.lists(st.integers(0, 50), min_size=4, max_size=4))
def test_two_pairs_are_the_most_even_ones(work):
    sums = [sum(work[row] for row in one) for one in deal(np.arange(4), np.array(work), 2)]
    pairs = [abs(sum(work) - 2 * (work[0] + work[other])) for other in (1, 2, 3)]
    assert abs(sums[0] - sums[1]) == min(pairs)


def test_completions_of_a_step_are_dealt_to_within_some_percent():
    """32 prompts with 8 completions of geometric lengths, by four: as they come, some have 1.3 times the mean."""
    rng, even, plain = np.random.default_rng(0), [], []
    for _ in range(20):
        work = np.minimum(rng.geometric(1 / 300, (32, 8)), 1024).sum(1)
        mean = work.sum() / 8
        even.append(max(work[rows].sum() for rows in deal(np.arange(32), work, 4)) / mean)
        plain.append(work.reshape(8, 4).sum(1).max() / mean)
    assert np.mean(even) < 1.02 < 1.2 < np.mean(plain)


@pytest.mark.parametrize(("part", "devices"), [(2, 1), (2, 2), (4, 1)])
def test_dealing_meets_no_other_shape(pictured, tiny_model_dir, part, devices):
    batches = Batches(load_processor(tiny_model_dir), Guidelines(pictured, 0, 32, 2), 2, part, 2048, devices)
    for step in range(2):
        encoded = batches.encoded(step)[1]
        sizes, work = [PromptSize.of(one) for one in encoded], np.random.default_rng(step).integers(1, 900, 32)
        shapes = {}
        for name, cuts in ("plain", batches.micro_batches(sizes)), ("dealt", batches.dealt(np.arange(32), sizes, work)):
            batched = [batches.collate([encoded[i] for i in rows], devices) for rows in cuts]
            shapes[name] = sorted((*batch.tokens.shape, *batch.patches.shape) for batch in batched)
            assert sorted(np.concatenate(cuts)) == [*range(32)]
        assert shapes["dealt"] == shapes["plain"]


def test_cases_of_which_a_prompt_is_too_long_are_left_out_where_that_is_asked(mixed, tiny_model_dir, capsys):
    processor = load_processor(tiny_model_dir)
    lengths = {
        case.id: [len(processor.encode(Prompt(case, name).conversation).tokens) for name in case.paradigms]
        for case in mixed
    }
    limit = sorted(max(each) for each in lengths.values())[17]
    fits = {name for name, each in lengths.items() if max(each) <= limit}
    fields = {"max_prompt_length": limit, "prompts_per_step": 8, "steps": 0, "epochs": 4, "overlong": "drop"}
    config = load_config("configs/gba.py:mini", fields)
    known = {}
    guidelines, steps = trainer._order(config, mixed, None, processor, known)
    assert {case.id for case in guidelines.cases} == fits  # in four epochs each is met under all its paradigms
    assert steps == len(fits) * 4 // 8
    assert f"{24 - len(fits)} of 24 training cases are over max_prompt_length {limit}" in capsys.readouterr().out
    batches = Batches(processor, guidelines, steps, 2, limit, known=known)
    assert batches.max_length <= limit
    config = load_config("configs/gba.py:mini", fields | {"epochs": 0.25})
    guidelines, steps = trainer._order(config, mixed, None, processor, known)
    assert steps == 1 and len(guidelines.cases) >= len(fits)
