"""The paper's tables: what is printed, what is measured beside it, and the gap, in every format."""

import csv
import io
import json
import re
from dataclasses import replace

import pytest

from mmedexpert_jax.data.benchmarks import Benchmark
from mmedexpert_jax.data.case import Case
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.medeval import result_tables
from mmedexpert_jax.medeval.evaluate import AnswerRow, Evaluation
from mmedexpert_jax.medeval.paper_tables import (
    GAP,
    MEASURED,
    Result,
    lines,
    measured_tables,
    narrow,
    partly,
    readable,
    spread,
    structured,
)
from mmedexpert_jax.medeval.prompt_styles import styles
from mmedexpert_jax.medeval.published import GMAI, MAIN, SKILLS, TABLES
from mmedexpert_jax.medeval.systems import NEWER, SYSTEMS, parse
from mmedexpert_jax.report.text_tables import markdown

COLUMNS = {
    "question_type": {"Reasoning": "Rea.", "Understanding": "Under."},
    "medical_task": {"Diagnosis": "Diagnosis"},
}


@pytest.fixture(scope="module")
def results():
    """Ten answers, four of them right, all four to questions of understanding."""

    def row(i):
        labels = {"question_type": "Understanding" if i < 4 else "Reasoning", "medical_task": "Diagnosis"}
        return AnswerRow(str(i), 0, "B", "B", "B", i < 4, 1, False, labels, {"strict": i < 4, "medevalkit": i < 4})

    items = [Case(str(i), "?", ("x", "y"), "B", benchmark="medxpertqa_mm") for i in range(10)]
    evaluation = Evaluation(tuple(map(row, range(10))))
    return {
        "medxpertqa_mm": Result(
            Benchmark("medxpertqa_mm", "MM", items, COLUMNS), {"Lingshu 7B": evaluation, "mine": evaluation}
        )
    }


TARGETS = [parse("system:lingshu"), parse("mine=runs/final")]


def test_published_numbers_agree_with_one_another():
    totals = {row: figures[0] for row, figures in GMAI.rows.items()}
    assert {row: figures[-1] for row, figures in MAIN.rows.items()} == {row: totals[row] for row in MAIN.rows}
    headings = [column.heading for column in GMAI.columns]
    differ = {
        (row, column.heading)
        for row, figures in SKILLS.rows.items()
        for column, figure in zip(SKILLS.columns, figures, strict=True)
        if figure != GMAI.rows[row][headings.index(column.heading)]
    }
    assert differ == {(("BiMediX2", "7B"), "CR")}  # as printed
    assert all(len(figures) == len(table.columns) for table in TABLES for figures in table.rows.values())


def test_measured_rows_stand_beside_published_ones_with_the_gap(results):
    found = lines(MAIN, results, TARGETS)
    assert len(found) == 9 + 3 and [line.source for line in found[9:]] == [MEASURED, GAP, MEASURED]
    assert found[9].cells["Total"]["accuracy"] == 0.4 and found[9].size == "7B"
    assert found[9].cells["Under."]["accuracy"] == 1.0 and "PMC-VQA" not in found[9].cells
    assert found[10].cells["Total"]["difference"] == pytest.approx(40 - 26.00)
    assert [table.number for table, _ in measured_tables(results, TARGETS)] == [1]
    assert measured_tables({}, TARGETS) == []


def test_formats(results):
    found = lines(MAIN, results, TARGETS)
    rows = readable(MAIN, found)
    assert {column: str(cell) for column, cell in rows[8].items()} == {
        **{"Model": "MMedExpert-R1", "Size": "7B", "Source": "published (arXiv 2601.10949)"},
        **{"Total": "27.50", "Rea.": "26.55", "Under.": "29.96", "Treatment": "29.91", "Basic Science": "22.66"},
        **{"Diagnosis": "28.02", "PMC-VQA": "56.78", "OMVQA": "83.03", "GMAI-MM": "52.10"},
    }
    assert (
        str(rows[9]["Total"]) == "40.0 [16.8, 68.7] (10.0, 70.0)"
        and str(rows[10]["Total"]) == "+14.00"
        and rows[0]["OMVQA"] == "–"
    )
    assert "| Lingshu 7B | 7B | measured | 40.0 [16.8, 68.7] (10.0, 70.0) |" in markdown(rows)
    parsed = list(csv.DictReader(io.StringIO(result_tables.comma_separated(spread(MAIN, found)))))
    assert (
        parsed[9]["Total"] == "40.00" and parsed[9]["Total wilson low"] == "16.82" and parsed[9]["Total items"] == "10"
    )
    assert float(parsed[9]["Total bootstrap low"]) == pytest.approx(10, abs=1) and parsed[8]["Total wilson low"] == ""
    assert r"\textasciitilde{}/x\textasciicircum{}2 \\" in result_tables.latex([{"model": "~/x^2"}])
    tall = result_tables.latex([{"model": "a"}, {"model": "[b] <c>|"}, {"model": "*d*"}])
    assert "\n{}[b] \\textless{}c\\textgreater{}\\textbar{} " in tall and "\n{}*d* " in tall
    text = result_tables.latex(rows, "Table 1: 5 % & more")
    assert (
        r"\shortstack{40.0\\{\scriptsize [16.8, 68.7]}\\{\scriptsize (10.0, 70.0)}}" in text
        and r"\caption{Table 1: 5 \% \& more}" in text
    )
    assert len(re.findall(r" \\\\$", text, re.M)) == 13 and r"\begin{tabular}{lrrrrrrrrrrr}" in text
    saved = json.loads(json.dumps(structured(MAIN, found)))
    assert saved["table"] == 1 and saved["rows"][0]["source"].startswith("published")


def test_a_terminal_has_name_and_source_in_one_column(results):
    rows = narrow(readable(MAIN, lines(MAIN, results, TARGETS)))
    names = [row["model"] for row in rows]
    assert names[7] == "Lingshu 7B" and names[9:] == ["Lingshu 7B (measured)", "Lingshu 7B (gap)", "mine (measured)"]
    assert list(rows[0]) == ["model", *(column.heading for column in MAIN.columns)]


def test_a_part_of_a_benchmark_is_named_beside_the_published_numbers(results):
    assert partly(MAIN, results) == ""
    census = {"published_items": 2000}
    part = {key: replace(result, benchmark=replace(result.benchmark, census=census)) for key, result in results.items()}
    assert partly(MAIN, part) == "Not the whole benchmark was measured: MM 10 of 2,000 items."


def test_a_version_of_a_benchmark_fills_its_column(results):
    other = {"medxpertqa_mm:other": results["medxpertqa_mm"], "medxpertqa_mm@dev": results["medxpertqa_mm"]}
    assert lines(MAIN, other, TARGETS)[9].cells["Total"]["items"] == 10
    assert len(lines(MAIN, {"medxpertqa_mm@dev": results["medxpertqa_mm"]}, TARGETS)) == 9


@pytest.mark.parametrize(("key", "gap"), [("pmc_vqa", True), ("pmc_vqa:v2", True), ("pmc_vqa:v1_clean", False)])
def test_only_the_papers_version_of_a_benchmark_has_a_gap_to_it(results, key, gap):
    under = {key: results["medxpertqa_mm"]}
    by_source = {line.source: line.cells for line in lines(MAIN, under, TARGETS) if line.model == "Lingshu 7B"}
    assert "PMC-VQA" in by_source["measured"] and ("PMC-VQA" in by_source["gap to published"]) == gap
    assert partly(MAIN, under) == ("" if gap else f"{key}: another version than the published one, without a gap.")


def test_every_system_is_a_published_row_with_a_prompt_that_exists():
    rows = {row for table in TABLES for row in table.rows}
    for name, system in SYSTEMS.items():
        assert system.row in rows and system.prompt in styles() and system.licence
        entry = f"system:{name}/{system.folders[0]}" if system.folders else f"system:{name}"
        assert parse(entry).kind == system.kind
    assert {row for row in rows if row[0] != "MMedExpert-R1"} == {system.row for system in SYSTEMS.values()}


def test_newer_systems_run_here_and_claim_no_row_of_the_paper():
    for name, system in NEWER.items():
        target = parse(f"system:{name}")
        assert target.kind == "jax" and target.row is None and system.prompt in styles() and system.licence


def test_entries():
    assert parse("runs/final").name == "runs/final" and parse("runs/final").kind == "jax"
    mine = parse("MMedExpert-R1 7b=runs/final")
    assert (mine.row, mine.model) == (("MMedExpert-R1", "7B"), "runs/final")
    served = parse("gpt=endpoint:org/model@http://localhost:8000/v1")
    assert (served.name, served.kind, served.model, served.url) == (
        "gpt",
        "endpoint",
        "org/model",
        "http://localhost:8000/v1",
    )
    assert parse("endpoint:org/model", "http://host/v1").url == "http://host/v1"
    assert (parse("system:medgemma").kind, parse("system:medgemma", "http://host/v1").kind) == ("jax", "endpoint")
    assert (parse("system:llava-med").kind, parse("system:llava-med", "http://host/v1").kind) == ("jax", "endpoint")
    assert parse("system:lingshu", "http://host/v1").kind == "jax"
    with pytest.raises(ConfigError, match="did you mean lingshu"):
        parse("system:lingsu")


def test_a_system_of_several_checkpoints_is_named_with_its_folder():
    found = parse("system:med-r1/VQA_CT")
    assert (found.model, found.folder, found.row) == ("yuxianglai117/Med-R1", "VQA_CT", ("Med-R1", "2B"))
    assert found.name == "Med-R1 2B VQA_CT"
    with pytest.raises(ConfigError, match="holds several checkpoints: name one, such as system:med-r1/VQA_CT"):
        parse("system:med-r1")
    with pytest.raises(ConfigError, match="system:lingshu is one checkpoint"):
        parse("system:lingshu/VQA_CT")
