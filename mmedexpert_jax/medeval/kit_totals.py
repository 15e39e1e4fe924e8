"""MedEvalKit's totals where they are not right answers over items (git 9b12e3b, read in its source; its issue 30).

With its judge on, PathVQA's total sets the closed answers to 0 and counts the open ones over all items; SLAKE's adds
the judge's verdicts on closed answers to those that its rule already counted, so that a share may exceed 100 %;
VQA-RAD's reads closed answers by the kit's rule. HealthBench's is over its three files together, so that most
conversations count twice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmedexpert_jax.medeval.evaluate import AnswerRow, Evaluation
from mmedexpert_jax.medeval.result_tables import cell

HALVES = {"vqa_rad": "kind", "pathvqa": "kind", "slake": "answer_type"}  # label that tells open from closed
HEALTHBENCH = ("healthbench", "healthbench:hard", "healthbench:consensus")
TITLE = "MedEvalKit's total"


def of_halves(benchmark: str, rows: Sequence[AnswerRow], what: str) -> str:
    """MedEvalKit's total in percent; "" where it is what ours is, "–" where it needs verdicts that were not asked for.

    Args:
        what: the answers that the judge was asked about, `judge.WHAT`.
    """
    if benchmark not in HALVES or not any("judge" in row.verdicts for row in rows):
        return ""
    if benchmark == "slake" and what != "all":
        return "–"
    opened = [row for row in rows if row.labels.get(HALVES[benchmark]) == "open"]
    closed = [row for row in rows if row.labels.get(HALVES[benchmark]) != "open"]
    right = sum(row.verdicts["judge"] for row in opened)
    if benchmark != "pathvqa":
        right += sum(row.verdicts["medevalkit"] for row in closed)
    if benchmark == "slake":
        right += sum(row.verdicts["judge"] for row in closed)
    return f"{100 * right / len(rows):.1f}"


def of_three_files(evaluations: Mapping[str, Mapping[str, Evaluation]]) -> list[dict[str, Any]]:
    """A row for each model with answers to all three parts of HealthBench: its mean over their conversations together.

    `evaluations`: of each benchmark's key, by model.
    """
    if not all(key in evaluations for key in HEALTHBENCH):
        return []
    rows = []
    for model in evaluations[HEALTHBENCH[0]]:
        if all(model in evaluations[key] for key in HEALTHBENCH):
            files = {key: evaluations[key][model] for key in HEALTHBENCH}
            # a conversation of two files counts twice, under a name of each
            named = [replace(row, id=f"{key} {row.id}") for key, file in files.items() for row in file.rows]
            if named:
                rows.append({"model": model, TITLE: cell(Evaluation(tuple(named)).accuracy())})
    return rows
