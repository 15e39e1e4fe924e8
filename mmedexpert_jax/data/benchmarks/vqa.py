"""The shared part of benchmarks of short answers: yes or no, or an open answer."""

from mmedexpert_jax.data.benchmarks.rows import Row


def kind_of(answer: str) -> str:
    """ "yes_no" for those two words, else "open"."""
    return "yes_no" if answer.strip().lower() in ("yes", "no") else "open"


def fields(row: Row) -> dict:
    """Question, answer, kind and the file's own key, as arguments of an item."""
    answer = row.text("answer")
    kind = kind_of(answer)
    return {
        "question": row.text("question"),
        "options": (),
        "answer": answer.lower() if kind == "yes_no" else answer,
        "kind": kind,
        "columns": {"raw_answer": answer},
    }
