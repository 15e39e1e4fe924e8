"""The loop around a trainer's step: metrics, held-out evaluations, checkpoints, signals."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
from ml_collections import ConfigDict

from mmedexpert_jax.errors import Interrupted, UserError
from mmedexpert_jax.runtime import processes
from mmedexpert_jax.runtime.signals import Overdue
from mmedexpert_jax.train.learner import Learner
from mmedexpert_jax.train.optimizer import unreached
from mmedexpert_jax.train.policy import Evaluate
from mmedexpert_jax.train.state import State, check_finite, is_due, keep, restore, resume, save

if TYPE_CHECKING:
    from mmedexpert_jax.runtime import Run

SCORE = "eval/accuracy"  # the held-out figure that chooses the best checkpoint
Step = Callable[[State, int], tuple[State, dict[str, float]]]  # the state after step `number` (from 0), its metrics


def fit(
    config: ConfigDict,
    run: "Run",
    learner: Learner,
    step: Step,
    steps: int,
    label: str,
    key: jax.Array,
    evaluate: Evaluate | None = None,
    data: int = 0,
) -> State:
    """Runs `step` from the run's last checkpoint to the end, or until held-out evaluations get no better.

    A step's metrics are written before its evaluation and its checkpoint, which carries the score, after it. A signal
    during the evaluation saves the state first; the evaluation that was cut off is made again when the run goes on.

    Args:
        config: of the run; `eval.patience` evaluations without a better score end it, `eval.best` returns the state
            with the best one.
        run: where metrics and checkpoints go.
        learner: of the run.
        step: a function of the state and its number alone, so that a resumed run ends as one that never stopped.
        steps: of the run.
        label: of its progress.
        key: of the deltas' initialisation.
        evaluate: before, every `eval.every` steps, and after.
        data: `fingerprint` of the training cases.

    Raises:
        ConfigError: a loss that is not finite.
        UserError: what a step raises, once the state before it is saved.
        Interrupted: a signal came; a checkpoint is saved.
    """
    state = resume(run, dataclasses.replace(learner.init(key), data=data))
    if processes.is_writer() and (sentence := unreached(config, steps * learner.updates)):
        print(f"hint: {sentence}", flush=True)

    def evaluated() -> bool:
        """Evaluates the state, unless it has been; False where the run has not got better for long enough."""
        due = not state.step or is_due(state.step, config.eval.every, steps)
        here = (row for row in run.metrics() if row["step"] == state.step)
        if evaluate and due and not any(name.startswith("eval/") for row in here for name in row):
            _evaluate(run, learner, state, evaluate, steps)
        return not _is_stale(run, config)

    with run.progress(steps, state.step, label) as progress:
        goes_on = evaluated()
        while goes_on and state.step < steps:
            state, metrics = _stepped(run, state, step)
            check_finite(metrics, state.step, config)
            run.log(state.step, metrics | {"num_tokens": state.num_tokens, "compilations": learner.compilations})
            progress.update(state.step, metrics)
            goes_on = evaluated()
            keep(run, state, steps if goes_on else state.step, config.checkpoint_every, _score(run, config, state.step))
    return best(run, state) if config.eval.best else state


def _stepped(run: "Run", state: State, step: Step) -> tuple[State, dict[str, float]]:
    """The next state and its metrics; where a step is interrupted, or fails for a reason that the user can fix, such as
    a reward whose server is down, the state before it is saved first. One of several processes cannot save for all."""
    try:
        return step(state, state.step)
    except (UserError, Overdue) as error:
        if not state.step or processes.count() > 1:
            raise
        save(run, state)
        if not isinstance(error, Overdue):
            raise
        text = f"step {state.step} is saved; the same command resumes with the step that it was in"
        raise Interrupted(text, error.args[0]) from None


def _evaluate(run: "Run", learner: Learner, state: State, evaluate: Evaluate, steps: int) -> None:
    policy = learner.policy(state)
    try:
        run.log(state.step, evaluate(policy.params, state.step, policy.lora))
    except Interrupted as error:
        save(run, state)
        text = f"step {state.step} of {steps} is saved; the same command resumes with its evaluation"
        raise Interrupted(text, error.exit_code - 128) from None


def _score(run: "Run", config: ConfigDict, step: int) -> float | None:
    """The held-out score of a step, where checkpoints are chosen by it."""
    if not config.eval.best:
        return None
    return next((row[SCORE] for row in run.metrics() if row["step"] == step and SCORE in row), None)


def _is_stale(run: "Run", config: ConfigDict) -> bool:
    """True where the last `eval.patience` evaluations were no better than the best before them."""
    patience = config.eval.patience
    scores = [row[SCORE] for row in run.metrics() if SCORE in row] if patience else []
    return len(scores) > patience > 0 and max(scores[-patience:]) <= max(scores[:-patience])


def best(run: "Run", state: State) -> State:
    """The state of the checkpoint with the best held-out score; the given one where none has a score."""
    step = run.checkpoints.best()
    return state if step is None or step == state.step else restore(run, step, state)
