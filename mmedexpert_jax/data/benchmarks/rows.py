"""Rows of JSON, JSON Lines, CSV, TSV and Parquet files, each with its place; images inside stay unread."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmedexpert_jax import border
from mmedexpert_jax.answers import lettered, out_of_order, unlabelled
from mmedexpert_jax.data import cells, tables
from mmedexpert_jax.data.benchmarks.source import MissingImage
from mmedexpert_jax.data.case import LETTERS
from mmedexpert_jax.data.places import Place
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.processing.images import ImageRef

_LINE = re.compile(r"\s*([A-J])(?:[.．、:：)]\s*|\s+)(.*\S)\s*")  # "A text", "A. text", "A、text"


@dataclass(frozen=True)
class Row:
    """A row of a file."""

    values: dict[str, Any]  # by key; an image inside a TSV or Parquet file is a callable that gives its bytes
    where: str  # file and number, from 1, the header not counted
    number: int  # the same number
    problem: str = ""  # why the row cannot be read at all; "" where it can

    def having(self, **values: Any) -> "Row":
        """The row with other values of some keys."""
        return replace(self, values=self.values | values)

    def text(self, *keys: str) -> str:
        """The first of `keys` that the row has, as stripped text. Raises DataError where none is or it is empty."""
        key = next((key for key in keys if self.values.get(key) is not None), keys[0])
        value = self.values.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            whole = isinstance(value, float) and value.is_integer()  # 2.0, as pandas writes numbers beside empty cells
            value = str(int(value) if whole else value)
        if not isinstance(value, str) or absent(value):
            raise DataError(f"{self.where}, key {' or '.join(keys)}: a text is needed, got {value!r}")
        return value.strip()

    def label(self, *keys: str) -> str:
        """As `text`, but "" where there is none: for what is only counted."""
        value = next((self.values[key] for key in keys if self.values.get(key) is not None), "")
        return str(value).strip()

    def letter(self, count: int, *keys: str) -> str:
        """A letter among the first `count`. Raises DataError."""
        letter = self.text(*keys).upper()
        if letter not in LETTERS[:count] or len(letter) != 1:
            raise DataError(f"{self.where}, key {keys[0]}: {letter!r} is not among {', '.join(LETTERS[:count])}")
        return letter

    def place(self, key: str, count: int, first: int = 0) -> str:
        """The letter of a key that is the number of an option, the first being `first`. Raises DataError."""
        text = re.sub(r"\.0+$", "", self.text(key))  # 2.0, as pandas writes it into a CSV
        if not text.removeprefix("-").isdecimal():
            raise self.bad(key, f"a whole number is needed, got {border.shown(text)}")
        number = int(text[:9]) - first
        if not 0 <= number < count:
            raise self.bad(key, f"{number} is no place among {count} options")
        return LETTERS[number]

    def texts(self, key: str, count: int = 0) -> tuple[str, ...]:
        """A list of 2 to 10 texts, or of `count`, without the letters that may stand before them. Raises DataError."""
        value = self.parsed(key)
        if not isinstance(value, list) or not all(isinstance(text, str) and text.strip() for text in value):
            raise self.bad(key, f"a list of texts is needed, got {border.shown(value)}")
        if len(value) != count if count else not 2 <= len(value) <= len(LETTERS):
            raise self.bad(key, f"{count or '2 to 10'} texts are needed, got {len(value)}")
        return tuple(self._unlabelled(key, value))

    def choices(self, key: str) -> tuple[str, ...]:
        """2 to 10 texts under their letters: {A: text}, a list of {letter or key, content or value} or of texts, each
        also as JSON or Python writes it, or lines "A text".

        Raises DataError, also where the letters are not A, B, C ... without a gap.
        """
        value = self.parsed(key)
        if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
            value = (
                dict(zip(LETTERS, self._unlabelled(key, value), strict=False)) if len(value) <= len(LETTERS) else None
            )
        elif isinstance(value, str):
            lines = [_LINE.fullmatch(line) for line in value.splitlines() if line.strip()]
            value = self._by_letter(key, [(line[1], line[2]) for line in lines if line]) if all(lines) else None
        elif isinstance(value, list) and all(isinstance(part, Mapping) for part in value):
            pairs = [(part.get("letter", part.get("key")), part.get("content", part.get("value"))) for part in value]
            value = self._by_letter(key, pairs)
        if not isinstance(value, Mapping):
            raise self.bad(key, f"an object of letters and texts is needed, got {border.shown(self.values.get(key))}")
        # Parquet gives every key that any row has, with None where a row lacks it; CMB leaves unused letters empty.
        found = {letter: text for letter, text in value.items() if not absent(text)}
        if not all(isinstance(text, str | int | float) for text in found.values()):
            raise self.bad(key, f"every option is a text, got {border.shown(value)}")
        pairs = [(str(letter).strip().upper(), str(found[letter]).strip()) for letter in sorted(found, key=str)]
        texts = self._by_letter(key, pairs)
        wanted = LETTERS[: len(texts)]
        if not 2 <= len(texts) <= len(LETTERS) or list(texts) != list(wanted) or not all(texts.values()):
            raise self.bad(key, f"the letters are {border.shown(', '.join(map(str, texts)))}, not {', '.join(wanted)}")
        return tuple(texts.values())

    def _by_letter(self, key: str, pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
        """Texts by their letters. Raises DataError where two have one."""
        found = dict(pairs)
        if len(found) < len(pairs):
            raise self.bad(key, f"two options have one letter: {border.shown([letter for letter, _ in pairs])}")
        return found

    def _unlabelled(self, key: str, texts: Sequence[str]) -> list[str]:
        """Texts without letters of their own. Raises DataError where these stand in another order."""
        if order := out_of_order(texts):
            raise self.bad(key, f"the options begin with {order}, and a key may mean their place or their letter")
        return unlabelled([text.strip() for text in texts])

    def parsed(self, key: str) -> Any:
        """The value of a key; of a text that is a list or an object as JSON or Python writes it, what it is."""
        value = self.values.get(key)
        if not isinstance(value, str) or not value.strip().startswith(("[", "{")):
            return value
        try:
            return cells.items(value)
        except DataError as error:
            raise self.bad(key, str(error)) from None

    def letters(self, count: int, key: str) -> str:
        """The letter of a key, or "A, B, D" of one that names several options, which no single choice equals."""
        text = self.text(key).upper()
        found = sorted(set(re.findall(r"[A-J]", text)))
        if not found or re.sub(r"[A-J,;、， ]", "", text) or found[-1] not in LETTERS[:count]:
            raise self.bad(key, f"letters among {', '.join(LETTERS[:count])} are needed, got {border.shown(text)}")
        return ", ".join(found)

    def image(self, key: str) -> ImageRef:
        """The image of a cell. Raises MissingImage where the cell is empty."""
        value = self.values.get(key)
        if value is None:
            raise MissingImage(f"{self.where}, key {key}: no image")
        if not callable(value):  # a path that stands without bytes
            raise MissingImage(f"{self.where}, key {key}: no bytes of an image, got {border.shown(value)}")
        return ImageRef(f"{self.where}, {key}", value)

    def bad(self, key: str, problem: str) -> DataError:
        """The error of a key, to raise."""
        return DataError(f"{self.where}, key {key}: {problem}")


def absent(value: Any) -> bool:
    """True for an empty cell, also as pandas writes one, in text or in Parquet."""
    return (
        value is None
        or (isinstance(value, float) and math.isnan(value))
        or (isinstance(value, str) and tables.absent(value))
    )


def read(found: tuple[str, Place], images: Sequence[str] = ("image",)) -> Iterator[Row]:
    """Rows of a file, as `data.tables.read` reads them.

    Args:
        found: (path, place) of `Files`.
        images: keys of images inside a TSV (base64) or Parquet file (bytes).

    Raises:
        DataError: the file is not of its kind. A single row that cannot be read has its `problem` set.
    """
    path, place = found
    for number, values in tables.read(place, path, images):
        where = f"{path}, row {number}"
        if isinstance(values, dict):
            yield Row(values, where, number)
        else:
            yield Row({}, where, number, f"{where}: {values}")


def read_all(parts: Iterable[tuple[str, Place]], images: Sequence[str] = ("image",)) -> Iterator[Row]:
    """Rows of a file that lies in several parts, as of `read`; numbers go on from part to part."""
    rows = (row for part in parts for row in read(part, images))
    return (replace(row, number=number) for number, row in enumerate(rows, 1))


def tight(texts: Sequence[str]) -> tuple[str, ...]:
    """Options as MedEvalKit letters them where it joins letter and text itself: "A.text"."""
    return tuple(lettered(texts, "{}.{}"))
