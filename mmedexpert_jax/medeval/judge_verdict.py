"""The verdict in a judge's reply, which may give reasons around it, deny, hedge and change its mind."""

import re

from mmedexpert_jax.answers import spoken

_WORD = re.compile(r"\b(?P<wrong>incorrect|wrong|false)\b|\b(?P<right>correct|right|true)\b", re.IGNORECASE)
_PART = r"partial(?:ly)?|partly|in part|to some extent|to a degree|half|ish|semi|except|apart from|incomplete"
_HEDGED = re.compile(
    rf"\b(?:{_PART}|arguably|largely|otherwise|almost|nearly|mostly|somewhat|possibly|perhaps|maybe|probably|might|may|could|"
    r"roughly|more or less|sort of|kind of|close to|either|unclear|unsure|uncertain|ambiguous|if|whether)\b",
    re.IGNORECASE,
)
# The verdict of a reply in JSON, whatever its reason says; "answer" and its like may hold what was answered.
_NAMED = re.compile(
    r"""["'](?:(?:final_|is_)?(?:verdict|judge?ment|correct(?:ness)?)["']\s*:\s*["']?(?P<word>correct|incorrect|true|false|yes|no|1|0)"""
    r"""|(?:label|grade|decision|answer|result|evaluation|conclusion)["']\s*:\s*["'](?P<said>correct|incorrect))["']?\s*(?=[,}\n]|\Z)""",
    re.IGNORECASE,
)
_YES = ("correct", "true", "yes", "1")
# A verdict without any of its words: "does not match the key".
_MISMATCH = re.compile(
    r"\b(?:(?:do|does|did)\s+not|(?:do|does|did)n['’]t|fails?\s+to)\s+(?:match|agree)\b", re.IGNORECASE
)
# A judge that cannot say, whatever it then says of "correct".
_UNABLE = re.compile(
    r"\b(?:can(?:not|['’]t)|unable\s+to|not\s+able\s+to)\s+(?:\w+\s+){0,2}(?:determine|verify|assess|judge|evaluate|provide"
    r"|help|assist|confirm|view|see|access|(?:tell|say|know)\s+(?:if|whether|what|which|how))\b|\bplease\s+(?:provide|upload|share)\b",
    re.IGNORECASE,
)
# A verdict of the other kind behind one that is begun: "CORRECT. However, ..., so INCORRECT".
_ON_ANOTHER = re.compile(
    r"\b(?:option|distractor|alternative|choice|other)\b[^.\n]{0,24}\bis\s+incorrect\b", re.IGNORECASE
)
_TAKEN_BACK = re.compile(
    r"(?<!not )\bINCORRECT\b|\bIncorrect(?=\s+overall|\s*(?:$|[.!]))"
    r"|(?i:\b(?:so|thus|therefore|hence|overall)\b[,:]?\s+(?:(?:it|the\s+\w+)\s+is\s+)?incorrect\b)",
    re.MULTILINE,
)
# A reply that takes its verdict back.
_CHANGED = re.compile(
    r"(?:^|[.!?:,\n]\s{0,8})(?:(?:oh|no|but)[, ]+)?(?:wait|hmm+|actually|sorry|correction"
    r"|(?:up)?on\s+(?:second\s+thoughts?|reflection)|let\s+me\s+re\w+|i\s+was\s+wrong)\b",
    re.IGNORECASE,
)
# A verdict behind it, and no remark such as "the right lung".
_GIVEN = re.compile(r"\b(?:IN)?CORRECT\b|(?i:\b(?:in)?correct\W*\Z)")
# A line that is a verdict in another language and nothing else, perhaps behind "yes" or what it is said of.
_ABROAD = re.compile(
    r"(?:(?:该|此|这个)?(?:回答|答案|判定|结论|評価|评价|答え)(?:是|为|は)?|はい|是的|(?:la\s+)?(?:respuesta|réponse|risposta|resposta)"
    r"(?:\s+(?:es|est|è|é))?|(?:die\s+)?antwort(?:\s+ist)?|ответ|s[ií]|ja|oui|да)?[\s:：,，、]{0,3}"
    r"(?:(?P<wrong>不正[确確解]|不对|[错錯][误誤]|間違い|incorrect[oae]|incorret[oa]|non\s+corrett[oa]|falsch|неверно|неправильно|오답)"
    r"|(?P<right>正[确確解]|correct[oae]|corret[oa]|corrett[oa]|richtig|верно|правильно|정답))(?:です|的|입니다)?",
    re.IGNORECASE,
)
_PARTIAL = re.compile(rf"\b(?:{_PART})\b", re.IGNORECASE)


def read(text: str) -> bool | None:
    """The verdict of a judge's reply; None where it holds none that can be read.

    A reply that begins with its verdict, or whose last line is nothing else, has said it: what stands around is the
    reason; what stands behind a change of mind ("Wait, ...") outweighs it. Any other is right only if all its
    verdicts are and nothing behind them limits them: "not correct", "partially correct", a question, or both words are
    a wrong answer. Of what a judge cannot tell, and of what is said to be correct of something else than the response,
    nothing is read. The right and left of a body are no verdict.
    """
    if named := {(match["word"] or match["said"]).lower() for match in _NAMED.finditer(spoken(text))}:
        return named.issubset(_YES)
    text = _bared(spoken(text))
    lines = [line.strip(" .!:。！：") for line in text.splitlines() if line.strip(" .!:。！：")]
    if not lines or not _WORD.search(text):
        abroad = {said.lastgroup for said in map(_ABROAD.fullmatch, (*lines[:1], *lines[-1:])) if said}
        if len(abroad) == 1:
            return abroad == {"right"}
        return False if _MISMATCH.search(text) else None
    changed = list(_CHANGED.finditer(text))
    rest = text[changed[-1].end() :] if changed else ""
    if _GIVEN.search(rest):
        return read(rest)
    ends = [verdict for line in (lines[0], lines[-1]) if (verdict := _bare(line)) is not None]
    if ends:
        return all(ends)
    if (opening := _WORD.match(text)) and re.match(r"\s*(?:[.,;:!–—-]|\n)", text[opening.end() :]):
        behind = _ON_ANOTHER.sub("", text[opening.end() :])
        reason = behind.split(".")[0]
        if opening["wrong"] or _PARTIAL.search(reason) or _TAKEN_BACK.search(behind):
            return False
        return True if opening[0].isupper() or not _HEDGED.search(reason) else None
    return None if _UNABLE.search(text) else _of_prose(text)


def _bare(line: str) -> bool | None:
    """The verdict of a line that is nothing else, such as "CORRECT", "Verdict: incorrect" or "Correct answer"."""
    word = re.fullmatch(
        r"(?:(?:final\s+)?(?:verdict|judge?ment|grade|result|answer|label)\s*:?\s*)?(\w+)"
        r"(?:\s+(?:final\s+)?(?:answer|response|diagnosis|option|choice)(?:\s+(?:given|chosen|selected))?)?",
        line,
        re.IGNORECASE,
    )
    found = _WORD.fullmatch(word[1]) if word else None
    return None if found is None else found["right"] is not None


# What `_bared` takes out of a reply, being no verdict, and what it puts into the words of one.

# "right" and "left" of the body, "true" and "false" before a part of it, and not a verdict: "the right lung".
_SIDE = re.compile(
    r"\bright(?=-sided|-hand|[^\S\n]+(?!(?:and|or|but|because|since|as|in|on|about|with|for|that|though|although|if|except"
    r"|here|too|also|overall|by|per|given|according|when|while|so|hence|to|at|only|it|this|that|they|we|answers?|responses?|options?"
    r"|choices?|diagnos[ie]s|keys?|one|final|letter|treatment|conclusion)\b)[a-z])"
    r"|\b(?:says|said|states?|stated|gives|gave|reads|side|laterality|the)\s*:?\s+right(?=\s*(?:$|[.,;:)\n]))"
    r"|\b(?:true|false)(?=\s+(?:vocal|cords?|lumen|ribs?|aneurysm|positives?|negatives?|labou?r|pelvis)\b)",
    re.IGNORECASE | re.MULTILINE,
)
# Beside a "left" of the body, "right" is its other side, but where it is said of the response.
_LEFT = re.compile(r"\bleft\b(?!\s+(?:out|open|unclear|unanswered))", re.IGNORECASE)
_RIGHT = re.compile(
    r"(?!\A)(?<!which is )(?<!response is )(?<!answer is )(?<!\bit is )(?<!that is )(?<!\bit['’]s )(?<!that['’]s )"
    r"\bright\b",
    re.IGNORECASE,
)
_WORDING = r"(?:spelling|wording|grammar|punctuation|capitali[sz]ation|format(?:ting)?)\b"
# A cross beside the word.
_CROSSED = re.compile(r"[❌✗✘✖][^\w\n]{0,8}correct\b|\bcorrect[^\w\n]{0,8}[❌✗✘✖]", re.IGNORECASE)
# The words that were asked for, repeated before one of them is given, and faults that the prompt says do not matter.
_ECHO = re.compile(r"[(\[]?\bcorrect\s*(?:/|\||or)\s*incorrect\b[)\]]?\??", re.IGNORECASE)
_NO_MATTER = re.compile(
    rf"\b(?:incorrect|wrong)\s+{_WORDING}|{_WORDING}\s+(?:is|are|was|were)\s+(?:\w+ly\s+)?(?:incorrect|wrong)\b",
    re.IGNORECASE,
)
# A field or question with its answer, such as {"is_correct": false}; "incorrect: false" stays wrong, being unclear.
_FIELD = re.compile(
    r"(?<![a-z])(?:is\s+(?:it|this|that|the\s+\w+)\s+|is[_ ])?correct(?:ness)?\s*(?:[:=?]|\s[-–])\s*"
    r"(?:(?P<yes>true|yes|y|1)|false|no|n|0(?:/\d+)?|none)(?=\s*(?:[.,;]|$))",
    re.IGNORECASE | re.MULTILINE,
)
# "The key says gout. The response is not."
_IS_NOT = re.compile(r"\b(?:response|answer|it)\s+(?:isn['’]t|is\s+not)(?=\s*(?:$|[.;!\n]))", re.IGNORECASE)
# "Response: False. Key: False. CORRECT": an answer of a question of yes and no, where the verdict stands in capitals.
_VALUE = re.compile(
    r"(?:\b(?:response|key|answer|reference)\s*:\s*[\"'“‘]?|[\"'“‘])(?:true|false)\b[\"'”’]?", re.IGNORECASE
)
_CAPITAL = re.compile(r"\b(?:IN)?CORRECT\b")


def _bared(text: str) -> str:
    """A reply without marks, sides of the body and what is no verdict, and with one for each field."""
    text = re.sub(r"\b(not|never)\s*\n\s*", r"\1 ", _NO_MATTER.sub("", _ECHO.sub(" ", text)), flags=re.IGNORECASE)
    text = _VALUE.sub(" ", text) if _CAPITAL.search(text) else text
    text = re.sub(r"[*_`\"“”{}\[\]<>#$]|(?<!\w)['’]|['’](?!\w)", " ", text).strip()
    text = _FIELD.sub(lambda field: "correct" if field["yes"] else "incorrect", text)
    text = _IS_NOT.sub(" is incorrect", _CROSSED.sub("incorrect", _SIDE.sub("", text)))
    return _RIGHT.sub("", text) if _LEFT.search(text) else text


# The words around a verdict in running text, for `_of_prose`.

# "correct" before a noun is a verdict where the response is said to give it: "states the correct answer".
_BEFORE_A_NOUN = re.compile(
    r"\s+(?!(?:and|n?or|but|because|since|as|in|on|about|with|for|that|though|although|if|except|here|too|also|overall|by|per"
    r"|given|according|when|while|so|hence|to|at|only|it|this|they|we|of|from|under|despite|yet|is|was)\b)[a-z]"
    r"|\s+that\s+the\s+(?:key|reference)\b",
    re.IGNORECASE,
)
_GIVES = re.compile(
    r"(?:n['’]t|\b(?:g[ia]ves?|states?|names?|cho[ao]?ses?|is|was|has|had|gets?|got|(?:match|reach|identif|provid|contain|includ|select"
    r"|mention|pick)\w*|arriv\w+\s+at|equivalent\s+to|consistent\s+with|agrees?\s+with|same\s+as|equals?|corresponds?\s+to|not))"
    r"\s+(?:the\s+|an?\s+)?$",
    re.IGNORECASE,
)
_IS_GIVEN = re.compile(
    r"\s+\w+\s+(?:is|was)\s+(?:given|stated|named|chosen|selected|identified|reached)\b", re.IGNORECASE
)
_MISSES = re.compile(
    r"\b(?:instead\s+of|rather\s+than|differs?\s+from|contradicts?|miss(?:es|ed)|omits?|lacks?|needs?|fails?)\b",
    re.IGNORECASE,
)
# A judge that says what would be correct, unless it adds that this was said.
_KEY_IS = re.compile(
    r"\b(?:correct|right)\s+(?:that\s+the\s+\w+|\w+(?:\s+\w+)?)\s*(?:\b(?:is|was|are|(?:sh|w)ould\s+be)\b|[:=])",
    re.IGNORECASE,
)
_SAME = re.compile(r"\b(?:match\w*|same|agrees?|equivalent|which\s+the\s+(?:response|answer|model))\b", re.IGNORECASE)
# Behind a verdict, what it is then not said of: "correct on the organ but misses the side"; not what does not matter.
_CONTRAST = re.compile(
    rf"\b(?:(?:but|however|yet)\b(?!,?\s+(?:(?:it\s+|is\s+){{0,2}}(?:adds|(?:more\s+)?verbose|long(?:er|-winded)?)\b|the\s+(?:phrasing|{_WORDING})))|miss(?:es|ed|ing)|lacks?|omits?|(?:is|are|was|does|did|has)(?:\s+not|n['’]t))(?!\w|\s+matter)",
    re.IGNORECASE,
)
_TURNED = re.compile(
    r"\b(?:not(?! only)|never|nothing|cannot|neither|nor|hardly|n['’]t|in|far from|fail(?:s|ed)? to|less than|"
    r"anything but|by no means|no longer|in no way|nowhere near|nobody|no one|"
    r"without(?! (?:a )?(?:doubt|question)))(?!\w)[\s\w'’-]{0,24}$|n['’]t\b[\s\w'’-]{0,24}$|\b(?:in|un|non)-?$"
    r"|(?<![\d.])(?!100)\d{1,2}(?:\.\d+)?\s?%\s*$",  # "30 % correct"
    re.IGNORECASE,
)
# What another says, or what is not so, before the word.
_DOUBTED = re.compile(
    r"\b(?:claims?|hesitat\w*|disagree\w*|impossible|would\s+have|wrongly|falsely|mistakenly)\b[^,;:]*$", re.IGNORECASE
)


def _of_prose(text: str) -> bool | None:
    """The verdict of running text, of whose words negation and hedge are read; None where all speak of something else
    than the response, or what follows them limits them."""
    found, end = [], 0
    for sentence in re.finditer(r"\S.*?(?:[.!?;\n](?=\s)|\Z)", text, re.DOTALL):
        for word in _WORD.finditer(sentence[0]):
            before = sentence[0][: word.start()]
            if word["right"] and _BEFORE_A_NOUN.match(sentence[0], word.end()):
                if _MISSES.search(before):
                    found.append(False)
                    continue
                if not _GIVES.search(before) and not _IS_GIVEN.match(sentence[0], word.end()):
                    continue
            turned = _TURNED.search(re.split(r"(?<!anything )\bbut\b", before)[-1]) is not None
            hedged = _DOUBTED.search(before) or _HEDGED.search(sentence[0])
            doubtful = hedged or sentence[0].endswith("?")
            found.append((word["right"] is not None) != turned and not doubtful)
            end = sentence.start() + word.end()
    if not found:
        return False if _KEY_IS.search(text) and not _SAME.search(text) else None
    return None if all(found) and _CONTRAST.search(text, end) else all(found)
