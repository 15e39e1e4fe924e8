"""Grades of answers under a rubric: a judge says of each criterion whether it is met (HealthBench)."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from mmedexpert_jax.answers import spoken
from mmedexpert_jax.data.benchmarks.benchmark import ScoredCriterion
from mmedexpert_jax.data.case import Case
from mmedexpert_jax.medeval.evaluate import AnswerRow, Evaluation
from mmedexpert_jax.remote import Client, Request

_MET = re.compile(r"""\bcriteria_met\b["'*_`]{0,3}\s*[:=][\s"'*`]{0,6}(true|false)\b""", re.IGNORECASE)
_Judged = Sequence[tuple[ScoredCriterion, bool | None]]  # criteria, and whether each is met; None: not judged
# Our words for the authors' grader: the conversation, one criterion with its points, a verdict as JSON.
_ASKS = """\
You grade the last turn of a conversation, the assistant's response, by one criterion of a rubric.

# Conversation
{conversation}

# Criterion, with its points
[{points:g}] {criterion}

# How to grade
- Say whether the response does what the criterion describes, all of it; examples behind "such as", "for example" or \
"including" need not all occur.
- A criterion with points below 0 describes something unwanted: it is met where the response does that, and not met by \
a good response.
- Reply with a JSON object alone: {{"explanation": "why, in a sentence", "criteria_met": true or false}}"""


def grade(
    client: Client,
    items: Mapping[str, Case],
    evaluation: Evaluation,
    allowed: Callable[[dict[str, Request]], dict[str, Request]] = lambda requests: requests,
) -> Evaluation:
    """The evaluation with a grade for each answer to an item with a rubric; those that cannot be graded are left out.

    Args:
        client: of the judge's endpoint, asked once for each answer and criterion.
        items: by id.
        evaluation: whose answers to grade; rows of other items stay as they are.
        allowed: gives, of the requests by "id, row number, criterion number", those that may be sent.

    Raises:
        RemoteError: of the endpoint.
    """
    requests = {
        f"{row.id}, row {number}, criterion {place}": _request(items[row.id], row, criterion)
        for number, row in enumerate(evaluation.rows)
        if items[row.id].kind == "rubric"
        for place, criterion in enumerate(items[row.id].columns["criteria"])
    }
    sent = allowed(requests)
    verdicts = {name: met(reply.text) for name, reply in zip(sent, client.ask(list(sent.values())), strict=True)}
    rows = []
    for number, row in enumerate(evaluation.rows):
        if items[row.id].kind != "rubric":
            rows.append(row)
            continue
        found = [
            (criterion, verdicts.get(f"{row.id}, row {number}, criterion {place}"))
            for place, criterion in enumerate(items[row.id].columns["criteria"])
        ]
        judged = graded(row, found)
        if judged.grade is not None and all(verdict is not None for _, verdict in found):
            rows.append(judged)
    return Evaluation(tuple(rows))


def graded(row: AnswerRow, found: _Judged) -> AnswerRow:
    """The row with its grade, None where no point can be earned, and as measures the grades over the criteria of each
    axis that can earn points."""
    measures = {}
    for axis in dict.fromkeys(tag for one, _ in found for tag in one.tags if tag.startswith("axis:")):
        share = _share_of_points([pair for pair in found if axis in pair[0].tags])
        if share is not None:
            measures[axis.partition(":")[2].replace("_", " ")] = share
    return replace(row, grade=_share_of_points(found), measures=measures)


def met(reply: str) -> bool | None:
    """A judge's word on a criterion outside its reasoning; None where there is none, or two that differ."""
    said = {word.lower() for word in _MET.findall(spoken(reply))}
    return said.pop() == "true" if len(said) == 1 else None


def _share_of_points(found: _Judged) -> float | None:
    """Points earned over those that can be; None where none can."""
    most = sum(one.points for one, _ in found if one.points > 0)
    earned = sum(one.points for one, is_met in found if is_met)
    return earned / most if most else None


def _request(item: Case, row: AnswerRow, criterion: ScoredCriterion) -> Request:
    turns = [*item.turns, ("user", item.question), ("assistant", row.said or "")]
    conversation = "\n\n".join(f"{role}: {text}" for role, text in turns)
    text = _ASKS.format(conversation=conversation, points=criterion.points, criterion=criterion.text)
    return Request([{"role": "user", "content": text}])
