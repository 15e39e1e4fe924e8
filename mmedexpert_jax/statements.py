"""Statements of an answer in running text: "the answer is B", "Option B is correct", "I would rule out option C".

A statement is a trigger ("answer", "respuesta", a verb of choice, "it is") and a letter. Beside a noun it counts where
all words around it are those of a statement (`statement_words.yaml`), so that a denial in any words and language is
none; elsewhere unless its clause denies, asks or hedges. Statements of a final answer outweigh those of an answer and
praise ("B is correct"), which outweigh "it is B", which outweighs remarks about options. What stands behind the last
correction ("Wait, ...") outweighs what stood before.
"""

import html
import re
import unicodedata
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from mmedexpert_jax import border

# Text as it is read.

# A long run of blanks, whose middle says only that it is there: no pattern looks further than 200 characters. Uncut, or
# with blanks that either of two patterns could match, reading would take the square of a run's length.
_RUN = re.compile(r"(\s{128})(\s+)(\s{128})")
# Characters without a glyph: joiners, marks of direction around Latin letters in Arabic, byte order marks.
INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufe0f\ufeff]")
_BREAK = re.compile(r"<br\s{0,4}/?>", re.IGNORECASE)
# "10⁹" and "1½", which NFKC alone makes "109" and "11/2".
_RAISED = re.compile(r"(?<=[0-9])(?=[⁺⁻]?[⁰¹²³⁴-⁹])")
_FRACTION = re.compile(r"(?<=[0-9])(?=[¼-¾⅐-⅞])")
_OTHER_DIGIT = re.compile(r"(?![0-9])\d")  # Arabic, Persian, Devanagari, ..., which NFKC leaves
_ARABIC_MARK = re.compile("(?<=[0-9])(?:[٫٬،](?=[0-9])|\\s?٪)")  # of decimals, thousands and per cent
_LATIN_MARK = str.maketrans("٫٬،٪", ".,,%")


def readable(text: str) -> str:
    """`text` without characters that have no glyph, with plain ones in the place of full-width ones (NFKC), of HTML's
    entities and breaks and of other scripts' digits and their marks, and of a long run of blanks its ends and, between
    them, each kind once. A power stays one ("10^9")."""
    text = _BREAK.sub("\n", html.unescape(text)) if "&" in text or "<" in text else text
    text = _FRACTION.sub(" ", _RAISED.sub("^", text))
    text = _OTHER_DIGIT.sub(lambda digit: str(unicodedata.decimal(digit[0])), unicodedata.normalize("NFKC", text))
    text = _ARABIC_MARK.sub(lambda mark: mark[0].translate(_LATIN_MARK), INVISIBLE.sub("", text))
    return _cut(text)


def _cut(text: str) -> str:
    """`text` without the middle of long runs of blanks."""
    return _RUN.sub(lambda run: run[1] + "".join(dict.fromkeys(run[2])) + run[3], text)


# "yes" and "no" in the languages of medical examinations.
_LANGUAGES = border.read_yaml(Path(__file__).with_name("yes_no_words.yaml"))


def _parts(words: Mapping[str, str], name: str) -> list[str]:
    return [part.strip() for part in words.get(name, "").split(",") if part.strip()]


WORDS = {
    word: said for said in ("yes", "no") for words in _LANGUAGES.values() for word in _parts(words, f"says_{said}")
}
_OPENS = re.compile(
    rf"\W{{0,20}}(?:(?:final\s+)?answer\s*(?:is|:)\s*)?({'|'.join(sorted(WORDS, key=len, reverse=True))})"
    r"(?=\W{0,20}\Z|\s*[.,;:!。،、()]|\s+[–—-]\s)",
    re.IGNORECASE,
)
YES_AND_NO = re.compile(r"\b(?:yes\s*(?:and|or|/|,)\s*no|no\s*(?:and|or|/|,)\s*yes)\b", re.IGNORECASE)


def opening(text: str) -> tuple[str, str] | None:
    """(The word of WORDS that a text opens with and that ends its clause there, "yes" or "no"); None where none does or
    the text says both."""
    found = _OPENS.match(text)
    if found is None or YES_AND_NO.search(text):
        return None
    said = WORDS.get(found[1].casefold())  # None where letters fold in several ways, as the Turkish i
    return (found[1], said) if said else None


_UNSPACED = r"\u3040-\u30ff\u3400-\u9fff\u0e00-\u0e7f"  # scripts without blanks between words
# What may stand between a denial and the noun that is denied: in these scripts, and in others an article and
# adjectives, but no preposition, as in "Keine Fraktur auf dem Bild".
_GLUED = r"[^.,;:!?。，、؟\s]{0,10}?"
_APART = (
    r"[^\S\n]*'?(?:l'|(?:la|les?|il|lo|el|los|las|η|το|az?|os?)[^\S\n]+)?"
    r"(?:(?!(?:dans|nell|sull|unter|från|trong|pada|στ)[^\W\d_]{0,2}\s)[^\W\d_]{4,}[^\S\n]+){0,2}"
)
_ASKS = re.compile(r"[^.,;:!。，、؛।\n]*(?:[?？؟]|[吗嗎呢么麼]\s*\Z)")


def _either(phrases: Sequence[str], end: str) -> str:
    """A pattern of the longest of some phrases that stands there, and of its end but in scripts without blanks."""

    def one(phrase: str) -> str:
        words = r"\s+".join(map(re.escape, phrase.rstrip("~").split())).replace("…", r"[^.;:!?\n]{0,40}?\b")
        if phrase.endswith("~"):
            return rf"{words}\w*+"
        return words + ("" if phrase.endswith("'") or re.match(rf"[{_UNSPACED}]", phrase[-1]) else end)

    plain = ("…".join(map(partial(unicodedata.normalize, "NFKC"), phrase.split("…"))) for phrase in phrases)
    longest = sorted(plain, key=len, reverse=True)
    return f"(?>{'|'.join(map(one, longest))})" if longest else r"(?!)"


def _phrases(words: Mapping[str, str]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Patterns of what answers yes or no in one language at the beginning of a reply, and as the end of its clause."""
    lead = _parts(words, "lead")
    unless, lacks, shown, doubts = (
        _either([f"{part}~" for part in _parts(words, name)], "") for name in ("unless", "lacks", "shown", "doubts")
    )
    glued = re.match(rf"[{_UNSPACED}]", words.get("lacks", ""))
    denied = f"(?!{_GLUED if glued else _APART}(?!{shown}){lacks})"
    doubted = f"(?!{_GLUED}{doubts})"
    opens, ends = (
        {said: f"(?P<{said}>{_either(_parts(words, f'{place}_{said}'), end)})" for said in ("yes", "no")}
        for place, end in (("opens", r"(?=[\s,.]|\Z)"), ("ends", ""))
    )
    return (
        re.compile(
            rf"\W{{0,8}}(?:{_either(lead, '')}\s*)?(?:{opens['yes']}{doubted}|{opens['no']}{denied})(?!\s*{unless})",
            re.IGNORECASE,
        ),
        re.compile(
            rf"(?!.{{0,100}}(?:{unless}|{lacks}))[^.,;:!?。,、，؟।\n]{{1,80}}?(?<![^\W{_UNSPACED}\uac00-\ud7af])"
            rf"(?:{'|'.join(ends.values())})[\s.。!।]*\Z",
            re.IGNORECASE,
        ),
    )


_PHRASES = [pattern for words in _LANGUAGES.values() for pattern in _phrases(words)]


def unstopped(text: str) -> str | None:
    """The "yes" or "no" that a text opens with, or in some languages ends in, in words that need no stop as they can
    mean nothing else: "Ja das ist so", "Keine Fraktur", "没有骨折",
    "骨折はありません"; None of "No hay", where languages
    differ, and where the other word stands behind it."""
    text = text.replace("’", "'")
    found = [match for pattern in _PHRASES if (match := pattern.match(text))]
    said = {match.lastgroup for match in found}
    behind = text[max((match.end() for match in found), default=0) :].casefold()
    if _ASKS.match(behind):
        return None
    said |= {WORDS[word] for word in re.findall(r"[^\W\d_]+", behind) if word in WORDS}
    return said.pop() if found and len(said) == 1 else None


# Letters, alone and several.

_CJK = r"\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD_ENDS = rf"(?![^\W{_CJK}]|['’]|-\w)"  # not "C-section", "B12" or "I'd"; a Chinese character may follow
# "C. difficile" and "B cells" are no labels.
_SPECIES = (
    *("difficile", "coli", "pylori", "cereus", "anthracis", "perfringens", "botulinum", "tetani", "albicans"),
    *("jejuni", "influenzae", "ducreyi", "burgdorferi", "pertussis", "fragilis", "henselae", "diphtheriae"),
    *("trachomatis", "gondii", "faecalis", "faecium", "histolytica", "granulosus", "neoformans", "immitis"),
    *("psittaci", "pneumoniae", "fumigatus", "baumannii", "israelii", "lumbricoides", "dermatitidis", "quintana"),
    *("melitensis", "capsulatum", "vermicularis", "lamblia", "vaginalis", "tularensis", "latum", "acnes", "auris"),
    *("glabrata", "microti", "abortus", "mallei", "burnetii", "freundii", "parvum", "medinensis", "folliculorum"),
    *("actinomycetemcomitans", "phagocytophilum", "bacilliformis", "subtilis", "canis", "diff"),
)
_THINGS = ("cells?", "lymphocytes?", "symptoms?", "section", "peptide", "dimers?", "protein", "waves?")
NO_LABEL = rf"(?!\s(?:{'|'.join(_THINGS)})\b|\.?\s?(?:{'|'.join(_SPECIES)})\b)"
# A lone A or I may be a word; as a label it ends its clause or is followed by a connective.
_END = (
    rf"(?=\s*(?:$|[.,;:!?()\[\]{{}}/\n。，；：、）]|[-–—]\s|[{_CJK}])"  # the end of a line or clause
    r"|\s+(?:because|since|as|due|for|based|given|is|are|was|and|or|not|but|rather|which)\b)"  # a connective
)
_LETTER = rf"(?:[B-HJ]{_WORD_ENDS}{NO_LABEL}|[AI]{_WORD_ENDS}{_END}|[a-j](?=[.,;:)\]}}](?!\w)|\s*$))"
_BRACKETED = rf"[(\[{{]?\s*+(?P<letter>{_LETTER})\s*[)\]}}]?"
# that ends its clause, behind weak triggers
_LABEL = rf"[(\[{{]?\s*+(?P<letter>[A-J]{_WORD_ENDS}{NO_LABEL})(?:\s*+[)\]}}])?{_END}"
# Further letters beside the first: "B and C", "B/C", "B, C or D", "B (or maybe C)", "B; C", "B. Or C"; not "B, and C is
# wrong", a clause. Atomic and bounded, no blank matched in two ways: a model may say "B or B" to its limit.
_MORE = (
    r"(?P<more>(?>(?:"
    # a number for the letter before, as in "B (80 %) or C"
    r"(?:\s*\(\d[^()\n]{0,20}\)(?=\s*(?:or|and|/)))?\s*(?:"
    # marks and "or": "B/C", "B -> C", "B. Or C", "B (or C"
    r"/|->|=>|→|>|(?i:vs\.?|versus)\s|(?:[.,;–—-]\s*)?\(?\b(?i:or|alternatively)\b,?"
    # "and", "to" and "or" in other languages
    r"|(?:[,–—-]\s*)?\(?\b(?:and(?:/or|\s+also)?|plus|as\s+well\s+as|to|through"
    r"|bis|oder|und|ou|et|o|u|y|e|или|и|of|en|lub|albo|oraz|eller|och|og|ve(?:ya)?|atau|dan|và|hoặc|ή|και"
    r"|या|और|أو|و|או|یا)\b|(?:または|とか?|または|또는|이나|[와과]|หรือ|และ)"
    # "B; C" at the end of a line, "B, C", "B & C", "B–C"
    r"|;(?=\s*[A-J]\s*(?:$|[.\n]))|,|&|\+|~|[或和、，]|(?<=\w)[–—](?=[A-J]\b)"
    # "B C" at the end of a line
    r"|(?<=\b[A-J][ \t])(?=[A-J]\s*(?:$|[.\n])))\s*"
    # the further letter: "maybe option (C)"
    r"(?:(?i:maybe|perhaps|possibly|probably|even)\s+)?(?:(?i:options?)\s+)?[(\[]?[A-J][)\]]?(?![\w'’])"
    # and no clause about it: "and C is", "C: "
    r"(?!\s+(?:is|are|was|were|has|does|can|could|would|will|am|have|think|because)\b|:\s)"
    r"){1,12}))?"
)


# Statements: a trigger and a letter.

# "I would say that it is", "I'm confident that"
_SAYS = (
    r"i(?:'d|’d|'ll|’ll|'m|’m|\s+am|\s+would|\s+will)?\s+(?:think|believe|conclude|say|suggest|confident)"
    r"(?:\s+(?:that|it\s+is|it's))?"
)
# Between a trigger and its letter: ", in my view, is therefore: option". Possessive and bounded.
_LINK = (
    # a remark in brackets before a colon, an aside between commas, then colons and arrows
    r"(?:\s*+[(\[][^()\[\]\n]{1,30}[)\]](?=\s*[:=]))?"
    r"(?:,[^,.;:?!\n]{1,40},)?(?:\s+(?:among|of|from|for|in)\s+(?:the|this|these|our|all)(?:\s+[\w-]+){1,3}(?=\s+(?:is|would|must)\b))?"
    r"(?:\s*+(?:[:=]|->|=>|→|[-–—](?=\s))){0,6}\s*+"
    # "is", "must be", "here"
    r"(?:(?i:is|would|should|must|will|has\s+to|(?:appears|seems|turns\s+out)\s+to|to\s+be|be|remains|choice|letter|option|here"
    r"|actually|indeed|still|obviously|simply|only|also|just|therefore|thus|then|donc|quindi|dunque|somit|entonces|logo"
    r"|portanto)\b\s*+(?:[:=]\s*+)?"
    r"|can\s+only\s+be\s+|none\s+other\s+than\s+"
    # "es la opción", "ist", "è la lettera"
    r"|(?:es|est|ist|lautet|è|é)(?:\s*+[:=]\s*+|\s+)(?:(?:la|le|a|die|l')\s+)?"
    r"(?:(?:letra|lettre|lettera|opción|option|alternativa)\s+)?){0,6}"
    # "clearly", "I think that", "it is"
    rf"(?:(?i:{_SAYS}|i\s+would\s+go\s+with|i['’]d\s+go\s+with|it(?:'s|’s|\s+is|\s+would\s+be)|that|the\s+answer\s+is"
    r"|option|choice|letter|clearly|therefore|thus|most\s+likely|probably|definitely)\b(?:[:,]|\s++)*){0,6}"
    # a further aside
    r"(?:,[^,.;:?!\n]{1,40},\s*+)?"
)
# "answer" and verbs of choice in the languages of medical examinations, articles and adjectives aside.
_ABROAD = unicodedata.normalize(
    "NFKC",
    r"(?i:(?:respuesta|réponse|risposta|resposta)(?:\s+(?:(?:la\s+)?(?:más|plus|più|mais)\s+)?"
    r"(?:correct[ae]|corretta|correta|certa|esatta|exacte|final[e]?|adecuada|adéquate|adequada|probable|probabile|provável))?"
    r"|antwort|(?:die\s+richtige\s+)?lösung|richtig(?=\s+ist)|ответ(?:ом\s+является)?|antwoord|odpowiedź(?:\s+to)?|odpověď"
    r"|svar(?:et)?(?:\s+(?:är|er))?|(?:cevap|yanıt)|jawaban(?:nya)?(?:\s+(?:yang\s+(?:paling\s+)?(?:benar|tepat)|adalah)){0,2}"
    r"|gabarito|chọn(?:\s+đáp\s+án)?|(?<!la\s)letra|đáp\s+án(?:\s+(?:đúng|là)){0,2}|απάντηση(?:\s+είναι)?)\s*+"
    # Arabic, Persian, Hebrew, Hindi, Thai: the noun, an adjective, "is"
    r"|(?:الإجابة|الاجابة|الجواب|الخيار|پاسخ|התשובה|תשובה|उत्तर|คำตอบ)\s*"
    r"(?:(?:الصحيحة|الصحيح|النهائية|صحیح|הנכונה|ที่ถูกต้อง)\s*)?(?:هي|هو|היא|है|คือ)?\s*"
    # Chinese, Japanese, Korean: the noun, "is", "option"
    r"|(?:答案|答え|解答|回答|正解|正答|答(?=[:：])|正[确確]的(?=是)|诊断|診斷|最(?:可能|合适|合適|符合|恰当)的(?:选项|選項)?|가장\s*(?:적절한|가능성이\s*높은)\s*(?:것|진단|선택지?)|正确的?选项|正確的?選項|最も(?:適切|可能性が高い)[なの](?:選択肢|診断|もの|の)?|정답|(?<!오)답|선택)"
    r"\s*(?:应该是|应为|是|为|為|は|은|는|이)?\s*+[:：]?\s*+(?:选项|選項|選択肢)?\s*+"
    # Chinese verbs of choice, not denied
    r"|(?<![不别勿非])(?<!不[能应可会要宜该])(?:应[选是为]|应该[选是]|故选|选择|选|應選|故選|選擇|選)[是为]?\s*+[:：]?\s*+(?:选项)?\s*+"
    # "la opción correcta", "I choose"
    r"|(?i:(?:opción|alternativa|opção|opzione|option)\s+(?:(?:la\s+)?(?:más|plus|più|mais)\s+)?"
    r"(?:correct[ae]|correta|corretta|esatta|adecuada|adequada|probable|probabile|provável)"
    r"|(?:правильн|верн)\w{2,3}\s+вариант"
    r"|elijo|escojo|elegiría|ich\s+wähle|je\s+choisi(?:s|rais)|scelgo|escolho|выбираю)\s*+(?:(?:la|a|die|l['’])\s+)?"
    r"(?i:(?:opción|opção|opzione|option|antwort|réponse|letra|lettre|lettera|вариант)\s+)?",
)
_FINAL = re.compile(
    r"\b(?:(?i:(?:final|revised|updated|corrected|new)[\s_-]+(?:answer|choice)|final(?=\s*:)|correction)|最终答案)(?i:\s+(?:is|:))?"
    rf"{_LINK}{_BRACKETED}{_MORE}",
    re.MULTILINE,
)
_ANSWER = re.compile(
    # "the answer to this question", keys of JSON
    r"(?:\b(?i:answers?\s+(?:to|for)\s+(?:this|the)(?:\s+(?:question|case|problem))?"
    r"|answers?(?:_(?:choice|letter|option|key))?|correct_(?:answer|choice|option)"
    r"|selected(?:_(?:answer|choice|option))?(?=:)"
    # "my choice", "the best option", "pick: "
    r"|(?:option|choice|answer|one)\s+that\s+(?:best\s+)?(?:fits|explains|matches)(?:\s+[^.,;:!?\n]{1,40}?)?(?=\s+is\b)"
    r"|ans|choices?|(?:correct|best|right)\s+(?:option|letter)|pick(?=\s*[:=])"
    r"|(?:my|our)\s+(?:selection|decision|vote|(?:best\s+)?guess)|best\s+guess"
    r"|(?:^|(?<=[\n{]))letter"
    # "I would choose", "you should go with"
    r"|(?:i|we|you|let)(?:['’](?:d|ll|m|s)|\s+(?:would|will|should|must|am))?(?:\s+going\s+to)?(?:\s+not)?(?:\s+now)?"
    r"\s+(?:choos(?:e|ing)|pick(?:ing)?|select(?:ing)?|go(?:ing)?\s+(?:with|for)|answer|say))\b"
    rf"|\b(?i:ans)\.|{_ABROAD}){_LINK}{_BRACKETED}{_MORE}",
    re.MULTILINE,
)
# "A is correct. The exception is B."
_EXCEPTION = re.compile(
    r"(?:\b(?i:exception|odd\s+one(?:\s+out)?|(?:false|incorrect|wrong|untrue|inaccurate)\s+(?:statement|option|one|answer|choice))"
    rf"|错误的?|不正确的?|不符合的?|誤り)\s*(?:(?i:is|:)|是|为|は)\s*(?:(?i:option|statement)\s+)?{_LABEL}(?P<more>)",
    re.MULTILINE,
)
_YES = r"(?:[✓✔✅☑]|(?i:yes)(?=\s*(?:$|[.,;|\n])))"
_PRAISED = re.compile(
    # "options A or B", the first of the letters
    r"(?:\b(?i:options?|choices?)\s+)?(?<![A-Za-z0-9_'’])"
    r"(?:[(\[]?(?P<before>[A-J])[)\]]?\s*(?:/|&|\b(?i:or|and)\b)\s*)?"
    rf"[(\[]?(?P<letter>[A-J])[)\]]?{_MORE}(?:"
    # "is clearly correct", "is my final answer"
    r"\s*+(?:is|:|(?:seems|appears)(?:\s+to\s+be)?|(?:must|would|should)\s+be)\s+(?i:(?:the\s+)?(?:clearly\s+)?(?:correct|right|true|best|most\s+(?:likely|probable|appropriate|suitable|consistent))\b"
    r"|(?:the|my)\s+(?:final\s+)?(?:answer|choice|pick)\b)"
    # "making B the correct answer"
    r"|\s+the\s+(?:(?:correct|best|right|most\s+likely)\s+)?(?:answer|choice|diagnosis)\b"
    r"|\s+die\s+(?:richtige|korrekte|beste|wahrscheinlichste)\s+(?:Antwort|Lösung|Option)\b"
    # "B: yes", "B ✓"
    rf"|[ \t]*+[:-]?[ \t]*+{_YES}"
    # Chinese and Japanese, then European languages
    r"|\s*+(?:选项|選項|项|項)?\s*+(?:是|为|為|が|は)?\s*+(?:正确|正確|正解|最も適切|正しい)|を(?:選択|選[びぶん])|\s*(?:가|이)\s*정답"
    r"|\s+(?:es|est|ist|è|é)\s+"
    r"(?i:(?:la\s+|le\s+|die\s+|a\s+)?(?:richtig|korrekt|correct[aeo]?\b|bonne\b|juste\b|corrett[ao]|corret[ao]))"
    # "B it is."
    r"|\s+it\s+is(?=\s*(?:$|[.,;!\n])))",
    re.MULTILINE,
)
_TICKED = re.compile(rf"^[ \t]*(?:[-*+][ \t]+)?(?:\[[xX✓]\]|[✓✔✅☑])\s*+{_BRACKETED}(?P<more>)", re.MULTILINE)
# "B. Heart failure - correct", "B) Heart failure ✅"
_MARKED = re.compile(
    # "B. Pneumonia (correct)", "B) correct", "B - true": not "A. Yes", which is an option
    r"^[ \t]*(?:[-*+][ \t]+)?\(?(?P<marked>[A-J])(?:(?:[.)][ \t]|[ \t]+[-–—](?=[ \t]))"
    r"(?:[^\n]{0,200}?(?:[-–—:(]\s*(?i:correct|yes)\)?|[✓✔✅☑])|[ \t]*(?i:correct))"
    r"|[ \t]+[-–—][ \t]+(?i:right|true|yes))[ \t]*$",
    re.MULTILINE,
)
_LOOSE = re.compile(
    # "it is B", "by elimination, B", "the diagnosis is B"
    r"(?:\b(?i:it(?:'s|’s|\s+is|\s+must\s+be|\s+has\s+to\s+be)|must\s+be|going\s+with|leaves(?:\s+only)?"
    r"|most\s+consistent\s+with|points?\s+to|by\s+elimination,?"
    r"|(?:diagnosis|cause|explanation|mechanism|finding|treatment|drug|management|test|step|one)"
    r"(?:\s+(?:for|of|in)\s+[^.,;:!?\n]{1,60}?)?\s+(?:is|would\s+be))"
    # at the beginning of a clause: "so B", "=> B", "select B"
    r"|(?:^|(?<=[.!?;:\n])|(?<=[.!?;:]\s))\s*+(?:(?i:so|thus|hence|therefore|conclusion|choose|select|pick|mark"
    r"|definitely|clearly|certainly|i\s+(?:think|believe))\b|=>|→|∴))"
    rf"\s*+[,:]?\s*+(?:(?i:option|choice|letter)\s+)?{_LABEL}{_MORE}"
    # a headed line: "Result: B"
    r"|^[ \t]*(?i:response|result|output|solution|verdict|decision|selected|correct)[ \t]*[:=]"
    r"[ \t]*\(?(?P<headed>[A-J])\)?(?=\s|[.,;]|$)"
    # "only B remains", "Diagnosis: asthma (B)", "B, because" and "B!" as a beginning
    r"|\b(?i:only)\s+(?P<only>[A-J])\s+(?i:remains|is\s+left|fits)\b"
    r"|\b(?i:diagnosis|answer|cause|treatment)\b:?[^.;:?!\n()]{0,60}\((?P<named>[A-J])\)"
    r"|\A\s*\(?(?P<first>[A-J])[).:]?,?\s*+(?:(?:because|since|due\s+to|given|based\s+on|not|rather\s+than)\b|因为|因為|由于|由於|なぜなら)"
    r"|\A\s*\(?(?P<alone>[A-J])\)?!+\s*\Z",
    re.MULTILINE,
)
_OPTION = re.compile(
    rf"\b(?i:option|opción|opção|opzione|alternativa|вариант)\b{_LINK}{_BRACKETED}{_MORE}", re.MULTILINE
)
_PRAISES = (_PRAISED, _TICKED, _MARKED)
_Tier = tuple[tuple[re.Pattern[str], ...], tuple[re.Pattern[str], ...]]  # of one weight: what states, what praises
_WEIGHTY: tuple[_Tier, ...] = (((_FINAL,), ()), ((_ANSWER,), _PRAISES), ((_LOOSE,), ()))
_TIERS = (*_WEIGHTY, ((_OPTION, _ANSWER), ()))  # remarks last
_LABEL_GROUPS = ("only", "named", "first", "headed", "alone", "marked")  # groups that hold the letter, if not "letter"
_CORRECTION = re.compile(
    # at the beginning of a clause, behind "oh", "but no"
    r"(?:^|(?<=[.!?;:,\n—–(-])|(?<=[.!?;:,—–-]\s)|(?<=[。，；！？]))"
    r"(?:(?i:(?:(?:oh|but|and|or|no|nein|non)\b[,.]?\s+){0,3}"
    # "wait", "my mistake", "on second thought", "let me reconsider"
    r"(?:wait|hmm+|oops|whoops|no(?=[,.!])|i\s+disagree(?=\s?[.,:;])|actually|sorry|apologies|my\s+mistake|i\s+mean|rather(?!\s+than)|edit(?=:)"
    r"|(?:up)?on\s+(?:second\s+thoughts?|reconsideration)|looking\s+again|correction|(?:scratch|strike)\s+that"
    r"|(?:i\s+)?(?:change|revise)d?\s+my\s+(?:answer|choice|mind)\s+to"
    r"|i\s+(?:was\s+(?:wrong|mistaken)|made\s+(?:a\s+mistake|an\s+error)|misread|misspoke)"
    r"|let\s+me\s+(?:correct(?:\s+myself)?|reconsider|revise|rethink)"
    # the same in other languages
    r"|perdón|espera|corrección|mejor\s+dicho|más\s+bien|nein(?=,)|moment|korrektur|besser\s+gesagt|non(?=,)"
    r"|attendez|pardon|plutôt|anzi|aliás|нет(?=,)|вернее|точнее)\b)"
    r"|不对|等等|更正|纠正|いや|いえ|訂正|아니(?=[,.\s])|정정|عفوا|تصحيح|لا(?=[،,]))",
    re.MULTILINE,
)
# What may stand between a correction and what it puts in the place: "wait, no: D", "sorry, it should be D".
_FILLERS = re.compile(
    r"[\s,.:;!，。：、—–-]{0,8}(?i:(?:no|nein|non|actually|rather|make\s+(?:that|it)|i\s+(?:mean|think)|it['’]s"
    r"|(?:it\s+|that\s+)?(?:is|should\s+be|must\s+be)|es|est|ist|c['’]est)\b[\s,.:;—–-]{1,4}|(?:应该)?是|应为|选){0,4}"
)
# A letter that stands alone behind a correction.
_CORRECTED = re.compile(
    rf"\A(?:(?i:option)\s+)?[(\[]?(?P<letter>[A-J]{_WORD_ENDS}{NO_LABEL})[)\]]?{_MORE}"
    rf"(?=\s*(?:$|[.,;!()\n。，；])|[{_CJK}]|\s+(?i:actually|instead|fits|is\s+better)\b)",
)
# "The answer is asthma": the option's text in the place of its letter, to the end of its clause.
_TEXT = re.compile(
    r"(?:\b(?i:(?P<final>final\s+)?(?:answer|diagnosis|choice|option)(?:\s+(?:in|for|of)\s+(?:this|the|our)(?:\s+\w+){1,2})?"
    r"\s*(?:(?:is|would\s+be|must\s+be)\s*:?|:|=)\s*(?:(?:clearly|most\s+"
    r"likely|likely|therefore|thus)\s+)?)"
    r"|\b(?i:(?:respuesta|resposta|risposta|réponse|antwort|diagnóstico|diagnostic|diagnose|diagnosi|ответ|диагноз)"
    r"(?:\s+(?:correct[ae]|correta|corretta|esatta|final|más\s+probable))?\s*(?:(?:es|é|è|est|ist|lautet)\s*:?\s|[:—–-]))\s*"
    r"|(?:答案|诊断|診断|答え|正解|정답|진단)\s*(?:应该是|应为|是|为|為|は|은|는|이|:)\s*"
    r"|(?:الإجابة|الجواب|التشخيص)(?:\s+(?:الصحيحة|الصحيح|النهائية))?\s*(?:هي|هو|:)\s*)"
    r"(?P<text>[^\n;!?。]{2,200}?)(?=(?<!\b[A-Z])\.(?:\s|$)"
    # the stop of an initial, "C. acnes", ends nothing
    r"|\.(?:\s+[^a-z\s]|\s*$)|[\n;!?。]|です|である|입니다|이다|,?\s+(?:because|since|as|given|due|not|rather|porque|car|weil|da)\b|$)"
    # "Asthma is the most likely diagnosis."
    r"|(?:^|(?<=[.!?\n]\s)|(?<=\n))(?P<text_before>[^\n.;!?:,]{2,120}?)\s+is\s+(?:therefore\s+|clearly\s+)?the\s+"
    r"(?:(?:single\s+)?(?:most\s+likely|correct|best|right|final)\s+)(?:diagnosis|answer|option|choice|explanation)\b",
    re.MULTILINE,
)


# Marks, elements and contrasts, which are put into words before statements are looked for.

_STRUCK = re.compile(r"~~[^~\n]*~~|<(del|s|strike)>[^<\n]*</\1>", re.IGNORECASE)  # taken back by whoever wrote it
_PARAGRAPH = re.compile(r"</(?:p|div|li|tr|td|h\d)>", re.IGNORECASE)
_DECORATION = re.compile(
    r"</?(?:b|i|u|strong|em|code|p|span|div|font|mark)(?:\s[^<>\n]{0,100})?>|[*`$\"“”«»「」『』【】]|(?<!\w)['‘’]|['’](?!\w)|\\[()\[\]]|\\(?:boxed|text|textbf|textit|mathrm|mathbf)\s*(?=\{)"
)
# as some prompts ask for
_ELEMENT = re.compile(
    r"</?(final(?:[ _-]?answer)?|(?:selected[ _-]?)?(?:answer[ _-]?)?(?:choice|letter|option)|result)>|\[/?(answer)\]",
    re.IGNORECASE,
)
_RULE = re.compile(r"^[ \t]*+[|:]?[ \t]*+-[-|: \t]*$", re.MULTILINE)  # of a table
# "not B but C" states C, also in other languages of medical examinations.
_CONTRAST = re.compile(
    r",?\s*+"
    # "not", in seven languages
    r"(?:\b(?i:(?:is\s+)?not|(?:is)?n['’]t|(?:ist\s+)?nicht|no\s+es|n['’]est\s+pas|non\s+è|não\s+é|не)\s+|不[是选選]\s*)"
    # the letter that is denied
    r"(?:option\s+)?[(\[]?[A-J][)\]]?\s*+"
    # "but", or a comma before "is" or "it"
    r"(?:[,，]?\s*+(?:\b(?i:but|sondern|sino|mais|bensì|ma|mas|а)\s+(?:rather\s+)?|而?是\s*)|,(?=\s*(?:is|it)\b))"
    # "B, not it, C": Japanese, Korean
    r"|(?:選択肢)?[(\[]?[A-J][)\]]?\s*+(?:(?:では|じゃ)なく(?:て)?|(?:가|이)?\s*아니라)[、,]?(?=\s*+(?:選択肢)?[(\[]?[A-J])"
)
_NOUN = (
    r"(?:answer|ans|choice|letter|option|response|result|output|solution|prediction|pred|label|key|selection|selected"
    r"|decision|verdict|conclusion|diagnosis|pick|guess|correct)"
)
# An element that holds one label: "<letter>B</letter>", "[best_option]B. Asthma[/best_option]".
_HELD = re.compile(
    r"[<\[](?P<name>(?:(?:final|selected|chosen|correct|best|right|predicted|most[ _-]?likely|my|the|your)[ _-]?){0,3}"
    rf"{_NOUN}(?:[ _-]?{_NOUN})?)[>\]]\s*+[(\[]?(?P<held>[A-J]){NO_LABEL}(?P<text>[.:)\]][^<\[\n]{{0,200}}|)\s*+"
    r"[<\[]/(?P=name)[>\]]",
    re.IGNORECASE,
)


def stated(text: str, letters: str, remarks: bool = True) -> set[str] | None:
    """Letters that the text's weightiest statements give as its answer.

    Args:
        text: what stands outside the reasoning.
        letters: labels of the options, e.g. "ABCD"; a statement of another letter is passed over.
        remarks: whether a remark on an option ("option B") counts where nothing weightier is stated.

    Returns:
        The letters; more than one where statements differ or one names several. None where nothing is stated.
    """
    plain = _undecorated(_ELEMENT.sub(_tag_as_words, _elements_as_statements(readable(text))))
    plain = _CONTRAST.sub(" it is ", _RULE.sub("", plain).replace("|", ":"))
    return _corrected(plain, letters) or _weightiest(plain, letters, _TIERS if remarks else _WEIGHTY)


def stated_texts(text: str) -> list[str]:
    """The answers, in words, that the text's statements give; those of a final answer alone where there are such."""
    plain = _undecorated(readable(text))
    found = []
    for match in _TEXT.finditer(plain):
        name = match.lastgroup if match.lastgroup == "text_before" else "text"
        shared = _SHARES.match(plain, match.start(name) + 1)
        if not shared and _is_known(plain, match, name, _TEXT) and not _withdrawn(plain, match, name):
            found.append((match["final"], match[name].strip()))
    return [said for final, said in found if final or not any(one for one, _ in found)]


def _undecorated(text: str) -> str:
    """`text` without what is struck and without marks, between which blanks may have stood; ends of paragraphs are line
    breaks."""
    return _cut(_DECORATION.sub("", _PARAGRAPH.sub("\n", _STRUCK.sub("", text))))


def _elements_as_statements(text: str) -> str:
    """`text` with a statement in the place of each element that holds a label; elements of one name that hold several
    labels list the options, and each is a remark."""
    held: dict[str, set[str]] = {}
    for element in _HELD.finditer(text):
        held.setdefault(element["name"].lower(), set()).add(element["held"].upper())

    def statement(element: re.Match[str]) -> str:
        name = element["name"].lower()
        word = "option" if len(held[name]) > 1 else "answer"
        final = "final " if name.startswith("final") else ""
        return f" {final}{word}: ({element['held'].upper()}) {element['text'].lstrip('.:)] ')} "

    return _HELD.sub(statement, text)


def _tag_as_words(element: re.Match[str]) -> str:
    """The words that a tag stands for: "final answer: " for <final>, the end of a clause for </final>."""
    name = element[1] or element[2]
    if "/" in element[0]:
        return ". "
    return " final answer: " if name.lower() == "final" else f" {name}: "


def _corrected(text: str, letters: str) -> set[str] | None:
    """Letters that are stated behind the last correction; None where there is no correction, or nothing is stated."""
    corrections = list(_CORRECTION.finditer(text))
    if not corrections:
        return None
    end = corrections[-1].end()
    found = _weightiest(text[end:], letters, _WEIGHTY)
    filler = _FILLERS.match(text, end)
    return found or _weightiest(text[filler.end() if filler else end :], letters, (((_CORRECTED,), ()),))


def _weightiest(text: str, letters: str, tiers: tuple[_Tier, ...]) -> set[str] | None:
    """Letters that stand in the first tier of patterns that finds any.

    Of a question for the exception, praise of others denies nothing: "A is correct. C is correct. Answer: B."
    """
    for states, praises in tiers:
        found, praised = _letters(text, letters, states), _letters(text, letters, praises)
        if praised and not found:
            found = _letters(text, letters, (_EXCEPTION,))
        if found and not found & praised and len(praised) + (_EXCEPTION.search(text) is not None) > 1:
            return found
        if found or praised:
            return found | praised
    return None


def _letters(text: str, letters: str, patterns: Sequence[re.Pattern[str]]) -> set[str]:
    """Letters that the statements of some patterns give."""
    found: set[str] = set()
    for pattern in patterns:
        for match in pattern.finditer(text):
            name = match.lastgroup if match.lastgroup in _LABEL_GROUPS else "letter"
            denied = pattern is not _EXCEPTION and _withdrawn(text, match, name)
            if not denied and _is_known(text, match, name, pattern):
                groups = match.groupdict()
                others = f"{groups.get('before') or ''} {groups.get('more') or ''}"
                found |= {match[name].upper(), *re.findall(r"(?<![A-Za-z])[A-J](?![A-Za-z])", others)}
    return found & set(letters)


# Words beside a letter, all of which must be known.


def _any_of(lists: Mapping[str, str]) -> str:
    """A pattern of one of the words of some languages; those of "joined" also within others."""

    def either(words: str) -> str:
        whole = sorted({word.strip() for word in words.split(",")}, key=len, reverse=True)
        return "|".join(r"\s+".join(map(re.escape, word.split())) for word in whole)

    apart = ",".join(words for language, words in lists.items() if language != "joined")
    return unicodedata.normalize("NFKC", rf"(?:(?<!\w)(?:{either(apart)})(?!\w)|{either(lists['joined'])})")


_BEFORE, _BEHIND, _SUPPOSED = map(_any_of, border.read_yaml(Path(__file__).with_name("statement_words.yaml")).values())
# What may stand before the noun, from the beginning of its clause: known words, another label, and a ground, with an
# article at its end or none ("Given the fever the", "since it fits Answer:").
_KNOWN = re.compile(
    rf"(?:\W|{_BEFORE})*?(?:(?:based\s+on|given|considering|judging|because|since|as|due\s+to|after|from|with"
    rf"|(?:in|for)\s+(?:the|this))\s[^.;:!?\n]{{1,200}}?\s(?:(?:the|my|our)(?!\w)|\Z))?"
    rf"(?:\W|{_BEFORE}|(?<!\w)[A-J](?!\w))*+",
    re.IGNORECASE,
)
# A condition, but for "if I had to choose".
_CONDITION = re.compile(rf"(?:\W|{_BEFORE})*?(?!if\s+(?:i|we|you|forced|pressed|asked)\b){_SUPPOSED}", re.IGNORECASE)
# Behind which an option's text may follow the letter, in any words.
_LINKED = re.compile(r"[:：]\s*[(\[]?\Z|[是为為]\s*\Z")
# What may stand behind a letter that is stated: the end of its clause, praise, a reason; else it is remarked on
# ("Answer B describes gout") or denied.
_STATES = re.compile(
    r"[ \t)\]}]*(?:项|項|选项|選項|번)?(?:$|[.,;:!?。，；：、()\[\]{}/|–—=→*<#-]|(?=[A-ZÀ-Þ][a-zß-ÿ])"
    r"|(?i:is|are|was|would\s+be|must\s+be|should\s+be|seems|appears(?:\s+to\s+be)?|remains|represents)\s+"
    r"(?i:clearly\s+|also\s+|therefore\s+|definitely\s+)?(?i:the|my|our|an?)?\s*(?i:single\s+|only\s+|very\s+)?"
    r"(?i:correct|right|true|best|most|answer|choice|preferred|appropriate|likely|one)\b"
    r"|(?i:best|fits|matches|aligns|explains(?!\s+(?:only|some|few|part|just)))\b"
    r"|(?i:es|est|ist|è|é|är|jest|είναι|adalah|là)\s+(?i:la|le|die|a|o|il)?\s*(?i:más|plus|più|mais|am|wahrscheinlichste"
    r"|richtig|korrekt|corr|bonne|juste|giusta|certa|exacta|rätt|poprawn|prawidłow|właściw|σωστ|đúng)"
    rf"|(?i:richtig|korrekt|correct[ae]?\b|верн|правильн|benar|đúng)|(?!(?:and|or)\s+(?:option\s+)?[A-J]\b)(?i:{_BEHIND}))",
    re.MULTILINE,
)
_NOUNS = unicodedata.normalize(
    "NFKC",
    r"(?:answers?|ans\.?|choices?|(?:correct|best|right)\s+(?:option|letter)|selection|decision|vote|guess"
    r"|respuesta|réponse|risposta|resposta|antwort|lösung|ответ|antwoord|odpowiedź|odpověď|svar(?:et)?|cevap|yanıt"
    r"|jawaban(?:nya)?|đáp\s+án|απάντηση|الإجابة|الاجابة|الجواب|الخيار|پاسخ|התשובה|תשובה|उत्तर|คำตอบ"
    r"|答案|答え|解答|回答|正解|正确的?选项|正確的?選項|정답|답|선택|opción|alternativa|opção|opzione|letra)",
)
# Behind praise: what is praised, and the end of the clause or a reason.
_PRAISE_ENDS = re.compile(
    rf"(?:[\s_-]++(?:{_NOUNS}|one|diagnosis|treatment|management|test|step|cause|finding|explanation|statement|here"
    r"|and|the|most|best|only|single|likely|appropriate|correct))*+"
    # no praise that is taken back: "seems right, but"
    r"(?!\s{0,4}+[,;.]?\s{0,4}+(?:but|however|yet|though|nevertheless|still)\b)"
    rf"[ \t)\]}}]*(?:$|[.,;:!?。，；：、()\[\]{{}}/|–—=→*<#-]|[A-J]\s*[✗✘❌✖☒]|(?!(?:and|or)\s+(?:option\s+)?[A-J]\b)"
    rf"(?i:{_BEHIND}))",
    re.IGNORECASE | re.MULTILINE,
)


def _is_known(text: str, match: re.Match[str], name: str, pattern: re.Pattern[str]) -> bool:
    """True where the words beside a letter are those of a statement, and no condition is made."""
    start, end = _clause_start(text, match), _statement_end(text, match, name)
    far = max(0, start - 200)
    sentence = max((mark.end() for mark in _SENTENCE.finditer(text, far, start)), default=far)
    if _CONDITION.match(text, sentence, match.start()):
        return False
    if pattern is _PRAISED:
        return _PRAISE_ENDS.match(text, end) is not None
    if pattern not in (_FINAL, _ANSWER, _OPTION, _TEXT):
        return True
    aside = text.rfind("(", start, match.start()) + 1
    if not _KNOWN.fullmatch(text, aside or start, match.start()):
        return False
    if pattern is _TEXT:
        return True
    linked = _LINKED.search(text, match.start(), match.start(name))
    return linked is not None or _STATES.match(text, end) is not None


# Words that deny, hedge or ask, which may stand anywhere in a clause.

_CLAUSE = re.compile(
    r"[.:;!?\n。،؟]|,(?!\s*(?:что|dass|że)\b)|(?<=\s)(?=(?-i:The|My|Our|Final)\s)"
    r"|\b(?:but|mais|aber|pero|so|thus|hence|therefore|while|whereas|and(?=\s+(?:the|my)\b))\b",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"[.;!?\n。؟]")
_DENIED_BEFORE = re.compile(
    # "not", "neither"; "no" but for "no doubt"
    r"\b(?:not|never|cannot|neither|nor|no(?!\s+(?:doubt|question))|(?-i:pas)|(?<!at )least|mistake\s+(?:is|would)"
    # verbs: "rule out", "exclude", "reject"
    r"|rul(?:e|ed|es|ing)\s+out|exclud\w+|eliminat(?:e|ed|es|ing)|elimination\s+of|reject\w*|discard\w*|avoid\w*"
    # adjectives and prepositions: "unlikely", "rather than"
    r"|unlikely|incorrect|wrong|false|except|rather\s+than|instead\s+of|(?<!none )other\s+than"
    r"|unlike|against|dismiss\w*|disregard\w*"
    r"|(?<!no )(?<!without )(?<!without a )(?<!without any )(?<!beyond )(?<!beyond a )doubt(?:s|ful)?"
    # what others say
    r"|students|next\s+most\s+likely|most\s+(?:people|candidates|examinees)"
    r"|(?:some|many)\s+(?:say|think|believe|claim|would)|(?:you|one)(?:['’]d|\s+would)\s+think)\b"
    r"|n['’]t\b",
    re.IGNORECASE,
)
_HEDGED = re.compile(r"\b(?:might|may|could|either|possibly|perhaps|unsure|uncertain|whether|if)\b", re.IGNORECASE)
# What denies it behind a comma, a colon, a dash or in brackets, where any words may stand.
_DENIED_AFTER = re.compile(
    # the end of the letter's brackets, an aside in brackets, a colon or dash
    r"(?:\s*+[)\]])?(?:\s++\([^)]*\))?\s*+(?:[:–—(-]\s*+)?"
    # "is clearly"
    r"(?:(?:is|are|was|were|can\s+be|could\s+be|should\s+be|has\s+been|would\s+be|seems|es|est|está|ist|è|é)\s+)?"
    r"(?:(?:clearly|also|therefore|definitely|simply|just|probably)\s+)*"
    # "not", but for "not B"; crosses; "wrong", "less likely"
    r"(?:not\b(?!\s+[(\[]?[A-J]\b)|isn['’]t|n['’]t|no(?=\s*(?:$|[.,;:|\n]))|[✗✘❌✖☒]|wrong|incorrect|false\b"
    r"|unlikely|less\s+\w+|im(?:plausible|probable|possible)|ruled\s+out|excluded|eliminated|a\s+distractor|cannot|can['’]t"
    # a condition: "only if", "unless"
    r"|,?\s*(?:only\s+(?:if|when)|unless|were\s+it\s+not|if\s+not\s+for|had\s+it\s+not|provided\s+that|assuming|if(?!\s+(?:i|we|you)\b))\b"
    # a clause that takes it back: ", but that's a trap", ", which is wrong"
    r"|,\s*but\s+(?:that|this|it)(?:['’]s|\s+is)\s+"
    r"(?:a\s+trap|wrong|incorrect|not\s+(?:correct|right|true|the\s+(?:answer|best))\b)"
    r"|,\s*which\s+is\s+(?:wrong|incorrect|not|false)"
    # other languages
    r"|falsch|nicht|неверн|неправ|incorre[ct]|fauss?e?\b|fals[ao]|errad|sbagliat|fout\b|błędn|yanlış|salah(?!\s+satu)|tidak|sai\b"
    r"|गलत|नहीं|خطأ|غلط|نادرست|שגוי|ผิด|ไม่|不对|不正确|错|錯|誤り|間違|では(?:ない|ありません)|じゃない|틀|아[니닌닙])",
    re.IGNORECASE,
)
# "A: 20 %, B: 60 %", "A (low), B (high)", "A in adults, B in children": shares or cases of several, none stated.
_SHARE = (
    r"(?:[)\]]?\s{0,2}[:=–—-]{1,2}\s{0,2}\d[\d./]{0,8}\s?%?"
    r"|[)\]]?\s{0,2}\(\s?(?:\d[\d./]{0,8}\s?%?|(?:(?:very|most|more|less)\s+)?(?:un)?(?:likely|probable|possible|low|high|medium))\s?\)"
    r"|\s(?:in|for|if|when)\s[^,;.\n]{1,40}?)"
)
_SHARES = re.compile(
    rf"{_SHARE}[\s,;|]{{1,4}}(?:(?:and|or)\s+)?(?:option\s+|P(?=\())?[(\[]?[A-J][)\]]?{_SHARE}", re.IGNORECASE
)
_EXAMPLE = re.compile(
    r"(?:\be\.?\s?g\.|\b(?:for\s+(?:example|instance)|such\s+as|(?:in|of|with)\s+the\s+form(?:at)?(?:\s+of)?))[,:]?\s{0,2}\Z",
    re.IGNORECASE,
)
_ASKED = re.compile(r"\s*+[)\]]?\s*+[?？؟]")


def _withdrawn(text: str, match: re.Match[str], name: str) -> bool:
    """True where the statement's clause denies, hedges or asks instead of stating."""
    before = text[_clause_start(text, match) : match.start(name)]
    if _DENIED_BEFORE.search(before) or _HEDGED.search(before):
        return True
    if _EXAMPLE.search(text[max(0, match.start() - 32) : match.start()]):
        return True
    end = _statement_end(text, match, name)
    line = text.find("\n", end)
    stop = line if line >= 0 else len(text)
    if _DENIED_AFTER.match(text, end, stop) or _ASKED.match(text, end, stop):
        return True
    return _SHARES.match(text, match.end(name)) is not None


def _clause_start(text: str, match: re.Match[str]) -> int:
    """The beginning of a statement's clause; looked for 200 characters back, longer than clauses are, so that time is
    linear in a long text."""
    far = max(0, match.start() - 200)
    return max((mark.end() for mark in _CLAUSE.finditer(text, far, match.start())), default=far)


def _statement_end(text: str, match: re.Match[str], name: str) -> int:
    """The end of a statement: what is matched may end in the next line, which is another clause."""
    return match.start(name) + len(text[match.start(name) : match.end()].rstrip())
