"""From a row's content to the canonical record: checked, repaired where that is safe, else refused with a reason."""

import hashlib
import html
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mmedexpert_jax import answers, border, privacy
from mmedexpert_jax.data.case import LETTERS, SPECIALTIES
from mmedexpert_jax.data.cells import bracketed
from mmedexpert_jax.data.places import InFolder
from mmedexpert_jax.data.question_text import gives_away, inline, placed
from mmedexpert_jax.data.tables import ABSENT, absent, by_numbers
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.mmedexpert.record import STEPS, RawCase, held
from mmedexpert_jax.mmedexpert.sources.raw_formats import CHOICES, Format, Raw
from mmedexpert_jax.processing.images import (
    ADDRESS,
    BASE64,
    LONGEST,
    PLAIN,
    SUFFIXES,
    VIEWED,
    EncodedImage,
    ImageRef,
    clean,
    content,
    decode,
)
from mmedexpert_jax.processing.medical import Series
from mmedexpert_jax.processing.windows import View

REASONS = {
    "not-an-object": "the row is no object of keys and values",
    "unknown-shape": "no published shape and not the plain one",
    "unreadable": "a key that its shape needs is missing or of another type",
    "empty-question": "no question",
    "few-options": "fewer than 2 options",
    "many-options": "more than 10 options",
    "equal-options": "two options read the same",
    "no-such-key": "the key is none of the options",
    "key-differs": "key letter and key text name different options",
    "key-in-question": "the question gives its own answer away",
    "image-missing": "a named image cannot be found",
    "image-broken": "an image cannot be decoded",
    "identifying": "its text may identify a person, and privacy is refuse",
    "duplicate": "the same case stands before it",
    "near-duplicate": "almost the same text stands before it",
    "contaminated": "a benchmark's test item holds its text or image",
}
PICTURE = re.compile(
    r"\b(?:(?:image|figure|photograph|picture|radiograph|ecg|electrocardiogram|x-ray|scan|smear|graph|tracing)s? "
    r"(?:is |are |as )?(?:shown|seen|below|above|provided|depicted)|shown (?:below|above|in (?:the )?(?:figure|image|"
    r"photograph|picture|graph))|(?:see|the following|the (?:attached|accompanying)) (?:image|figure|photograph))",
    re.I,
)
NEGATIVE = re.compile(r"\b(?:EXCEPT|NOT|LEAST)\b|\ball of the following[^.?]*\bexcept\b")
IMAGE_SUFFIXES = (*SUFFIXES, ".dcm")
OPEN = "open"  # the format of rows without options
PLAIN_ROWS = "plain"  # that of one's own rows
GENOTYPE = 12  # characters of an option at most that may be one, such as AaBb or X^A X^a
_TAG = re.compile(r"<(?:br|/?p|/?i|/?b|/?sub|/?sup|/?em|/?strong)\s*/?>", re.I)
_RAISED = re.compile(r"<(sup|sub)>\s*([0-9+−–-]{1,6})\s*</\1>", re.I)
_SUPERSCRIPTS = str.maketrans("0123456789+-−–", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁻")
_SUBSCRIPTS = str.maketrans("0123456789+-−–", "₀₁₂₃₄₅₆₇₈₉₊₋₋₋")


class Rejected(Exception):
    """A row that cannot become a record; `reason` is one of REASONS."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(detail or REASONS[reason])
        self.reason = reason


def canonical(raw: Raw, shape: Format, where: str, folders: Sequence[Path], licence: str, open_: bool) -> RawCase:
    """The record of a row.

    Args:
        raw: its content.
        shape: that it was read by.
        where: "<file>:<row>".
        folders: where images are looked for.
        licence: of the file.
        open_: whether that licence lets the row be passed on.

    Raises:
        Rejected: with the reason.
    """
    repairs = list(raw.repairs)
    question, options, letters = _question_and_options(raw, repairs, shape.name == OPEN)
    if order := answers.out_of_order(options):
        raise Rejected("key-differs", f"the options begin with {order}; put them in the order of their letters")
    if shape.name == PLAIN_ROWS and answers.counts_another(raw.key, options):
        raise Rejected("key-differs", f"key {raw.key} may be an option's text or its number; give its letter")
    answer = _key(raw, options, letters, repairs) if options else plain_text(raw.key, repairs)
    try:
        question, raw.images = inline(question, raw.images)
        raw_images = _images(raw, folders)
        question = placed(question, {len(raw.images), len(raw_images)})
    except DataError as error:
        raise Rejected("image-missing", str(error)) from None
    if line := gives_away(question, options, answer):
        raise Rejected("key-in-question", f"{border.shown(line)}; take it out")
    images = [picture for image in raw_images for picture in _pictures(image)]
    flags = [f"repaired:{name}" for name in dict.fromkeys(repairs)]
    if not images and PICTURE.search(question):
        flags.append("mentions-picture")
    if NEGATIVE.search(question):
        flags.append("negative-stem")
    if any(privacy.scan_header(image.open(), image.name) for image in raw_images):
        flags.append("identifying:header-removed")
    source = raw.source or shape.name.partition("-")[0]
    slug = re.sub(r"[^a-z0-9]+", "-", source.lower()).strip("-") or "own"
    specialty = raw.specialty.upper() if raw.specialty.upper() in SPECIALTIES else ""
    redistributable = open_ if raw.redistributable is None else bool(raw.redistributable)
    return RawCase(
        id=f"{slug}-{_hash(question, options, images)}",
        source=source,
        source_id=raw.id or where,
        split=raw.split,
        licence=raw.licence or licence,
        redistributable=redistributable,
        question=question,
        options=tuple(options),
        answer=answer,
        images=tuple(images),
        step=raw.step if raw.step in STEPS else "",
        specialty=specialty,
        specialty_by=specialty and "source",
        field=raw.field,
        explanation=raw.explanation,
        flags=tuple(flags),
    )


def plain_text(text: Any, repairs: list[str]) -> str:
    """Text without mark-up, entities and superfluous white space, letters and their marks composed."""
    if not isinstance(text, str):
        text = "" if text is None else str(text)
    clean = html.unescape(_TAG.sub(" ", _RAISED.sub(_raised, text)))
    if clean != text:
        repairs.append("mark-up")
    clean = unicodedata.normalize("NFC", clean)
    lines = (" ".join(line.split()) for line in clean.replace("\x00", "").splitlines())
    return "\n".join(line for line in lines if line)


def _raised(found: re.Match[str]) -> str:
    """An exponent, a charge or an index as characters of their own: "10<sup>9</sup>" without them is 109, or 10 9."""
    return found[2].translate(_SUPERSCRIPTS if found[1].lower() == "sup" else _SUBSCRIPTS)


def normal(text: str) -> str:
    """Text for comparisons: case, white space, punctuation at the ends and the form of Unicode aside."""
    return _spaced(text.casefold())


def _has_equals(options: list[str]) -> bool:
    """True where two options read the same. Case counts among what looks like genotypes: AA, Aa and aa are three."""
    short = [option for option in options if len(option) <= GENOTYPE]
    genotypes = {normal(option) for option in short if any(letter.isupper() for letter in option[1:])}
    read = [_spaced(option) if normal(option) in genotypes else normal(option) for option in options]
    return len(set(read)) < len(read)


def _spaced(text: str) -> str:
    """As `normal`, with the case kept."""
    return " ".join(unicodedata.normalize("NFC", text).split()).strip(" .;:,")


def _question_and_options(raw: Raw, repairs: list[str], is_open: bool) -> tuple[str, list[str], list[str]]:
    if not isinstance(raw.question, str | None):
        raise Rejected("empty-question", f"a text is needed, got {border.shown(raw.question)}")
    question, *tail = CHOICES.split(raw.question or "", maxsplit=1)
    letters, texts = list(raw.letters), list(raw.options)
    if tail:
        repairs.append("options-in-question")
        if not texts:
            letters, texts = bracketed(tail[0])
    if nested := [text for text in texts if isinstance(text, list | dict | tuple)]:
        raise Rejected("unreadable", f"an option is a text or a number, not {border.shown(nested[0])}")
    question = plain_text(question, repairs)
    if normal(question) in ABSENT:
        raise Rejected("empty-question")
    letters = letters or [chr(ord("A") + i) for i in range(len(texts))]
    if len({str(letter).strip().upper() for letter in letters}) < len(letters):
        raise Rejected("key-differs", f"two options have one letter: {border.cut(', '.join(map(str, letters)))}")
    kept = [
        (letter, option)
        for letter, text in zip(letters, texts, strict=False)
        if not absent(option := plain_text(text, []))
    ]
    if len(kept) < len(texts):
        repairs.append("empty-option")
    if is_open and not kept:
        return question, [], []
    if len(kept) < 2:
        raise Rejected("few-options", f"{len(kept)} options")
    if len(kept) > len(LETTERS):
        raise Rejected("many-options", f"{len(kept)} options")
    options = [option for _, option in kept]
    if _has_equals(options):
        raise Rejected("equal-options")
    return question, options, [str(letter).strip().upper() for letter, _ in kept]


def _key(raw: Raw, options: list[str], letters: list[str], repairs: list[str]) -> str:
    """Letter, counted from A, of the right option."""
    texts = [normal(option) for option in options]
    named = _named(raw.key_text, options)
    number = isinstance(raw.key, int) and not isinstance(raw.key, bool)
    place = _number(raw, options, letters, repairs) if number else _place(raw, options, letters, repairs)
    if place is None:
        if named is None:
            told = ": it may count from 0 or from 1; give the letter or the text of the right option"
            unclear = not raw.from_zero and re.fullmatch(r"\d+(?:\.0)?", str(raw.key).strip())
            raise Rejected("no-such-key", f"key {raw.key!r:.80}{told if unclear else ''}")
        at = LETTERS.find(letters[named])
        if number and at >= 0 and int(raw.key) - at not in (0, 1):  # neither from 0 nor from 1
            raise Rejected("key-differs", f"key {raw.key!r:.80} is not the place of its text {raw.key_text!r:.80}")
        repairs.append("key-from-text")
        return LETTERS[named]
    if raw.key_text and named != place and not (named is None and _begins(raw.key_text, texts[place])):
        raise Rejected("key-differs", f"key {raw.key!r:.80} is {options[place]!r:.80}, its text {raw.key_text!r:.80}")
    return LETTERS[place]


def _begins(text: str, option: str) -> bool:
    """True for a key's text that is the option and more, as in "C. Patient 3" with a note behind it."""
    return normal(re.sub(r"^\(?[A-J][.):]\s*", "", text)).startswith(option)


def _named(text: str, options: list[str]) -> int | None:
    """Index of the option that reads as `text`, in its own case or else, if only one does, in any; None for none."""
    for form in (_spaced, normal):
        found = [index for index, option in enumerate(options) if form(option) == form(text)]
        if len(found) == 1:
            return found[0]
    return None


def _number(raw: Raw, options: list[str], letters: list[str], repairs: list[str]) -> int | None:
    """Index of the option that a number names; None where it names none, or might count from 0 or from 1."""
    key = int(raw.key)
    if str(key) in letters:  # the source numbers its options itself
        return letters.index(str(key))
    if raw.from_zero:
        repairs.append("index-key")  # empty options count, too
        return letters.index(LETTERS[key]) if 0 <= key < len(LETTERS) and LETTERS[key] in letters else None
    named = None if raw.of_index else _named(str(key), options)
    if named is not None:
        repairs.append("key-from-text")
    return named


def _place(raw: Raw, options: list[str], letters: list[str], repairs: list[str]) -> int | None:
    """Index of the option that a letter or a text names; None where it names none."""
    key = raw.key
    key = key[0] if isinstance(key, list) and len(key) == 1 else key
    text = plain_text(key, [])
    told = re.fullmatch(r"\(?([A-Ja-j])[.):]\s*(\S.*)", text)
    if told and told[1].upper() in letters and _named(told[2], options) == letters.index(told[1].upper()):
        repairs.append("key-form")
        return letters.index(told[1].upper())
    letter = text.strip("(). ")
    if letter and letter.upper() in letters:
        named = _named(letter, options)
        if named not in (None, letters.index(letter.upper())) and not (raw.letters or raw.of_index):
            raise Rejected(
                "no-such-key", f"key {letter} may be a letter or an option's text; name the options' letters"
            )
        if letter != text or letter != letter.upper():
            repairs.append("key-form")
        return letters.index(letter.upper())
    if raw.of_index and text.isdecimal():
        return None
    named = _named(text, options)
    if named is not None:
        repairs.append("key-from-text")
    elif isinstance(key, str) and letters == list(LETTERS[: len(options)]):
        said = answers.choice(f"<answer>{text}</answer>", options)
        if said:
            repairs.append("key-form")  # "Option A", "Gout (A)"
            named = letters.index(said)
    return named


def _images(raw: Raw, folders: Sequence[Path]) -> list[ImageRef]:
    """References to the images of a row as they were given. Raises Rejected."""
    found = [_image(item, folders) for item in raw.images]
    if not found:
        names = [name for name in (raw.id, raw.folder) if name and "/" not in name and name != ".."]
        found = [_file(path) for folder in folders for name in names for path in _folder(folder / name)]
    return found


def _pictures(image: ImageRef) -> list[ImageRef]:
    """The pictures that an image stands for, without anything but pixels: no header of DICOM or EXIF enters a record.

    Raises Rejected.
    """
    try:
        if image.view == PLAIN and not isinstance(image.read, Series):
            return [held(image.name, clean(image.open(), image.name))]
        shown = decode(image)
    except DataError as error:
        raise Rejected("image-broken", str(error)) from None
    return [
        held(f"{image.name.partition('.')[0]}-{number}.png", EncodedImage(picture, compress=6)())
        for number, picture in enumerate(shown, 1)
    ]


def without_identifiers(record: RawCase, mode: str) -> RawCase:
    """The record with a flag for each kind of identifier in its texts, which "redact" replaces.

    Args:
        record: in canonical form.
        mode: one of `privacy.MODES`.

    Raises:
        Rejected: identifiers, and the mode is "refuse", or it is "redact" and options would become one text.
    """
    texts = {"question": record.question, "options": record.options, "explanation": record.explanation}
    found = privacy.scan_texts(texts.items())
    if not found:
        return record
    kinds = sorted({one.kind for one in found})
    if mode == "refuse":
        places = ", ".join(sorted({one.place for one in found}))
        raise Rejected("identifying", f"{', '.join(kinds)} in {places}")
    record = replace(record, flags=(*record.flags, *(f"identifying:{kind}" for kind in kinds)))
    if mode == "report":
        return record
    options = tuple(privacy.redact(option) for option in record.options)
    if len({*options}) < len({*record.options}):
        raise Rejected("identifying", f"redacted, options read the same ({', '.join(kinds)})")
    return replace(
        record,
        question=privacy.redact(record.question),
        options=options,
        explanation=privacy.redact(record.explanation),
    )


def _image(item: Any, folders: Sequence[Path]) -> ImageRef:
    """An image given as bytes, as a `datasets` struct, or by name; a struct may say window, slices and plane."""
    given = item if isinstance(item, dict) else {}
    name = str(given.get("path") or "image") if given else str(item)
    try:
        view = View.make(**{key: given[key] for key in VIEWED if given.get(key) is not None}, name="an image")
    except DataError as error:
        raise Rejected("image-broken", str(error)) from None
    if data := item if isinstance(item, bytes) else given.get("bytes"):
        return ImageRef(Path(name).name if given else "image", partial(bytes, data), view)
    if ADDRESS.match(name) or (name.startswith(BASE64) and len(name) > LONGEST):
        return ImageRef("image", partial(_content, name), view)
    for path in (border.existing(folder / name) for folder in folders):
        if path.exists():
            return _file(path, view)
    raise Rejected("image-missing", border.cut(name))


def _content(text: str) -> bytes:
    """The file that a data URI or base64 holds; what is neither is named by its beginning. Raises DataError."""
    return content(text if ADDRESS.match(text) else f"data:image/png;base64,{text}", border.cut(text, 40))


def _file(path: Path, view: View = PLAIN) -> ImageRef:
    return ImageRef(path.name, Series(path) if path.is_dir() else InFolder(path), view)


def _folder(path: Path) -> list[Path]:
    """Images of one case, in order of name and number, without macOS' "._1.png"."""
    found = path.glob("[!.]*") if path.is_dir() else ()
    return sorted((p for p in found if p.suffix.lower() in IMAGE_SUFFIXES), key=lambda p: by_numbers(p.name))


def _hash(question: str, options: list[str], images: Sequence[ImageRef]) -> str:
    """Of the words, the options in any order, and the images."""
    parts = [normal(question), *sorted(map(normal, options)), *(picture.sha256 for picture in images)]
    return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:16]
