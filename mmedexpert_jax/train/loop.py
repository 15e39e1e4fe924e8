"""The loop around a trainer's step: metrics, held-out evaluations, checkpoints, signals."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import jax
from ml_collections import ConfigDict

from mmedexpert_jax.errors import Interrupted, UserError
from mmedexpert_jax.runtime import processes
from mmedexpert_jax.runtime.signals import Overdue
from mmedexpert_jax.train.learner import Learner
from mmedexpert_jax.train.optimizer import unreached
from mmedexpert_jax.train.policy import Evaluate
from mmedexpert_jax.train.state import (
    State,
    check_statistics,
    check_weights,
    is_due,
    keep,
    restore,
    resume,
    save,
    save_once,
)

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

    A step's metrics are written first, then a checkpoint that is due, then its evaluation is made, whose score, where
    checkpoints are chosen by it, is saved with the state. A signal during the evaluation saves the state; the
    evaluation that was cut off is made again when the run goes on.

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
        """Evaluates the state where that is due, unless it has been; False where the run has not got better for long
        enough."""
        due = not state.step or is_due(state.step, config.eval.every, steps)
        if not evaluate or not due:
            return True
        rows = run.metrics()
        here = (row for row in rows if row["step"] == state.step)
        if not any(name.startswith("eval/") for row in here for name in row):
            if state.step and is_due(state.step, config.checkpoint_every, steps):
                save_once(run, state)  # before minutes in which the process may be killed
            _evaluate(run, learner, state, evaluate, steps)
            rows = run.metrics()
        score = next((row[SCORE] for row in rows if row["step"] == state.step and SCORE in row), None)
        if config.eval.best and state.step and score is not None:
            save(run, state, score)  # also of an evaluation before a kill, which may not have come to this
        return not _is_stale(rows, config)

    with run.progress(steps, state.step, label) as progress:
        goes_on = evaluated()
        while goes_on and state.step < steps:
            state, metrics = _stepped(run, state, step)
            check_statistics(metrics, state.step, config)
            # Of a loss that was finite an update may still be none; looked for where it would be kept, not each step.
            if is_due(state.step, config.checkpoint_every, steps):
                check_weights(state, config)
            run.log(state.step, metrics | {"num_tokens": state.num_tokens, "compilations": learner.compilations})
            progress.update(state.step, metrics)
            goes_on = evaluated()
            keep(run, state, steps if goes_on else state.step, config.checkpoint_every)
    if state.step < steps and processes.is_writer():
        print(
            f"held-out answers got no better for {config.eval.patience} evaluations: ended at step {state.step} of "
            f"{steps}; eval.patience={2 * config.eval.patience} goes on",
            flush=True,
        )
    return best(run, state) if config.eval.best else state


def _stepped(run: "Run", state: State, step: Step) -> tuple[State, dict[str, float]]:
    """The next state and its metrics; where a step is interrupted, or fails for a reason that the user can fix, such as
    a reward whose server is down, the state before it is saved first. One of several processes cannot save for all, and
    an update gives up the arrays of the state before it: then the last checkpoint stands."""
    try:
        return step(state, state.step)
    except (UserError, Overdue) as error:
        given_up = any(getattr(leaf, "is_deleted", bool)() for leaf in jax.tree.leaves(state.trained))
        if not state.step or processes.count() > 1 or given_up:
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
    except (Interrupted, Overdue) as error:
        save_once(run, state)
        text = f"step {state.step} of {steps} is saved; the same command resumes with its evaluation"
        signum = error.exit_code - 128 if isinstance(error, Interrupted) else error.args[0]
        raise Interrupted(text, signum) from None


def _is_stale(rows: Iterable[Mapping[str, Any]], config: ConfigDict) -> bool:
    """True where the last `eval.patience` evaluations of a run's metrics were no better than the best before them."""
    patience = config.eval.patience
    scores = [row[SCORE] for row in rows if SCORE in row]
    return len(scores) > patience > 0 and max(scores[-patience:]) <= max(scores[:-patience])


def best(run: "Run", state: State) -> State:
    """The state of the checkpoint with the best held-out score; the given one where none has a score."""
    step = run.checkpoints.best()
    return state if step is None or step == state.step else restore(run, step, state)
