"""HealthBench (Arora et al. 2025): conversations, each with a rubric of physicians' criteria that a judge grades.

The authors' three files: all 5,000, the hard thousand, and the 3,671 with criteria of consensus. MedEvalKit reads the
three together, so that most conversations count twice.
"""

from typing import Any

from mmedexpert_jax.data.benchmarks import rows
from mmedexpert_jax.data.benchmarks.benchmark import ScoredCriterion
from mmedexpert_jax.data.benchmarks.reading import reader
from mmedexpert_jax.data.benchmarks.source import Files
from mmedexpert_jax.data.case import Case

NAMES = {
    "all": "2025-05-07-06-14-12_oss_eval.jsonl",
    "hard": "hard_2025-05-08-21-00-10.jsonl",
    "consensus": "consensus_2025-05-09-20-00-46.jsonl",
}
COUNTS = {"all": 5_000, "hard": 1_000, "consensus": 3_671}
ROLES = ("system", "user", "assistant")


@reader(
    "healthbench",
    "HealthBench",
    file=NAMES,
    subsets=tuple(NAMES),
    hub="openai/healthbench",
    hub_files=NAMES,
    strata=("theme",),
    published=lambda split, subset: {"items": COUNTS[subset]},
    licence="MIT (a hub copy's card)",
)
def _benchmark(row: rows.Row, files: Files, subset: str) -> Case:
    turns: tuple[tuple[Any, Any], ...] = tuple(
        (turn.get("role"), turn.get("content")) for turn in _objects(row, "prompt")
    )
    if not all(role in ROLES and isinstance(text, str) and text.strip() for role, text in turns):
        raise row.bad("prompt", f"turns of {', '.join(ROLES)} with a text are needed")
    if turns[-1][0] != "user":
        raise row.bad("prompt", "the last turn is the user's")
    criteria = tuple(_criterion(row, one) for one in _objects(row, "rubrics"))
    if not any(one.points > 0 for one in criteria):
        raise row.bad("rubrics", "no criterion earns points")
    tags = [str(tag) for tag in row.values.get("example_tags") or ()]
    return Case(
        id=row.text("prompt_id"),
        question=turns[-1][1],
        options=(),
        answer="\n".join(f"[{one.points:g}] {one.text}" for one in criteria),
        kind="rubric",
        labels={"theme": next((tag.partition(":")[2] for tag in tags if tag.startswith("theme:")), "")},
        columns={"criteria": criteria},
        turns=turns[:-1],
    )


def _objects(row: rows.Row, key: str) -> list[dict[str, Any]]:
    value = row.values.get(key)
    if not isinstance(value, list) or not value or not all(isinstance(one, dict) for one in value):
        raise row.bad(key, "a list of objects is needed")
    return value


def _criterion(row: rows.Row, one: dict[str, Any]) -> ScoredCriterion:
    text, points, tags = one.get("criterion"), one.get("points"), one.get("tags") or []
    if not isinstance(text, str) or not text.strip():
        raise row.bad("rubrics", "every criterion has a text")
    if isinstance(points, bool) or not isinstance(points, int | float) or not -1e6 < points < 1e6:
        raise row.bad("rubrics", "the points of every criterion are a number")
    return ScoredCriterion(text, points, tuple(map(str, tags)))
