"""MMedExpert-mini as shipped and as made: counts, balance, disjoint pools, traces, files."""

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from functools import cache

import numpy as np
import pyarrow.parquet as pq
import pytest

from mmedexpert_jax.data import LETTERS, PARADIGMS, SPECIALTIES, load_cases
from mmedexpert_jax.data.case import SPLITS
from mmedexpert_jax.data.case_files import EMBEDDED
from mmedexpert_jax.data.embedded import POOLS, TASKS, baselines, build, charts, generate, recipe, scans, wording
from mmedexpert_jax.data.embedded.rules import RULES
from mmedexpert_jax.data.paradigms import PARADIGMS as RULES_OF_FORM

TASK = {task.task: task for task in TASKS}


@cache
def shipped(split):
    return load_cases("mini", split)


@pytest.fixture(scope="module")
def dev():
    return generate(build.SEED, build.SIZES["dev"], "dev")


@pytest.fixture(scope="module")
def pretrain():
    return generate(3, 220, "pretrain")


def right(case):
    return case.options[LETTERS.index(case.answer)]


def by_task(cases):
    groups = defaultdict(list)
    for case in cases:
        groups[case.task].append(case)
    return groups


def even(counts):
    return max(counts) - min(counts) <= 1


@pytest.mark.parametrize("split", SPLITS)
def test_counts_and_balance(split):
    cases = shipped(split)
    assert len(cases) == build.SIZES[split]
    assert Counter(c.specialty for c in cases) == dict.fromkeys(SPECIALTIES, len(cases) // 4)
    assert sum(c.modality == "image" for c in cases) >= 0.2 * len(cases)
    assert len({c.id for c in cases}) == len({c.question + str(c.id) for c in cases}) == len(cases)
    for task, members in by_task(cases).items():
        options = TASK[task].options
        assert even([sum(c.paradigm == p for c in members) for p in PARADIGMS])
        assert even([sum(c.answer == letter for c in members) for letter in LETTERS[: len(options)]])
        assert even([sum(right(c) == option for c in members) for option in options])
        assert all(sorted(c.options) == sorted(options) and c.specialty == TASK[task].specialty for c in members)


def test_train_holds_each_paradigm_equally_often():
    assert Counter(c.paradigm for c in shipped("train")) == dict.fromkeys(PARADIGMS, 600)


def test_tasks_are_many_and_named():
    images = {c.task for c in shipped("train") if c.images}
    assert len(images) >= 3 and len(TASK) - len(images) >= 10
    assert {TASK[name].specialty for name in images} == set(SPECIALTIES)
    assert all(re.fullmatch(r"10\.\d{4,9}/\S+", task.doi) for task in TASKS)


@pytest.mark.parametrize("split", SPLITS)
def test_shipped_traces_follow_their_paradigm_and_end_in_the_key(split):
    for case in shipped(split):
        assert RULES_OF_FORM[case.paradigm].follows(case.trace, case.options), case.trace
        assert right(case).lower() in case.trace.lower().rsplit("(", 1)[1]
        assert len(case.question.split()) + sum(len(o.split()) for o in case.options) <= 90
        assert len(case.trace.split()) <= 80


def test_every_paradigm_tells_all_evidence_and_only_its_own_form(dev, pretrain):
    for made in (*dev, *pretrain):
        options = made.case.options
        for paradigm, trace in made.traces.items():
            assert all(step.text.lower() in trace.lower() for step in made.problem.steps)
            assert RULES_OF_FORM[paradigm].follows(trace, options)
            others = [p for p in PARADIGMS if p != paradigm and RULES_OF_FORM[p].follows(trace, options)]
            assert set(others) <= {"analytical"} or "unlikely" in trace, (paradigm, others, trace)
        assert made.case.trace == made.traces[made.case.paradigm]


def test_findings_stand_in_the_vignette(dev):
    for made in dev:
        if not made.case.images:
            assert all(step.text in made.case.question for step in made.problem.steps)


def test_hasty_traces_have_the_form_weigh_a_part_and_are_often_wrong(pretrain):
    wrong = 0
    for made in pretrain:
        for paradigm, (trace, letter) in made.hasty.items():
            assert RULES_OF_FORM[paradigm].follows(trace, made.case.options)
            last = made.problem.steps[-1].text.lower()
            assert len(made.problem.steps) == 1 or last not in trace.lower() or made.case.task == "audiogram"
            conclusion = made.case.options[LETTERS.index(letter)]
            assert conclusion.lower() in trace.lower().rsplit("(", 1)[1]
        wrong += letter != made.case.answer
    assert 0.35 < wrong / len(pretrain) < 0.75


def test_generation_is_deterministic_and_pools_hold_their_keys(dev, pretrain):
    again = generate(3, 220, "pretrain")
    assert [made.case.question for made in again] == [made.case.question for made in pretrain]
    assert [made.hasty for made in again] == [made.hasty for made in pretrain]
    assert all(recipe.pool_of(made.problem.key) == "pretrain" for made in pretrain)
    assert all(recipe.pool_of(made.problem.key) == "dev" for made in dev)
    assert len({made.problem.key for made in dev}) == len(dev)
    shares = Counter(recipe.pool_of(str(i)) for i in range(4000))
    ends = [0, *POOLS.values()]
    for pool, low, high in zip(POOLS, ends, ends[1:], strict=False):
        assert shares[pool] / 4000 == pytest.approx(high - low, abs=0.03)


def test_generation_does_not_depend_on_the_process():
    code = "from mmedexpert_jax.data.embedded import generate; print([m.case for m in generate(5, 16, 'train', tasks)])"
    code = "from mmedexpert_jax.data.embedded import TASKS; tasks = TASKS[:4]; " + code
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": s},
        ).stdout
        for s in ("1", "2")
    }
    assert len(outputs) == 1


def test_too_many_cases_are_refused():
    with pytest.raises(ValueError, match="hypertension: no more cases"):
        generate(0, 4000, "dev", tasks=(RULES["hypertension"],))


def evidence(case):
    """What tells a case apart: its findings without wording, or its image."""
    if case.images:
        return hashlib.sha256(case.images[0].picture().tobytes()).hexdigest()
    pieces = re.split(r", |: |\. | has | shows ", case.question)
    known = [p for p in pieces if any(p == n for n in _phrases(case.task)) or re.search(r"\d", p)]
    return case.task, tuple(sorted(p for p in known if "CURB" not in p and "ABCD2" not in p and "30-day" not in p))


@cache
def _phrases(task):
    return {phrase for item in TASK[task].items for level in item.levels for phrase in level.phrases}


def test_no_evidence_occurs_in_two_splits():
    counts = Counter(key for split in SPLITS for key in {evidence(case) for case in shipped(split)})
    assert [key for key, count in counts.items() if count > 1] == []


def test_wordings_of_test_are_its_own():
    for kind in ("OPENERS", "ASKS", "IMAGE_OPENERS"):
        assert not set(getattr(wording, kind)) & set(getattr(wording, f"{kind}_HELD_OUT"))
    for split in SPLITS:
        for case in shipped(split):
            task = TASK[case.task]
            openers, asks = wording.templates(split, bool(case.images))
            assert any(case.question.endswith(ask.format(what=task.what)) for ask in asks)
            heads = {
                opener.format(who=getattr(task, "who", ""), context=c, Context=wording.sentence(c), findings="\0")
                for opener in openers
                for c in task.contexts
            }
            assert any(case.question.startswith(head.split("\0")[0]) for head in heads)


def test_subjects_of_scans_are_held_out():
    for pool in POOLS:
        expected = "2" if pool == "test" else "1"
        made = generate(0, 16, pool, tasks=scans.TASKS)
        assert {m.problem.values["subject"][-1] for m in made} == {expected}


def test_shipped_files_are_what_the_recipe_makes(dev):
    table = pq.read_table(EMBEDDED / "dev.parquet")
    assert table.schema.equals(build.SCHEMA, check_metadata=True)
    for case, made, stored in zip(shipped("dev"), dev, table.to_pylist(), strict=True):
        fresh = build.row(made)
        assert {k: v for k, v in stored.items() if k != "images"} == {k: v for k, v in fresh.items() if k != "images"}
        for image, drawn in zip(case.images, made.case.images, strict=True):
            np.testing.assert_array_equal(np.asarray(image.picture()), np.asarray(drawn.picture()))


def test_build_writes_the_same_bytes(tmp_path):
    made = generate(1, 24, "train", tasks=(RULES["qsofa"], charts.BURNS))
    build.write(tmp_path / "a.parquet", made)
    build.write(tmp_path / "b.parquet", generate(1, 24, "train", tasks=(RULES["qsofa"], charts.BURNS)))
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_datasets_shows_the_images(tmp_path):
    import datasets  # here, since it takes long to import

    files = {"dev": str(EMBEDDED / "dev.parquet")}
    rows = datasets.load_dataset("parquet", data_files=files, split="dev", cache_dir=str(tmp_path))
    pictured = next(row for row in rows if row["images"])
    assert pictured["images"][0].size in {(84, 84), (112, 112), (168, 56)}
    assert rows.features["images"].feature == datasets.Image()


def test_shipped_size_is_small():
    assert sum(file.stat().st_size for file in EMBEDDED.iterdir()) < 6 * 2**20


def test_baselines_stay_near_chance_and_the_card_tells_them():
    train, test = shipped("train"), shipped("test")
    scores = dict(baselines.rows(train, test))
    assert scores["constant letter"][0] < 0.30 and scores["most frequent option of the task"][0] < 0.32
    assert scores["nearest train question"][0] < 0.42 and scores["nearest train question"][-1] < 0.30
    card = (EMBEDDED / "README.md").read_text(encoding="utf-8")
    assert baselines.table(train, test) in card
    assert all(task.doi in card for task in TASKS)
