"""The first stage: raw files to records with a specialty and the paradigms that apply, less duplicates and leaks."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from mmedexpert_jax import border, privacy
from mmedexpert_jax.config.fields import raw_sources
from mmedexpert_jax.data.case import SPECIALTIES
from mmedexpert_jax.data.order import seeded
from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.mmedexpert import decontamination, eligibility, specialties
from mmedexpert_jax.mmedexpert.duplicates import Duplicate, duplicates, with_several_keys
from mmedexpert_jax.mmedexpert.factory_store import Store
from mmedexpert_jax.mmedexpert.local_teacher import Teacher
from mmedexpert_jax.mmedexpert.record import RawCase
from mmedexpert_jax.mmedexpert.sources import FORMATS, Collection
from mmedexpert_jax.mmedexpert.sources import collect as read_sources
from mmedexpert_jax.mmedexpert.sources.raw_collection import Rights, check_share, named_files
from mmedexpert_jax.remote import Request
from mmedexpert_jax.runtime import files

VOTES = 3  # at most; the third only where two differ


def collect(config: ConfigDict, folder: Path, store: Store, voter: Teacher | None = None) -> Collection:
    """Reads, cleans and stratifies the raw cases, and makes them the store's.

    Writes rejected.jsonl, duplicates.csv and contamination.csv into `folder`.

    Raises:
        DataError: unreadable files, too many refused rows, or no case left.
    """
    found = gather(config)
    _write_rejected(folder, found)  # also where the next line ends the job
    check_share(found, config.data.max_rejected)
    several = with_several_keys(found.records)
    found.drop(several, "key-differs", lambda r: f"{r.source_id}: the same case stands with another key, too")
    repeated = duplicates(found.records, config.duplicates)
    _without_repeats(found, repeated)
    tests = decontamination.test_sets(config.benchmarks)
    pairs, compared = decontamination.leaked(found.records, tests), decontamination.compared(tests)
    gone = {id for _, id in pairs.dropped()}
    where = {pair.train_id: f"{pair.test_set} {pair.test_id}" for pair in reversed(pairs.pairs)}  # the first of a case
    found.drop([r for r in found.records if r.id in gone], "contaminated", lambda record: where[record.id])
    _write_rejected(folder, found)
    _write_repeated(folder, repeated)
    pairs.write(folder / "contamination.csv")
    print("\n".join([*found.lines(), decontamination.line(pairs, compared)]), flush=True)
    if any("identifying" in what for _, what in found.counts):
        print(privacy.BLIND, flush=True)
    records = [eligibility.with_paradigms(specialties.classify(record)) for record in found.records]
    if voter is not None:
        records = vote(records, voter)
    records = choose(records, config.limit, config.seed)
    unknown = sum(record.asks == "other" and bool(record.paradigms) for record in records)
    if 2 * unknown > len(records):
        print(
            f"{unknown} of {len(records)} cases ask for nothing that is known as a diagnosis, a treatment or a "
            "mechanism; they are reasoned about analytically alone",
            flush=True,
        )
    default = sum(record.specialty_by == "default" for record in records)
    if 2 * default > len(records):
        print(
            f"{default} of {len(records)} cases speak of nothing that tells their specialty, and are AM; give the rows "
            "specialty or field, or let a teacher vote (config.votes)",
            flush=True,
        )
    found.counts["all", "without a paradigm"] = sum(not record.paradigms for record in records)
    if not any(record.paradigms for record in records):
        raise DataError(
            f"config.data.path: no case of {config.data.path} is left to reason about (ethics, law and statistics are "
            f"left out); see {folder / 'rejected.jsonl'}"
        )
    store.replace_cases(records)
    store.put_fact("collection", found.table())
    store.put_fact("sources", hashes(config.data.path))
    store.put_fact("compared", compared)
    return found


def gather(config: ConfigDict) -> Collection:
    """The records of all sources as they stand in the files.

    Raises:
        DataError: a file cannot be read.
        ConfigError: rights are stated for a name that is neither a format's nor a file's.
    """
    stated = dict(entry.split("=", 1) for entry in config.data.licences)
    names = {"licences": tuple(stated), "redistributable": config.data.redistributable}
    sources = named_files(raw_sources(config.data.path))
    known = {*FORMATS, *(called for called, _, _ in sources)}
    bare = {file.name for _, file, _ in sources}  # restricts every file of that name
    for field, given in (names | {"restricted": config.data.restricted}).items():
        if unknown := [name for name in given if name not in known | (bare if field == "restricted" else set())]:
            raise ConfigError(
                f"config.data.{field}: {unknown[0]!r} is no format and no file of config.data.path; formats are "
                f"{', '.join(FORMATS)}"
            )
    rights = Rights(stated, tuple(config.data.redistributable), tuple(config.data.restricted))
    return read_sources(raw_sources(config.data.path), config.data.image_dir, rights, config.data.privacy)


def hashes(text: str) -> dict[str, str]:
    """SHA-256 of every source file, by name."""
    found = named_files(raw_sources(text))
    return {called: hashlib.sha256(file.read_bytes()).hexdigest() for called, file, _ in found}


def vote(records: Sequence[RawCase], voter: Teacher) -> list[RawCase]:
    """The records after a model's votes: two, and a third where they differ; without a majority the rules stand."""
    votes: list[list[str]] = [[] for _ in records]
    for sample in range(VOTES):
        open_ = [i for i, cast in enumerate(votes) if sample < 2 or len(set(cast)) > 1]
        replies = voter.ask([Request(specialties.ballot(records[i]), sample) for i in open_])
        for i, reply in zip(open_, replies, strict=True):
            votes[i].append(specialties.vote(reply.text))
    return [specialties.settle(record, cast) for record, cast in zip(records, votes, strict=True)]


def choose(records: list[RawCase], limit: int, seed: int) -> list[RawCase]:
    """At most `limit` records, the specialties in turn, each in the order of a seeded hash; 0 keeps all."""
    if not 0 < limit < len(records):
        return records
    order = sorted(records, key=lambda r: seeded(seed, r.id))
    queues = [[r for r in order if r.specialty == name] for name in SPECIALTIES]
    turns = [queue[i] for i in range(len(records)) for queue in queues if i < len(queue)]
    kept = {record.id for record in turns[:limit]}
    return [record for record in records if record.id in kept]


def _without_repeats(found: Collection, repeated: Sequence[Duplicate]) -> None:
    # by hand, not by `drop`, which takes out all cases of an id: of those that are the same the first stays
    for one in repeated:
        if one.same:
            found.reject_case(one.record, "duplicate", f"of {one.of}")
    first: dict[str, RawCase] = {}
    for record in found.records:
        first.setdefault(record.id, record)
    found.records = list(first.values())
    near = {one.record.id: one for one in repeated if not one.same}
    close = [record for record in found.records if record.id in near]
    found.drop(close, "near-duplicate", lambda record: f"of {near[record.id].of}, Jaccard {near[record.id].score:.2f}")


def _write_rejected(folder: Path, found: Collection) -> None:
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    border.write_jsonl(folder / "rejected.jsonl", map(files.plain, found.rejected))


def _write_repeated(folder: Path, repeated: Sequence[Duplicate]) -> None:
    columns = ("id", "source_id", "of", "jaccard", "same")
    found = ((d.record.id, d.record.source_id, d.of, f"{d.score:.3f}", d.same) for d in repeated)
    border.write_csv(folder / "duplicates.csv", columns, (dict(zip(columns, row, strict=True)) for row in found))
