"""Rows in the forms of other trainers, as rows of ours: messages, prompt and answer, conversations, instruction.

    messages       OpenAI, TRL, LLaMA-Factory: {"messages": [{"role", "content"}], "images": [...]}
    prompt         TRL, verl: {"prompt": text or messages, "answer" | "solution" | "completion" | "reward_model"}; a
                   "ground_truth" of several texts is the answer and what else is accepted
    conversations  LLaVA, ShareGPT: {"conversations": [{"from": "human", "value"}, {"from": "gpt", "value"}], "image"}
    problem        EasyR1: {"problem", "answer", "images"}
    instruction    LLaMA-Factory's alpaca form: {"instruction", "input", "output", "images"}

A question that lists lettered options and whose answer names one of them becomes multiple choice; any other is open.
"""

import ast
import contextlib
import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmedexpert_jax import answers, border
from mmedexpert_jax.data.case import LETTERS
from mmedexpert_jax.data.words import stands
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.processing.images import ADDRESS
from mmedexpert_jax.statements import NO_LABEL

FORMS = ("messages", "prompt", "conversations", "problem", "instruction")
ANSWERS = ("answer", "solution", "completion", "ground_truth", "output", "response")
ROLES = {"human": "user", "gpt": "assistant", "developer": "system"} | {r: r for r in ("user", "assistant", "system")}
TEXT_PARTS = ("text", "input_text", "output_text")  # of a turn: chat completions' and responses' names
IMAGE_PARTS = ("image", "image_url", "input_image")
THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # keys of an assistant's turn beside its content
SOURCES = ("image", "image_url", "url", "path")  # keys of an image part; datasets writes those that it lacks as null
LONGEST_ANSWER = 200  # characters of an answer that is held against another of its row
# where LLaVA, verl, LLaMA-Factory and chat templates put an image; ours come first
_PLACE = re.compile(
    r"(?:<image>|<\|vision_start\|>(?:<\|image_pad\|>)+<\|vision_end\|>|<\|image_pad\|>|<\|image\|>|<start_of_image>|"
    r"<ImageHere>|<image_placeholder>|\[IMAGE\])\s?"
)
_NUMBERED = re.compile(r"<(?:\|image_(\d+)\||image[ _](\d+))>")  # the name of one that is shown, as MMMU writes it
# a picture that is named where it stands: Qwen-VL's form, HTML, Markdown
_INLINE = re.compile(
    r"(?:Picture \d+:\s*)?(?:<img>([^<>\n]+)</img>|<img\s[^<>]*?src=[\"']([^\"'<>]+)[\"'][^<>]*>|"
    r"!\[[^\]\n]{0,200}\]\(([^()\s]+)\))\s?"
)
# "A. text", also as "(a) text", "- A) text", "**A.** text", "A、text", "Option A - text"
_OPTION = re.compile(
    r"^\s*(?:[-*•]\s+)?(?:(?i:option)\s+)?(?:\*\*|__)?[(（\[]?([A-Ja-j])(?:\*\*|__)?(?:[.):\]．）：、]|\s?[-–]\s)"
    r"(?:\*\*|__)?\s*(.*\S)\s*$"
)
_LISTED = r"(?m)^[^\w\n]*{}\s*[.):\]．）：、]\s*(?=\D)"  # the label of a line, and no number
_GIVEN = re.compile(
    r"(?im)(?:^[^\w\n]*|[.?!]\s+)(?:(?:the\s+)?(?:correct\s+)?(?:answer|ans|key)\s*[:：]|答案[:：])\s*(.+)$"
)
_QUOTED = r"(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")"  # a text as Python writes it
_ARRAY = re.compile(rf"\s*\[\s*{_QUOTED}(?:\s+{_QUOTED})+\s*\]\s*")
# roles and ends of turns as chat templates write them, and the ends of prompts that leave the turn to the model
_TEMPLATE = re.compile(
    r"<\|(?:im_start|im_end|start_header_id|eot_id|begin_of_text|user|assistant)\|>|<(?:start|end)_of_turn>|\[/?INST\]|"
    r"<｜(?:User|Assistant)｜>|^(?:### Response|Assistant):\s*(?:<think>\s*)?\Z",
    re.MULTILINE,
)
# the line with the answer behind its reasoning: GSM8K's, and the words that prompts ask for; LLaVA-CoT's element
_LAST = re.compile(r"^[*_ \t]*(?:####(?!#)|(?:final\s+)?answer[*_]*[:：])[*_ \t]*(\S[^\n]*?)[*_\s]*\Z", re.I | re.M)
_CONCLUSION = re.compile(r"<CONCLUSION>(.*)</CONCLUSION>\s*\Z", re.DOTALL)
_COUNTS = re.compile(
    r"(?i)\b(?:how (?:many|much|often)|number|scores?|count|calculate|compute|sum|total|ecog|apgar|gcs|nyha|gravid\w*|"
    r"parity)\b|多少|几"
)
_SIDE = re.compile("hyper|hypo|tachy|brady|intra|extra|endo|exo|macro|micro")  # that makes another disease of one
# a species behind the letter of its genus: beside those of NO_LABEL the endings and names that no disease has alone
_NO_EPITHET = r"(?!\.\s?(?:[a-z]+(?:ica|[ae]tum|ularis|enalis|ssinus|ensis|olani|elli)|koseri|nana|simplex|zoster)\.?$)"
OPTIONS = ("options", "choices", "candidates")
LABELS = ("label", "letter", "key", "id")  # of an option that is an object
TEXTS = ("text", "content", "value", "option")
_FILE = re.compile(r"\.(?:png|jpe?g|webp|bmp|gif|tiff?|dcm|dicom|nii(?:\.gz)?)$", re.IGNORECASE)
# read as the answer, and kept, since rewards of their trainers read them too
KEPT = ("solution", "ground_truth", "reward_model")
_READ = {*FORMS, *ANSWERS, "image", "images", "input", "options", "id"} - {*KEPT}
_JUDGED = ("label", "kto_tag")  # of TRL's KTO and LLaMA-Factory's: whether the completion is one to learn


def form(row: Mapping[str, Any]) -> str:
    """The form of a row that is not ours, one of FORMS; "" for any other."""
    return "" if "question" in row else next((name for name in FORMS if row.get(name)), "")


def ours(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    """A row of a foreign form as one of the documented schema (docs/own.md).

    Args:
        row: of one of FORMS.
        number: of the row, which makes its id where it has none.

    Raises:
        DataError: a key of another type than its form has, several turns, no answer; the place is left to the caller.
    """
    kind = form(row)
    if kind == "instruction" and row.get("history"):
        raise DataError("key history: several turns; a case has one question and one answer, so write them into one")
    refuse_beside(row)
    images = shown = _images(row)
    if kind in ("messages", "conversations") or (kind == "prompt" and not isinstance(row["prompt"], str)):
        question, answer, system, found = _turns(row[kind], kind)
        images = [*shown, *found]
    else:
        lines = [row[kind], row.get("input") if kind == "instruction" else ""]
        question, answer, system = "\n".join(_text(line, kind) for line in lines if line), "", ""
    if answer and _begins(answer, question, row, kind):
        answer = ""
    said = answer
    answer, *others = [answer] if answer else _answers(row)
    if not answer:
        raise DataError(
            f"key {kind}: no answer: an assistant's last turn or one of {', '.join(ANSWERS)} is needed{missing(row)}"
        )
    if said or not (row.get("answer") or row.get("solution")):
        _refuse_rejected(row, kind, answer)
    question, images = inline(question, images)
    whole = placed(question, {len(shown), len(images)})
    question, options = split_options(whole)
    given = _given(row) if not options else None  # beside the question, in the form that ours have
    options = _texts(given) or options
    short, trace = _taken_apart(answer)
    if not options and not given and len(short) == 1 and short in LETTERS:  # "Which? A) one, B) two"
        question, options = _in_a_line(question)
    if not short:
        raise DataError(f"key {kind}: the answer {border.shown(answer)} is reasoning alone; close it, and answer")
    letter = _letter(short, options) if options else None
    if letter:
        _refuse_two_keys(row, kind if said else "", said, options)
    if given and short.isdecimal() and answers.counts_another(int(short), options):
        raise DataError(f"key answer: {short} may be an option's text or its number; give its letter")
    if options and letter is None and not given:  # a list within an open question
        _refuse_named(short, options, whole)
        question, options = whole, []
    if letter and len(letters := {_letter(_taken_apart(one)[0], options) for one in (answer, *others)}) > 1:
        raise DataError(f"key ground_truth: names {len(letters)} options; a case has one answer")
    if not options and not given:
        short, trace = _at_the_end(short, trace)
    made = {
        "id": f"row-{number}" if row.get("id") in (None, "") else str(row["id"]),
        "question": question,
        "options": options or given or [],
        "answer": letter or short,
        "images": images,
        "trace": trace,
    }
    if system:
        made["system"] = system
    if others and not letter:
        made["accepted"] = [_taken_apart(one)[0] for one in others if one.strip()]
    read = {*_READ, *(OPTIONS if given else ())}
    return made | {key: value for key, value in row.items() if key not in read and value is not None}


def missing(row: Mapping[str, Any]) -> str:
    """The fix for a row of a form that asks nothing or answers twice, as the end of a refusal; "" for any other."""
    if row.get("chosen"):
        return "; a row of preferences has two answers: give its question as prompt and the chosen text as answer"
    return "; a text alone asks nothing: give question and answer" if isinstance(row.get("text"), str) else ""


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


def _taken_apart(answer: str) -> tuple[str, str]:
    """The answer itself, without marks, and the reasoning before it, of whatever mark; of one whose first mark is in
    the prompt, as R1's template has it, all before its end."""
    if concluded := _CONCLUSION.search(answer):
        return concluded[1].strip(), answer[: concluded.start()].strip()
    taken = answers.parse(answer)
    short = taken.answer or answers.spoken(answer)
    trace = taken.think or answers.headed(answer)
    for mark, end in () if trace or taken.think == "" else (*answers.REASONING_MARKS, ("", "</think>")):
        before, closed, _ = answer.partition(end)
        if closed and mark in before:
            trace = before.partition(mark)[2] if mark else before
            break
    return (answers.boxed(short) or short).strip(), (trace or "").strip()


def _begins(said: str, question: str, row: Mapping[str, Any], kind: str) -> bool:
    """True for an assistant's last turn that is the beginning of a completion, as TRL and verl continue it, where a key
    has the answer: reasoning that is not closed, or, in a prompt, what neither gives an answer nor that of the key."""
    short, trace = _taken_apart(said)
    if short and kind != "prompt":
        return False
    if not (key := _taken_apart(_answers(row)[0])[0]):
        return False
    options = split_options(question)[1] or _texts(_given(row))
    answered = _letter(short, options) if options else trace or answers.gives(short, [key])
    return not (short and answered)


def _at_the_end(short: str, trace: str) -> tuple[str, str]:
    """An open answer without its name, as "Answer: gout", and the reasoning, which may stand before it."""
    if bare := _LAST.search(short):
        return (answers.boxed(bare[1]) or bare[1]).strip(), trace or short[: bare.start()].strip()
    return unnamed(short), trace


def unnamed(short: str) -> str:
    """A short open answer without words such as "The answer is" before it; any other as it is."""
    bare = answers.unwrap(short) if len(short) <= LONGEST_ANSWER else short
    named = answers.without_name(bare)
    return short if named == bare or re.search(r"[.!?]\s|\n", named) else named.strip('"* ')


def _letter(short: str, options: list[str]) -> str | None:
    """The letter that an answer gives, or else its first line or sentence, before an explanation, or its last line.
    Raises DataError of labels alone that are not one option's: a label before another option's text, or several."""
    lines = [line for line in short.splitlines() if line.strip()]
    sentence = re.split(r"(?<=[.!?])\s", lines[0], maxsplit=1)[0] if lines else ""
    sentence = sentence if len(sentence.strip("*_ .")) > 1 else ""  # "A. fumigatus" is no A
    for said in dict.fromkeys([short, *lines[:1], *lines[1:][-1:], sentence]):
        if said and (letter := answers.choice(f"<answer>{said}</answer>", options)):
            return letter
    letters = f"[{LETTERS[: len(options)]}]"
    listed_ones = re.fullmatch(
        rf"(?:\W*(?i:both|options?|answers?|choices?)\b)?\W*{letters}(?:(?:\W+|\s+(?:and|or)\s+|[和与及或]){letters})+"
        r"(?:\s+(?:are|is)(?:\s+both)?\s+(?:correct|right|true))?\W*",
        short,
    )
    if listed_ones or (re.fullmatch(rf"{letters}{{2,}}", short) and "".join(sorted({*short})) == short):  # "A, C", "AC"
        raise DataError(f"key answer: {border.shown(short)} names several options; a case has one answer")
    texts = [option.strip().casefold() for option in options]
    label = re.fullmatch(rf"\W?{letters}[.):]\s*(.+)", short, re.DOTALL)
    if label and label[1].strip().casefold() in texts:
        raise DataError(f"key answer: {border.shown(short)} has the letter of another option than its text; give one")
    return None


def _refuse_named(short: str, options: list[str], question: str) -> None:
    """Raises DataError of an answer that speaks of one option and gives none, as a number, a label beyond them or a
    text that is nearly one of theirs does: as an open one's reference it would be wrong of every right answer. One that
    speaks of several is about the list, which an open question may hold."""
    text = short.casefold()
    texts = [option.strip().casefold() for option in options]
    named = [option for option in texts if stands(option, text)]
    whole = [one for one in named if not any(one != other and one in other for other in named)]
    letter = rf"(?-i:[{LETTERS[: len(options)]}])\b"
    beyond = rf"[{LETTERS[len(options) :]}]"
    label = len(options) < len(LETTERS) and re.fullmatch(
        rf"\(?{beyond}{NO_LABEL}{_NO_EPITHET}(?:\)[.:]?|[.:]).*|(?i:option|answer|choice)s?\W+{beyond}\W*", short
    )
    number = re.fullmatch(r"(-?\d{1,2})(?:\.0)?", short)
    counts = number and -1 <= int(number[1]) <= len(options) and options[0] in _behind_question(question)
    close = difflib.get_close_matches(text, texts, 1, 0.85) if len(text) <= LONGEST_ANSWER else []
    near = close and _SIDE.findall(close[0]) == _SIDE.findall(text)
    if label or near or (counts and not _COUNTS.search(question)):
        raise DataError(f"key answer: {border.shown(short)} is none of the options; give the letter of one")
    if len(whole) == 1 or re.search(rf"(?i)\b(?:option|answer|choice)(?:\s+is)?\W{{1,3}}{letter}", short):
        raise DataError(f"key answer: {border.shown(short)} speaks of options and gives none; begin it with the letter")


def _refuse_two_keys(row: Mapping[str, Any], kind: str, said: str, options: list[str]) -> None:
    """Raises DataError where two of a row's answers, `said` in its turns and those under keys, give different letters;
    of prose, which may discuss them all, none is read."""
    model = row.get("reward_model")
    found = {kind: said, **{key: row.get(key) for key in ANSWERS}}
    found["reward_model"] = model.get("ground_truth") if isinstance(model, Mapping) else None
    letters = {
        key: letter
        for key, value in found.items()
        if isinstance(value, str)
        and 0 < len(short := _taken_apart(value)[0]) <= LONGEST_ANSWER
        and (letter := _letter(short, options))
    }
    if len({*letters.values()}) > 1:
        (one, first), (other, second) = next(
            pair for pair in itertools.combinations(letters.items(), 2) if pair[0][1] != pair[1][1]
        )
        raise DataError(f"key {one}: answers {first}, key {other}: answers {second}; delete the one that is wrong")


def listed_in(question: str, sign: str) -> bool:
    """True where a line behind what is asked begins with a sign as its label, as "2. Gout" does; with a number where
    another line has the one before or behind it."""
    listed = _behind_question(question)
    labels = [sign]
    if sign.isdecimal():
        labels.append(str(int(sign) - 1 if int(sign) > 1 else int(sign) + 1))
    return all(re.search(_LISTED.format(re.escape(label)), listed) for label in labels)


def _behind_question(question: str) -> str:
    """The text behind the last question mark; all of it where there is none."""
    return re.split("[?？]", question)[-1]


def gives_away(question: str, options: Sequence[str], answer: str) -> str:
    """The line behind what is asked that gives its own answer, as "Answer: B" does; "" of none. Before it stand worked
    examples with their answers."""
    for line in _GIVEN.finditer(_behind_question(question)):
        said = line[1].strip()
        named = answers.choice(f"<answer>{said}</answer>", options) if options else said
        if named and named.casefold() == answer.casefold():
            return line[0].strip(" .?!\n")
    return ""


def inline(question: str, images: Sequence[Any]) -> tuple[str, list[Any]]:
    """A question without the pictures that are named inside it, and the images with those that they lack."""
    found = ["".join(filter(None, match.groups())).strip() for match in _INLINE.finditer(question)]
    if not found or not all(_FILE.search(name) or name[:5] == "data:" for name in found):
        return question, list(images)
    return _INLINE.sub("", question).strip(), [*images, *(name for name in found if name not in images)]


def placed(question: str, images: set[int]) -> str:
    """A question without the marks of its images' places, which come first. Raises DataError where the marks are of
    another number than the images, of which inline parts may or may not be counted."""
    if mark := _TEMPLATE.search(question):
        raise DataError(
            f"key question: {border.shown(mark[0])} of a chat template stands in it; give the message's text alone, "
            "since the model's own template is added"
        )
    if "<video>" in question:
        raise DataError("key question: <video>; videos are not read, give frames of it as images")
    numbers = [int(one or other) for one, other in _NUMBERED.findall(question)]
    if numbers and max(numbers) > max(images):
        raise DataError(f"key question: <image {max(numbers)}> is named, of {max(images)} images; give all in images")
    marks = len(found := _PLACE.findall(question))
    if marks and marks not in images:
        raise DataError(
            f"key question: {found[0].strip()} stands {marks} times, for {max(images)} images; write it for each or "
            "none"
        )
    return _PLACE.sub("", question).strip() if marks else question


def split_options(text: str) -> tuple[str, list[str]]:
    """A question and the lettered options at its end, A, B, ... a line each; (text, []) where there are none.

    Letters are of one case; blank lines may stand between.
    """
    lines = text.splitlines()
    found = [_OPTION.match(line) for line in lines]
    places = (i for letter in "Aa" for i, match in enumerate(found) if match and match[1] == letter)  # capitals first
    first = next(places, len(lines))
    letters = LETTERS if first == len(lines) or found[first][1] == "A" else LETTERS.lower()  # type: ignore[index]
    run: list[str] = []
    end = first
    for place, match in enumerate(found[first:], first):
        if match and len(run) < len(LETTERS) and match[1] == letters[len(run)]:
            run.append(match[2])
            end = place + 1
        elif lines[place].strip():
            break
    if len(run) < 2:
        return text, []
    after = [line for line in lines[end:] if line.strip()]
    stem = "\n".join([*lines[:first], *after]).strip()
    return re.sub(r"\n?\s*(?:options|choices|answer choices)\s*:\s*$", "", stem, flags=re.I), _without_separators(run)


def items(cell: str) -> Any:
    """A list or object that is written out: as JSON, as Python (pandas' CSV), as "(A) one (B) two", or as texts with
    semicolons, line ends or bars between. Raises DataError."""
    cell = _numpy(cell)
    if cell.lstrip().startswith(("[", "{")):
        try:
            return border.parse_json(cell, "the cell")
        except DataError:
            with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
                return ast.literal_eval(cell.strip())
            if cell.rstrip().endswith(("]", "}")):  # else it is a text, such as "[18F]FDG PET; MRI"
                raise
    if len(texts := _labelled(cell)) > 1:
        return texts
    texts = _parted(cell)
    numbered = [re.fullmatch(rf"\(?{number}[.)]\s+(\S.*)", text, re.DOTALL) for number, text in enumerate(texts, 1)]
    return [match[1] for match in numbered if match] if all(numbered) else texts


def _labelled(cell: str) -> list[str]:
    """The texts of "A. one B. two" or "(A) one (B) two"."""
    return listed(re.sub(r"(?m)(^|\s)([A-J])[.):](?=\s)", r"\1(\2)", cell))[1]


def _in_a_line(question: str) -> tuple[str, list[str]]:
    """A question and the lettered options behind its last question mark, in one line; (question, []) of none."""
    listed = _behind_question(question)
    texts = _labelled(re.sub(r"(?i)^\s*(?:options|choices|answer choices)\s*:", "", listed))
    if len(texts) < 2 or listed == question or not all(texts):
        return question, []
    texts[-1], _, after = texts[-1].partition("\n")
    return f"{question.removesuffix(listed).strip()}\n{after}".strip(), texts


def pictures(cell: str) -> Any:
    """The images that a cell names: a data URI, a list or an object as `items` reads them, or paths with semicolons or
    line ends between; also with commas or bars, where each part is a file of an image. Raises DataError."""
    text = cell.strip()
    if text[:5].lower() == "data:":
        return [text]
    if text.startswith(("[", "{")) and text.endswith(("]", "}")):
        return items(text)
    parts = [part.strip() for part in re.split(r"[;\n]", text) if part.strip()]
    for mark in ",|":
        more = [piece.strip() for part in parts for piece in part.split(mark) if piece.strip()]
        parts = more if all(map(_FILE.search, more)) else parts
    return parts


def _parted(cell: str) -> list[str]:
    """The texts of a cell between its outermost marks: lines, unless a semicolon or bar ends each, else semicolons or
    bars. Where both stand, those of which each part holds the other, or else that make more parts. Raises DataError."""
    lines = [line.strip() for line in cell.split("\n") if line.strip()]
    if len(lines) > 1 and not all(line.endswith((";", "|")) for line in lines[:-1]):
        return lines
    parts = {mark: [part.strip() for part in " ".join(lines).split(mark) if part.strip()] for mark in ";|"}
    if "|" not in cell or ";" not in cell:
        return parts["|" if "|" in cell else ";"]
    outer = [mark for mark, other in (";|", "|;") if all(other in part for part in parts[mark])]
    most = max(map(len, parts.values()))
    outer = outer or [mark for mark, found in parts.items() if len(found) == most]
    if len(outer) > 1:
        raise DataError(f"{border.shown(cell)} holds semicolons and bars; put one kind between the texts")
    return parts[outer[0]]


def _numpy(cell: str) -> str:
    """An array of texts as NumPy prints it, "['a' 'b']", with commas, without which Python joins the texts; any other
    cell as it is."""
    bare = re.sub(r"^\s*array\((\[.*\])(?:,\s*dtype=\w+)?\)\s*$", r"\1", cell, flags=re.DOTALL)
    return re.sub(f"({_QUOTED})\\s+(?={_QUOTED})", r"\1, ", bare) if _ARRAY.fullmatch(bare) else bare


def named(options: Any) -> Any:
    """A list of objects, one an option, as texts by their labels, or as texts where they have none; anything else as it
    is. Labels are looked for under LABELS, texts under TEXTS, also of an object of two lists, as ARC has it."""
    if isinstance(options, Mapping) and {*options} == {"text", "label"} and isinstance(options["text"], list | tuple):
        return dict(zip(map(str, options["label"]), options["text"], strict=False))
    if not isinstance(options, list | tuple) or not options or not all(isinstance(o, Mapping) for o in options):
        return options
    pairs = [(_first(option, LABELS), _first(option, TEXTS)) for option in options]
    labels = {str(label) for label, _ in pairs if label is not None}
    if len(labels) == len(pairs):
        return {str(label): text for label, text in pairs}
    return [text for _, text in pairs]


def _first(option: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((option[key] for key in keys if option.get(key) is not None), None)


def listed(text: str) -> tuple[list[str], list[str]]:
    """Letters and texts of "(A) one (B) two (C) both (A) & (B)"; empty where it does not begin with "(A)".

    Each letter is looked for behind the one before it, at the start of a line if it stands there: a letter inside an
    option, as in "both (A) & (C)", begins none.
    """
    marks: list[re.Match] = []
    for letter in LETTERS:
        start = marks[-1].end() if marks else 0
        at_line = re.compile(rf"^\s*\({letter}\)\s*", re.M).search(text, start)
        found = at_line or re.compile(rf"(?:^|\s)\({letter}\)\s*").search(text, start)
        if found is None or (not marks and text[: found.start()].strip()):
            break
        marks.append(found)
    ends = [*(mark.start() for mark in marks[1:]), len(text)][: len(marks)]
    texts = [text[m.end() : end].strip() for m, end in zip(marks, ends, strict=True)]
    return list(LETTERS[: len(marks)]), _without_separators(texts)


def _without_separators(texts: list[str]) -> list[str]:
    """Texts without the mark that all but perhaps the last end with, which only divided them."""
    mark = next((mark for mark in ";,|/" if len(texts) > 1 and all(text.endswith(mark) for text in texts[:-1])), "")
    return [text.removesuffix(mark).rstrip() for text in texts] if mark else texts


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"key {key}: a text is needed, got {border.shown(value)}")
    return value


def _given(row: Mapping[str, Any]) -> Any:
    """The options beside a question, under a name that other trainers' sets have; a text of several as a list."""
    found = next((row[key] for key in OPTIONS if row.get(key) not in (None, "", [])), None)
    try:
        return items(found) if isinstance(found, str) else found
    except DataError as error:
        raise DataError(f"key options: {error}") from None


def _texts(options: Any) -> list[str]:
    """The texts of a list or an object by letter; what is neither, or has a gap, is refused where rows are checked."""
    found = options = named(options)
    if isinstance(options, Mapping):
        letters = sorted(letter for letter, text in options.items() if text is not None)
        gap = "".join(letters).upper() != LETTERS[: len(letters)]
        found = None if gap else [options[letter] for letter in letters]
    texts = [text for text in found if text is not None] if isinstance(found, list | tuple) else []
    return [str(text) for text in texts] if all(isinstance(text, str | int | float) for text in texts) else []


def _answers(row: Mapping[str, Any]) -> list[str]:
    """The answer under a key, and what else a ground truth of several texts accepts; [""] of none."""
    model = row.get("reward_model")
    values = {key: row.get(key) for key in ANSWERS}
    truth = model.get("ground_truth") if isinstance(model, Mapping) else None
    key, value = next(
        ((key, value) for key, value in (*values.items(), ("ground_truth", truth)) if value not in (None, "", [])),
        ("", ""),
    )
    if key == "ground_truth" and isinstance(value, Mapping) and {*value} == {"target"}:  # verl's sets for search
        value = value["target"]
    if key == "ground_truth" and isinstance(value, list) and value and not isinstance(value[-1], Mapping):
        return [_said(one) for one in value]
    value = value[0] if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str) else value
    return [_said(value)]


def _said(value: Any) -> str:
    """An answer's text. Raises DataError."""
    if isinstance(value, list) and value and isinstance(value[-1], Mapping):  # a completion as messages
        value = _content(value[-1], "completion")[0]
    return _text(value if isinstance(value, bool) else written(value), "answer")


def written(value: Any) -> Any:
    """The text of a number, or of a yes or no of JSON; any other value as it is."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return str(int(value) if isinstance(value, float) and value.is_integer() else value)
    return value


def refuse_beside(row: Mapping[str, Any]) -> None:
    """Raises DataError of a file or address under `image` that is not among those under `images`, which alone are read;
    another text there may be a caption."""
    beside, images = row.get("image"), row.get("images")
    names = {Path(path).name for path in images if isinstance(path, str)} if isinstance(images, list | tuple) else ()
    beside = beside if isinstance(beside, str) and (_FILE.search(beside) or ADDRESS.match(beside)) else ""
    if names and beside and Path(beside).name not in names:
        raise DataError(f"key image: {border.shown(beside)} is not among images; give all in images")


def image_cell(row: Mapping[str, Any]) -> Any:
    """The value of a row under `images` or `image`, the first that is not empty; [] of none."""
    return next((row[key] for key in ("images", "image") if row.get(key) not in (None, "", [], ())), [])


def _images(row: Mapping[str, Any]) -> list[Any]:
    value = image_cell(row)
    return list(value) if isinstance(value, list | tuple) else [value]


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
