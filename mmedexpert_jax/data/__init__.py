"""Cases and their batches: the record, its files, the prompts made of it, and the order in which a run sees it."""

from mmedexpert_jax.data import paradigms, prompts
from mmedexpert_jax.data.case import LETTERS, PARADIGMS, SPECIALTIES, Case
from mmedexpert_jax.data.case_files import load_cases

__all__ = ["LETTERS", "PARADIGMS", "SPECIALTIES", "Case", "load_cases", "paradigms", "prompts"]
