"""Traces of the four paradigms (paper appendix A), composed from a problem's evidence."""

from random import Random

from mmedexpert_jax.data.embedded.problem import Problem
from mmedexpert_jax.data.embedded.rules import Rule
from mmedexpert_jax.data.embedded.seen import ImageTask
from mmedexpert_jax.data.embedded.wording import sentence

Task = Rule | ImageTask

_VERBS = {"differential": "makes", "intuitive": "makes", "analytical": "gives", "bayesian": "raises to"}
PARADIGMS = tuple(_VERBS)  # the four of section 3.2, which the embedded cases are reasoned under


def trace(task: Task, problem: Problem, paradigm: str, options: tuple[str, ...], count: int | None = None) -> str:
    """The trace of `problem` under `paradigm` that weighs the first `count` pieces of evidence (all if None)."""
    count = len(problem.steps) if count is None else count
    steps = problem.steps[:count]
    band = problem.band(count)
    answer = task.options[band]
    total = steps[-1].total if steps else ""
    counted, kept = (f"{_VERBS[paradigm]} ", "keeps ") if task.running else ("", "")
    chain = ", ".join(f"{step.text} {counted if step.counts else kept}{step.effect}" for step in steps)
    if paradigm == "differential":
        said = [chain, *_rivals(task, band, options), f"{answer} fits best"]
    elif paradigm == "intuitive":
        said = [f"pattern recognised: {chain}", f"this picture{f' of {total}' if total else ''} is typical of {answer}"]
    elif paradigm == "analytical":
        said = [task.mechanism, f"so {chain}", f"{f'{total} means' if total else 'therefore'} {answer}"]
    else:
        with_total = f"with {total} " if total else ""
        said = [
            f"prior: {task.prior} is common",
            f"evidence: {chain}",
            f"posterior: {with_total}{answer} is most probable",
        ]
    return " ".join(f"({i}) {sentence(text)}." for i, text in enumerate(said, 1))


def hasty(problem: Problem, rng: Random) -> int:
    """The number of pieces of evidence that a hasty reasoner weighs: one piece or more, at most the first half."""
    return rng.randint(1, max(1, len(problem.steps) // 2))


def _rivals(task: Task, band: int, options: tuple[str, ...]) -> list[str]:
    """Statements that eliminate the two nearest rivals among the options of the case."""
    others = [i for i, text in enumerate(task.options) if text in options and i != band]
    nearest = sorted(sorted(others, key=lambda i: (abs(i - band), i))[:2])
    if not task.ordered:
        return [f"{task.options[i]} is ruled out" for i in nearest]
    return [f"{task.options[i]} is {'ruled out' if i < band else 'not reached'}" for i in nearest]
