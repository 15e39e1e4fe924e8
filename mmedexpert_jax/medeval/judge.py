"""A language model as judge of answers, over the OpenAI protocol: a verdict in one word, stored like any answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from mmedexpert_jax import border
from mmedexpert_jax.answers import lettered, spoken
from mmedexpert_jax.data.case import GRADED, Case
from mmedexpert_jax.errors import ConfigError, RemoteError
from mmedexpert_jax.medeval.evaluate import AnswerRow, Evaluation
from mmedexpert_jax.medeval.judge_verdict import read
from mmedexpert_jax.remote import Client, Request

WHAT = ("open", "unparsed", "all")
MANY = 8  # replies of which one at least holds a verdict, or the judge cannot be read
_UNSAID = ("refusal", "content_filter")  # ends of a reply that is no verdict


def judge(
    client: Client,
    items: Mapping[str, Case],
    evaluation: Evaluation,
    what: str = "open",
    allowed: Callable[[dict[str, Request]], dict[str, Request]] = lambda requests: requests,
    say: Callable[[str], None] = lambda line: None,
) -> Evaluation:
    """The evaluation with the judge's verdicts as scorer "judge"; on rows that it judged its verdict counts.

    Args:
        client: of the judge's endpoint; asked at temperature 0, one request for each different answer.
        items: by id.
        evaluation: whose answers to judge.
        what: "open": answers to open questions; "unparsed": those, and answers that the strict scorer cannot read;
            "all": every answer.
        allowed: gives, of the requests by "id, row number", those that may be sent; the others are not judged.
        say: takes a line on replies that hold no verdict, where there are any.

    Raises:
        ConfigError: unknown `what`.
        RemoteError: of the endpoint, or none of many replies holds a verdict. A single answer without one is not
            judged, and keeps what it had.
    """
    if what not in WHAT:
        raise ConfigError(f"config.judge.what={what} is unknown; choose one of {', '.join(WHAT)}")
    chosen = [number for number, row in enumerate(evaluation.rows) if _wanted(items[row.id], row, what)]
    rows = list(evaluation.rows)
    names = {f"{rows[number].id}, row {number}": number for number in chosen}
    requests = allowed({name: _request(items[rows[number].id], rows[number]) for name, number in names.items()})
    unread = []
    for name, reply in zip(requests, client.ask(list(requests.values())), strict=True):
        row, verdict = rows[names[name]], None if reply.finish in _UNSAID else read(reply.text)
        if verdict is None:
            unread.append(reply.error or reply.text)
        else:
            rows[names[name]] = replace(row, right=verdict, verdicts={**row.verdicts, "judge": verdict})
    if len(unread) == len(requests) >= MANY:
        raise RemoteError(
            f"none of {len(requests)} replies of {client.endpoint.model} holds a verdict, CORRECT or INCORRECT: "
            f"{border.shown(unread[0])}; give it more config.judge.max_tokens, or take another judge"
        )
    if unread:
        say(
            f"the judge gave no verdict on {len(unread)} of {len(requests)} answers, such as "
            f"{border.shown(unread[0])}; they count as they do without a judge"
        )
    return Evaluation(_complete(rows))


def _wanted(item: Case, row: AnswerRow, what: str) -> bool:
    if item.kind in GRADED:
        return False
    return what == "all" or item.kind == "open" or (what == "unparsed" and row.said is None)


def _complete(rows: Sequence[AnswerRow]) -> tuple[AnswerRow, ...]:
    """Rows that were not judged count under "judge" as under the scorer in force, so that the column is whole."""
    if not any("judge" in row.verdicts for row in rows):
        return tuple(rows)
    return tuple(replace(row, verdicts={**row.verdicts, "judge": row.verdicts.get("judge", row.right)}) for row in rows)


def _request(item: Case, row: AnswerRow) -> Request:
    options = "\nOptions:\n" + "\n".join(lettered(item.options)) if item.options else ""
    key, said = "\nor: ".join(item.golds), spoken(row.response).strip() or row.response
    text = (
        "You grade answers to medical questions. Say whether the response gives the same final answer as the key; "
        "wording, spelling and extra explanation do not matter, a second and different final answer makes it wrong.\n\n"
        f"Question:\n{item.question}{options}\n\nKey:\n{key}\n\nResponse:\n{said}\n\n"
        "Reply with one word: CORRECT or INCORRECT."
    )
    return Request([{"role": "user", "content": text}])
