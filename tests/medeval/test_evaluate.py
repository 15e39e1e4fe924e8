from contextlib import closing, nullcontext
from itertools import pairwise

import jax
import numpy as np
import pytest

from mmedexpert_jax.data.benchmarks import from_case
from mmedexpert_jax.errors import ConfigError, DataError, Interrupted, ResourceError
from mmedexpert_jax.intervals import wilson
from mmedexpert_jax.medeval import Evaluation, compare_evaluations, evaluate
from mmedexpert_jax.medeval.eval_job import sample_rows
from mmedexpert_jax.medeval.evaluate import chance, constant
from mmedexpert_jax.medeval.result_tables import (
    breakdown_table,
    comparison_table,
    comparison_warning,
    every_cell,
    models_table,
    show,
)
from mmedexpert_jax.models import Model, ModelConfig
from mmedexpert_jax.models.config import TextConfig, VisionConfig
from mmedexpert_jax.report import Figure
from mmedexpert_jax.report.figure import parts
from mmedexpert_jax.report.text_tables import markdown
from mmedexpert_jax.runtime import costs, processes

KEY = jax.random.key(0)
TEXT = TextConfig(400, 16, 24, 1, 2, 1, mrope_section=(2, 1, 1))
VISION = VisionConfig("qwen2_vl", depth=1, hidden_size=8, intermediate_size=16, num_heads=1, out_hidden_size=16)
MODEL = Model(ModelConfig(TEXT, VISION, True, 398, 399, 395, 396, 386, 386, (388, 386)))  # `sampler` answers for it


PARAMS = {"model": {"embed_tokens": {"weight": np.zeros((400, 16), np.float32)}}}


def ask(processor, cases, **settings):
    """Answers in blocks of 4 prompts, which is how the engine admits them to 16 rows."""
    return evaluate(MODEL, PARAMS, processor, cases, key=KEY, **{"batch_size": 16, "max_new_tokens": 64} | settings)


def test_rows_keep_the_order_of_the_cases(processor, cases, sampler):
    sampler.say = lambda row, sample: f"<think>(1) {row}</think><answer>{'AB'[row % 2]}</answer>"
    rows = ask(processor, cases).rows
    assert [row.id for row in rows] == [case.id for case in cases]
    assert [row.response for row in rows] == [sampler.say(i, 0) for i in range(12)]
    assert [row.said for row in rows] == ["A", "B"] * 6
    assert [row.right for row in rows] == [True] + [i % 2 == 1 for i in range(1, 12)]
    assert rows[3].labels == {"specialty": "CSI", "task": "curb65", "modality": "image", "paradigm": "analytical"}
    assert rows[0].tokens == len(processor.completion(rows[0].response)) and not rows[0].truncated


def test_batches_hold_every_prompt_once_in_few_shapes(processor, cases, sampler):
    done = []
    ask(processor, cases, on_batch=done.append)
    asked = [row for call in sampler.calls for row in dict.fromkeys(call["rows"])]
    assert sorted(asked) == list(range(12)) and done[-1] == 12
    assert {len(call["rows"]) for call in sampler.calls} == {2, 4}
    assert len({(c["batch"].tokens.shape, c["batch"].patches.shape) for c in sampler.calls}) <= 3
    for call in sampler.calls:
        for place, row in enumerate(call["rows"]):
            assert (call["batch"].vision_index[place] >= 0).any() == bool(cases[row].images)


def test_summary(processor, cases, sampler):
    sampler.say = lambda row, sample: "no tags" if row == 5 else "<answer>B</answer>"
    evaluation = ask(processor, cases, max_new_tokens=4)
    assert all(row.truncated for row in evaluation.rows)
    summary = ask(processor, cases).summary()
    assert (summary["items"], summary["accuracy"]) == (12, pytest.approx(10 / 12))
    assert (summary["low"], summary["high"]) == wilson(10, 12)
    assert summary["parse_rate"] == pytest.approx(11 / 12) and summary["truncated"] == 0
    part = summary["by"]["specialty"]["AM"]
    assert (part["items"], part["accuracy"], part["low"], part["high"]) == (3, pytest.approx(2 / 3), *wilson(2, 3))
    assert part["bootstrap"] == [0.0, 1.0]
    assert {name: v["items"] for name, v in summary["by"]["modality"].items()} == {"image": 2, "text": 10}
    assert list(summary["by"]["paradigm"]) == ["analytical"]


def test_guided_prompts_count_by_the_paradigm_they_ask_for(processor, cases, sampler):
    evaluation = ask(processor, cases, paradigm="all")
    assert len(evaluation.rows) == 24
    summary = evaluation.summary()
    assert summary["items"] == 12  # both prompts of a case stand together
    assert {name: v["items"] for name, v in summary["by"]["paradigm"].items()} == {"analytical": 12, "bayesian": 12}
    with pytest.raises(ConfigError, match="analytical, bayesian, all"):
        ask(processor, cases, paradigm="socratic")


def test_the_work_of_all_processes_is_counted(processor, cases, sampler, monkeypatch):
    """Of two processes that share the cases, the other is said to have done as much as this one."""
    monkeypatch.setattr(processes, "_count", 2)
    monkeypatch.setattr(processes, "gather", lambda own: [own, own])
    with closing(costs.Meter()) as meter:
        ask(processor, cases)
    prompts = {row: call["batch"].lengths[i] for call in sampler.calls for i, row in enumerate(call["rows"])}
    answered = sum(len(processor.completion(sampler.say(row, 0))) for row in prompts)
    assert sorted(prompts) == list(range(0, 12, 2))
    assert meter.tokens == 2 * (sum(map(int, prompts.values())) + answered)


def test_several_samples_per_case(processor, cases, sampler):
    sampler.say = lambda row, sample: f"<answer>{'AB'[sample]}</answer>"
    evaluation = ask(processor, cases[:3], num_samples=2, temperature=1.0)
    assert evaluation.outcomes() == {"case-0": [True, False], "case-1": [False, True], "case-2": [False, True]}
    # every item has the same mean, of which resamples show no spread
    assert (evaluation.summary()["low"], evaluation.summary()["high"]) == wilson(1.5, 3)
    assert sampler.calls[0]["temperature"] == 1.0


def test_medevalkit_guesses_where_strict_does_not(processor, cases, sampler):
    sampler.say = lambda row, sample: "two"
    assert not any(row.right for row in ask(processor, cases).rows)
    assert sum(row.right for row in ask(processor, cases, scorer="medevalkit").rows) == 11


def test_rows_survive_a_file(processor, cases, sampler, tmp_path):
    evaluation = ask(processor, cases)
    evaluation.write(tmp_path / "rows.jsonl")
    assert Evaluation.read(tmp_path / "rows.jsonl") == evaluation
    with pytest.raises(ResourceError, match=r"cannot write .*rows\.jsonl"):
        evaluation.write(tmp_path / "nowhere" / "rows.jsonl")
    (tmp_path / "rows.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl: not the rows"):
        Evaluation.read(tmp_path / "rows.jsonl")


def test_too_long_prompts_are_refused_by_case(processor, cases, sampler):
    with pytest.raises(DataError, match=r"case case-0: a prompt of \d+ tokens"):
        ask(processor, cases, max_prompt_length=20)
    assert not sampler.calls


def test_comparison_pools_seeds_by_case(processor, cases, sampler):
    before = ask(processor, cases)
    sampler.say = lambda row, sample: f"<answer>{cases[row].answer}</answer>"
    after = ask(processor, cases)
    once = compare_evaluations([before], [after])
    assert once.difference == pytest.approx(1 / 12) and once.items == 12 and once.p_value == 1.0
    pooled = compare_evaluations([before, before], [after, after])
    assert (pooled.difference, pooled.low, pooled.high) == (once.difference, once.low, once.high)
    with pytest.raises(DataError, match="no case in common"):
        compare_evaluations([before], [Evaluation(())])


def test_baselines(cases):
    cases = [from_case(case) for case in cases]
    letter, evaluation = constant(cases)
    assert letter == "B" and evaluation.summary()["accuracy"] == pytest.approx(11 / 12)
    assert chance(cases) == pytest.approx(1 / 3)


def test_tables(processor, cases, sampler):
    evaluations = {"base": ask(processor, cases[:4])}
    sampler.say = lambda row, sample: "<answer>A</answer>"
    evaluations["tuned"] = ask(processor, cases[:4])
    summaries = {name: evaluation.summary() for name, evaluation in evaluations.items()}
    first, second = models_table(summaries)
    assert first["model"] == "base" and str(first["accuracy"]) == "75.0 [30.1, 95.4] (25.0, 100.0)"
    assert str(second["AM"]) == "100.0 [20.7, 100.0] (100.0, 100.0)" and second["parsed"] == "100.0"
    cells = every_cell(summaries)
    assert cells[0] == {
        **{"model": "base", "part": "all", "value": "", "items": "4", "accuracy": "75.00", "wilson low": "30.06"},
        **{"wilson high": "95.44", "bootstrap low": "25.00", "bootstrap high": "100.00"},
    }
    assert {row["part"] for row in cells} >= {"all", "all, strict", "all, medevalkit", "specialty", "modality"}
    macro = evaluations["base"].macro("specialty") | {"over": "specialty"}
    assert macro["high"] - macro["low"] > 0.3  # each value has one item
    last = every_cell({"base": summaries["base"] | {"macro": macro}})[-1]
    assert (last["part"], last["value"], last["wilson low"]) == ("macro over", "specialty", "") and last[
        "bootstrap low"
    ]
    assert breakdown_table(summaries, "modality")[0]["modality"] == "image"
    row = comparison_table(evaluations)[0]
    assert row["gain over base"].paired and str(row["gain over base"]).startswith("-50.0 (")
    assert row["McNemar p"] == "0.625"
    assert markdown([{"a": "1"}, {"b": "2"}]) == "| a | b |\n| --- | --- |\n| 1 |  |\n|  | 2 |\n"


FIGURE = Figure.percent(0.53, 0.502, 0.557, other=(0.503, 0.556))


def shown(monkeypatch, capsys, width, rows):
    """Lines of a table and the columns of each of its parts."""
    monkeypatch.setenv("COLUMNS", str(width))
    show(rows, "Accuracy", "A note.")
    first, title, *lines, note = capsys.readouterr().out.splitlines()
    assert (first, title, note) == ("", "Accuracy", "A note.") and max(map(len, lines)) <= width
    return lines, [above.split() for above, line in pairwise(lines) if "───" in line]


def test_a_table_too_wide_for_the_terminal_stands_on_its_side(monkeypatch, capsys):
    row = {"model": "base"} | dict.fromkeys(("micro", "macro", "AM", "CAH", "BS"), FIGURE)
    for width, columns, bodies in ((100, list(row), 1), (60, ["model", "base"], 5)):
        lines, heads = shown(monkeypatch, capsys, width, [row])
        assert heads == [columns] and sum("[50.2, 55.7]" in line for line in lines) == bodies


def test_a_table_too_wide_either_way_comes_in_parts(monkeypatch, capsys):
    rows = [{"model": f"m{n}"} | dict.fromkeys("ABCDEFGH", Figure.percent(0.53, 0.502, 0.557)) for n in range(9)]
    _, heads = shown(monkeypatch, capsys, 60, rows)
    assert heads == [["model", *"ABC"], ["model", *"DEF"], ["model", *"GH"]]


def test_several_comparisons_are_warned_of():
    assert comparison_warning(1) == "" and "3 comparisons: " in comparison_warning(3)
    text = comparison_warning(1, 4)
    assert "4 comparisons on 4 benchmarks" in text and "a chance of 19 %" in text and "of one benchmark alone" in text


def test_a_cell_splits_into_its_figure_and_intervals():
    assert parts(FIGURE) == ["53.0", "[50.2, 55.7]", "(50.3, 55.6)"]
    assert parts(Figure.percent(-0.01, other=(-0.02, 0.001), signed=True)) == ["-1.0", "(-2.0, +0.1)"]
    assert parts(Figure(62.5, 50, 75, spread=1.24)) == ["62.5 ± 1.2", "[50.0, 75.0]"]
    assert parts("chance (uniform guess)") == ["chance (uniform guess)"]


@pytest.mark.parametrize("heard", [True, False])
def test_a_signal_to_any_process_ends_an_evaluation_within_a_batch(processor, cases, sampler, monkeypatch, heard):
    """As the first of two processes, which answers six of twelve cases: it hears of the signal in its first batch, or
    when it has answered all; either way it comes to where the other one waits, and nowhere else."""
    calls, asked = [], []
    monkeypatch.setattr(processes, "_count", 2)
    monkeypatch.setattr(processes, "largest", lambda value: asked.append(value) or 15)
    monkeypatch.setattr(processes, "gather", lambda rows: pytest.fail("the other process is not there"))
    monkeypatch.setattr(costs, "shared", nullcontext)  # which both leave before they ask
    with pytest.raises(Interrupted) as stopped:
        ask(processor, cases, batch_size=2, on_batch=lambda done: calls.append(done) or (15 if heard else None))
    assert stopped.value.exit_code == 143
    assert calls == ([4] if heard else [4, 8, 12]) and asked == [15 if heard else 0]


def test_an_evaluation_of_no_answers_shows_none():
    assert sample_rows(Evaluation(()), []) == []
