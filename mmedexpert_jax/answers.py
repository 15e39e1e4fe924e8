"""The one parser of `<think>` and `<answer>`, for rewards, filters and evaluation; linear in the text's length."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mmedexpert_jax.comparison import folded, folding, normalised, same_text, signs, spelled, token_f1, words_of
from mmedexpert_jax.statements import NO_LABEL, WORDS, YES_AND_NO, opening, readable, stated, stated_texts, unstopped

LETTERS = "ABCDEFGHIJ"
_FLAGS = re.DOTALL | re.IGNORECASE


# A response taken apart: its reasoning, and what is said outside it.

_TAG = re.compile(r"</?(?:think|answer)>", re.IGNORECASE)
# A tag with blanks in it, or escaped as HTML or Markdown escapes it.
_LOOSE_TAG = re.compile(
    r"(?:&lt;|\\?[<＜])\|?\s{0,4}(/?)\s{0,4}(think|thinking|thought|reasoning|answer)\s{0,4}\|?(?:&gt;|\\?[>＞])",
    re.IGNORECASE,
)
# Marks of reasoning beside <think>, opening and closing: of Magistral, Kimi, MedGemma, Gemini, Seed, Cohere, openPangu.
_OWN_MARKS = (
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    *((f"<{name}>", f"</{name}>") for name in ("thinking", "thought", "reasoning", "seed:think")),
    ("<unused94>thought\n", "<unused95>"),
    ("<unused94>", "<unused95>"),
    ("<|channel>thought", "<channel|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("[unused16]", "[unused17]"),
)
# Elements that some prompts ask for, which may also be headings, and Ollama's lines: reasoning where they are closed.
_ELEMENTS = (
    *((f"<{name}>", f"</{name}>") for name in ("cot", "analysis", "scratchpad", "reflection")),
    ("Thinking...", "...done thinking."),
)
REASONING_MARKS = (*_OWN_MARKS, *_ELEMENTS)
_CLOSED = "|".join(
    (
        r"<think>.*?(?:</think(?:ing)?>|\Z)",
        *(rf"{re.escape(mark)}.*?(?:{re.escape(end)}|\Z)" for mark, end in _OWN_MARKS),
        *(rf"{re.escape(mark)}(?:(?!{re.escape(mark)}).)*?{re.escape(end)}" for mark, end in _ELEMENTS),
    )
)
# Reasoning, closed or not; of gpt-oss with its special tokens and without.
_REASONING = re.compile(
    rf"{_CLOSED}|<\|channel\|>analysis<\|message\|>.*?(?:<\|end\|>|(?=<\|channel\|>final)|\Z)"
    r"|\Aanalysis(?-i:(?=[A-Z])).*?assistantfinal",
    _FLAGS,
)
# A closed element of any other name that says so, as <rationale> or <details type="reasoning">.
_TAGS = re.compile(r"<(?P<end>/?)(?P<name>[a-z][\w:-]{0,40})(?P<more>\s[^<>]{0,200})?>", re.IGNORECASE)
_SAYS_SO = re.compile(r"think|thought|reason|rationale|(?:long|[_-])cot\b", re.IGNORECASE)
# "## Thinking" as the first line, up to "## Final Response", as HuatuoGPT writes.
_HEADED = re.compile(
    r"\A\s*[#*_]{0,6}\s?(?:thinking|thoughts?|(?:thought|reasoning)\s+process|reasoning|(?:思考|推理)(?:过程)?)"
    r"[ \t]*[:：]?[*_ \t]*\n.*"
    r"^[#*_ \t]{0,8}(?:(?:final\s+)?(?:response|answer)|最终(?:回答|答案)|回答|答案)[*_ \t]*(?:[:：][*_]*|$)",
    _FLAGS | re.MULTILINE,
)
# Ends of reasoning whose beginning stands in the prompt.
_ENDS = re.compile("|".join(re.escape(end) for end in ("</think>", *(end for _, end in _OWN_MARKS))), re.IGNORECASE)
_FINAL = re.compile(r"<\|channel\|>final<\|message\|>")
# The end of a turn, behind which a model that is not stopped speaks for the user; not one inside its answer.
_TURN_END = re.compile(
    r"(?:<\|(?:end_?of_?text|im_end|eot_id|eom_id|eot|end|return|eos|end_of_turn|end_of_turn_token)\|>|<｜end▁of▁sentence｜>"
    r"|</s>|<(?:eos|end_of_turn|end_of_utterance|turn\|)>)(?!\s*(?:</answer>|\}))"
    r"|<\|user\|>|\[INST\]|^(?:#{2,3}\s?(?:Human|User|Instruction)|Human|User):",
    re.IGNORECASE | re.MULTILINE,
)
# A prompt that is echoed before its answer, up to the first turn of the one who answers.
_ECHOED = re.compile(
    r"\A\s*+(?:<s>|<bos>|<\|begin_of_text\|>)?\s*+(?:<\|im_start\|>\s?(?:system|user)\b|<\|start_header_id\|>\s?(?:system|user)\b"
    r"|<start_of_turn>user\b|<\|(?:system|user)\|>).*?"
    r"(?:<\|im_start\|>\s?assistant\b|<\|start_header_id\|>\s?assistant<\|end_header_id\|>|<start_of_turn>model\b|<\|assistant\|>)",
    _FLAGS,
)
# Special tokens that a server leaves in, with the name of who speaks.
_TOKENS = re.compile(
    r"<\|(?:im_start|start_header_id|start)\|>\s?assistant\b|<[|｜][^<>|｜\n]{1,40}[|｜]>|</?s>"
    r"|<(?:eos|bos|pad|end_of_turn|end_of_utterance|unused\d+)>"
)
_STRUCK = re.compile(r"(?<=[^\s>])\s?<s>[^<>\n]*</s>")  # HTML's, not the token at the beginning of a text
_ANSWER = re.compile(r"<answer>((?:(?!</?answer>).)*)</answer>", _FLAGS)
_JOINT = re.compile(r"\s*(or|and|/)\s*", re.IGNORECASE)
_FORM = ["<think>", "</think>", "<answer>", "</answer>"]


@dataclass(frozen=True)
class Answer:
    """A response taken apart."""

    think: str | None  # text of the first think block; None where there is none
    answer: str | None  # text of the last answer block outside the reasoning, stripped; None where there is none
    # the response is one think block and one answer block, neither empty nor nested, and nothing else but white space
    well_formed: bool


def parse(text: str) -> Answer:
    """Takes a response apart. Tags may be of either case and span lines; what stands in a think block, closed or
    not, is never read as an answer."""
    tags = [(tag.group().lower(), tag.start(), tag.end()) for tag in _TAG.finditer(text)]
    think = None
    if start := next((end for name, _, end in tags if name == "<think>"), None):
        stop = next((begin for name, begin, _ in tags if name == "</think>" and begin >= start), None)
        think = None if stop is None else text[start:stop].strip()
    answer_block = _last_block(spoken(text))
    well_formed = False
    if [name for name, _, _ in tags] == _FORM:
        before, reasoning, between, answer, after = _TAG.split(text)
        well_formed = bool(reasoning.strip() and answer.strip()) and not (before + between + after).strip()
    return Answer(think, answer_block, well_formed)


def _last_block(text: str) -> str | None:
    """Content of the last answer block, of several that "or" or "and" join, which are one answer, of all these; None
    where there is none."""
    joined: list[str] = []
    end = 0
    for block in _ANSWER.finditer(text):
        joint = _JOINT.fullmatch(text, end, block.start()) if joined else None
        joined = [*joined, joint[1], block[1]][-9:] if joint else [block[1]]  # of a longer chain its ends are enough
        end = block.end()
    return " ".join(joined).strip() if joined else None


def spoken(text: str) -> str:
    """The part of `text` outside its reasoning (think blocks, closed or not, and other marks of it), up to the end of
    its turn, without special tokens."""
    text = _REASONING.sub("", _LOOSE_TAG.sub(r"<\1\2>", _ECHOED.sub("", text)))
    text = _without_elements(text)
    if final := _FINAL.search(text):
        text = text[final.end() :]
    ends = [mark.end() for mark in _ENDS.finditer(text)]
    text = _HEADED.sub("", text[ends[-1] :] if ends else text)
    turns = (_TOKENS.sub("", turn) for turn in _TURN_END.split(_STRUCK.sub("", text)))
    return next((turn for turn in turns if turn.strip()), "")


def headed(text: str) -> str:
    """The reasoning under a heading that says so, as "## Thinking"; "" where there is none."""
    found = _HEADED.match(_ECHOED.sub("", text))
    return "\n".join(found[0].strip().splitlines()[1:-1]).strip() if found else ""


def _without_elements(text: str) -> str:
    """`text` without closed elements whose tag says that they are reasoning, from the last opening before a closing."""
    opened: dict[str, int] = {}
    kept, end = [], 0
    for tag in _TAGS.finditer(text):
        name = tag["name"].lower()
        if not tag["end"] and "answer" not in name and _SAYS_SO.search(tag[0]):
            opened[name] = tag.start()
        elif tag["end"] and (start := opened.pop(name, -1)) >= end:
            kept.append(text[end:start])
            end = tag.end()
    return "".join((*kept, text[end:]))


# Marks and words around an answer.

# What may stand around an answer without changing it: LaTeX, Markdown, code, brackets, quotes.
_WRAPPED = re.compile(
    r"\\(?:f?boxe?d?|text\w{0,6}|math\w{1,6}|rm|bf|operatorname|underline|emph)\s*\{(?P<latex>.*)\}"
    r"|\$\$?(?P<math>[^$]*)\$\$?|\\\((?P<inline>.*)\\\)|\\\[(?P<display>.*)\\\]"
    r"|(?P<star>\*{1,3}|_{1,2})(?P<bold>.*)(?P=star)|(?P<tick>`{1,6}(?!`))(?:(?<=```)[a-z]{0,12}\s*\n(?!\s*(?P=tick)))?(?P<code>.*)(?P=tick)"
    r"|\[(?P<bracket>.*)\]|\{(?P<brace>.*)\}|\"(?P<quote>.*)\"|“(?P<curly>.*)”|'(?P<single>.*)'|[«„「『【](?P<foreign>.*)[»“”」』】]"
    r"|<(?P<html>b|i|u|p|strong|em|code|span)>(?P<inner>.*)</(?P=html)>",
    _FLAGS,
)
_INSIDE = tuple(name for name in _WRAPPED.groupindex if name not in ("star", "tick", "html"))
_LISTED = re.compile(r"^(?:[-•*:=]|#{1,6})\s+(?=\D)")  # a mark of a list, a heading or a field before an answer
# Before an open answer, which may begin with "It is" or a choice's words itself.
_NAME = re.compile(
    r"[\"'“]?(?:(?:the\s+|my\s+)?(?:(?:final|correct|right|best|most likely)\s+)*answer\b[\"'”*_]*\s*"
    r"(?:is\b\s*[:：]?|[:：])|(?:最终|正确)?答案[\"'”*_]*(?:是|为|[:：]))\s*[*_]*",
    re.IGNORECASE,
)


def unwrap(text: str) -> str:
    r"""`text` without the LaTeX, Markdown, code marks, brackets and quotes that stand around all of it.

    "**B**", "$B$", "`B`", "\boxed{\text{B}}" and "[B]" are all "B"; full-width letters become plain ones.
    """
    text = readable(text).strip()
    text = words_of(text).strip() if "\\" in text else text
    for _ in range(8):  # deeper nesting than people write
        text = _LISTED.sub("", text)
        if not (wrapped := _WRAPPED.fullmatch(text.rstrip(".,;"))):
            return text.rstrip(",;") or text
        text = next(wrapped[name] for name in _INSIDE if wrapped[name] is not None).strip()
    return text


def without_name(bare: str) -> str:
    """An unwrapped answer without its name before it: "The answer is gout", '"answer": "gout"'."""
    return unwrap(_NAME.sub("", bare, count=1))


def boxed(text: str) -> str | None:
    r"""Content of the last `\boxed{...}` (or `\fbox`, or `\boxed B`), unwrapped; None where there is none or its braces
    are not balanced."""
    starts = [match.end() for match in re.finditer(r"\\(?:boxed|fbox)\s*\{", text)]
    if not starts:
        bare = re.findall(r"\\boxed\s+([A-Ja-j])\b", text)
        return bare[-1] if bare else None
    depth = 1
    for place in range(starts[-1], len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if not depth:
            return unwrap(text[starts[-1] : place])
    return None


# The letter of an option.

_LABEL = re.compile(
    rf"[(\[](?P<a>[A-Ja-j])[)\]][.:]?(?P<x>.*)|(?P<b>[A-Ja-j]){NO_LABEL}(?:(?:[.):]|\s+[-–—]\s)(?P<y>.*)|\s*\((?P<z>.+)\))?",
    re.DOTALL,
)
# "B Pneumonia", "B, Pneumonia", "Pneumonia (B)": only believed if the text is the option's own
_SPACED = re.compile(
    r"(?P<a>[A-J])(?:\s*(?:[,;=|/→]|[=-]>)\s*|\s+)(?P<x>.+)"
    r"|(?P<y>.*\S)\s*+(?:\((?P<b>[A-J])\)|[,–—-]\s*(?:[Oo]ption\s+)?(?P<c>[A-J]))",
    re.DOTALL,
)
_NAMED = re.compile(
    r"(?:the\s+|my\s+)?(?:(?:final|correct|right|best|most likely)\s+)*(?:answer|option|choice|letter|答案|选项|選項)"
    r"(?:\s+(?:is|would be|should be))?\s*[:：]?\s*(?:(?:option|choice)\s+)?|it\s+is\s+|应选|故选|选|應選|故選|選",
    re.IGNORECASE,
)
# "C, not B" and "C (rather than B)", which name C
_NOT_THE_OTHER = re.compile(
    r"(?<=\S)(?:\s{0,8}[,;(—–-])?\s{0,8}\b(?:(?:and\s)?not|rather\sthan|instead\sof)\s(?:option\s)?\(?[A-J]\)?\)?[.!]?\s{0,8}\Z"
)
_DENIED_END = re.compile(
    r"(?:[(:–—-]\s*(?:is\s+)?(?:not\s+correct|incorrect|wrong|false|no|excluded|ruled\s+out|unlikely)|[✗✘❌✖☒])[\s).!]*\Z",
    re.IGNORECASE,
)
_DENIED = re.compile(
    r"(?:is\s+)?(?:not|never|cannot|can['’]t|wrong|incorrect|false|unlikely|doubtful|excluded|eliminated|ruled\s+out)\b",
    re.IGNORECASE,
)
# "A fracture", but not the label of "A is", "A and"
_ARTICLE_A = re.compile(
    r"\bA\s+(?!(?:is|are|was|and|or|if|not|but|because|since|as|can|could|may|might|would|also|too|instead)\b)(?=[a-z])"
)
_OPENING_ARTICLE = re.compile(r"(?:^[-*•\s]{0,4}|(?<=[.!?]\s))A\s+(?=[a-z])", re.MULTILINE)  # "A gout is unlikely."
# Behind a label: "i.e.", and where a name ends, behind a stop that may close a sentence and behind any other mark.
_NAMELY = re.compile(r"\A(?:i\.\s?e\.|namely|meaning|that\s+is)[,:]?\s*", re.IGNORECASE)
_REASON = r"\s+(?:because|since|as|due|given)\b"
_SENTENCE_END = re.compile(rf"[.;!?](?=\s|$)|{_REASON}", re.IGNORECASE)
_CLAUSE_END = re.compile(rf"[.,;:!?](?=\s|$)|[()*]|{_REASON}", re.IGNORECASE)


def choice(response: str, options: Sequence[str]) -> str | None:
    r"""Letter of the option that a response chooses, or None.

    Only the last answer block counts. It may hold a label ("C", "(C)", "C.", "C)", "C:", "C - text", of either case),
    a label and text ("C: text", "C (text)", and "text (C)" where it is the option's own), or the exact text of one
    option (case, white space, a final stop, "the" and the form of dashes aside), each also behind words such as
    "Option" or "The answer is" and inside Markdown, LaTeX or brackets ("**C**", "\boxed{C}"). A label wins over an
    option whose text is that same letter, but not over an option's whole text ("A. fumigatus"). A label and text that
    name two different options, a label beyond the options, and any other text choose nothing, unless its statements
    (`statements.stated`) name one letter ("Die Antwort ist C", "C is correct") or it opens with the yes or no that
    one option is (`yes_or_no`).

    Args:
        response: the whole completion.
        options: option texts without letters, in order; at most 10.
    """
    answer = parse(response).answer
    if not answer:
        return None
    if letter := chosen(answer, options):
        return letter
    fold = folding(tuple(options))
    if _labelled(answer, [fold(option) for option in options], fold)[0]:
        return None  # a label beyond the options, or with another option's text: no statement mends it
    return by_statements(set_apart(answer, options), options, [yes_or_no(answer, options)])


def chosen(answer: str, options: Sequence[str]) -> str | None:
    """Letter of the option that a text, an answer without its tags, names as a label or by its text; None where it
    does not. As `choice`, but statements are not read."""
    if not answer.strip():
        return None
    fold = folding(tuple(options))
    texts = [fold(option) for option in options]
    bare = _NOT_THE_OTHER.sub("", answer)
    said = {answer, unwrap(answer), unwrap(bare), _unnamed(unwrap(bare))}
    forms = {fold(text) for text in said | set(map(spelled, said))}
    named = [LETTERS[i] for i, text in enumerate(texts) if not forms.isdisjoint((text, fold(spelled(options[i]))))]
    label, text = _labelled(bare, texts, fold)
    if not label or label not in LETTERS[: len(options)]:
        return named[0] if len(named) == 1 else None
    return None if _names_another(label, text, options[LETTERS.index(label)], texts, fold) else label


def by_statements(told: str, options: Sequence[str], others: Sequence[str | None], remarks: bool = False) -> str | None:
    """The one letter that a text's statements name (`statements.stated`), unless another option's text stands beside
    it. Where no letter is stated, the one on which all agree that is said elsewhere: in the texts that are stated
    ("the diagnosis is asthma") and in `others`, letters that parts of the text choose. None where several are named.

    Args:
        told: `set_apart`.
        options: texts without letters.
        others: None among them is passed over.
        remarks: reads a remark ("option B fits") where nothing else is said.
    """
    letters = LETTERS[: len(options)]
    named = stated(told, letters, remarks=False)
    if not named:
        read = {*others, *(chosen(text, options) for text in stated_texts(told))} - {None}
        if read or not remarks:
            return read.pop() if len(read) == 1 else None
        named = stated(told, letters) or set()
    if len(named) != 1 or _beside_another(told, min(named), options):
        return None
    return min(named)


def set_apart(text: str, options: Sequence[str]) -> str:
    """`text` with a stop between a letter and its own option's text, whose words may else deny the letter: "C非小细胞
    肺癌"."""
    for letter, option in zip(LETTERS, options, strict=False):
        if option.strip() and not (letter == "A" and option[0].isascii()):  # "A pneumonia is likely"
            text = re.sub(rf"(?<![A-Za-z])({letter}[)\]]?)\s?(?={re.escape(option.strip())})", r"\1. ", text)
    return text


def without_list(text: str, options: Sequence[str]) -> str:
    """`text` without lists of all options with their labels, each before its own text, which state nothing."""
    if len(options) < 2 or not all(option.strip() for option in options):
        return text
    listed = r"[\s,;|/*-]{0,8}".join(
        rf"[(\[*]{{0,3}}{letter}[)\].:*]{{1,4}}\s{{0,4}}{re.escape(option.strip().rstrip('.'))}\.?"
        for letter, option in zip(LETTERS, options, strict=False)
    )
    return re.sub(rf"(?<!\w){listed}(?!\w)", "\n#\n", text, flags=re.IGNORECASE)


def yes_or_no(text: str, options: Sequence[str]) -> str | None:
    """Letter of the option that is the "yes" or "no" with which a text opens ("Yes, it is"), or else the only one that
    says the same in another language; None where there is none."""
    if (said := opening(readable(text))) is None:
        return None
    beside = re.match(r"\W*\w+\s*\(([A-J])\)", text)  # "Yes (B)"
    texts = [folded(option) for option in options]
    same = [place for place, option in enumerate(texts) if option == folded(said[0])]
    same = same or [place for place, option in enumerate(texts) if WORDS.get(option) == said[1]]
    letter = LETTERS[same[0]] if len(same) == 1 else None
    return None if beside and beside[1] != letter else letter


def _labelled(answer: str, texts: Sequence[str], fold: Callable[[str], str]) -> tuple[str, str]:
    """The letter that an answer begins with and the text behind it; ("", "") where it begins with none. `texts` are the
    options under `fold`."""
    bare = re.sub(r"^(\W?[A-Ja-j]\W?)[。、]", r"\1.", unwrap(answer))
    for form in (bare, _unnamed(bare)):
        whole = fold(form)
        if len(whole) > 1 and texts.count(whole) == 1 and texts.index(whole) < len(LETTERS):
            return LETTERS[texts.index(whole)], ""
        if label := _LABEL.fullmatch(form):
            if _begins_another(form, (label["a"] or label["b"]).upper(), texts):
                return "", ""
            return (label["a"] or label["b"]).upper(), unwrap(label["x"] or label["y"] or label["z"] or "")
        if spaced := _SPACED.fullmatch(form):
            letter, text = spaced["a"] or spaced["b"] or spaced["c"], spaced["x"] or spaced["y"]
            if texts[LETTERS.index(letter) :][:1] == [fold(text)]:
                return letter, text
    return _bold_label(bare)


def _unnamed(bare: str) -> str:
    """An unwrapped answer without the words before its label or text: "The answer is B", "Option B"."""
    return unwrap(_NAMED.sub("", bare, count=1)) if _NAMED.match(bare) else bare


def _bold_label(bare: str) -> tuple[str, str]:
    """A label in marks of its own with the text behind it, such as "**B.** Pneumonia"; ("", "") where there is none."""
    marked = re.fullmatch(r"(\*{1,3}|_{1,2}|`+)(\(?[A-Ja-j]\)?[.:)]?)\1[.:)]?\s*(.*)", bare, re.DOTALL)
    if marked is None:
        return "", ""
    return marked[2].strip("().:").upper(), marked[3].strip()


def _names_another(letter: str, text: str, option: str, texts: Sequence[str], fold: Callable[[str], str]) -> bool:
    """True where the text after a label names another of the `texts` than its `option`, or denies that."""
    own, plain = texts[LETTERS.index(letter)], fold(text)
    if not plain:
        return False
    if plain == own or plain in texts:
        return plain != own
    if _DENIED.match(plain.removeprefix(own).lstrip(" :-–—")) or _DENIED_END.search(plain):
        return True
    text = _ARTICLE_A.sub("", text)
    beside = re.sub(re.escape(own), " ", text, flags=re.IGNORECASE) if own else text
    own_letters = {letter, *re.findall(r"\b[A-J]\b", option)}  # as in "hepatitis B virus"
    if not own_letters.issuperset(re.findall(rf"\b[{LETTERS[: len(texts)]}]\b", beside)):
        return True
    others = [other for other in texts if other != own and len(other) > 1]
    rest = plain.replace(own, " ") if own else plain
    return any(re.search(rf"(?<!\w){re.escape(o)}(?!\w)", plain if own in o else rest) for o in others)


def _beside_another(text: str, letter: str, options: Sequence[str]) -> bool:
    """True where the text of another option stands right behind a letter, as in "B (gout)", "B) gout" or "B, gout, as"
    where gout is C, or before it, as in "gout (option B)", or begins with the letter, as in "A. fumigatus"."""
    plain = [vote(option) for option in options]  # with the signs by which some differ
    own, own_words = plain[LETTERS.index(letter)], normalised(options[LETTERS.index(letter)])
    others = [option for option in plain if option and option != own]
    bracketed = rf"([^\n.,;:()]{{1,200}})\((?:option\s+|choice\s+)?{letter}\)"
    for before in re.findall(bracketed, text, re.IGNORECASE):
        said = f" {vote(before)}"
        if not said.endswith(f" {own}") and said.endswith(tuple(f" {other}" for other in others)):
            return True
    text = _OPENING_ARTICLE.sub("", text)
    for mark, rest in re.findall(rf"(?<!\w){letter}(?![\w'’])([)\]}}*]*\s*[.:;,=(–—-]?)\s*([^\n]{{1,300}})", text):
        rest = _NAMELY.sub("", rest)
        cut = re.split(_SENTENCE_END if "." in mark else _CLAUSE_END, rest, maxsplit=1)[0]
        inside = rest.partition(")")[0] if "(" in mark else rest
        if any(vote(f"{front}{form}") in others for front in ("", f"{letter}. ") for form in (rest, inside)):
            return True
        longer = normalised(cut) != own_words and f"{normalised(rest)} ".startswith(f"{own_words} ")
        if vote(cut) in others and not longer:
            return True
        if "." in mark and _begins_another(f"{letter}. {rest}", letter, [folded(option) for option in options]):
            return True
    return False


def _begins_another(text: str, letter: str, texts: Sequence[str]) -> bool:
    """True where the letter and the word behind it begin another of the `texts` than the letter's own begins with that
    word: "C. acnes infection" beside the option "C. acnes"."""
    found = re.match(r"[(\[]?([A-Ja-j])[)\]]?\.\s*([a-z]{3,})", text)
    place = LETTERS.index(letter)
    if found is None or place >= len(texts) or texts[place].startswith(found[2]):
        return False
    name = re.compile(rf"{found[1].casefold()}\.\s?{found[2]}\b")
    return any(name.match(other) for other in texts)


# Open answers, and yes or no.

# Another answer behind the first, which ends its clause: "No, wait: yes", but not "Yes, sorry, no more details".
_CHANGED = re.compile(
    r"\b(?:wait|actually|sorry|correction|i\s+mean)\W{1,4}(?:\w+\W{1,4}){0,4}?(?:yes|no)\b(?=\s*(?:[.,;:!?]|\Z))",
    re.IGNORECASE,
)
# A "no" elsewhere than at the start: of what is not there beside what is, "Pneumonia with no effusion".
_ASIDE = re.compile(
    r"\A(?!\W{0,8}(?:there\s+(?:is|are|was|were)\s+)?no\b).*\bno\s+(?!(?:because|since|as|it)\b)\w",
    re.DOTALL | re.IGNORECASE,
)
_NOT = re.compile(
    r"\b(?:not|never|cannot\s+be|n['’]t(?:\s+be)?)\s+(?:a\s+|necessarily\s+)?[\"“]?(?:yes|no)\b", re.IGNORECASE
)
# A reply that ends in its answer: "but the answer to the question is yes", "Is there none? Yes", "answer": true.
_ENDS_IN = re.compile(
    r"(?:\banswer\b(?:\s+to\s+[^.,:;\n]{1,40})?[\"”*]*\s*(?:is|:)|\?)\s*[\"“*]*(yes|no|true|false)\W*\Z", re.IGNORECASE
)
# A "no" that is no answer: of what is not there to see, of what nobody can tell, and before a number. It stands in a
# line with its noun, unlike "No\n\nThe answer is", and with no article, unlike "no the image is normal".
_NO_NOUN = r"\bno[^\S\n]+(?:(?!(?:the|this|that|these|those|its?|my|your|our)\b)\w+[^\S\n]+)?"
_NO_HAY = r"\bno\s+(?:hay|tengo|veo|existe|dispongo\s+de|se\s+ve)\s+"
_NO_ANSWER = re.compile(
    r"\b(?:there\s+is\s+)?no\s+(?:doubt|question|idea|clue|opinion|problem|worries|clear\s+view)\b"
    rf"|{_NO_NOUN}(?:images?|pictures?|photos?|photographs?|scans?|x-?rays?|radiographs?|attachments?|files?)\b"
    r"(?=\s*(?:$|[.,;:!?])|\s+(?:is|was|are|were|has|have|to|attached|provided|available|given|shown|included"
    r"|uploaded|here|with|for|from|so|and|but)\b)"
    rf"|{_NO_NOUN}(?:information|context|access)\b"
    r"(?=\s*(?:$|[.,;])|\s+(?:to|about|on|for|that|from|is|was|provided|available|given)\b)"
    # not "No data to suggest pneumonia", "No films with fracture"
    rf"|{_NO_NOUN}(?:films?|data|certainty|answer|conclusion)\b"
    r"(?=\s*(?:$|[.,;])|\s+(?:(?:is|are|was|were)\s+)?(?:provided|available|given|attached|shown|possible)\b)"
    r"|\bno\s+(?:way|means)\s+(?:to|of|for)\b"
    rf"|{_NO_NOUN}(?:answer|conclusion|determination)\s+(?:can|could|may|is\s+possible)\b"
    r"|\bno\s+(?:lo\s+)?(?:sé|puedo)\b"
    # Spanish, as `lacks` of yes_no_words.yaml, but not "No hay datos de malignidad", the wording of reports
    rf"|{_NO_HAY}(?:(?:la|el|una?|ninguna?)\s+)?(?:suficiente(?!\s+evidencia)|certeza|idea|duda|más\s+que|s[oó]lo\b)\w*"
    rf"|{_NO_HAY}(?:(?:la|el|una?|ninguna?|[^\W\d_]{{5,}})\s+)?"
    r"(?:im[aá]gen|radiograf[ií]|archivo|adjunt|fotograf[ií]|dato|informaci|acceso|respuesta)\w*"
    r"(?=\s*(?:$|[.,;:!?])|\s+(?:adjunt|disponib|proporcionad|enviad|suficient|sobre\b|a\b"
    r"|(?:para|que)\s+(?:responder|contestar|determinar|evaluar|anali[sz]ar|saber|mostrar)\b))"
    r"|\bno\s(?=\d)|\bno\.\s?(?=\d+\W*\Z|\d.{0,200}\byes\b)",
    re.IGNORECASE,
)
# A reply of one that has no image to look at, whatever yes or no it is polite with.
_IMAGES = r"(?:images?|pictures?|photos?|scans?|x-?rays?|radiographs?|attachments?|files?)\b"
_SEES_NOTHING = re.compile(
    rf"\bplease\s+(?:upload|provide|attach|share|send)\s+(?:it\b|(?:(?:the|an?|your|another)\s+)?(?:\w+\s+)?{_IMAGES})"
    rf"|\bno\s+(?:\w+\s+)?{_IMAGES}\s+(?:(?:is|was|were|has\s+been)\s+)?"
    r"(?:attached|provided|uploaded|included|given|shared)\b"
    rf"|\b(?:can(?:not|['’]t)|unable\s+to)\s+(?:\w+\s+)?(?:view|see|analy[sz]e|access|process|interpret)\s+(?:\w+\s+){{0,2}}{_IMAGES}",
    re.IGNORECASE,
)
# Of these a reply that opens with its answer: "Yes, I can help", "No, I can't view images", but not "an image of it".
_SEES_SO = re.compile(
    r"\b(?:I|we)(?:\s+(?:can|could|will|would)|['’](?:ll|d))\s+(?:\w+\s+)?(?:help|assist|analy[sz]e|look|review)\b"
    rf"|\bcan(?:not|['’]t)\s+\w+\s+(?:(?:the|any|your)\s+)?{_IMAGES}\W*\Z",
    re.IGNORECASE,
)


def is_right(response: str, options: Sequence[str], *golds: str) -> bool:
    """True where a response gives the answer: the letter that `choice` reads, or of an open question one of the
    reference texts as evaluation compares it (`gives`)."""
    if options:
        return choice(response, options) == golds[0]
    given = parse(response).answer
    return given is not None and gives(given, golds)


def gives(said: str, golds: Sequence[str]) -> bool:
    """True where an open answer is the `same_text` as one of `golds`, but for the marks around it and words such as
    "The answer is", or opens with the yes or no that one of them is, in any language; where all of them are such words,
    `yes_no` reads it, but for a "no" beside what is found, "Pneumonia with no effusion"."""
    bare = unwrap(said)
    if any(same_text(form, gold) for form in (bare, without_name(bare)) for gold in golds):
        return True
    keys = [yes_no_key(gold) for gold in golds]
    if all(keys):
        return yes_no(said, aside=False) in keys
    word = opening(without_name(bare))
    return word is not None and word[1] in keys


def open_f1(said: str, golds: Sequence[str]) -> float:
    """F1 of an open answer, without the marks around it, and the nearest of `golds`; 1 where it `gives` one."""
    bare = unwrap(said)
    if bare and gives(said, golds):
        return 1.0
    return max(token_f1(gold, bare) if normalised(gold) else 0.0 for gold in golds)


def vote(text: str) -> str:
    """The text under which an answer counts in a vote: one for all answers that `same_text` holds equal,
    but a list's comma, "1, 2", is no decimal mark."""
    bare = without_name(unwrap(text))
    return " ".join((normalised(bare) or bare, *signs(bare)))


def yes_no(text: str, aside: bool = True) -> str | None:
    """ "yes" or "no", or None, of an answer.

    The word of either that it ends in behind "the answer is" or a question; the one, in any of the languages of
    `statements.WORDS`, that opens it and ends its clause, or can mean nothing else, unless both stand side by side;
    else "yes" or "no" if exactly one of these two stands in it, undenied, and not before what is not there
    if `aside` is false. Nothing is read of one who sees no image.
    """
    if _SEES_NOTHING.search(text) and (_SEES_SO.search(text) or not opening(without_name(unwrap(text)))):
        return None
    text = unwrap(_NO_ANSWER.sub("", text))
    bare = without_name(text)
    words = re.findall(r"[^\W\d_]+", text.casefold())
    said = {WORDS[word] for word in words if word in ("yes", "no")}
    if YES_AND_NO.search(text) or (len(said) > 1 and _CHANGED.search(text)):
        return None
    first, last = opening(text) or opening(bare), _ENDS_IN.search(text)
    if last and not (first and last[0].startswith("?")):  # "Yes. Is this urgent? No." has answered before
        return WORDS[last[1].lower()]
    if first:
        return first[1]
    if sure := unstopped(bare):
        return sure
    if _NOT.search(text) or (not aside and _ASIDE.search(bare)):
        return None
    return said.pop() if len(said) == 1 else None


def yes_no_key(gold: str) -> str | None:
    """ "yes" or "no" where a key is that word in any language, case and stops aside; None of any other."""
    return WORDS.get(folded(gold.strip().rstrip("!！。.")))


# Options as they are shown and as files have them.

_OWN_LABEL = re.compile(r"\s*(?:[(（](\w)[)）]|(\w)[.):．：）、])\s*")
# Initials ("A.M."), a ratio ("A:G") or letters of things ("A、D、E"), but not "A:A", the label of a picture's part.
_THINGS = re.compile(
    r"\s*(\w)(?:[.．](?=[A-Za-z]\.)"
    r"|[:：、](?!\1)(?=[A-Z](?:[\s、，,;；/和及与或]|[均正都对错组]|[两二三四][组者项种]|$)))"
)
_NO_NAME = re.compile(rf"\s*\W?\w{NO_LABEL}")  # an option that is no name of a species with its genus cut


def lettered(options: Sequence[str], form: str = "{}. {}") -> list[str]:
    """Options with their letters before them."""
    return [form.format(letter, text) for letter, text in zip(LETTERS, options, strict=False)]


def unlabelled(options: Sequence[str]) -> list[str]:
    """Options without their labels, if each has its own ("A. text", "(A) text", "A: text")."""
    own = list(LETTERS[: len(options)]) == _own_labels(options) and not names_among(options)
    return [_OWN_LABEL.sub("", option, count=1) for option in options] if own else list(options)


def out_of_order(options: Sequence[str]) -> str:
    """The letters that the options carry themselves, where these are the first letters in another order, so that a key
    may mean an option by its place or by its letter; "" of any others."""
    labels = _own_labels(options)
    wanted = list(LETTERS[: len(options)])
    return ", ".join(labels) if labels != wanted and sorted(labels) == wanted else ""


def _own_labels(options: Sequence[str]) -> list[str]:
    if are_things(options) or not any(_NO_NAME.match(option) for option in options):  # all are names: "B. cereus"
        return []
    found = [_OWN_LABEL.match(option) for option in options]
    return [(label[1] or label[2]).upper() for label in found if label]


def are_things(options: Sequence[str]) -> bool:
    """True where the letters that each option begins with are no labels: two options "A:G" and "B:C", or any number of
    "A、B" and "B、C". Of three and more in order other marks are those of labels, whatever stands behind them."""
    found = [_THINGS.match(option) for option in options]
    return all(found) and (len(found) == 2 or all("、" in match[0] for match in found if match))


def names_among(options: Sequence[str]) -> bool:
    """True where the letters that may be labels are genera: at least half are, "A. baumannii", "B.cereus"."""
    return sum(not _NO_NAME.match(option) for option in options) * 2 >= max(1, len(options))


def counts_another(key: object, options: Sequence[str]) -> bool:
    """True where a whole number that is an option's text is also the number, from 0 or from 1, of another option."""
    if not isinstance(key, int) or isinstance(key, bool) or str(key) not in options:
        return False
    own = list(options).index(str(key))
    return any(0 <= place < len(options) and place != own for place in (key, key - 1))
