"""A language model as judge of answers, over the OpenAI protocol: a verdict in one word, stored like any answer."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from mmedexpert_jax import border
from mmedexpert_jax.answers import spoken
from mmedexpert_jax.data.case import GRADED, Case
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.medeval.evaluate import AnswerRow, Evaluation
from mmedexpert_jax.medeval.prompt_styles import option_lines
from mmedexpert_jax.remote import Client, Request

WHAT = ("open", "unparsed", "all")
# "right" and "left" of the body, "true" and "false" before a part of it, and not a verdict: "the right lung".
_SIDE = re.compile(
    r"\bright(?=-sided|-hand|[^\S\n]+(?!(?:and|or|but|because|since|as|in|on|about|with|for|that|though|although|if|except"
    r"|here|too|also|overall|by|per|given|according|when|while|so|hence|to|at|only|it|this|that|they|we|answers?|responses?|options?"
    r"|choices?|diagnos[ie]s|keys?|one|final|letter|treatment|conclusion)\b)[a-z])"
    r"|\b(?:says|said|states?|stated|gives|gave|reads|side|laterality|the)\s*:?\s+right(?=\s*(?:$|[.,;:)\n]))"
    r"|\b(?:true|false)(?=\s+(?:vocal|cords?|lumen|ribs?|aneurysm|positives?|negatives?|labou?r|pelvis)\b)",
    re.IGNORECASE | re.MULTILINE,
)
_LEFT = re.compile(r"\bleft\b(?!\s+(?:out|open|unclear|unanswered))", re.IGNORECASE)
_RIGHT = re.compile(
    r"(?!\A)(?<!which is )(?<!response is )(?<!answer is )(?<!\bit is )(?<!that is )(?<!\bit['’]s )(?<!that['’]s )"
    r"\bright\b",
    re.IGNORECASE,
)
_MISMATCH = re.compile(
    r"\b(?:(?:do|does|did)\s+not|(?:do|does|did)n['’]t|fails?\s+to)\s+(?:match|agree)\b", re.IGNORECASE
)
# A cross beside the word, and a response that is not what the key is said to be.
_CROSSED = re.compile(r"[❌✗✘✖][^\w\n]{0,8}correct\b|\bcorrect[^\w\n]{0,8}[❌✗✘✖]", re.IGNORECASE)
_IS_NOT = re.compile(r"\b(?:response|answer|it)\s+(?:isn['’]t|is\s+not)(?=\s*(?:$|[.;!\n]))", re.IGNORECASE)
# A verdict of the other kind behind one that is begun: "CORRECT. However, ..., so INCORRECT".
_ON_ANOTHER = re.compile(
    r"\b(?:option|distractor|alternative|choice|other)\b[^.\n]{0,24}\bis\s+incorrect\b", re.IGNORECASE
)
_TAKEN_BACK = re.compile(
    r"(?<!not )\bINCORRECT\b|\bIncorrect(?=\s+overall|\s*(?:$|[.!]))"
    r"|(?i:\b(?:so|thus|therefore|hence|overall)\b[,:]?\s+(?:(?:it|the\s+\w+)\s+is\s+)?incorrect\b)",
    re.MULTILINE,
)
_WORD = re.compile(r"\b(?P<wrong>incorrect|wrong|false)\b|\b(?P<right>correct|right|true)\b", re.IGNORECASE)
# A field that is true or false, such as {"is_correct": false}; "incorrect: false" stays wrong, as what is unclear.
_FIELD = re.compile(
    r"(?<![a-z])(?:is[_ ])?correct(?:ness)?\s*[:=]\s*(?P<value>true|yes|y|1|false|no|n|0)(?=\s*(?:[.,;]|$))",
    re.IGNORECASE | re.MULTILINE,
)
# Words behind "correct" that make it speak of the key instead of the response: "the correct answer is B".
_ABOUT_THE_KEY = re.compile(
    r"\s+(?:(?:final\s+)?(?:answers?|options?|choices?|diagnos[ie]s|keys?|responses?|letters?|treatment|one)|"
    r"that\s+the\s+(?:key|reference))\b",
    re.IGNORECASE,
)
_GIVES = re.compile(r"\b(?:match\w*|gives?|states?|chose|chooses?|is|reach\w*|has)\s+(?:the|a)\s*$", re.IGNORECASE)
_TURNED = re.compile(
    r"\b(?:not(?! only)|never|nothing|cannot|neither|nor|hardly|n['’]t|in|far from|fail(?:s|ed)? to|less than|"
    r"anything but|by no means|no longer|in no way|nowhere near|nobody|no one|"
    r"without(?! (?:a )?(?:doubt|question)))(?!\w)[\s\w'’-]{0,24}$|n['’]t\b[\s\w'’-]{0,24}$|\b(?:in|un|non)-?$"
    r"|(?<![\d.])(?!100)\d{1,2}(?:\.\d+)?\s?%\s*$",  # "30 % correct"
    re.IGNORECASE,
)
# A reply that takes its verdict back.
_CHANGED = re.compile(
    r"(?:^|[.!?:,\n]\s{0,8})(?:(?:oh|no|but)[, ]+)?(?:wait|hmm+|actually|sorry|correction"
    r"|(?:up)?on\s+(?:second\s+thoughts?|reflection)|let\s+me\s+re\w+|i\s+was\s+wrong)\b",
    re.IGNORECASE,
)
# A verdict behind it, and no remark such as "the right lung".
_GIVEN = re.compile(r"\b(?:IN)?CORRECT\b|(?i:\b(?:in)?correct\W*\Z)")
# The verdict of a reply in JSON, whatever its reason says.
_NAMED = re.compile(
    r'"(?:(?:final_)?verdict|judge?ment|label|grade|decision)"\s*:\s*"(?P<word>correct|incorrect)"', re.IGNORECASE
)
# What another says, or what is not so, before the word.
_DOUBTED = re.compile(
    r"\b(?:claims?|hesitat\w*|disagree\w*|impossible|would\s+have|wrongly|falsely|mistakenly)\b[^,;:]*$", re.IGNORECASE
)
_HEDGED = re.compile(
    r"\b(?:partial(?:ly)?|partly|in part|to some extent|to a degree|arguably|largely|"
    r"half|almost|nearly|mostly|somewhat|possibly|perhaps|maybe|probably|might|may|could|"
    r"ish|roughly|more or less|sort of|kind of|semi|close to|except|apart from|incomplete|"
    r"either|unclear|unsure|uncertain|ambiguous|if|whether)\b",
    re.IGNORECASE,
)


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
        RemoteError: of the endpoint. A single answer without a verdict is not judged, and keeps what it had.
    """
    if what not in WHAT:
        raise ConfigError(f"config.judge.what={what} is unknown; choose one of {', '.join(WHAT)}")
    chosen = [number for number, row in enumerate(evaluation.rows) if _wanted(items[row.id], row, what)]
    rows = list(evaluation.rows)
    names = {f"{rows[number].id}, row {number}": number for number in chosen}
    requests = allowed({name: _request(items[rows[number].id], rows[number]) for name, number in names.items()})
    unread = []
    for name, reply in zip(requests, client.ask(list(requests.values())), strict=True):
        row, verdict = rows[names[name]], read(reply.text)
        if verdict is None:
            unread.append(reply.error or reply.text)
        else:
            rows[names[name]] = replace(row, right=verdict, verdicts={**row.verdicts, "judge": verdict})
    if unread:
        say(
            f"the judge gave no verdict on {len(unread)} of {len(requests)} answers, such as "
            f"{border.shown(unread[0])}; they count as they do without a judge"
        )
    return Evaluation(_complete(rows))


def read(text: str) -> bool | None:
    """The verdict of a judge's reply; None where it holds no word of verdict.

    A reply that begins with its verdict, or whose last line is nothing else, has said it: what stands around is the
    reason; what stands behind a change of mind ("Wait, ...") outweighs it. Any other is right only if all its
    verdicts are: "not correct", "partially correct", a question, or both words are a wrong answer, as all that is
    ambiguous is. The right and left of a body are no verdict.
    """
    if named := {match["word"].lower() for match in _NAMED.finditer(spoken(text))}:
        return named == {"correct"}
    text = re.sub(r"\b(not|never)\s*\n\s*", r"\1 ", spoken(text), flags=re.IGNORECASE)
    text = re.sub(r"[*_`\"“”{}\[\]<>#$]|(?<!\w)['’]|['’](?!\w)", " ", text).strip()
    text = _FIELD.sub(
        lambda field: "correct" if field["value"].lower() in ("true", "yes", "y", "1") else "incorrect", text
    )
    text = _IS_NOT.sub(" is incorrect", _CROSSED.sub("incorrect", _SIDE.sub("", text)))
    text = _RIGHT.sub("", text) if _LEFT.search(text) else text
    lines = [line.strip(" .!:") for line in text.splitlines() if line.strip(" .!:")]
    if not lines or not _WORD.search(text):
        return False if _MISMATCH.search(text) else None
    changed = list(_CHANGED.finditer(text))
    rest = text[changed[-1].end() :] if changed else ""
    if _GIVEN.search(rest):
        return read(rest)
    ends = [verdict for line in (lines[0], lines[-1]) if (verdict := _bare(line)) is not None]
    if ends:
        return all(ends)
    if (opening := _WORD.match(text)) and re.match(r"\s*(?:[.,;:!–—-]|\n)", text[opening.end() :]):
        behind = _ON_ANOTHER.sub("", text[opening.end() :])
        doubtful = _HEDGED.search(behind.split(".")[0]) or _TAKEN_BACK.search(behind)
        return opening["right"] is not None and not doubtful
    return all(_verdicts(text))


def _bare(line: str) -> bool | None:
    """The verdict of a line that is nothing else, such as "CORRECT" or "Verdict: incorrect"."""
    word = re.fullmatch(
        r"(?:(?:final\s+)?(?:verdict|judge?ment|grade|result|answer|label)\s*:?\s*)?(\w+)", line, re.IGNORECASE
    )
    found = _WORD.fullmatch(word[1]) if word else None
    return None if found is None else found["right"] is not None


def _verdicts(text: str) -> list[bool]:
    """Each word of verdict on the response, with its negation and hedge read; [False] where all speak of the key."""
    found = []
    for sentence in re.split(r"(?<=[.!?;\n])\s+", text):
        for word in _WORD.finditer(sentence):
            before = sentence[: word.start()]
            about_the_key = word["right"] and _ABOUT_THE_KEY.match(sentence, word.end())
            if about_the_key and not _GIVES.search(before):
                continue
            turned = _TURNED.search(re.split(r"(?<!anything )\bbut\b", before)[-1]) is not None
            hedged = _DOUBTED.search(before) or _HEDGED.search(sentence)
            doubtful = hedged or sentence.rstrip().endswith("?")
            found.append((word["right"] is not None) != turned and not doubtful)
    return found or [False]


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
    options = "\nOptions:\n" + "\n".join(option_lines(item)) if item.options else ""
    text = (
        "You grade answers to medical questions. Say whether the response gives the same final answer as the key; "
        "wording, spelling and extra explanation do not matter, a second and different final answer makes it wrong.\n\n"
        f"Question:\n{item.question}{options}\n\nKey:\n{item.answer}\n\nResponse:\n{row.response}\n\n"
        "Reply with one word: CORRECT or INCORRECT."
    )
    return Request([{"role": "user", "content": text}])
