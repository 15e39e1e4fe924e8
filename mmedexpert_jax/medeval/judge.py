"""A language model as judge of answers, over the OpenAI protocol: a verdict in one word, stored like any answer."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from mmedexpert_jax.data.benchmarks import Item
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.medeval.evaluate import Evaluation, Row
from mmedexpert_jax.medeval.prompts import lettered
from mmedexpert_jax.remote import Client, Request

WHAT = ("open", "unparsed", "all")
_VERDICT = re.compile(r"\b(correct|incorrect)\b", re.IGNORECASE)


def judge(client: Client, items: Mapping[str, Item], evaluation: Evaluation, what: str = "open") -> Evaluation:
    """The evaluation with the judge's verdicts as scorer "judge"; on rows that it judged its verdict counts.

    Args:
        client: of the judge's endpoint; asked at temperature 0, one request for each different answer.
        items: by id.
        evaluation: whose answers to judge.
        what: "open": answers to open questions; "unparsed": those, and answers that the strict scorer cannot read;
            "all": every answer.

    Raises:
        ConfigError: unknown `what`.
        RemoteError: of the endpoint. A single answer without a verdict is not judged, and keeps what it had.
    """
    if what not in WHAT:
        raise ConfigError(f"config.judge.what={what} is unknown; choose one of {', '.join(WHAT)}")
    chosen = [number for number, row in enumerate(evaluation.rows) if _wanted(items[row.id], row, what)]
    requests = [_request(items[evaluation.rows[number].id], evaluation.rows[number]) for number in chosen]
    rows = list(evaluation.rows)
    for number, reply in zip(chosen, client.ask(requests), strict=True):
        verdict = read(reply.text)
        if verdict is not None:
            row = rows[number]
            rows[number] = replace(row, right=verdict, verdicts={**row.verdicts, "judge": verdict})
    return Evaluation(_complete(rows))


def read(text: str) -> bool | None:
    """A verdict: the last "correct" or "incorrect" in the judge's answer; None where there is none."""
    words = _VERDICT.findall(text)
    return words[-1].lower() == "correct" if words else None


def _wanted(item: Item, row: Row, what: str) -> bool:
    return what == "all" or item.kind == "open" or (what == "unparsed" and row.said is None)


def _complete(rows: Sequence[Row]) -> tuple[Row, ...]:
    """Rows that were not judged count under "judge" as under the scorer in force, so that the column is whole."""
    if not any("judge" in row.verdicts for row in rows):
        return tuple(rows)
    return tuple(replace(row, verdicts={**row.verdicts, "judge": row.verdicts.get("judge", row.right)}) for row in rows)


def _request(item: Item, row: Row) -> Request:
    options = "\nOptions:\n" + "\n".join(lettered(item)) if item.options else ""
    text = (
        "You grade answers to medical questions. Say whether the response gives the same final answer as the key; "
        "wording, spelling and extra explanation do not matter, a second and different final answer makes it wrong.\n\n"
        f"Question:\n{item.question}{options}\n\nKey:\n{item.answer}\n\nResponse:\n{row.response}\n\n"
        "Reply with one word: CORRECT or INCORRECT."
    )
    return Request([{"role": "user", "content": text}])
