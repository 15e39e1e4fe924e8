"""The data set (section 3.3): reviewed traces as Parquet with embedded images, split, stratified, with its history."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from mmedexpert_jax import border, privacy
from mmedexpert_jax.data import columns
from mmedexpert_jax.data.case import SPECIALTIES, SPLITS
from mmedexpert_jax.data.columns import IMAGES, TEXT, TEXTS
from mmedexpert_jax.data.contamination import words_in
from mmedexpert_jax.data.order import seeded
from mmedexpert_jax.errors import ConfigError, RemoteError
from mmedexpert_jax.mmedexpert import filters
from mmedexpert_jax.mmedexpert.eligibility import CHOOSE
from mmedexpert_jax.mmedexpert.record import RawCase, Trace
from mmedexpert_jax.mmedexpert.review import Verdict
from mmedexpert_jax.processing.segments import PNG

QUESTIONS = 10  # on one vignette at most; a text before more of them is an introduction
VIGNETTE = 12  # words from which on the text before a last question tells a patient, and is no mere introduction
COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "id": (TEXT, "stable, unique; <source>-<hash of the case>.<paradigm>"),
    "question": (TEXT, "vignette and question, without options"),
    "options": (TEXTS, "option texts in the order of their letters"),
    "answer": (TEXT, "letter of the key; of an open question the reference"),
    "accepted": (TEXTS, "what else is right of an open question"),
    "specialty": (TEXT, "AM, CAH, BS or CSI"),
    "task": (TEXT, "sub-specialty; empty where none is told"),
    "images": (IMAGES, "PNG or JPEG files, without headers"),
    "paradigm": (TEXT, "way of reasoning of the trace"),
    "trace": (TEXT, "numbered statements, without tags"),
    "paradigms": (TEXTS, "ways of reasoning that apply to the case"),
    "source": (TEXT, "where the case comes from"),
    "source_id": (TEXT, "its id there"),
    "licence": (TEXT, "of its file"),
    "redistributable": (pa.bool_(), "whether that licence lets it be passed on"),
    "specialty_by": (TEXT, "rule or vote that gave the specialty"),
    "kind": (TEXT, "what is asked: diagnosis, management, mechanism or other"),
    "case_id": (TEXT, "the same for all traces of a case"),
    "trace_id": (TEXT, "by which factory.sqlite knows its history"),
    "teacher": (TEXT, "who wrote the trace"),
    "review": (TEXT, "accept, edit, or none where nobody has looked"),
    "flags": (TEXTS, "remarks of collection and stage 1"),
}
SCHEMA = columns.schema({name: kind for name, (kind, _) in COLUMNS.items()})


@dataclass(frozen=True)
class Built:
    """A trace that enters the data set: the text after review, and what the review said ("none" for nothing)."""

    trace: Trace
    text: str
    review: str

    def row(self) -> dict[str, Any]:
        """As a row of SCHEMA."""
        case, trace = self.trace.case, self.trace
        # held as PNG or JPEG, whatever the source's file was
        names = [f"{p.sha256[:16]}{'.png' if p.open().startswith(PNG) else '.jpg'}" for p in case.images]
        return columns.row(
            case,
            SCHEMA,
            id=f"{case.id}.{trace.paradigm}",
            accepted=list(case.golds[1:]),
            # of files of one name the folders tell apart, which may be called by people or hospitals
            source_id=re.sub(r"^.*/(?=[^/]+:\d+$)", "", case.source_id),
            images=[{"bytes": p.open(), "path": name} for p, name in zip(case.images, names, strict=True)],
            paradigm=trace.paradigm,
            trace=self.text,
            kind=case.asks,
            case_id=case.id,
            trace_id=trace.id,
            teacher=border.passed_on(trace.teacher),
            review=self.review,
            flags=[*case.flags, *trace.check.flags],
        )


def identifies(one: Built) -> bool:
    """True where a text of the row may identify a person."""
    case = one.trace.case
    answers = (case.answer_text, *case.golds[1:])
    texts = {"question": case.question, "options": case.options, "answer": answers, "trace": one.text}
    return bool(privacy.scan_texts(texts.items()))


def choose(
    traces: Iterable[Trace], verdicts: Mapping[str, Verdict], reviewed: str, words: tuple[int, int]
) -> list[Built]:
    """One trace for each case and paradigm: the first that a review accepts, else, with reviewed "any", the first
    that passed stage 1 and was not rejected. An edited text must pass stage 1 again.

    Args:
        traces: that passed stage 1, in order, without those that a review has begun and not decided.
        verdicts: by trace id.
        reviewed: "any" or "accepted".
        words: bounds of a trace's length.
    """
    accepted: dict[tuple[str, str], Built] = {}
    unseen: dict[tuple[str, str], Built] = {}
    for trace in traces:
        place, verdict = (trace.case.id, trace.paradigm), verdicts.get(trace.id)
        if verdict is None:
            unseen.setdefault(place, Built(trace, trace.text, "none"))
        elif verdict.kind != "reject":
            text = trace.text if verdict.text is None else verdict.text
            if filters.check(trace.with_text(text), trace.case, trace.paradigm, (1, words[1])).passed:
                accepted.setdefault(place, Built(trace, text, verdict.kind))
    chosen = accepted if reviewed == "accepted" else unseen | accepted
    return sorted(chosen.values(), key=lambda built: (built.trace.case.id, built.trace.paradigm))


def split(built: Sequence[Built], dev: float, test: float, seed: int) -> dict[str, list[Built]]:
    """The splits, by a seeded hash of the case within each specialty: all traces of a case and all questions on one
    vignette, image or patient stay together, and a case alone keeps its place in the hash's order when others are
    added. A specialty of one case gives it to train."""
    group = _groups({one.trace.case.id: one.trace.case for one in built})
    splits: dict[str, list[Built]] = {name: [] for name in SPLITS}
    known: dict[str, str] = {}  # split by vignette, which questions of several specialties may share
    for specialty in SPECIALTIES:
        members = [one for one in built if one.trace.specialty == specialty]
        groups: dict[str, set[str]] = {}
        for one in members:
            groups.setdefault(group[one.trace.case.id], set()).add(one.trace.case.id)
        count, done = sum(map(len, groups.values())), 0
        first, second = round(test * count), round((test + dev) * count)
        # test is filled first, then dev, so that the rest, whatever its groups' sizes, is train; a vignette that a
        # specialty before this one has placed stays where it is
        for vignette, ids in sorted(groups.items(), key=lambda item: seeded(seed, min(item[1]))):
            known.setdefault(vignette, ("test", "dev", "train")[(done >= first) + (done >= second)])
            done += len(ids)
        for one in members:
            splits[known[group[one.trace.case.id]]].append(one)
    return {
        name: sorted(members, key=lambda one: seeded(seed, one.trace.id)) for name, members in splits.items() if members
    }


def _groups(cases: Mapping[str, RawCase]) -> dict[str, str]:
    """By id the name of the group that a case stays together with: of those on its vignette, with an image of its own,
    or of its patient, where the source tells several apart. What more share than questions are asked about a patient
    joins none: an introduction, an empty picture."""
    vignettes = {id: _vignette(case) for id, case in cases.items()}
    asked = Counter(vignettes.values())
    group = {id: text if asked[text] <= QUESTIONS else f"id {id}" for id, text in vignettes.items()}
    shown: dict[str, list[str]] = {}
    people: dict[str, list[str]] = {}
    for id, case in cases.items():
        people.setdefault(case.person, []).append(id)
        for sha in {picture.sha256 for picture in case.images}:
            shown.setdefault(sha, []).append(id)
    joined: dict[str, str] = {}  # union-find: name of a group -> that of another that it belongs to

    def whole(name: str) -> str:
        while name in joined:
            name = joined[name]
        return name

    people = {person: ids for person, ids in people.items() if person and len(people) > 1}
    for ids in (*(ids for ids in shown.values() if len(ids) <= QUESTIONS), *people.values()):
        first = whole(group[ids[0]])
        joined |= dict.fromkeys({whole(group[id]) for id in ids} - {first}, first)
    return {id: whole(name) for id, name in group.items()}


def _vignette(case: RawCase) -> str:
    """The part that questions on one vignette share: its sentences, lines or Chinese clauses but those that ask, with
    whatever mark, at the end or before it; of a short one the case's own id."""
    parts = [part.strip() for part in re.split(r"(?<=[.!?;؟])\s+|(?<=[。！？，।])|\n", case.question) if part.strip()]
    parts = [part for part in parts if not CHOOSE.search(part)]
    told = [part for part in parts if part.rstrip("\"'”’»)）")[-1:] not in ("?", "？", "؟")]
    if parts and told and parts[0] == told[0] and parts[-1] == told[-1]:  # what asks has no mark, and does not begin
        told = told[:-1]
    words = words_in(" ".join(told) or case.question)
    return " ".join(words) if len(words) >= VIGNETTE else f"id {case.id}"


def write(directory: Path, splits: Mapping[str, Sequence[Built]]) -> dict[str, str]:
    """Writes <split>.parquet, and <specialty>/<split>.parquet for `load_dataset(path, "AM")`; returns hashes by file.

    The same traces give the same bytes.
    """
    hashes = {}
    for name, members in splits.items():
        for folder in ("", *SPECIALTIES):
            rows = [one.row() for one in members if folder in ("", one.trace.specialty)]
            if rows:
                path = directory / folder / f"{name}.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                table = pa.Table.from_pylist(rows, schema=SCHEMA)
                # 100 rows a group, as `datasets` writes pictures: a reader holds so many at once, and no more
                parquet.write_table(table, path, compression="zstd", row_group_size=100)
                hashes[str(path.relative_to(directory))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return hashes


def push(folder: Path, repository: str) -> None:
    """Uploads a folder as the data set `repository` ("owner/name"), made private where there is none, with the token
    that huggingface_hub finds.

    Raises:
        ConfigError: there is nothing that may be passed on.
        RemoteError: the hub cannot be reached or refuses.
    """
    if not any(folder.glob("*.parquet")):
        raise ConfigError("config.push_to: no row may be passed on; state its licence in config.data.redistributable")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        api = HfApi()
        api.create_repo(repository, repo_type="dataset", private=True, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repository, repo_type="dataset")
    except (HfHubHTTPError, OSError, ValueError) as error:
        line = (str(error).splitlines() or [type(error).__name__])[0]
        raise RemoteError(
            f"config.push_to: {repository} was not uploaded ({line}); run the same command again"
        ) from None
