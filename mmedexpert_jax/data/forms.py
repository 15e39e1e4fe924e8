"""Rows in the forms of other trainers, as rows of ours: messages, prompt and answer, conversations, instruction.

    messages       OpenAI, TRL, LLaMA-Factory: {"messages": [{"role", "content"}], "images": [...]}
    prompt         TRL, verl: {"prompt": text or messages, "answer" | "solution" | "completion" | "reward_model"}; a
                   "ground_truth" of several texts is the answer and what else is accepted
    conversations  LLaVA, ShareGPT: {"conversations": [{"from": "human", "value"}, {"from": "gpt", "value"}], "image"}
    problem        EasyR1: {"problem", "answer", "images"}
    instruction    LLaMA-Factory's alpaca form: {"instruction", "input", "output", "images"}

A question that lists lettered options and whose answer names one of them becomes multiple choice; any other is open.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmedexpert_jax import answers, border
from mmedexpert_jax.data.case import LETTERS
from mmedexpert_jax.data.cells import IMAGE_FILE, as_text, by_label, items
from mmedexpert_jax.data.question_text import inline, placed, split_line_of_options, split_options
from mmedexpert_jax.data.reference_answers import LONGEST_ANSWER, last_line, letter_of, refuse_named, taken_apart
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.processing.images import ADDRESS

FORMS = ("messages", "prompt", "conversations", "problem", "instruction")
ANSWERS = ("answer", "solution", "completion", "ground_truth", "output", "response")
OPTIONS = ("options", "choices", "candidates")
ROLES = {"human": "user", "gpt": "assistant", "developer": "system"} | {r: r for r in ("user", "assistant", "system")}
TEXT_PARTS = ("text", "input_text", "output_text")  # of a turn: chat completions' and responses' names
IMAGE_PARTS = ("image", "image_url", "input_image")
THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # keys of an assistant's turn beside its content
SOURCES = ("image", "image_url", "url", "path")  # keys of an image part; datasets writes those that it lacks as null
# read as the answer, and kept, since rewards of their trainers read them too
KEPT = ("solution", "ground_truth", "reward_model")
_READ = {*FORMS, *ANSWERS, "image", "images", "input", "options", "id"} - {*KEPT}
_JUDGED = ("label", "kto_tag")  # of TRL's KTO and LLaMA-Factory's: whether the completion is one to learn


def form(row: Mapping[str, Any]) -> str:
    """The form of a row that is not ours, one of FORMS; "" for any other."""
    return "" if "question" in row else next((name for name in FORMS if row.get(name)), "")


def ours(row: Mapping[str, Any], name: int | str) -> dict[str, Any]:
    """A row of a foreign form as one of the documented schema (docs/own.md).

    Args:
        row: of one of FORMS.
        name: of the row, such as its number, which makes its id where it has none.

    Raises:
        DataError: a key of another type than its form has, several turns, no answer; the place is left to the caller.
    """
    kind = form(row)
    if kind == "instruction" and row.get("history"):
        raise DataError("key history: several turns; a case has one question and one answer, so write them into one")
    refuse_beside(row)
    shown = _images(row)
    if kind in ("messages", "conversations") or (kind == "prompt" and not isinstance(row["prompt"], str)):
        question, said, system, inside = _turns(row[kind], kind)
    else:
        lines = [row[kind], row.get("input") if kind == "instruction" else ""]
        question, said, system, inside = "\n".join(_text(line, kind) for line in lines if line), "", "", []

    if said and _begins(said, question, row, kind):
        said = ""
    answer, *others = [said] if said else _answers(row)
    if not answer:
        raise DataError(
            f"key {kind}: no answer: an assistant's last turn or one of {', '.join(ANSWERS)} is needed{missing(row)}"
        )
    if said or not (row.get("answer") or row.get("solution")):
        _refuse_rejected(row, kind, answer)

    question, images = inline(question, [*shown, *inside])
    whole = placed(question, {len(shown), len(images)})
    question, options = split_options(whole)
    given = _given(row) if not options else None  # beside the question, in the form that ours have
    options = _texts(given) or options
    short, trace = taken_apart(answer)
    if not options and not given and len(short) == 1 and short in LETTERS:
        question, options = split_line_of_options(question)

    if not short:
        raise DataError(f"key {kind}: the answer {border.shown(answer)} is reasoning alone; close it, and answer")
    letter = letter_of(short, options) if options else None
    if letter:
        _refuse_two_keys(row, kind if said else "", said, options)
    if given and short.isdecimal() and answers.counts_another(int(short), options):
        raise DataError(f"key answer: {short} may be an option's text or its number; give its letter")
    if options and letter is None and not given:  # a list within an open question
        refuse_named(short, options, whole)
        question, options = whole, []
    if letter and len(letters := {letter_of(taken_apart(one)[0], options) for one in (answer, *others)}) > 1:
        raise DataError(f"key ground_truth: names {len(letters)} options; a case has one answer")
    if not options and not given:
        short, trace = last_line(short, trace)

    made = {
        "id": f"row-{name}" if row.get("id") in (None, "") else str(row["id"]),
        "question": question,
        "options": options or given or [],
        "answer": letter or short,
        "images": images,
        "trace": trace,
    }
    if system:
        made["system"] = system
    if others and not letter:
        made["accepted"] = [taken_apart(one)[0] for one in others if one.strip()]
    read = {*_READ, *(OPTIONS if given else ())}
    return made | {key: value for key, value in row.items() if key not in read and value is not None}


def missing(row: Mapping[str, Any]) -> str:
    """The fix for a row of a form that asks nothing or answers twice, as the end of a refusal; "" for any other."""
    if row.get("chosen"):
        return "; a row of preferences has two answers: give its question as prompt and the chosen text as answer"
    return "; a text alone asks nothing: give question and answer" if isinstance(row.get("text"), str) else ""


# ------------------------------------------------------------------------------------------------ turns


def _turns(turns: Any, key: str) -> tuple[str, str, str, list[Any]]:
    """(question, answer, system text, images) of a conversation of one turn each."""
    if not isinstance(turns, list | tuple) or not all(isinstance(turn, Mapping) for turn in turns):
        raise DataError(f"key {key}: a list of turns is needed, got {border.shown(turns)}")
    said: dict[str, list[str]] = {"system": [], "user": [], "assistant": []}
    images: list[Any] = []
    for turn in turns:
        role = ROLES.get(str(turn.get("role", turn.get("from"))))
        if role is None:
            raise DataError(
                f"key {key}: the role {border.shown(turn.get('role', turn.get('from')))} is not known; a case has one "
                "question and one answer, and no turns of tools"
            )
        text, found = _content(turn, key)
        if role == "assistant" and not said["user"] and turn is not turns[-1]:
            raise DataError(
                f"key {key}: the assistant's turn {border.shown(text)} stands before the question; leave it out"
            )
        thought = next((turn[name] for name in THOUGHTS if isinstance(turn.get(name), str)), "")
        said[role].append(f"<think>{thought}</think>{text}" if thought and role == "assistant" else text)
        images += found
    if len(said["user"]) != 1 or len(said["assistant"]) > 1:
        raise DataError(
            f"key {key}: {len(said['user'])} user's and {len(said['assistant'])} assistant's turns; a case has one "
            "question and one answer, so split the conversation"
        )
    return said["user"][0], "".join(said["assistant"]), "\n".join(said["system"]), images


def _content(turn: Mapping[str, Any], key: str) -> tuple[str, list[Any]]:
    """Text and images of one turn; the place of one of the row's images, a bare part, as <image>."""
    content = turn.get("content", turn.get("value"))
    if isinstance(content, str):
        return content, []
    if not isinstance(content, list | tuple):
        raise DataError(f"key {key}: a turn's content must be text or parts, got {border.shown(content)}")
    texts, images, bare = [], [], 0
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in TEXT_PARTS:
            texts.append(_text(part.get("text"), key))
        elif kind not in IMAGE_PARTS:
            raise DataError(f"key {key}: a part is text or an image, not {border.shown(part)}")
        elif not (source := next((part[name] for name in SOURCES if part.get(name)), None)):
            if other := next((name for name in ("source", "base64", "data") if part.get(name)), ""):
                raise DataError(f"key {key}: an image's part has it under image, as a data URI, not under {other}")
            bare += 1
        else:
            view = {name: value for name, value in part.items() if name not in (*SOURCES, "type", "detail")}
            source = source.get("url") or source if isinstance(source, Mapping) else source
            whole = source if isinstance(source, Mapping) else {"path": source}
            images.append({**whole, **view} if any(view.values()) else source)
    return "<image>" * bare + "\n".join(texts), images


# ---------------------------------------------------------------------------------- answers and options


def _answers(row: Mapping[str, Any]) -> list[str]:
    """The answer under a key, and what else a ground truth of several texts accepts; [""] of none."""
    values = [*((key, row.get(key)) for key in ANSWERS), ("ground_truth", _of_reward_model(row))]
    key, value = next(((key, value) for key, value in values if value not in (None, "", [])), ("", ""))
    if key == "ground_truth" and isinstance(value, Mapping) and {*value} == {"target"}:  # verl's sets for search
        value = value["target"]
    if key == "ground_truth" and isinstance(value, list) and value and not isinstance(value[-1], Mapping):
        return [_said(one) for one in value]
    value = value[0] if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str) else value
    return [_said(value)]


def _of_reward_model(row: Mapping[str, Any]) -> Any:
    """The ground truth of verl's rows; None where there is none."""
    model = row.get("reward_model")
    if isinstance(model, str) and model.lstrip().startswith("{"):  # of a CSV, or a Parquet that pandas wrote
        model = items(model)
    return model.get("ground_truth") if isinstance(model, Mapping) else None


def _said(value: Any) -> str:
    """An answer's text. Raises DataError."""
    if isinstance(value, list) and value and isinstance(value[-1], Mapping):  # a completion as messages
        value = _content(value[-1], "completion")[0]
    return _text(value if isinstance(value, bool) else as_text(value), "answer")


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"key {key}: a text is needed, got {border.shown(value)}")
    return value


def _given(row: Mapping[str, Any]) -> Any:
    """The options beside a question, under a name that other trainers' sets have; a text of several as a list."""
    try:
        return items(next((row[key] for key in OPTIONS if row.get(key) not in (None, "", [])), None))
    except DataError as error:
        raise DataError(f"key options: {error}") from None


def _texts(options: Any) -> list[str]:
    """The texts of a list or an object by letter; what is neither, or has a gap, is refused where rows are checked."""
    found = options = by_label(options)
    if isinstance(options, Mapping):
        letters = sorted(letter for letter, text in options.items() if text is not None)
        gap = "".join(letters).upper() != LETTERS[: len(letters)]
        found = None if gap else [options[letter] for letter in letters]
    texts = [text for text in found if text is not None] if isinstance(found, list | tuple) else []
    return [str(text) for text in texts] if all(isinstance(text, str | int | float) for text in texts) else []


def _begins(said: str, question: str, row: Mapping[str, Any], kind: str) -> bool:
    """True for an assistant's last turn that is the beginning of a completion, as TRL and verl continue it, where a key
    has the answer: reasoning that is not closed, or, in a prompt, what neither gives an answer nor that of the key."""
    short, trace = taken_apart(said)
    if short and kind != "prompt":
        return False
    if not (key := taken_apart(_answers(row)[0])[0]):
        return False
    options = split_options(question)[1] or _texts(_given(row))
    answered = letter_of(short, options) if options else trace or answers.gives(short, [key])
    return not (short and answered)


def _refuse_rejected(row: Mapping[str, Any], kind: str, answer: str) -> None:
    """Raises DataError of an answer that its row calls wrong: as a reference it would teach what was rejected. A label
    of "no" is that answer once more, unless the row is KTO's own, a prompt and its completion."""
    said_again = kind != "prompt" and answers.yes_no_key(answer) == "no"
    for key in _JUDGED[said_again:]:
        if row.get(key) is False or str(row.get(key)).strip().lower() == "false":
            raise DataError(
                f"key {key}: false, so that the answer is one that was rejected; leave such rows out "
                "(`mmedexpert convert-data` does)"
            )


def _refuse_two_keys(row: Mapping[str, Any], kind: str, said: str, options: list[str]) -> None:
    """Raises DataError where two of a row's answers, `said` in its turns and those under keys, give different letters;
    of prose, which may discuss them all, none is read."""
    found = {kind: said, **{key: row.get(key) for key in ANSWERS}, "reward_model": _of_reward_model(row)}
    shorts = {key: taken_apart(value)[0] for key, value in found.items() if isinstance(value, str)}
    read = {key: letter_of(short, options) for key, short in shorts.items() if 0 < len(short) <= LONGEST_ANSWER}
    letters = [(key, letter) for key, letter in read.items() if letter]
    for other, second in letters:
        one, first = letters[0]
        if second != first:
            raise DataError(f"key {one}: answers {first}, key {other}: answers {second}; delete the one that is wrong")


# ----------------------------------------------------------------------------------------------- images


def refuse_beside(row: Mapping[str, Any]) -> None:
    """Raises DataError of a file or address under `image` that is not among those under `images`, which alone are read;
    another text there may be a caption."""
    beside, images = row.get("image"), row.get("images")
    names = {Path(path).name for path in images if isinstance(path, str)} if isinstance(images, list | tuple) else ()
    beside = beside if isinstance(beside, str) and (IMAGE_FILE.search(beside) or ADDRESS.match(beside)) else ""
    if names and beside and Path(beside).name not in names:
        raise DataError(f"key image: {border.shown(beside)} is not among images; give all in images")


def image_cell(row: Mapping[str, Any]) -> Any:
    """The value of a row under `images` or `image`, the first that is not empty; [] of none."""
    return next((row[key] for key in ("images", "image") if row.get(key) not in (None, "", [], ())), [])


def _images(row: Mapping[str, Any]) -> list[Any]:
    value = image_cell(row)
    return list(value) if isinstance(value, list | tuple) else [value]
