"""Stage 2 (section 3.2): people review traces on a local page; every action is an event of an append-only trail."""

from mmedexpert_jax.mmedexpert.review.adjudication import Verdict, verdicts, waiting
from mmedexpert_jax.mmedexpert.review.agreement import agreement
from mmedexpert_jax.mmedexpert.review.review_job import describe, run

__all__ = ["Verdict", "agreement", "describe", "run", "verdicts", "waiting"]
