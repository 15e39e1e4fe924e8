"""MedEvalKit's totals, recounted by its source's own loops."""

import dataclasses

import pytest

from mmedexpert_jax.data.benchmarks import Benchmark
from mmedexpert_jax.data.benchmarks.census import count
from mmedexpert_jax.data.case import Case
from mmedexpert_jax.medeval import kit_totals
from mmedexpert_jax.medeval.evaluate import AnswerRow, Evaluation
from mmedexpert_jax.medeval.finish import benchmark_tables
from mmedexpert_jax.medeval.results import Result

LABEL = kit_totals.HALVES


def rows(benchmark):
    """Six closed answers, of which the rule holds four right and the judge three; of four open ones three."""
    closed = [(rule, said) for rule, said in zip((1, 1, 1, 1, 0, 0), (1, 1, 0, 0, 1, 0), strict=True)]
    made = []
    for number, (rule, said) in enumerate([*closed, (0, 1), (0, 1), (1, 1), (0, 0)]):
        kind = {"kind": "yes_no", "answer_type": "closed"}[LABEL[benchmark]] if number < 6 else "open"
        verdicts = {"strict": bool(rule), "medevalkit": bool(rule), "judge": bool(said)}
        made.append(AnswerRow(str(number), 0, "x", "x", "x", bool(said), 1, False, {LABEL[benchmark]: kind}, verdicts))
    return made


def by_its_source(benchmark, found, what):
    """As cal_metrics of the three sets goes on after the judge's answers."""
    closed = [row for row in found if row.labels[LABEL[benchmark]] != "open"]
    right = 0 if benchmark == "pathvqa" else sum(row.verdicts["medevalkit"] for row in closed)
    for row in found:
        if row.verdicts["judge"] and (row.labels[LABEL[benchmark]] == "open" or benchmark == "slake"):
            right += 1
    return f"{100 * right / len(found):.1f}"


@pytest.mark.parametrize("benchmark", LABEL)
def test_the_kits_totals_are_its_own(benchmark):
    found = rows(benchmark)
    total = kit_totals.of_halves(benchmark, found, "all")
    assert total == by_its_source(benchmark, found, "all")
    assert total == {"pathvqa": "30.0", "slake": "100.0", "vqa_rad": "70.0"}[benchmark]
    assert kit_totals.of_halves(benchmark, found, "open") == ("–" if benchmark == "slake" else total)
    plain = [dataclasses.replace(row, verdicts={"strict": True}) for row in found]
    assert kit_totals.of_halves(benchmark, plain, "all") == "" == kit_totals.of_halves("medqa", found, "all")


def test_it_stands_beside_ours_in_the_headline():
    items = [Case(row.id, "q", (), "x", kind="open", benchmark="pathvqa") for row in rows("pathvqa")]
    evaluation = Evaluation(tuple(rows("pathvqa")))
    census = count("pathvqa", items, len(items), (), (), {})
    result = Result(Benchmark("pathvqa", "PathVQA", items, census=census), {"m": evaluation})
    headline = benchmark_tables(result, {"m": evaluation.summary()})[0].rows
    assert headline[0]["micro"].value == pytest.approx(0.6) and headline[0]["MedEvalKit's total"] == "30.0"


def test_items_that_the_macro_accuracy_leaves_out_are_counted():
    items = [Case(str(n), "q", (), "x", benchmark="mine", labels={"part": "ab "[n % 3].strip()}) for n in range(9)]
    made = [AnswerRow(item.id, 0, "x", "x", "x", True, 1, False, item.labels) for item in items]
    evaluation = Evaluation(tuple(made))
    result = Result(
        Benchmark("mine", "Mine", items, {"part": {"a": "A", "b": "B"}}, count("mine", items, 9, (), (), {})),
        {"m": evaluation},
    )
    table = benchmark_tables(result, {"m": evaluation.summary() | {"macro": evaluation.macro("part")}})[0]
    assert table.note.endswith("3 items without a part are in the micro accuracy alone.")


def test_healthbench_is_pooled_over_its_three_files():
    def part(grades):
        return {
            "m": Evaluation(
                tuple(AnswerRow(str(n), 0, "", "", "", False, 1, False, grade=g) for n, g in enumerate(grades))
            )
        }

    found = dict(zip(kit_totals.HEALTHBENCH, map(part, ([0.5, 0.7, 0.9], [0.1], [1.0, 1.0])), strict=True))
    (row,) = kit_totals.of_three_files(found)
    assert row["model"] == "m" and row["MedEvalKit's total"].value == pytest.approx(4.2 / 6)
    del found["healthbench:hard"]
    assert kit_totals.of_three_files(found) == []
