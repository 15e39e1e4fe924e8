"""Statements of an answer in running text: "the answer is B", "Option B is correct", "I would rule out option C".

A statement is a trigger ("answer", "respuesta", a verb of choice, "it is") and a letter. It counts unless its clause
denies it, it asks, or it hedges; statements of a final answer outweigh those of an answer, which outweigh "it is B",
which outweighs remarks about options. What stands behind the last correction ("Wait, ...") outweighs what stood before.
"""

import re
import unicodedata

# A long run of blanks, whose middle says only that it is there: no pattern looks further than 200 characters. Uncut, or
# with blanks that either of two patterns could match, reading would take the square of a run's length.
_RUN = re.compile(r"(\s{128})(\s+)(\s{128})")

# Characters without a glyph: joiners, marks of direction around Latin letters in Arabic, byte order marks.
INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufe0f\ufeff]")
_STRUCK = re.compile(r"~~[^~\n]*~~|<del>[^<\n]*</del>", re.IGNORECASE)  # taken back by whoever wrote it
_DECORATION = re.compile(
    r"</?(?:b|i|strong|em|code|p)>|[*`$\"“”«»「」『』【】]|(?<!\w)['‘’]|['’](?!\w)|\\[()\[\]]|\\(?:boxed|text|textbf|textit|mathrm|mathbf)\s*(?=\{)"
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
    r"(?:[,，]?\s*+(?:\b(?i:but|sondern|sino|mais|bensì|ma|mas|а)\s+(?:rather\s+)?|而是\s*)|,(?=\s*(?:is|it)\b))"
    # "B, not it, C": Japanese, Korean
    r"|(?:選択肢)?[(\[]?[A-J][)\]]?\s*+(?:(?:では|じゃ)なく(?:て)?|(?:가|이)?\s*아니라)[、,]?(?=\s*+(?:選択肢)?[(\[]?[A-J])"
)
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
# "I would say that it is", "I'm confident that"
_SAYS = (
    r"i(?:'d|’d|'ll|’ll|'m|’m|\s+am|\s+would|\s+will)?\s+(?:think|believe|conclude|say|suggest|confident)"
    r"(?:\s+(?:that|it\s+is|it's))?"
)
# Between a trigger and its letter: ", in my view, is therefore: option". Possessive and bounded.
_LINK = (
    # a remark in brackets before a colon, an aside between commas, then colons and arrows
    r"(?:\s*+[(\[][^()\[\]\n]{1,30}[)\]](?=\s*[:=]))?"
    r"(?:,[^,.;:?!\n]{1,40},)?(?:\s*+(?:[:=]|->|=>|→|[-–—](?=\s))){0,6}\s*+"
    # "is", "must be", "here"
    r"(?:(?i:is|would\s+be|should\s+be|must\s+be|will\s+be|remains|choice|letter|option|here)\b\s*+(?:[:=]\s*+)?"
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
    r"(?i:respuesta(?:\s+(?:correcta|final))?|réponse(?:\s+(?:correcte|finale))?"
    r"|risposta(?:\s+(?:corretta|esatta|finale))?|resposta(?:\s+(?:correta|certa|final))?"
    r"|antwort|(?:die\s+richtige\s+)?lösung|richtig(?=\s+ist)|ответ|antwoord|odpowiedź(?:\s+to)?|odpověď"
    r"|svar(?:et)?(?:\s+(?:är|er))?|(?:cevap|yanıt)|jawaban(?:nya)?(?:\s+(?:yang\s+benar|adalah)){0,2}"
    r"|đáp\s+án(?:\s+(?:đúng|là)){0,2}|απάντηση(?:\s+είναι)?)\s*+"
    # Arabic, Persian, Hebrew, Hindi, Thai: the noun, an adjective, "is"
    r"|(?:الإجابة|الاجابة|الجواب|الخيار|پاسخ|התשובה|תשובה|उत्तर|คำตอบ)\s*"
    r"(?:(?:الصحيحة|الصحيح|النهائية|صحیح|הנכונה|ที่ถูกต้อง)\s*)?(?:هي|هو|היא|है|คือ)?\s*"
    # Chinese, Japanese, Korean: the noun, "is", "option"
    r"|(?:答案|答え|解答|回答|正解|正确的?选项|正確的?選項|最も(?:適切|可能性が高い)[なの](?:選択肢|診断|もの|の)?|정답|(?<!오)답|선택)"
    r"\s*(?:应该是|应为|是|为|為|は|은|는|이)?\s*+[:：]?\s*+(?:选项|選項|選択肢)?\s*+"
    # Chinese verbs of choice, not denied
    r"|(?<![不别勿非])(?<!不[能应可会要宜该])(?:应选|故选|选择|选|應選|故選|選擇|選)\s*+[:：]?\s*+(?:选项)?\s*+"
    # "la opción correcta", "I choose"
    r"|(?i:(?:opción|alternativa|opção|opzione|option)\s+(?:correct[ae]|correta|corretta|esatta)"
    r"|(?:правильн|верн)\w{2,3}\s+вариант"
    r"|elijo|escojo|elegiría|ich\s+wähle|je\s+choisi(?:s|rais)|scelgo|escolho|выбираю)\s*+(?:(?:la|a|die|l['’])\s+)?"
    r"(?i:(?:opción|opção|opzione|option|antwort|réponse|letra|lettre|lettera|вариант)\s+)?",
)
_FINAL = re.compile(
    r"\b(?:(?i:(?:final|revised|updated|corrected)[\s_-]+(?:answer|choice)|correction)|最终答案)(?i:\s+(?:is|:))?"
    rf"{_LINK}{_BRACKETED}{_MORE}",
    re.MULTILINE,
)
_ANSWER = re.compile(
    # "the answer to this question", keys of JSON
    r"(?:\b(?i:answers?\s+(?:to|for)\s+(?:this|the)\s+(?:question|case|problem)"
    r"|answers?(?:_(?:choice|letter|option|key))?|correct_(?:answer|choice|option)"
    r"|selected(?:_(?:answer|choice|option))?(?=:)"
    # "my choice", "the best option", "pick: "
    r"|ans|choices?|(?:correct|best|right)\s+(?:option|letter)|pick(?=\s*[:=])"
    r"|(?:my|our)\s+(?:selection|decision|vote|(?:best\s+)?guess)|best\s+guess"
    r"|(?:^|(?<=[\n{]))letter"
    # "I would choose", "you should go with"
    r"|(?:i|we|you)(?:['’](?:d|ll|m)|\s+(?:would|will|should|must|am))?(?:\s+going\s+to)?(?:\s+not)?"
    r"\s+(?:choos(?:e|ing)|pick(?:ing)?|select(?:ing)?|go(?:ing)?\s+(?:with|for)|answer|say))\b"
    rf"|\b(?i:ans)\.|{_ABROAD}){_LINK}{_BRACKETED}{_MORE}",
    re.MULTILINE,
)
_NOUNS = unicodedata.normalize(
    "NFKC",
    r"(?:answers?|ans\.?|choices?|(?:correct|best|right)\s+(?:option|letter)|selection|decision|vote|guess"
    r"|respuesta|réponse|risposta|resposta|antwort|lösung|ответ|antwoord|odpowiedź|odpověď|svar(?:et)?|cevap|yanıt"
    r"|jawaban(?:nya)?|đáp\s+án|απάντηση|الإجابة|الاجابة|الجواب|الخيار|پاسخ|התשובה|תשובה|उत्तर|คำตอบ"
    r"|答案|答え|解答|回答|正解|正确的?选项|正確的?選項|정답|답|선택|opción|alternativa|opção|opzione)",
)
# A noun and a letter without a link: "Answer B", "la réponse correcte (B".
_BARE = re.compile(
    rf"(?:\w+[\s_-]+){{0,3}}{_NOUNS}(?:\s+(?:option|choice|letter|correct[aeo]?|corretta|certa|final[e]?))?[\s(\[{{]*",
    re.IGNORECASE,
)
# What makes such a pair a statement: the end of its clause, or praise; else it is a remark, "Answer B describes gout".
_STATES = re.compile(
    r"[\s)\]}]*(?:$|[.,;:!?。，；：、()\[\]{}/|–—=→*-]|です|である|だ|입니다|이다|है|است"
    r"|(?i:because|since|as|due|for|based|given|and|or|but|not|rather|which|that)\b"
    r"|(?i:is|are|was|would\s+be|must\s+be|should\s+be|seems|appears(?:\s+to\s+be)?|remains|represents)\s+"
    r"(?i:clearly\s+|also\s+|therefore\s+|definitely\s+)?(?i:the|my|our|an?)?\s*(?i:single\s+|only\s+|very\s+)?"
    r"(?i:correct|right|true|best|most|answer|choice|preferred|appropriate|likely|one)\b"
    r"|(?i:best|fits|matches|aligns|explains(?!\s+(?:only|some|few|part|just)))\b"
    r"|(?i:es|est|ist|è|é|är|jest|είναι|adalah|là)\s+(?i:la|le|die|a|o|il)?\s*(?i:más|plus|più|mais|am|wahrscheinlichste"
    r"|richtig|korrekt|corr|bonne|juste|giusta|certa|exacta|rätt|poprawn|prawidłow|właściw|σωστ|đúng)"
    r"|(?i:верн|правильн|benar|đúng)|正确|正確|正しい|最)",
    re.MULTILINE,
)
_YES = r"(?:[✓✔✅☑]|(?i:yes)(?=\s*(?:$|[.,;|\n])))"
_PRAISED = re.compile(
    # "options A or B", the first of the letters
    r"(?:\b(?i:options?|choices?)\s+)?(?<![A-Za-z0-9_'’])"
    r"(?:[(\[]?(?P<before>[A-J])[)\]]?\s*(?:/|&|\b(?i:or|and)\b)\s*)?"
    rf"[(\[]?(?P<letter>[A-J])[)\]]?{_MORE}(?:"
    # "is clearly correct", "is my final answer"
    r"\s*+(?:is|:)\s+(?i:(?:the\s+)?(?:clearly\s+)?(?:correct|right|true|best|most\s+likely|most\s+appropriate)\b"
    r"|(?:the|my)\s+(?:final\s+)?(?:answer|choice|pick)\b)"
    # "B: yes", "B ✓"
    rf"|[ \t]*+[:-]?[ \t]*+{_YES}"
    # Chinese and Japanese, then European languages
    r"|\s*+(?:选项|選項)?\s*+(?:是|为|為|が|は)?\s*+(?:正确|正確|正解|最も適切|正しい)"
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
    r"|most\s+consistent\s+with|by\s+elimination,?"
    r"|(?:diagnosis|cause|finding|treatment|management|test|step|one)\s+(?:is|would\s+be))"
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
    r"|\A\s*\(?(?P<first>[A-J])[).:]?,?\s+(?:because|since|due\s+to|given|based\s+on)\b"
    r"|\A\s*\(?(?P<alone>[A-J])\)?!+\s*\Z",
    re.MULTILINE,
)
_OPTION = re.compile(
    rf"\b(?i:option|opción|opção|opzione|alternativa|вариант)\b{_LINK}{_BRACKETED}{_MORE}", re.MULTILINE
)
_WEIGHTY = ((_FINAL,), (_ANSWER, _PRAISED, _TICKED, _MARKED), (_LOOSE,))
_REMARKS = (_OPTION, _ANSWER)
_TIERS = (*_WEIGHTY, _REMARKS)
_LETTERS = ("only", "named", "first", "headed", "alone", "marked")  # groups that hold the letter, if not "letter"
_CORRECTION = re.compile(
    # at the beginning of a clause, behind "oh", "but no"
    r"(?:^|(?<=[.!?;:,\n—–(-])|(?<=[.!?;:,—–-]\s)|(?<=[。，；！？]))"
    r"(?:(?i:(?:(?:oh|but|and|or|no|nein|non)\b[,.]?\s+){0,3}"
    # "wait", "my mistake", "on second thought", "let me reconsider"
    r"(?:wait|hmm+|no(?=,)|actually|sorry|apologies|my\s+mistake|i\s+mean|rather(?!\s+than)|edit(?=:)"
    r"|(?:up)?on\s+(?:second\s+thoughts?|reconsideration)|looking\s+again|correction|(?:scratch|strike)\s+that"
    r"|(?:i\s+)?(?:change|revise)d?\s+my\s+(?:answer|choice|mind)\s+to"
    r"|i\s+(?:was\s+(?:wrong|mistaken)|made\s+(?:a\s+mistake|an\s+error)|misread|misspoke)"
    r"|let\s+me\s+(?:correct|reconsider|revise|rethink)"
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

_CLAUSE = re.compile(r"[.:;!?\n,。،؟]|\b(?:but|mais|aber|pero|so|thus|hence|therefore|while|whereas)\b", re.IGNORECASE)
_DENIED_BEFORE = re.compile(
    # "not", "neither"; "no" but for "no doubt"
    r"\b(?:not|never|cannot|neither|nor|no(?!\s+(?:doubt|question))|(?-i:pas)|(?<!at )least|mistake\s+(?:is|would)"
    # verbs: "rule out", "exclude", "reject"
    r"|rul(?:e|ed|es|ing)\s+out|exclud\w+|eliminat(?:e|ed|es|ing)|elimination\s+of|reject\w*|discard\w*|avoid\w*"
    # adjectives and prepositions: "unlikely", "rather than"
    r"|unlikely|incorrect|wrong|false|except|rather\s+than|instead\s+of|(?<!none )other\s+than"
    r"|unlike|against|dismiss\w*|disregard\w*"
    r"|(?<!no )(?<!without )(?<!without a )(?<!without any )(?<!beyond )(?<!beyond a )doubt(?:s|ful)?"
    # other languages; what others say
    r"|ليست?|لا|לא|không\s+phải"
    r"|students\s+(?:often|usually|commonly|may|would|tend)|most\s+(?:students|people|candidates|examinees)"
    # of another than who answers, or of another rank: "the student's answer", "the second best answer"
    r"|(?:students?(?:['’]s?)?(?:\s+(?:final|given))?"
    r"|(?:second|third)(?:[\s-]+(?:best|most\s+likely))?|next\s+most\s+likely|alternative|distractor|runner-up)"
    r"\s+(?:answer|choice|option|guess|pick|selection)"
    r"|(?:some|many)\s+(?:say|think|believe|claim|would)|(?:you|one)(?:['’]d|\s+would)\s+think)\b"
    r"|n['’]t\b",
    re.IGNORECASE,
)
_HEDGED = re.compile(r"\b(?:might|may|could|either|possibly|perhaps|unsure|uncertain|whether|if)\b", re.IGNORECASE)
_DENIED_AFTER = re.compile(
    # the end of the letter's brackets, an aside in brackets, a colon or dash
    r"(?:\s*+[)\]])?(?:\s++\([^)]*\))?\s*+(?:[:–—-]\s*+)?"
    # "is clearly"
    r"(?:(?:is|are|was|were|can\s+be|could\s+be|should\s+be|has\s+been|would\s+be|seems|es|est|está|ist|è|é)\s+)?"
    r"(?:(?:clearly|also|therefore|definitely|simply|just|probably)\s+)*"
    # "not", but for "not B"; crosses; "wrong", "less likely", "inconsistent", "ruled out"
    r"(?:not\b(?!\s+[(\[]?[A-J]\b)|isn['’]t|n['’]t|no(?=\s*(?:$|[.,;:|\n]))|[✗✘❌✖☒]|wrong|incorrect|false\b"
    r"|unlikely|less\s+(?:likely|probable|plausible|consistent|typical|suitable|appropriate)"
    r"|im(?:plausible|probable|possible)"
    r"|(?:is|are|seems|looks|sounds|would\s+be|could\s+be)\s+(?:(?:only|too|very|rather|quite|clearly|perhaps|certainly)\s+){0,2}"
    r"(?:a\s+(?:trap|distractor|decoy|common\s+mistake)|tempting|dangerous|outdated|obsolete|premature|risky|unsafe|harmful"
    r"|misleading|irrelevant|insufficient|inadequate|unnecessary|(?:to\s+be\s+)?(?:avoided|excluded|rejected)"
    r"|(?:partly|partially|half)\b)"
    r"|(?:should|must)\s+be\s+(?:avoided|excluded|rejected|discarded)"
    r"|would\s+(?:harm|worsen|delay|not)\b|explains?\s+(?:only|just|some|few|part)\b"
    r"|in(?:consistent|compatible|appropriate)|contraindicated|refuted|dismissed|discarded|rejected|contradicted"
    r"|considered\s+(?:and|but)|do(?:es)?\s+not|do(?:es)?n['’]t|makes?\s+no|fails?\b|lacks?"
    # a condition: "only if", "unless"
    r"|,?\s*(?:only\s+(?:if|when)|unless|were\s+it\s+not|if\s+not\s+for|had\s+it\s+not|provided\s+that|assuming|if(?!\s+(?:i|we|you)\b))\b"
    r"|no\s+es\b|n['’]est\b|non\s+è|não\b|не\b"
    # a clause that takes it back: ", but that's a trap", ", which is wrong"
    r"|,\s*but\s+(?:that|this|it)(?:['’]s|\s+is)\s+"
    r"(?:a\s+trap|wrong|incorrect|not\s+(?:correct|right|true|the\s+(?:answer|best))\b)"
    r"|ruled\s+out|excluded|eliminated|,\s*which\s+is\s+(?:wrong|incorrect|not|false)|a\s+distractor|cannot"
    r"|can['’]t|out\b"
    # other languages
    r"|falsch|nicht|неверн|では(?:ない|ありません)|じゃない"
    r"|(?:가|이|는|은)?\s*아[니닌닙]|不对|不正确|错|scheidet\s+aus|entfällt|değil|नहीं|không|niet\b"
    r"|خطأ|غير|ليست?|שגויה?|לא|ผิด|ไม่|sai\b|yanlış|fauss?e?\b|fals[ao]|errad|sbagliat|fout\b|błędn"
    # German, Dutch, Swedish, Danish
    r"|(?:trifft|stimmt|passt|kommt)\s+nicht\b|kann\s+(?:ausgeschlossen|verworfen)|wäre\s+falsch"
    r"|(?:ist\s+)?(?:unwahrscheinlich|ausgeschlossen|unpassend|ungeeignet|unzutreffend)"
    r"|klopt\s+niet|is\s+(?:onjuist|onwaarschijnlijk)|(?:är\s+)?(?:fel\b|felaktig|osannolik)|(?:stämmer|passar)\s+inte|inte\b"
    r"|er\s+(?:forkert|feil)|passer\s+ikke"
    # French, Spanish, Italian, Portuguese
    r"|(?:est\s+)?(?:à\s+(?:écarter|exclure|rejeter)|peu\s+probable|exclue?\b|inexacte?)|ne\s+(?:convient|correspond|peut|va)\b"
    r"|(?:queda|está)\s+(?:descartad|excluid)|se\s+(?:descarta|excluye)|no\s+(?:puede|corresponde|encaja|explica)\b"
    r"|(?:es\s+)?(?:poco\s+(?:probab|prováv)|errónea|inadecuada)|va\s+(?:esclusa|scartata)|(?:è\s+)?(?:esclus|errat|scorrett)"
    r"|(?:pouco\s+)?improváve|(?:deve|pode)\s+ser\s+(?:descartad|excluíd)|pouco\s+prováve"
    # Russian, Polish, Turkish, Indonesian, Greek, Vietnamese, Hindi
    r"|исключ|неправильн|маловероят|ошибочн|невозмож|(?:jest\s+)?(?:nieprawidłow|niepoprawn|mało\s+prawdopodobn)|odpada|nie\b"
    r"|olamaz|salah(?!\s+satu)|tidak|keliru|kurang\s+tepat|(?:είναι\s+)?(?:λάθος|λανθασμέν|εσφαλμέν)|δεν\b|(?:bị\s+)?loại|गलत"
    # Persian, Arabic
    r"|نیست|نمی|نادرست|غلط|اشتباه|خاط|مستبعد"
    # Chinese, Japanese, Korean
    r"|(?:选项|選項)?(?:也|则|并|就|应该?|應該?|应当|可以?|被)*(?:不(?=是|对|對|正[确確]|符|成立|选|選|能|可(?!逆|切|分|避|触|控)|[应應该該]|合[适適]|恰当|考虑|支持|准确)|排除|有误|有誤|错误|錯誤|非)"
    r"|(?:は|が)?\s*(?:不適|誤り|誤って|間違|違う|不正解|除外)|では(?:ない|なく|ありません|ありえ|あり得)|じゃ(?:ない|なく)"
    r"|とは(?:言え|いえ|限ら)|でも(?:\s*[A-J]\s*でも)?(?:ない|ありません)"
    r"|(?:는|은|가|이)?\s*(?:틀[렸린리]|옳지|맞지|적절하지|부적절)|일\s*(?:수|리)(?:는|가)?\s*없)",
    re.IGNORECASE,
)
# "A: 20 %, B: 60 %": shares of several, of which none is stated.
_SHARES = re.compile(
    r"[)\]]?\s{0,2}[:=(–—-]{0,2}\s{0,2}\d{1,3}(?:\.\d+)?\s?%\)?[\s,;|]{1,4}(?:(?:and|or)\s+)?"
    r"(?:option\s+)?[(\[]?[A-J][)\]]?\s{0,2}[:=(–—-]{1,2}\s{0,2}\d{1,3}(?:\.\d+)?\s?%",
    re.IGNORECASE,
)
_EXAMPLE = re.compile(
    r"(?:\be\.?\s?g\.|\b(?:for\s+(?:example|instance)|such\s+as|(?:in|of|with)\s+the\s+form(?:at)?(?:\s+of)?))[,:]?\s{0,2}\Z",
    re.IGNORECASE,
)
# "If ..., it would be": a clause with a condition before it, unless the one who answers would choose.
_SUPPOSED = re.compile(r"(?:\bif|(?:^|[.;\n]\s*)(?:had|were))\b[^.;\n]*,[^,.;\n]*\Z", re.IGNORECASE)
_WOULD = re.compile(r"(?<!\bi )(?<!\bwe )\bwould\b", re.IGNORECASE)
_ASKED = re.compile(r"\s*+[)\]]?\s*+[?？؟]")


# "yes" and "no" in the languages of medical examinations.
_SAYS_YES = (
    "yes yeah yep true sí sì sim ja oui да tak ano evet có đúng ναι igen kyllä "
    "是 是的 有 有的 对 正确 はい ある 네 예 있다 نعم हाँ हां כן بله ใช่ ya"
)
_SAYS_NO = (
    "no nope false nein non não нет nie ne hayır hayir không όχι nem ei nee nej 否 不 不是 没有 無 无 不对 错误 "
    "いいえ ない 아니요 아니오 아니 없다 لا नहीं לא خیر ไม่ ไม่ใช่ tidak"
)
WORDS = dict.fromkeys(_SAYS_YES.split(), "yes") | dict.fromkeys(_SAYS_NO.split(), "no")
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


# "10⁹" and "1½", which NFKC alone makes "109" and "11/2".
_RAISED = re.compile(r"(?<=[0-9])(?=[⁺⁻]?[⁰¹²³⁴-⁹])")
_FRACTION = re.compile(r"(?<=[0-9])(?=[¼-¾⅐-⅞])")


def readable(text: str) -> str:
    """`text` without characters that have no glyph, with plain ones in the place of full-width ones (NFKC), and of a
    long run of blanks its ends and, between them, each kind once. A power stays one ("10^9")."""
    text = _FRACTION.sub(" ", _RAISED.sub("^", text))
    return _cut(INVISIBLE.sub("", unicodedata.normalize("NFKC", text)))


def _cut(text: str) -> str:
    """`text` without the middle of long runs of blanks."""
    return _RUN.sub(lambda run: run[1] + "".join(dict.fromkeys(run[2])) + run[3], text)


def _undecorated(text: str) -> str:
    """`text` without what is struck and without marks, between which blanks may have stood."""
    return _cut(_DECORATION.sub("", _STRUCK.sub("", text)))


def stated(text: str, letters: str, remarks: bool = True) -> set[str] | None:
    """Letters that the text's weightiest statements give as its answer.

    Args:
        text: what stands outside the reasoning.
        letters: labels of the options, e.g. "ABCD"; a statement of another letter is passed over.
        remarks: whether a remark on an option ("option B") counts where nothing weightier is stated.

    Returns:
        The letters; more than one where statements differ or one names several. None where nothing is stated.
    """
    plain = _undecorated(_ELEMENT.sub(lambda tag: f" {_named(tag)}: ", _told(readable(text))))
    plain = _CONTRAST.sub(" it is ", _RULE.sub("", plain).replace("|", ":"))
    return _corrected(plain, letters) or _weightiest(plain, letters, _TIERS if remarks else _WEIGHTY)


def _corrected(text: str, letters: str) -> set[str] | None:
    """Letters that are stated behind the last correction; None where there is no correction, or nothing is stated."""
    corrections = list(_CORRECTION.finditer(text))
    if not corrections:
        return None
    end = corrections[-1].end()
    found = _weightiest(text[end:], letters, _WEIGHTY)
    filler = _FILLERS.match(text, end)
    return found or _weightiest(text[filler.end() if filler else end :], letters, ((_CORRECTED,),))


# "The answer is asthma": the option's text in the place of its letter, to the end of its clause.
_TEXT = re.compile(
    r"(?:\b(?i:(?P<final>final\s+)?(?:answer|diagnosis|choice|option)\s*(?:is|would\s+be|must\s+be|:|=)\s*(?:(?:clearly|most\s+"
    r"likely|likely|therefore|thus)\s+)?)"
    r"|\b(?i:(?:respuesta|resposta|risposta|réponse|antwort|diagnóstico|diagnostic|diagnose|diagnosi|ответ|диагноз)"
    r"(?:\s+(?:correct[ae]|correta|corretta|esatta|final|más\s+probable))?\s*(?:(?:es|é|è|est|ist|lautet)\s*:?\s|[:—–-]))\s*"
    r"|(?:答案|诊断|診断|答え|正解|정답|진단)\s*(?:应该是|应为|是|为|為|は|은|는|이|:)\s*"
    r"|(?:الإجابة|الجواب|التشخيص)(?:\s+(?:الصحيحة|الصحيح|النهائية))?\s*(?:هي|هو|:)\s*)"
    r"(?P<text>[^\n;!?。]{2,200}?)(?=(?<!\b[A-Z])\.(?:\s|$)"
    # the stop of an initial, "C. acnes", ends nothing
    r"|\.(?:\s+[^a-z\s]|\s*$)|[\n;!?。]|です|である|입니다|이다|,?\s+(?:because|since|as|given|due|porque|car|weil|da)\b|$)"
)


def _told(text: str) -> str:
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


def _named(element: re.Match[str]) -> str:
    """The words that an element stands for: "final answer" for <final>."""
    name = element[1] or element[2]
    return "final answer" if name.lower() == "final" else name


def stated_texts(text: str) -> list[str]:
    """The answers, in words, that the text's statements give; those of a final answer alone where there are such."""
    plain = _undecorated(readable(text))
    found = [
        match
        for match in _TEXT.finditer(plain)
        if not _withdrawn(plain, match, "text") and not _SHARES.match(plain, match.start("text") + 1)
    ]
    return [match["text"].strip() for match in found if match["final"] or not any(one["final"] for one in found)]


def _weightiest(text: str, letters: str, tiers: tuple[tuple[re.Pattern[str], ...], ...]) -> set[str] | None:
    """Letters that stand in the first tier of patterns that finds any."""
    for tier in tiers:
        found: set[str] = set()
        for pattern in tier:
            for match in pattern.finditer(text):
                name = match.lastgroup if match.lastgroup in _LETTERS else "letter"
                remark = tier is not _REMARKS and pattern in (_FINAL, _ANSWER) and _is_remark(text, match)
                if not remark and not _withdrawn(text, match, name):
                    groups = match.groupdict()
                    others = f"{groups.get('before') or ''} {groups.get('more') or ''}"
                    found |= {match[name].upper(), *re.findall(r"(?<![A-Za-z])[A-J](?![A-Za-z])", others)}
        if found := found & set(letters):
            return found
    return None


def _is_remark(text: str, match: re.Match[str]) -> bool:
    """True where a noun and a letter stand without a link, and what follows is neither the end of the clause nor
    praise."""
    head = text[match.start() : match.start("letter")]
    return len(head) < 64 and _BARE.fullmatch(head) is not None and _STATES.match(text, match.end()) is None


def _withdrawn(text: str, match: re.Match[str], name: str) -> bool:
    """True where the statement's clause denies, hedges or asks instead of stating."""
    # looked for 200 characters back, longer than clauses are, so that time is linear in a long text
    start = max((mark.end() for mark in _CLAUSE.finditer(text, max(0, match.start() - 200), match.start())), default=0)
    before = text[max(start, match.start() - 200) : match.start(name)]
    if _DENIED_BEFORE.search(before) or _HEDGED.search(before):
        return True
    if _EXAMPLE.search(text[max(0, match.start() - 32) : match.start()]):
        return True
    if _WOULD.search(before) and _SUPPOSED.search(text, max(0, match.start() - 200), match.start()):
        return True
    # what is matched may end in the next line, which is another clause
    end = match.start(name) + len(text[match.start(name) : match.end()].rstrip())
    line = text.find("\n", end)
    stop = line if line >= 0 else len(text)
    if _DENIED_AFTER.match(text, end, stop) or _ASKED.match(text, end, stop):
        return True
    return _SHARES.match(text, match.end(name)) is not None
