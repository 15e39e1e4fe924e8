"""Wordings of the questions. The *_HELD_OUT ones occur in the test split only."""

from collections.abc import Sequence
from random import Random

OPENERS = (
    "A {who} with {context} has {findings}.",
    "{Context} in a {who}: {findings}.",
    "You assess a {who} with {context}: {findings}.",
    "Ward round, {context}. The {who} shows {findings}.",
    "Referred with {context}. Findings: {findings}.",
    "Case of {context}. On admission the {who} has {findings}.",
)
OPENERS_HELD_OUT = (
    "Ward round. On admission with {context} the {who} shows {findings}.",
    "You assess {context}. The {who} has {findings}.",
    "Case of a {who} with {context}. Findings: {findings}.",
)
IMAGE_OPENERS = (
    "{Context}.",
    "The image shows {context}.",
    "You assess {context}.",
    "Image: {context}.",
    "Look at the image, {context}.",
)
IMAGE_OPENERS_HELD_OUT = ("Look at {context}.", "You assess the image, {context}.")
ASKS = (
    "What is the {what}?",
    "Which {what} applies?",
    "Give the {what}.",
    "Which is the right {what}?",
    "Choose the {what}.",
)
ASKS_HELD_OUT = ("Give the right {what}.", "Which {what} is it?", "What {what} applies?")
NEUTRAL = (
    "no allergies",
    "well nourished",
    "lives nearby",
    "seen with family",
    "no recent travel",
    "usual appetite",
    "vaccines up to date",
    "no regular visits",
)


def question(rng: Random, pool: str, contexts: Sequence[str], what: str, of_image: bool = False, **fields: str) -> str:
    """An opener, with one of the contexts, and what is asked.

    Args:
        rng: draws context, opener and ask, in this order.
        pool: of the case.
        contexts: ways to name the clinical situation, or the image.
        what: what is asked for.
        of_image: the question is on an image.
        fields: more that openers on a text name: `who`, `findings`.
    """
    openers, asks = templates(pool, of_image)
    context = rng.choice(contexts)
    opener = rng.choice(openers).format(context=context, Context=sentence(context), **fields)
    return f"{opener} {rng.choice(asks).format(what=what)}"


def templates(pool: str, of_image: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Openers and asks of a pool: the test pool has its own."""
    openers, held_out = (IMAGE_OPENERS, IMAGE_OPENERS_HELD_OUT) if of_image else (OPENERS, OPENERS_HELD_OUT)
    return (held_out, ASKS_HELD_OUT) if pool == "test" else (openers, ASKS)


def sentence(text: str) -> str:
    """`text` with a capital first letter."""
    return text[:1].upper() + text[1:]
