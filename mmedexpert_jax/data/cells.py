"""Lists of options, images and numbers as cells of tables hold them, written out as one text in the field's forms."""

import ast
import contextlib
import re
from collections.abc import Mapping
from typing import Any

from mmedexpert_jax import border
from mmedexpert_jax.answers import are_things, lettered, names_among
from mmedexpert_jax.data.case import LETTERS
from mmedexpert_jax.errors import DataError

IMAGE_FILE = re.compile(r"\.(?:png|jpe?g|webp|bmp|gif|tiff?|dcm|dicom|nii(?:\.gz)?)$", re.IGNORECASE)
LABELS = ("label", "letter", "key", "id")  # of an option that is an object
TEXTS = ("text", "content", "value", "option")
_QUOTED = r"(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")"  # a text as Python writes it
# labels of options in a line: with a blank behind them, and as Chinese has them, which is looked for where these are
# not, since "C.difficile" is a name
_SPACED = r"(?:\({0}\)|{0}[.):](?=\s))"
_GLUED = r"(?:[(（]{0}[)）]|{0}[.):．：）、](?![A-Z]\.|[\d.,]+\s?%))"
_ARRAY = re.compile(rf"\s*\[\s*{_QUOTED}(?:\s+{_QUOTED})+\s*\]\s*")


def items(cell: Any) -> Any:
    """The list or object that a text writes out: as JSON, as Python (pandas' CSV), as "(A) one (B) two", or as texts
    with semicolons, line ends or bars between. What is no text stays as it is. Raises DataError."""
    if not isinstance(cell, str):
        return cell
    cell = _with_commas(cell)
    if cell.lstrip().startswith(("[", "{")):
        try:
            return border.parse_json(cell, "the cell")
        except DataError:
            with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
                return ast.literal_eval(cell.strip())
            if cell.rstrip().endswith(("]", "}")):  # else it is a text, such as "[18F]FDG PET; MRI"
                raise
    if len(texts := labelled(cell)) > 1:
        return texts
    texts = _parted(cell)
    numbered = [re.fullmatch(rf"\(?{number}[.)]\s+(\S.*)", text, re.DOTALL) for number, text in enumerate(texts, 1)]
    return [match[1] for match in numbered if match] if all(numbered) else texts


def images(cell: Any) -> Any:
    """The images that a text names: a data URI, a list or an object as `items` reads them, or paths with semicolons or
    line ends between; also with commas or bars, where each part is a file of an image. What is no text stays as it is.
    Raises DataError."""
    if not isinstance(cell, str):
        return cell
    text = cell.strip()
    if text[:5].lower() == "data:":
        return [text]
    if text.startswith(("[", "{")) and text.endswith(("]", "}")):
        return items(text)
    parts = [part.strip() for part in re.split(r"[;\n]", text) if part.strip()]
    for mark in ",|":
        more = [piece.strip() for part in parts for piece in part.split(mark) if piece.strip()]
        parts = more if all(map(IMAGE_FILE.search, more)) else parts
    return parts


def by_label(options: Any) -> Any:
    """A list of objects, one an option, as texts by their labels, or as texts where they have none; anything else as it
    is. Labels are looked for under LABELS, texts under TEXTS, also of an object of two lists, as ARC has it."""
    if isinstance(options, Mapping) and {*options} == {"text", "label"} and isinstance(options["text"], list | tuple):
        return dict(zip(map(str, options["label"]), options["text"], strict=False))
    if not isinstance(options, list | tuple) or not options or not all(isinstance(o, Mapping) for o in options):
        return options
    labels, texts = ([_first(option, keys) for option in options] for keys in (LABELS, TEXTS))
    labels = [str(label) for label in labels if label is not None]
    return dict(zip(labels, texts, strict=True)) if len({*labels}) == len(texts) else texts


def _first(option: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    return next((option[key] for key in keys if option.get(key) is not None), None)


def labelled(text: str) -> list[str]:
    """The texts of "A. one B. two", "(A) one (B) two" or "A.one B.two"; none where it does not begin with A, or
    a letter is a genus, "A.baumannii; B.cereus"."""
    texts = bracketed(text, _SPACED)[1]
    if len(texts) < 2:
        texts = bracketed(text, _GLUED)[1]
        if re.match(r"\s*A[:：、]", text) and are_things(lettered(texts, "{}:{}")):
            return []
    return [] if names_among(lettered(texts)) else texts


def bracketed(text: str, label: str = r"\({}\)") -> tuple[list[str], list[str]]:
    """Letters and texts of "(A) one (B) two (C) both (A) & (B)"; empty where it does not begin with "(A)". `label` is
    another form of a label, with {} for its letter.

    Each letter is looked for behind the one before it, at the start of a line if it stands there: a letter inside an
    option, as in "both (A) & (C)", begins none.
    """
    marks: list[re.Match] = []
    for letter in LETTERS:
        start = marks[-1].end() if marks else 0
        mark = label.format(letter)
        at_line = re.compile(rf"^\s*{mark}\s*", re.M).search(text, start)
        found = at_line or re.compile(rf"(?:^|[\s;；，]){mark}\s*").search(text, start)
        if found is None or (not marks and text[: found.start()].strip()):
            break
        marks.append(found)
    ends = [*(mark.start() for mark in marks[1:]), len(text)][: len(marks)]
    texts = [text[m.end() : end].strip() for m, end in zip(marks, ends, strict=True)]
    return list(LETTERS[: len(marks)]), without_separators(texts)


def without_separators(texts: list[str]) -> list[str]:
    """Texts without the mark that all but perhaps the last end with, which only divided them."""
    mark = next((mark for mark in ";,|/" if len(texts) > 1 and all(text.endswith(mark) for text in texts[:-1])), "")
    return [text.removesuffix(mark).rstrip() for text in texts] if mark else texts


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


def _with_commas(cell: str) -> str:
    """An array of texts as NumPy prints it, "['a' 'b']", with commas, without which Python joins the texts; any other
    cell as it is."""
    bare = re.sub(r"^\s*array\((\[.*\])(?:,\s*dtype=\w+)?\)\s*$", r"\1", cell, flags=re.DOTALL)
    return re.sub(f"({_QUOTED})\\s+(?={_QUOTED})", r"\1, ", bare) if _ARRAY.fullmatch(bare) else bare


def as_text(value: Any) -> Any:
    """The text of a number, or of a yes or no of JSON; any other value as it is."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return str(int(value) if isinstance(value, float) and value.is_integer() else value)
    return value
