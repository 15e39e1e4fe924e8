"""The recipe of MMedExpert-mini: cases of every task, in pools whose values and wordings never meet."""

import hashlib
from dataclasses import dataclass
from random import Random

from mmedexpert_jax.data.case import LETTERS, SPECIALTIES, Case
from mmedexpert_jax.data.embedded import charts, scans
from mmedexpert_jax.data.embedded.problem import Problem
from mmedexpert_jax.data.embedded.rules import RULES
from mmedexpert_jax.data.embedded.traces import PARADIGMS, Task, hasty, trace
from mmedexpert_jax.processing.images import in_memory

TASKS: tuple[Task, ...] = (*RULES.values(), *charts.TASKS, *scans.TASKS)
POOLS = {"pretrain": 0.64, "train": 0.80, "dev": 0.85, "test": 1.0}  # upper ends of the shares of all keys


@dataclass(frozen=True)
class Generated:
    """A case with what only its making knows."""

    case: Case  # carries the sound trace of one paradigm
    traces: dict[str, str]  # the sound trace under each paradigm
    # under each paradigm, a trace that weighs only the first evidence, and the letter it concludes
    hasty: dict[str, tuple[str, str]]
    problem: Problem  # the values behind the case


def pool_of(key: str) -> str:
    """The pool that a key belongs to, by its hash."""
    share = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) / 2**64
    return next(pool for pool, end in POOLS.items() if share < end)


def generate(seed: int, count: int, pool: str, tasks: tuple[Task, ...] = TASKS) -> list[Generated]:
    """`count` cases of `pool`, the same for the same arguments.

    Specialties, tasks, right options, letters and paradigms are balanced. Outside "pretrain" no two cases share a key.

    Args:
        seed: any integer.
        count: of cases, over all tasks.
        pool: one of POOLS.
        tasks: a subset of TASKS.
    """
    drafts = []
    for task, share in _shares(tasks, count):
        drafts += _drafts(task, share, pool, Random(f"{seed} {pool} {task.task}"))
    Random(f"{seed} {pool}").shuffle(drafts)
    return [_written_out(f"mini-{pool}-{i:05d}", draft) for i, draft in enumerate(drafts)]


def _shares(tasks: tuple[Task, ...], count: int) -> list[tuple[Task, int]]:
    """The number of `count` cases from each task: equal for the specialties, and for the tasks of each."""
    groups = [[task for task in tasks if task.specialty == specialty] for specialty in SPECIALTIES]
    groups = [group for group in groups if group]
    shares: list[tuple[Task, int]] = []
    for group, total in zip(groups, _split(count, len(groups)), strict=True):
        shares += zip(group, _split(total, len(group)), strict=True)
    return shares


def _split(count: int, parts: int) -> list[int]:
    """`count` as a sum of `parts` numbers that differ by at most one."""
    return [count // parts + (i < count % parts) for i in range(parts)]


@dataclass(frozen=True)
class _Draft:
    """A case before it has an id, which the order of all tasks' cases gives."""

    task: Task
    problem: Problem
    options: tuple[str, ...]  # in the case's order
    paradigm: str  # of the case's own trace
    luck: float  # seed of how much a hasty trace weighs


def _drafts(task: Task, count: int, pool: str, rng: Random) -> list[_Draft]:
    """`count` cases of one task."""
    size = len(task.options)
    bands, places = _balanced(rng, count, size), _balanced(rng, count, size)
    paradigms = _balanced(rng, count, len(PARADIGMS))
    seen: set[str] = set()
    drafts = []
    for band, place, paradigm in zip(bands, places, paradigms, strict=True):
        problem = _in_pool(task, band, pool, rng, seen)
        options = _placed(rng, task.options, band, place)
        drafts.append(_Draft(task, problem, options, PARADIGMS[paradigm], rng.random()))
    return drafts


def _in_pool(task: Task, band: int, pool: str, rng: Random, seen: set[str]) -> Problem:
    """A problem of `task` whose key belongs to `pool` and is new there."""
    for _ in range(5_000):
        problem = task.problem(rng, band, pool)
        if pool_of(problem.key) == pool and problem.key not in seen:
            if pool != "pretrain":
                seen.add(problem.key)
            return problem
    raise ValueError(f"{task.task}: no more cases of {task.options[band]!r} in pool {pool!r}; ask for fewer")


def _balanced(rng: Random, count: int, size: int) -> list[int]:
    """`count` numbers below `size` in random order, each as often as the others (to within one)."""
    first = rng.randrange(size)
    numbers = [(first + i) % size for i in range(count)]
    rng.shuffle(numbers)
    return numbers


def _placed(rng: Random, options: tuple[str, ...], band: int, place: int) -> tuple[str, ...]:
    """The options in random order with option `band` at `place`."""
    others = [text for i, text in enumerate(options) if i != band]
    rng.shuffle(others)
    return (*others[:place], options[band], *others[place:])


def _written_out(id: str, draft: _Draft) -> Generated:
    """The case of a draft, with its traces."""
    task, problem, options = draft.task, draft.problem, draft.options
    letter = dict(zip(options, LETTERS, strict=False))
    sound = {paradigm: trace(task, problem, paradigm, options) for paradigm in PARADIGMS}
    weighed = hasty(problem, Random(draft.luck))
    concluded = letter[task.options[problem.band(weighed)]]
    short = {paradigm: (trace(task, problem, paradigm, options, weighed), concluded) for paradigm in PARADIGMS}
    case = Case(
        id=id,
        question=problem.question,
        options=options,
        answer=letter[task.options[problem.answer]],
        specialty=task.specialty,
        task=task.task,
        images=tuple(in_memory(image, f"{id}, image {n}") for n, image in enumerate(problem.images, 1)),
        paradigm=draft.paradigm,
        trace=sound[draft.paradigm],
        paradigms=PARADIGMS,
    )
    return Generated(case, sound, short, problem)
