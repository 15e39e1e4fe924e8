"""Wordings of the questions. The *_HELD_OUT ones occur in the test split only."""

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


def templates(pool: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Openers and asks of a pool: the test pool has its own."""
    return (OPENERS_HELD_OUT, ASKS_HELD_OUT) if pool == "test" else (OPENERS, ASKS)


def image_templates(pool: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Openers and asks of a pool for image tasks."""
    return (IMAGE_OPENERS_HELD_OUT, ASKS_HELD_OUT) if pool == "test" else (IMAGE_OPENERS, ASKS)


def sentence(text: str) -> str:
    """`text` with a capital first letter."""
    return text[:1].upper() + text[1:]
