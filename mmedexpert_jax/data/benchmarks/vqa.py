"""The shared part of benchmarks of short answers: yes or no, or an open answer."""

from mmedexpert_jax.answers import yes_no_key
from mmedexpert_jax.data.benchmarks.rows import Row


def kind_of(answer: str) -> str:
    """ "yes_no" for those two words, else "open"; a word of another language is compared as `answers.gives` does."""
    return "yes_no" if answer.strip().rstrip(".").lower() in ("yes", "no") else "open"


def fields(row: Row) -> dict:
    """Question, answer, kind and the file's own key, as arguments of an item."""
    answer = row.text("answer")
    kind = kind_of(answer)
    return {
        "question": row.text("question"),
        "options": (),
        "answer": yes_no_key(answer) if kind == "yes_no" else answer,
        "kind": kind,
        "columns": {"raw_answer": answer},
    }
