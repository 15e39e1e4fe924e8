"""Prompts of the evaluation kits and of the paper's models: an item becomes one conversation, or two turns of one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmedexpert_jax.answers import lettered
from mmedexpert_jax.data import prompts as training
from mmedexpert_jax.data.case import LETTERS, Case
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.medeval.scoring import kit_rule
from mmedexpert_jax.rollout import Reply

Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Question:
    """A case as a model is asked about it, and what it answered."""

    case: Case  # what is asked about
    style: str  # one of `styles()`
    messages: Messages  # the conversation, a Hugging Face message list; an image part holds an `ImageRef`
    form: str  # what the answer is asked to stand in, one of `scoring.FORMS`; `scoring.score` takes it
    # the user's second turn; "" where there is none. The answer to the second turn is the one scored.
    follow_up: str = ""
    paradigm: str | None = None  # the one that the prompt asks for; None where it asks for none
    # of its answer, `store.answer_key`, which depends on the model and the settings; "" until it is asked. The
    # randomness of a sampled answer comes from it.
    key: str = ""
    replies: Sequence[Reply] = ()  # the answers, one a sample; none until it is answered
    first: Sequence[Reply] = ()  # the replies to the first turn, where there are two

    @property
    def name(self) -> str:
        """Benchmark and id of the case, for errors and the store."""
        return f"{self.case.benchmark} {self.case.id}".strip()

    @property
    def row(self) -> int:
        """A number below 2**32 for the sampler."""
        return int(self.key[:8], 16)

    def then(self, response: str) -> "Question":
        """The second turn, after `response` to the first."""
        turns = [{"role": "assistant", "content": response.strip()}, {"role": "user", "content": self.follow_up}]
        return replace(self, messages=[*self.messages, *turns], follow_up="", key="")


def opened(messages: Messages) -> Messages:
    """The same conversation with the bytes of its images in place of their references. Raises DataError."""
    made = []
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = [
                {**part, "image": part["image"].plain()} if part["type"] == "image" else part for part in content
            ]
        made.append({**message, "content": content})
    return made


def styles() -> tuple[str, ...]:
    """Names that `build` takes."""
    return "think_answer", *_OF_PEERS


def build(item: Case, style: str, paradigm: str | None = None) -> Question:
    """The prompt of an item in a style.

    Args:
        item: what to ask.
        style: one of `styles()`; a conversation under a rubric is asked as it is, whatever the style.
        paradigm: adds the instruction of one of the paper's paradigms; only "think_answer" has a place for it.

    Raises:
        ConfigError: an unknown style, a paradigm where there is no place for it, or a style that asks for a letter and
            an item without options.
    """
    if style not in styles():
        raise ConfigError(f"no prompt {style!r}: choose one of {', '.join(styles())}")
    if item.kind == "rubric":  # a conversation as its file has it, which any style of prompt would change
        turns = [{"role": role, "content": text} for role, text in (*item.turns, ("user", item.question))]
        return Question(item, style, turns, "plain", paradigm=paradigm)
    if style == "think_answer":  # as in training (`data.prompts`); the form of answer is the paper's (appendix D)
        return Question(item, style, [_user(item, training.question(item, paradigm))], "tags", paradigm=paradigm)
    if paradigm:
        raise ConfigError(f"the prompt {style} has no place for a paradigm: use think_answer")
    if style in _LETTER_ONLY and item.kind != "choice":
        raise ConfigError(f"the prompt {style} asks for a letter, and {item.benchmark} {item.id} has no options")
    return Question(item, style, *_OF_PEERS[style](item))


def _user(item: Case, text: str, named: bool = False) -> dict[str, Any]:
    """A user's turn, images first, each after its name where `named`."""
    parts: list[dict[str, Any]] = []
    for number, image in enumerate(item.images, 1):
        parts += [{"type": "text", "text": f"<image_{number}>: "}] if named else []
        parts.append({"type": "image", "image": image})
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def _distributed(item: Case) -> str:
    """The question as its file has it (MedXpertQA's hold the choices), which is how the kits show it."""
    return item.columns.get("raw_question", item.question)


_KIT_ASKS = {  # rule of judgement -> (direct, reasoning), MedEvalKit git 9b12e3b, utils/question_formats.py
    "choice": (
        "Answer with the option's letter from the given choices directly.",
        'Answer with the option\'s letter from the given choices and put the letter in one "\\boxed{}".',
    ),
    "judgement": (
        "Please output 'yes' or 'no'(no extra output).",
        'Please output "yes" or "no" and put the answer in one "\\boxed{}".',
    ),
    "close": (
        "Answer the question using a single word or phrase.",
        'Answer the question using a single word or phrase and put the answer in one "\\boxed{}".',
    ),
    "open": (
        "Please answer the question concisely.",
        'Please answer the question concisely and put the answer in one "\\boxed{}".',
    ),
    "choice zh": (
        "请直接使用给定选项中的选项字母来回答该问题。",
        '请直接使用给定选项中的选项字母来回答该问题,并将答案包裹在"\\boxed{}"里',
    ),
    "close zh": ("请用一个单词或者短语回答该问题。", "请用一个单词或者短语回答该问题，并将答案放在一个'\\boxed{}'中。"),
    "open zh": ("请简要回答该问题。", "请简要回答该问题，并将答案放在一个'\\boxed{}'中。"),
}


def _medevalkit(item: Case, reasoning: bool = False) -> tuple[Messages, str]:
    """MedEvalKit's: no system turn; MedXpertQA's images, and several images of any, are named.

    The kit shows MedXpertQA's choices twice, since the file's questions hold them already, and of MMMU's images the
    first alone.
    """
    rule = kit_rule(item)
    chinese = " zh" if item.labels.get("language") == "zh" else ""
    if rule == "mmmu":
        options = "".join(f"{line}\n" for line in lettered(item.options, "({}) {}"))
        shown = "\n\n".join([item.question, options] if options else [item.question])
        text = f"\n{shown}\n\n        {_KIT_ASKS['choice' if options else 'close'][reasoning]}"
        item = replace(item, images=item.images[:1])
    elif rule == "choice":
        options = "\n".join(item.columns.get("raw_options", lettered(item.options)))
        question, choices = ("问题：", "选项：") if chinese else ("Question:", "Options:")
        text = f"\n{question} {_distributed(item)}\n{choices} \n{options}\n{_KIT_ASKS[rule + chinese][reasoning]}"
    else:
        asks = _KIT_ASKS[rule + chinese][reasoning] if rule != "report" else ""
        text = f"{_distributed(item)}\n{asks}".strip("\n")
    named = len(item.images) > 1 or item.benchmark == "medxpertqa_mm"
    form = "boxed" if reasoning and rule != "report" else "plain"  # the kit asks for no box around a report
    return [_user(item, text, named)], form


def _medxpertqa(item: Case) -> tuple[Messages, str, str]:
    """MedXpertQA's zero-shot chain of thought (git f21247d): two turns, images after the text."""
    question = _distributed(item).strip()
    if "Answer Choices:" not in question:
        question += "\nAnswer Choices: " + " ".join(lettered(item.options, "({}) {}"))
    images = [{"type": "image", "image": image} for image in item.images]
    text = {"type": "text", "text": f"Q: {question}\nA: Let's think step by step."}
    system = {"role": "system", "content": "You are a helpful medical assistant."}
    last = LETTERS[len(item.options) - 1]
    trigger = f"Therefore, among A through {last}, the answer is"
    return [system, {"role": "user", "content": [text, *images]}], "plain", trigger


def _medvlm_r1(item: Case) -> tuple[Messages, str]:
    """MedVLM-R1's, as on its model card, indentation included."""
    problem = "\n".join([item.question, *lettered(item.options, "{}) {}")])
    lines = (
        f"{problem} ",
        "Your task: ",
        "1. Think through the question step by step, enclose your reasoning process in <think>...</think> tags. ",
        "2. Then provide the correct single-letter choice (A, B, C, D,...) inside <answer>...</answer> tags.",
        "3. No extra information or text outside of these tags.",
        "",
    )
    return [_user(item, "".join(f"\n    {line}" for line in lines))], "tags"


def _med_r1(item: Case) -> tuple[Messages, str]:
    """Med-R1's (`src/eval_vqa/test_qwen2vl_vqa.py`): options in the line of the question."""
    problem = f"{item.question} {', '.join(lettered(item.options, '{}){}'))}"
    asks = (
        "Think through the question step by step in <think>...</think> tags. Then provide the correct single-letter "
        "choice (A, B, C, D,...) inside <answer>...</answer> tags."
    )
    return [_user(item, f"{problem} {asks}")], "tags"


def _medvlthinker(item: Case) -> tuple[Messages, str]:
    """MedVLThinker's (git a3163b1, `eval/run_offline_inference.py`); its line break is a backslash and an n."""
    asks = (
        "You will solve a problem/request. You should provide your thoughts within <think> </think> tags before "
        r"providing the answer.\nWrite your final answer within <answer> </answer> tags."
    )
    text = "\n\n".join([asks, f"Question: {item.question}", "Options:", *lettered(item.options)])
    return [_user(item, text)], "tags"


# The other styles: messages, form of answer and, where there are two turns, the second, as `Question` takes them.
_OF_PEERS: dict[str, Callable[[Case], tuple[Messages, str] | tuple[Messages, str, str]]] = {
    "medevalkit": _medevalkit,
    "medevalkit_reasoning": lambda item: _medevalkit(item, reasoning=True),
    "medxpertqa": _medxpertqa,
    "medvlm_r1": _medvlm_r1,
    "med_r1": _med_r1,
    "medvlthinker": _medvlthinker,
}
_LETTER_ONLY = ("medxpertqa", "medvlm_r1", "med_r1", "medvlthinker")
