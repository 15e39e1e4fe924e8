"""Difficulty of the cases: the policy's pass rates before training, a filter by them, an order from easy to hard."""

import contextlib
import logging
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec
import numpy as np
from ml_collections import ConfigDict

from mmedexpert_jax import answers, border
from mmedexpert_jax.data.case import Case
from mmedexpert_jax.data.order import fingerprint
from mmedexpert_jax.data.prompts import conversation
from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.gba.guidelines import Difficulties
from mmedexpert_jax.rollout.engine import Engine
from mmedexpert_jax.runtime import costs, files, processes

PASS_RATE = "pass_rate"  # the curriculum by what was measured


class Rate(msgspec.Struct, frozen=True):
    """A line of samples/pass_rates.jsonl: how many of a case's `samples` answers were right."""

    id: str
    right: int
    samples: int
    case: int = 0  # `fingerprint` of the case that was asked; 0: of an earlier version, not known


def pass_rates(cases: Sequence[Case], engine: Engine, file: Path) -> dict[str, float]:
    """Share of the engine's answers that are right by case, to the question without a guideline.

    Each case's answers come from its place among the cases alone, and are appended to `file` as they come: a run that
    was killed goes on with the rest and finds what one that never was would have found. Several processes share the
    cases; what the others found is appended once all are done.
    """
    samples = engine.settings.num_samples
    prints = {case.id: fingerprint([case]) for case in cases}  # a case that was edited since is asked again
    stored = _gathered(read_rates(file) if processes.is_writer() else [])
    known = {rate.id: rate for rate in stored if rate.samples == samples and rate.case in (0, prints.get(rate.id))}
    own = processes.own([(place, case) for place, case in enumerate(cases) if case.id not in known])
    asked = engine.answer((conversation(case) for _, case in own), [place for place, _ in own], names(own))
    found: list[Rate] = []
    with costs.shared(), files.lines(file) if processes.is_writer() else contextlib.nullcontext() as lines:
        for number, replies in asked:
            case = own[number][1]
            right = sum(answers.is_right(reply.text, case.options, *case.golds) for reply in replies)
            found.append(Rate(case.id, right, samples, prints[case.id]))
            if lines is not None:
                files.append(lines, file, msgspec.json.encode(found[-1]) + b"\n")
        every = _gathered(found)
        if lines is not None:
            for rate in every[len(found) :]:
                files.append(lines, file, msgspec.json.encode(rate) + b"\n")
    known |= {rate.id: rate for rate in every}
    return {case.id: known[case.id].right / samples for case in cases}


def _gathered(rates: Sequence[Rate]) -> list[Rate]:
    """The rates of all processes, the writer's first."""
    found = processes.gather(msgspec.to_builtins(rates))
    return [rate for several in found for rate in msgspec.convert(several, list[Rate])]


def names(rest: Iterable[tuple[int, Case]]) -> Iterable[str]:
    """The names of cases in error messages."""
    return (f"case {case.id}" for _, case in rest)


def read_rates(file: Path) -> list[Rate]:
    """The whole lines of a file of pass rates; none where there is no file. Raises DataError."""
    if not file.exists():
        return []
    whole = ((number, line) for number, line in border.read_lines(file) if line.endswith(b"\n"))
    return [_rate(line, f"{file} line {number}") for number, line in whole]


def _rate(line: bytes, place: str) -> Rate:
    fix = "delete the line, and its case is asked again"
    try:
        rate = border.parse_json(line, place, Rate)
    except DataError as error:
        raise DataError(f"{error}; {fix}") from None
    if not 0 <= rate.right <= rate.samples:
        raise DataError(f"{place}: {rate.right} of {rate.samples} answers cannot be right; {fix}")
    return rate


def within(cases: Sequence[Case], rates: dict[str, float], least: float, most: float) -> list[Case]:
    """The cases whose pass rate is in [least, most]; a line says how many that are.

    Raises:
        DataError: none is.
    """
    kept = [case for case in cases if least <= rates[case.id] <= most]
    hard = sum(rates[case.id] < least for case in cases)
    if not kept:
        raise DataError(
            f"no case of {len(cases)} has a pass rate from {least:g} to {most:g} ({hard} are harder, "
            f"{len(cases) - hard} easier); widen config.filter.least and config.filter.most"
        )
    if processes.is_writer():
        easy = len(cases) - len(kept) - hard
        print(
            f"filter: {len(kept)} of {len(cases)} cases kept, pass rate {least:g} to {most:g} ({hard} too hard, "
            f"{easy} too easy)",
            file=sys.stderr,
            flush=True,
        )
    return kept


def difficulties(cases: Sequence[Case], by: str, rates: dict[str, float] | None) -> Difficulties:
    """Numbers that rise with difficulty: shares of wrong answers, or those in the column `by`; None for "".

    Raises ConfigError without rates, DataError for a row without that number."""
    if not by:
        return None
    if by == PASS_RATE:
        if rates is None:
            raise ConfigError("config.curriculum=pass_rate needs config.filter.samples, answers to measure it by")
        return {case.id: 1 - rates[case.id] for case in cases}
    return {case.id: _number(case, by) for case in cases}


def tell_equal(by: str, levels: Difficulties) -> None:
    """Warns of difficulties that are all one number, by which nothing is ordered."""
    if levels and len(levels) > 1 and len(numbers := {*levels.values()}) == 1:
        logging.getLogger(__name__).warning(
            "config.curriculum=%s: the same for all %d cases (%g), so that their order is random; give the rows "
            "numbers that differ, or leave it out",
            *(by, len(levels), 1 - numbers.pop() if by == PASS_RATE else numbers.pop()),
        )


def _number(case: Case, column: str) -> float:
    value = case.columns.get(column)
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = float("nan")
    if not np.isfinite(number):
        found = f"is {border.shown(value)}, no number" if column in case.columns else "is not there"
        raise DataError(f"config.curriculum: case {case.id}: the column {border.shown(column)} {found}")
    return number


def selected(
    cases: list[Case], config: ConfigDict, engine: Engine | None, folder: Path
) -> tuple[list[Case], Difficulties]:
    """The cases that a run trains on, and their difficulties where they are ordered by them."""
    rates = None
    if engine is not None:
        rates = pass_rates(cases, engine, folder / "samples" / "pass_rates.jsonl")
        cases = within(cases, rates, config.filter.least, config.filter.most)
    levels = difficulties(cases, config.curriculum, rates)
    if rates is not None and processes.is_writer():  # of a column, `preflight` has told
        tell_equal(config.curriculum, levels)
    return cases, levels
