"""`--config.plan=True` of the dataset job: what it would read, ask and spend. Nothing is asked and nothing written."""

from collections import Counter
from pathlib import Path

from ml_collections import ConfigDict

from mmedexpert_jax.data.case import PARADIGMS, SPECIALTIES
from mmedexpert_jax.mmedexpert import eligibility, specialties, trace_synthesis
from mmedexpert_jax.mmedexpert.collection import choose, gather
from mmedexpert_jax.mmedexpert.duplicates import duplicates
from mmedexpert_jax.mmedexpert.factory_store import FILE
from mmedexpert_jax.mmedexpert.record import RawCase
from mmedexpert_jax.mmedexpert.sources.raw_collection import check_share
from mmedexpert_jax.mmedexpert.trace_synthesis import TraceSettings
from mmedexpert_jax.remote import Request, Usage
from mmedexpert_jax.remote.messages import estimate_tokens
from mmedexpert_jax.remote.protocol import endpoint

CASE = 2000  # bytes beside a case's question and images, on the safe side
CANDIDATE = 3000  # bytes beside a candidate's words, likewise
TRACE_TOKENS = 1.6  # a word of a trace, tags included, on the safe side


def describe(config: ConfigDict) -> str:
    """A few lines on cases, requests, tokens, dollars and the run directory."""
    found = gather(config)
    check_share(found, config.data.max_rejected)
    near = {one.record.id for one in duplicates(found.records, config.duplicates) if not one.same}
    unique = {record.id: record for record in found.records if record.id not in near}.values()
    records = [eligibility.with_paradigms(specialties.classify(record)) for record in unique]
    records = choose(records, config.limit, config.seed)
    pairs = eligibility.assign(records, config.paradigm_policy, config.seed)
    settings = TraceSettings.from_config(config)
    asked = [trace_synthesis.request(record, paradigm, 0, settings) for record, paradigm in pairs]
    places, ways = Counter(r.specialty for r in records), Counter(paradigm for _, paradigm in pairs)
    images, closed = sum(bool(r.images) for r in records), sum(not r.redistributable for r in records)
    run = Path(config.workdir)
    state = "goes on with what is there" if (run / FILE).is_file() else "starts anew"
    lines = [
        f"job       {config.job} (preset {config.preset}), stages {', '.join(config.stages)}",
        f"workdir   {run}: {state}",
        *(f"source    {line}" for line in found.lines()),
        f"cases     {len(records)} ({', '.join(f'{name} {places[name]}' for name in SPECIALTIES)}; {images} with "
        f"images; {closed} not to be passed on)",
        f"tests     to be held against {', '.join(config.benchmarks) or 'no test set'}",
        f"traces    {len(pairs)} wanted ({', '.join(f'{name} {ways[name]}' for name in PARADIGMS)}), "
        f"{len(records) - len({record.id for record, _ in pairs})} cases without a paradigm",
        *_requests(config, asked),
        _disk(config, records, pairs),
        "nothing was run; leave out --config.plan to start",
    ]
    return "\n".join(lines)


def _disk(config: ConfigDict, records: list[RawCase], pairs: list[tuple[RawCase, str]]) -> str:
    """Cases with their images are in the store, export/dataset and export/public, every candidate in the store."""
    cases = sum(CASE + len(r.question) + sum(len(image.open()) for image in r.images) for r in records)
    candidates = len(pairs) * config.candidates * (CANDIDATE + 6 * config.words[1])
    return f"disk      at most about {(3 * cases + candidates) / 1e6:.1f} MB: the store, export/dataset, export/public"


def _requests(config: ConfigDict, asked: list[Request]) -> list[str]:
    """Requests, estimated tokens and dollars; a range from one candidate each to all of them."""
    most, prompt = config.candidates, sum(estimate_tokens(request) for request in asked)
    completion = round(len(asked) * TRACE_TOKENS * sum(config.words) / 2)
    lines = [
        f"requests  {len(asked)} to {len(asked) * most} ({most} candidates at most), about {prompt:,} prompt and "
        f"{completion:,} completion tokens a round, hidden reasoning not counted"
    ]
    if config.teacher.kind == "local":
        return [*lines, f"teacher   {config.model.path} in this process: no key, no cost"]
    teacher = endpoint(config.teacher)
    factor = teacher.batch_discount if config.teacher.kind == "batch" else 1.0
    once = teacher.cost(Usage(prompt, completion), factor)
    worst = teacher.cost(Usage(prompt * most, len(asked) * most * teacher.max_tokens), factor)
    limit = f"budget ${teacher.budget:g}" if teacher.budget else "no budget set"
    price = f"about ${once:,.2f} a round, ${worst:,.2f} at the very most; {limit}" if once else "no prices set"
    return [*lines, f"teacher   {teacher.model} at {teacher.host} by {config.teacher.kind}: {price}"]
