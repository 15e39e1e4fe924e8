"""A case as a conversation: the one place where questions, guidelines and answers become text."""

from mmedexpert_jax import answers, border
from mmedexpert_jax.data.case import Case
from mmedexpert_jax.data.paradigms import PARADIGMS
from mmedexpert_jax.errors import ConfigError

ANSWER_FORMAT = (
    "Think in numbered statements inside <think></think>, then give the letter of the answer inside <answer></answer>."
)
ANSWERS = {  # kind of question -> the words of ANSWER_FORMAT that its answers stand for
    "choice": "the letter of the answer",
    "yes_no": "yes or no",
    "open": "the answer in a few words",
    "report": "the report",
}


def question(case: Case, paradigm: str | None = None, guideline: str | None = None) -> str:
    """The user's turn: question, lettered options, guideline text, the paradigm's instruction, answer format."""
    options = "\n".join(answers.lettered(case.options))
    instruction = ANSWER_FORMAT.replace(ANSWERS["choice"], ANSWERS[case.kind])
    if paradigm and paradigm not in PARADIGMS:
        raise ConfigError(f"no paradigm {border.shown(paradigm)}; choose one of {', '.join(PARADIGMS)}")
    if paradigm:
        instruction = f"{PARADIGMS[paradigm].instruction} {instruction}"
    return "\n".join(part for part in (case.question, options, guideline, instruction) if part)


def conversation(case: Case, paradigm: str | None = None, guideline: str | None = None) -> list[dict]:
    """The prompt of a case as a Hugging Face message list, images first.

    Args:
        case: the case.
        paradigm: asks for this way of reasoning, a prompt of P_guide (paper section 4.2); None asks for none.
        guideline: text of a clinical guideline to put before the instruction (open book).
    """
    images = [{"type": "image", "image": image} for image in case.images]
    return [{"role": "user", "content": [*images, {"type": "text", "text": question(case, paradigm, guideline)}]}]


def completion(case: Case) -> str:
    """The answer that supervised training imitates: the case's trace and key in their tags."""
    return render(case.trace, case.answer)


def render(trace: str, answer: str) -> str:
    """A trace and an answer, a letter or the reference text, in the format that `answers.parse` reads."""
    return f"<think>{trace}</think><answer>{answer}</answer>"
