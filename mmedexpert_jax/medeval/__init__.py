"""Evaluation (paper section 5): answers, scoring, intervals, paired comparisons, tables."""

from mmedexpert_jax.intervals import wilson
from mmedexpert_jax.medeval.eval_job import answer, run
from mmedexpert_jax.medeval.evaluate import AnswerRow, Evaluation, compare_evaluations, evaluate
from mmedexpert_jax.medeval.scoring import judge_choice
from mmedexpert_jax.medeval.stats import bootstrap, compare, mcnemar

__all__ = [
    "AnswerRow",
    "Evaluation",
    "answer",
    "bootstrap",
    "compare",
    "compare_evaluations",
    "evaluate",
    "judge_choice",
    "mcnemar",
    "run",
    "wilson",
]
