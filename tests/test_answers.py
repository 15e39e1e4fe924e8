"""The edge table of answer parsing: where peers' reward parsers differ, each line is a decision of ours."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmedexpert_jax import answers, comparison
from mmedexpert_jax.data import LETTERS, prompts
from mmedexpert_jax.data.words import stands
from mmedexpert_jax.medeval.scoring import read_choice
from mmedexpert_jax.mmedexpert.paradigm_rules import Statements

CT = ("MRI", "Ultrasound", "CT", "Melanoma of the skin")


def choose(inside, options=CT):
    return answers.choice(f"<think>because</think><answer>{inside}</answer>", options)


@pytest.mark.parametrize(
    ("inside", "letter"),
    [
        ("C", "C"),
        ("\nC\n", "C"),  # a search without DOTALL misses it
        ("(C)", "C"),
        ("C.", "C"),
        ("C)", "C"),
        ("C:", "C"),
        ("c", "C"),
        ("(c)", "C"),
        ("C: CT", "C"),
        ("C. CT", "C"),  # holds two letters of A-J, both C
        ("C) ct.", "C"),
        ("(C) CT", "C"),
        ("D) Melanoma of the skin", "D"),
        ("CT", "C"),
        ("ct.", "C"),
        ("melanoma  of\nthe skin", "D"),
        ("C: the scan with contrast", "C"),
        ("C (CT)", "C"),
        ("CT (C)", "C"),
        ("C (the scan with contrast)", "C"),
        ("Option D (melanoma of the skin)", "D"),
        ("MRI (C)", None),
        ("C (MRI)", None),
        ("a (mild) fever", None),
        ("", None),
        ("  ", None),
        ("E", None),
        ("J: CT", None),
        ("A or B", None),
        ("A, B", None),
        ("A. or B.", None),
        ("A: B", None),
        ("A: CT", None),
        ("A. MRI (C)", None),
        ("A: MRI rather than CT", None),
        ("AB", None),
        ("The answer is C", "C"),
        ("CT or MRI", None),
        ("maybe CT", None),
        ("C <b>", None),
    ],
)
def test_what_an_answer_block_chooses(inside, letter):
    assert choose(inside) == letter


@pytest.mark.parametrize(
    ("inside", "options", "letter"),
    [
        ("no fever", ("fever", "no fever"), "B"),
        ("B: no fever", ("fever", "no fever"), "B"),
        ("A: no fever", ("fever", "no fever"), None),
        ("A", ("B", "A", "AB", "O"), "A"),  # blood groups: the label is what was asked for
        ("A: B", ("B", "A", "AB", "O"), "A"),
        ("A: A", ("B", "A", "AB", "O"), None),
        ("C: Hepatitis B", ("Hepatitis A", "Gout", "Hepatitis B"), "C"),
        ("C: Hepatitis B, acute", ("Hepatitis A", "Gout", "Hepatitis B"), "C"),
        ("same", ("same", "same"), None),
        ("A", ("same", "same"), "A"),
        ("2", ("1", "2", "12"), "B"),
        ("C. difficile", ("E. coli", "C. difficile", "S. aureus"), "B"),  # a species is no label
        ("Answer: A. fumigatus", ("E. coli", "A. fumigatus", "S. aureus"), "B"),
        ("B. A. fumigatus", ("E. coli", "A. fumigatus", "S. aureus"), "B"),
        ("Vitamin C", ("Vitamin A", "Vitamin B", "Vitamin C"), "C"),
    ],
)
def test_options_that_hold_each_other(inside, options, letter):
    assert choose(inside, options) == letter


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("C", None),  # no tags: the text is not searched
        ("The answer is C.", None),
        ("<answer>C</answer>", "C"),
        ("<ANSWER>C</ANSWER>", "C"),
        ("<answer>A</answer> no: <answer>B</answer>", "B"),
        ("<answer>A</answer><answer></answer>", None),
        ("<answer>A<answer>B</answer>", "B"),
        ("<answer>A<answer>B</answer></answer>", "B"),
        ("<answer>C", None),
        ("<think><answer>A</answer></think>", None),  # reasoning is never an answer
        ("<think>is it <answer>A</answer>?</think><answer>B</answer>", "B"),
        ("<think>cut off in <answer>A</answer>", None),
        ("no opening tag <answer>A</answer></think><answer>B</answer>", "B"),
        ("<think>x</think>\n\n text <answer>C</answer> more", "C"),
        ("", None),
    ],
)
def test_which_block_counts(response, letter):
    assert answers.choice(response, CT) == letter


@pytest.mark.parametrize(
    ("response", "well_formed"),
    [
        ("<think>a</think><answer>C</answer>", True),
        ("<think>a\nb</think>\n<answer>\nC\n</answer>\n", True),
        (" <think>a</think> <answer>C</answer>", True),
        ("<think></think><answer>C</answer>", False),
        ("<think>a</think><answer> </answer>", False),
        ("<think>a</think> so <answer>C</answer>", False),
        ("<think>a</think><answer>C</answer> done", False),
        ("<think>a</think><answer>C</answer><answer>C</answer>", False),
        ("<think>a<think>b</think><answer>C</answer>", False),
        ("<think>a</think><think>b</think><answer>C</answer>", False),
        ("<think>a</think><answer><answer>C</answer></answer>", False),
        ("<answer>C</answer><think>a</think>", False),
        ("<think>a</think><answer>C", False),
        ("C", False),
    ],
)
def test_the_form(response, well_formed):
    assert answers.parse(response).well_formed is well_formed


def test_parse_keeps_reasoning_and_answer_apart():
    parsed = answers.parse("<think> (1) one\n(2) two </think><answer> B </answer>")
    assert parsed == answers.Answer("(1) one\n(2) two", "B", True)
    assert answers.parse("plain") == answers.Answer(None, None, False)


@settings(deadline=None)
@given(st.text(alphabet="ABCabc<>/().: \nthinkanswer", max_size=80))
def test_any_text_gives_a_letter_of_the_options_or_none(text):
    assert answers.choice(text, ("x", "y")) in (None, "A", "B")
    assert answers.choice(f"<think>{text}", ("x", "y")) is None or "</think>" in text.lower()


@settings(deadline=None)
@given(st.lists(st.text(alphabet="abcdefgh XYZ", min_size=2, max_size=12), min_size=2, max_size=10), st.data())
def test_every_letter_in_every_form_reads_back(options, data):
    letter = data.draw(st.sampled_from(LETTERS[: len(options)]))
    for form in ("{}", "({})", "{}.", "{})", "\n{}:\n"):
        assert answers.choice(prompts.render("why", form.format(letter)), options) == letter
    own = options[LETTERS.index(letter)]
    assert answers.choice(prompts.render("why", f"{letter}. {own}"), options) == letter


@pytest.mark.parametrize(
    ("said", "options", "letter"),
    [
        ("B. A fracture of the hip", ("Gout", "Fracture of the hip", "Sprain"), "B"),
        ("C. Hepatitis B", ("Gout", "Lupus", "Hepatitis B virus"), "C"),
        ("A. Type B lactic acidosis", ("Lactic acidosis, type B", "Ketosis"), "A"),
        ("C. Hepatitis B", ("Gout", "Hepatitis B", "Hepatitis C virus"), None),
        ("A, or B", ("Gout", "Lupus"), None),
    ],
)
def test_letters_of_an_option_s_own_text_name_no_other_option(said, options, letter):
    assert answers.choice(f"<answer>{said}</answer>", options) == letter


def test_an_open_answer_is_right_where_evaluation_says_so():
    for said in ("the aortic regurgitation", "Aortic-regurgitation.", "**aortic regurgitation**"):
        assert answers.is_right(f"<answer>{said}</answer>", (), "Aortic regurgitation")
    assert not answers.is_right("<answer>mitral regurgitation</answer>", (), "Aortic regurgitation")


@pytest.mark.parametrize(
    ("said", "gold", "same"),
    [
        ("5", "-5", False),
        ("−5", "-5", True),
        ("< 5 %", "> 5 %", False),
        ("<5 %", "< 5%.", True),
        ("10-20", "10–20", True),
        ("beta-2 agonist", "Beta 2 agonist", True),
    ],
)
def test_signs_of_numbers_are_part_of_an_open_answer(said, gold, same):
    assert comparison.same_text(said, gold) is same


@pytest.mark.parametrize(
    ("said", "options", "letter"),
    [
        ("B. A fall in pressure is expected", ("A fall in pressure", "A rise in pressure"), None),
        ("B. But A is also possible.", ("Gout", "Lupus"), None),
        ("C. A and C", ("Gout", "Lupus", "Sprain"), None),
        ("B. Aspirin 50 mg daily (low dose)", ("Aspirin", "Aspirin 50 mg daily"), "B"),
    ],
)
def test_the_label_a_and_the_article_are_told_apart(said, options, letter):
    assert answers.choice(f"<answer>{said}</answer>", options) == letter


def test_options_that_are_all_names_of_species_carry_no_labels():
    for options in (["A. baumannii", "B. cereus"], ["B. cereus", "A. baumannii"], ["C. difficile", "E. coli"]):
        assert answers.unlabelled(options) == options and not answers.out_of_order(options)
    assert answers.unlabelled(["A. E. coli", "B. C. difficile"]) == ["E. coli", "C. difficile"]
    assert answers.unlabelled(["(A) gout", "(B) lupus"]) == ["gout", "lupus"]


@pytest.mark.parametrize(
    "options",
    [
        ["A、D、E、K", "B、C"],
        ["A、C正确", "B、D正确"],
        ["A、B 均正确", "B、C 均正确"],
        ["A、B两项", "B、C两项"],
        ["B、C", "A、D"],
        ["A:G", "B:C"],
        ["A.M.", "B.I.D."],
        ["a.m.", "b.i.d."],
        ["A. hydrophila", "B. melitensis"],
    ],
)
def test_letters_that_are_things_are_no_labels(options):
    assert answers.unlabelled(options) == options and not answers.out_of_order(options)


def test_a_label_before_a_name_that_begins_with_a_letter_goes():
    assert answers.unlabelled(["A、C反应蛋白", "B、D二聚体", "C、B超"]) == ["C反应蛋白", "D二聚体", "B超"]
    assert answers.unlabelled([" A:A ", " B:B "]) == ["A ", "B "]  # parts of a figure
    assert answers.unlabelled(["A:B", "B:A", "C:D"]) == ["B", "A", "D"]
    assert answers.unlabelled(["A:T cells", "B:B cells"]) == ["T cells", "B cells"]
    assert answers.unlabelled(["A、A组", "B、B组", "C、C组"]) == ["A组", "B组", "C组"]
    assert answers.unlabelled(["A:CT", "B:X ray"]) == ["CT", "X ray"]
    assert answers.unlabelled(["A.E. coli", "B.Klebsiella", "C.Proteus"]) == ["E. coli", "Klebsiella", "Proteus"]
    assert answers.unlabelled(["A. Norovirus", "B. Rotavirus", "C. difficile"]) == [
        "Norovirus",
        "Rotavirus",
        "difficile",
    ]
    assert answers.unlabelled(["A：1", "B：2"]) == answers.unlabelled(["A:1", "B:2"]) == ["1", "2"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        # what is negative
        ("HER2-", "HER2+"),
        ("Rh+", "Rh-"),
        ("O-", "O+"),
        ("AB+", "AB−"),
        ("p53-", "p53+"),
        ("CD4⁺", "CD4⁻"),
        ("4-/5", "4+/5"),
        ("ER-/PR+/HER2-", "ER+/PR-/HER2+"),
        ("CD20- CD3+", "CD20+ CD3-"),
        ("HBsAg-, HBeAg+", "HBsAg+, HBeAg-"),
        ("HER2- breast cancer", "HER2+ breast cancer"),
        ("Babinski -", "Babinski +"),
        ("fever +, cough -", "fever -, cough +"),
        ("HBsAg (+)", "HBsAg (-)"),
        ("HIV -ve", "HIV +ve"),
        ("Ph- ALL", "Ph+ ALL"),
        ("Fy(a-b-)", "Fy(a+b+)"),
        ("Le(a+b-)", "Le(a-b+)"),
        ("Jk(a-)", "Jk(a+)"),
        ("HBsAg: -", "HBsAg: +"),
        ("IgM：－ IgG：＋", "IgM：＋ IgG：－"),
        ("A ✓", "A ✗"),
        ("male ♂", "male ♀"),
        ("R≫L", "R≪L"),
        # decimals and thousands
        (".5 mg", "5 mg"),
        ("-.5", "5"),
        ("p<.05", "p<05"),
        ("1.000 mg", "1,000 mg"),
        # arrows
        ("TSH ↓, T4 ↑", "TSH ↑, T4 ↓"),
        ("K▲", "K▼"),
        ("↓ K+", "↑ K+"),
        ("A←B", "A→B"),
        # powers, fractions, parts
        ("109", "10⁹"),
        ("102", "10²"),
        ("25", "2⁵"),
        ("11/2", "1½"),
        ("10⁻⁹", "10⁹"),
        ("5 %", "5 ‰"),
        ("2", "√2"),
        # signs of vowels and tones
        ("दिन", "दान"),
        ("पीठ", "पाठ"),
        ("पेट", "पीट"),
        ("ไข้", "ไข่"),
        ("আম", "আমি"),
    ],
)
def test_what_one_sign_tells_apart_is_not_the_same(one, other):
    for said, gold in ((one, other), (other, one)):
        assert not comparison.same_text(said, gold)
        assert not answers.is_right(f"<answer>{said}</answer>", (), gold)
    for text in (one, other):
        assert comparison.same_text(text, text) and answers.is_right(f"<answer>**{text}**</answer>", (), text)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("HER2-positive", "HER2 positive"),
        ("HER2−", "HER2-"),
        ("CD8+ T cells", "CD8 T cells"),  # a plus is what is said without it
        ("Na", "Na+"),
        ("Na+/K+-ATPase", "Na/K ATPase"),
        ("HCO₃⁻", "HCO3"),
        ("aspirin + clopidogrel", "aspirin, clopidogrel"),
        ("left- and right-sided", "left and right sided"),
        ("T- and B-cell", "T and B cell"),
        ("CT- guided biopsy", "CT-guided biopsy"),
        ("(-)-epinephrine", "epinephrine"),
        ("Asthma —", "asthma"),
        ("- Asthma", "asthma"),
        ("5-year survival", "5 year survival"),
        ("COVID-19", "covid 19"),
        ("X-ray", "x ray"),
        ("A → B", "A, B"),
        ("5 +/- 2", "5 ± 2"),
        ("1½", "1 1/2"),
        ("½", "1/2"),
        ("10⁹/L", "10^9/L"),
        ("m²", "m2"),
        ("CO₂", "CO2"),
        ("45°", "45"),
        ("5 mg", "5mg"),
        ("5 %", "5%"),
        ("Straße", "STRASSE"),
        ("HIV -ve", "HIV negative"),
        ("HER2-", "$\\mathrm{HER2}^{-}$"),
        ("chest film (x-ray)", "chest film (x ray)"),
        ("Findings: - a mass", "Findings: a mass"),
        (".5 mg", "0.5 mg"),
        ("12,000/µL", "12000/µL"),
        ("12 000", "12,000"),
        (">=5 mm", "≥ 5 mm"),
        ("≦5", "<= 5"),
        ("$\\leq 5$", "≤5"),
        ("$\\uparrow$ TSH", "↑ TSH"),
        ("$\\alpha$-thalassemia", "α-thalassemia"),
        ("$\\lambda$ chains", "λ chains"),
        ("$37^\\circ\\text{C}$", "37°C"),
        ("5 \\times 3\\,\\text{cm}", "5×3 cm"),
        ("3 x 4 cm", "3×4 cm"),
        ("\\text{T}_2", "T2"),
        ("H$_2$O", "H2O"),
        ("$CO_2$", "CO₂"),
        ("$\\text{Ca}^{2+}$", "Ca²⁺"),
        ("5\\,\\mu g", "5 µg"),
        ("\\frac{1}{2}", "1/2"),
        ("10<sup>9</sup>/L", "10⁹/L"),
        ("10^{9}/L", "10⁹/L"),
        ("CO<sub>2</sub>", "CO2"),
        ("&lt;5", "<5"),
        ("&nbsp;Gout<br>", "Gout"),
        ("ไข้", "ไข้"),
        # letters
        ("Guillain-Barré syndrome", "Guillain-Barre syndrome"),
        ("التهابٌ رئويّ", "التهاب رئوي"),
        ("أنفلونزا", "انفلونزا"),
        ("Löffler syndrome", "Loeffler syndrome"),
        ("Löffler syndrome", "Loffler syndrome"),
        ("Café-au-lait spots", "cafe-au-lait spots"),
        ("Brønsted acid", "Bronsted acid"),
        ("β2-agonist", "beta-2 agonist"),
        ("TGF-β1", "TGF-beta1"),
        ("IFNγ", "IFN-gamma"),
        ("$\\alpha$-synuclein", "alpha-synuclein"),
        # numbers
        ("7", "7.0"),
        ("0.5 mg", "0.50 mg"),
        ("10,000", "10000.0"),
        ("3,5 cm", "3.5 cm"),
        ("2·5 mg", "2.5 mg"),
        ("6.02·10^23", "6.02×10^23"),
        ("2-3 cm", "2 to 3 cm"),
        ("5 ~ 10 mL", "5–10 mL"),
        ("120 / 80 mmHg", "120/80 mmHg"),
        ("12.03.2021", "12/03/2021"),
        ("L4/5", "L4-5"),
        ("t(9;22)", "t(9:22)"),
        ("1,2, and 3", "1, 2 and 3"),
        # units and signs in words
        ("250 mcg", "250 µg"),
        ("5 ug", "5 µg"),
        ("10%", "10 percent"),
        ("37 °C", "37 degrees C"),
        ("H&E stain", "H and E stain"),
        # names of two numbers, titres, lists whose commas may be decimal marks
        ("T11/12", "T11-12"),
        ("S1/2", "S1-2"),
        ("Grade 2/3", "grade 2-3"),
        ("HPV 16/18", "HPV 16-18"),
        ("BRCA1/2", "BRCA1, 2"),
        ("CA 19-9", "CA 19.9"),
        ("1/160", "1:160"),
        ("1,2", "1, 2"),
        ("HPV 16,18", "HPV 16, 18"),
        ("C5,6", "C5, 6"),
        ("1, 25-dihydroxyvitamin D", "1,25-dihydroxyvitamin D"),
        ("2,50 cm", "2.5 cm"),
        ("100.0%", "100%"),
    ],
)
def test_what_is_the_same_is_so_in_words_and_in_full(one, other):
    for said, gold in ((one, other), (other, one)):
        assert comparison.same_text(said, gold) and comparison.token_f1(gold, said) == 1.0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        # short words are told apart by accents: hepatitis and tendinitis, rib and side, year and anus
        ("viêm gan", "viêm gân"),
        ("côte gauche", "côté gauche"),
        ("año", "ano"),
        ("beta-blocker", "α-blocker"),
        # ranges, ratios, scores and decimals
        ("3-5", "3.5"),
        ("2-3 cm", "2.3 cm"),
        ("3/5", "3.5"),
        ("1:160", "1.160"),
        ("5'", '5"'),
        ("401.0", "401"),
        # not one number in two forms
        ("1,000 mg", "1.000 mg"),
        ("1.500", "1.5"),
        ("E11.0", "E11"),
        ("100", "10.0"),
        ("10 mcg", "10 mg"),
    ],
)
def test_what_is_another_number_or_word_is_another_answer(one, other):
    for said, gold in ((one, other), (other, one)):
        assert not comparison.same_text(said, gold) and comparison.token_f1(gold, said) < 1
    assert answers.vote(one) != answers.vote(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ribs 9,10", "ribs 9,1"),
        ("5,10-methylene-THF", "5,1-methylene-THF"),
        # two accents of one word, while none beside one may be a slip
        ("pécheur", "pêcheur"),
        ("publicó", "Público"),
    ],
)
def test_two_lists_and_two_accents_are_told_apart_though_either_may_be_the_same_as_a_third(one, other):
    for said, gold in ((one, other), (other, one)):
        assert not comparison.same_text(said, gold)


@pytest.mark.parametrize(
    "text",
    [
        "l4/5",
        "c5/6 disc",
        "5 mcg",
        "5 ug",
        "5 μg/kg",
        "5 μmol",
        "50 percent",
        "37 degrees c",
        "5 degrees F",
        "5 to 10 mg",
        "t(9;22)",
        "fever, and cough",
        "salt & water",
        "3x4 cm",
        "HIV -ve",
        "café-au-lait spots",
        "Löffler syndrome",
        "β2-agonist",
        "BRCA1/2",
    ],
)
def test_case_tells_no_texts_apart(text):
    for other in (text.upper(), text.lower(), text.title()):
        assert comparison.same_text(text, other) and comparison.same_text(other, text)
    assert answers.choice(f"<answer>{text.upper()}</answer>", [text, "x"]) == "A"


def test_f1_takes_a_number_as_one_word():
    for one, other in (("5.2", "2.5"), ("80/120", "120/80"), ("15.0", "0.15"), ("2020-03-01", "2020-01-03")):
        assert comparison.token_f1(f"{one} mg", f"{other} mg") == 1 / 2


@pytest.mark.parametrize(
    ("inside", "options", "letter"),
    [
        ("Guillain-Barré syndrome", ("Guillain-Barre syndrome", "Lupus"), "A"),
        ("ذات الرئة", ("ذات الرّئة", "أنفلونزا"), "A"),
        ("آلام", ("الام", "آلام"), "B"),  # told apart where options differ by the sign alone
        ("Loeffler syndrome", ("Lupus", "Löffler syndrome"), "B"),
        ("beta", ("α", "β", "γ"), "B"),
        ("<5mm", ("> 5 mm", "< 5 mm", "5 mm"), "B"),
        ("1 - 5", ("1-5", "1.5", "15"), "A"),
        ("1,5", ("1-5", "1.5", "15"), "B"),
        ("1,2, & 3", ("1 and 2", "1, 2 and 3", "2 and 4"), "B"),
        # the unfolded texts decide where folded ones are equal
        ("0.50 mg", (".5 mg", "0.5 mg", "0.50 mg"), "C"),
        ("B. .5 mg", (".5 mg", "0.5 mg", "5 mg"), None),
        ("resumes", ("résumés", "resumes"), "B"),
        ("Löffler", ("Loeffler", "Löffler"), "B"),
        # statements by their texts, as in plain text
        ("The answer is I.", ("I", "II", "III", "IV"), "A"),
        ("The diagnosis is viral pneumonia.", ("Pneumonia", "Viral pneumonia"), "B"),
        ("The diagnosis is not viral pneumonia.", ("Pneumonia", "Viral pneumonia"), None),
        ("The answer is B or A. The diagnosis is gout.", ("Gout", "Lupus"), None),
    ],
)
def test_an_option_in_another_form_of_its_letters_and_numbers_is_chosen(inside, options, letter):
    assert choose(inside, options) == letter


@pytest.mark.parametrize(
    ("gold", "said", "right"),
    [
        ("yes", "Yes there is a fracture", True),
        ("yes", "Yes\nIt is.", True),
        ("no", "No it is not", True),
        ("no", "There is no fracture", True),
        ("yes", "Ja das ist so", True),
        ("yes", "是的有骨折", True),
        ("yes", "No there is no fracture", False),
        ("yes", "Ja und nein", False),
        ("yes", "Yes or no", False),
        ("no", "No image was provided", False),
        ("no", "Non si vede", False),
        ("present", "Yes it is", False),
        # a "no" beside what is found
        ("no", "The lesion is malignant, no calcification", False),
        ("no", "Consolidation is present in the right lobe. No effusion.", False),
        ("no", "The lung is not normal: no aeration on the left", False),
        ("no", "I see no reason to doubt; malignant", False),
        ("no", "Pneumonia with no effusion", False),
        ("no", "I would say no, because it is benign", True),
        # an opening that ends its clause
        ("yes", "Yes. Actually no surgery needed", True),
        ("yes", "Yes, wait for labs; no surgery", True),
        ("yes", "Yes, sorry, no more details", True),
        ("yes", "Yes, cannot see the image clearly", True),
        ("yes", "Yes, please share the image with surgeon", True),
        ("no", "No, I cannot see an image of a fracture", True),
        ("no", "No. Please provide an image with contrast to exclude", True),
        ("no", "No, please send another image", True),
        ("no", "No: no image given", True),
        ("no", "no, it can't see the scan margin", True),
        ("no", "No. 2 lesions are benign", True),
        ("no", "No. 5 mm nodule is benign", True),
        ("no", "No. 12 weeks is too early", True),
        ("no", "No. 3", False),
        ("no", "No, I can't view images.", False),
        ("no", "No, wait: yes", False),
        ("yes", "Yes, I can help. Please upload the image.", False),
    ],
)
def test_an_open_answer_of_yes_or_no_is_read_as_that_of_a_question_of_its_kind(gold, said, right):
    assert answers.is_right(f"<answer>{said}</answer>", (), gold) is right
    assert (answers.open_f1(said, (gold,)) == 1) is right


def test_a_fence_around_an_answer_does_not_matter():
    assert answers.gives('```json\n{"answer": "pneumonia"}\n```', ("pneumonia",))
    for fence in ("```Pneumonia\n```", "```\nPneumonia\n```", "```text\nPneumonia\n```", "```text\n`Pneumonia`\n```"):
        assert answers.gives(fence, ("pneumonia",)) and choose(fence, ("Gout", "Pneumonia")) == "B"


def test_a_run_of_backticks_is_read_in_time_linear_in_the_length():
    start = time.process_time()
    assert not answers.gives("`" * 100_000, ("yes",)) and choose("`" * 100_000) is None
    assert time.process_time() - start < 4  # some 0.1


@pytest.mark.parametrize(
    ("phrase", "text", "found"),
    [
        ("TNF", "TNFα", False),
        ("IFN", "IFNγ high", False),
        ("IL-1", "IL-1β", False),
        ("HCG", "βHCG level", False),
        ("alpha", "alpha1", False),
        ("1", "β1 agonist", False),
        ("TNF-alpha", "anti-TNFα", True),
        ("TNFα", "high TNF-alpha", True),
        ("β-blocker", "a beta-blocker", True),
    ],
)
def test_a_phrase_stands_in_no_longer_name_with_a_greek_letter(phrase, text, found):
    assert stands(phrase, text) is found


def test_the_longer_of_two_options_is_named_however_its_greek_letter_is_written():
    for text in ("high TNFα", "high TNF-alpha"):
        assert Statements((), "", ("TNF", "TNFα"), 0).named(text) == {1}


def test_f1_hears_a_sign_and_counts_units_as_it_did():
    assert comparison.token_f1("HER2+", "HER2-") == pytest.approx(2 / 3)
    assert comparison.token_f1("50 mg daily", "50mg") == pytest.approx(4 / 5)
    assert comparison.token_f1("50 mg", "100 mg") == pytest.approx(1 / 2)


@pytest.mark.parametrize(
    "piece",
    [
        ",1",
        ".5",
        "\\alpha",
        "_a",
        "&a;",
        "<b ",
        "a=<b",
        "(a-",
        ":-",
        "$",
        "A",
        "-",
        "A-",
        "1-",
        " -",
        "(-",
        "+/",
        "<-",
        "^",
        "10⁹",
        "H-+",
        "SO4-",
        "ा",
        "0.",
        "1.0",
        "1/",
        "1, ",
        "é",
        "α",
        "5'",
    ],
)
def test_signs_are_found_in_time_linear_in_the_length(piece):
    start = time.process_time()
    comparison.token_f1(piece * (100_000 // len(piece)), "x")
    assert time.process_time() - start < 4  # some 0.1


def test_an_option_is_one_text_in_any_of_its_unicode_forms():
    options = ("Embolie pulmonaire aigue\u0308", "Pneumonie", "10⁹", "109")
    assert choose("Embolie pulmonaire aiguë", options) == "A"
    assert choose("**10⁹**", options) == "C" and choose("**109**", options) == "D"


FOUR = ("Pneumonia", "Heart failure", "Asthma", "Pulmonary embolism")


@pytest.mark.parametrize(
    "response",
    [
        # reasoning under headings, as HuatuoGPT writes, in elements of any name, and in marks of other servers
        "## Thinking\n\nThe answer is A.\n\n## Final Response\n\n{}",
        "**Thinking**\nThe answer is A.\n\n**Final Answer:** {}",
        "### Reasoning\nAnswer: A\n### Answer\n{}",
        "思考过程：\n答案是A\n\n最终答案：{}",
        "<rationale>The answer is A.</rationale>{}",
        "<Reasoning_Process>\nThe answer is A.\n</Reasoning_Process>\n{}",
        "<inner-thoughts>The answer is A.</inner-thoughts>{}",
        "<longcot>The answer is A.</longcot>{}",
        '<details type="reasoning" done="true">\n<summary>9 s</summary>\nThe answer is A.</details>\n{}',
        "Thinking...\nThe answer is A.\n...done thinking.\n\n{}",
        "thought\nThe answer is A.\n<unused95>{}",
        "The answer is A.</thinking>\n{}",
        "[unused16]The answer is A.[unused17]{}",
        "< think >The answer is A.</ think >{}",
        "&lt;think&gt;The answer is A.&lt;/think&gt;{}",
        "\\<think\\>The answer is A.\\</think\\>{}",
        "<|channel|>commentary<|message|>So A.<|end|><|start|>assistant<|channel|>final<|message|>{}<|return|>",
        # what is said behind the end of the turn
        "{}<|endoftext|>Human: next question. Answer: A",
        "{}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nThe answer is A",
        "{}<end_of_turn>\n<start_of_turn>user\n<answer>A</answer>",
        "{}</s> The answer is A.",
        "{}\n\nHuman: The answer is A",
        "<|assistant|>\n{}<|user|>\nThe answer is A",
        "{} [INST] next [/INST] The answer is A.",
        "<|think|>The answer is A.<|/think|>{}",
        "<|im_start|>assistant\n{}<|im_end|>\n<|im_start|>user\nThe answer is A",
        "<s>{}</s>",
        "Answer: <s>A</s> {}",
    ],
)
def test_neither_reasoning_in_any_marks_nor_another_turn_is_an_answer(response):
    for said in ("B", "**B. Heart failure**", "<answer>B</answer>"):
        assert read_choice(response.format(said), FOUR, "plain") == "B", said
    assert answers.choice(response.format("<answer>B</answer>"), FOUR) == "B"
    assert answers.is_right(response.format("<answer>Gout</answer>"), (), "gout")


@pytest.mark.parametrize("said", ["B<|im_end|>", "B</s>", "<|begin_of_box|>B<|end_of_box|>", "B<end_of_turn>"])
def test_a_special_token_is_no_part_of_an_answer(said):
    assert answers.choice(f"<answer>{said}</answer>", FOUR) == "B"
    assert answers.is_right(f"<answer>{said}</answer>", (), "B")


@pytest.mark.parametrize("tags", ["< answer >B</ answer >", "<answer >B</answer>", "&lt;answer&gt;B&lt;/answer&gt;"])
def test_loose_tags_hold_an_answer_and_are_not_well_formed(tags):
    assert answers.choice(f"<think>x</think>{tags}", FOUR) == "B"
    assert not answers.parse(f"<think>x</think>{tags}").well_formed


@pytest.mark.parametrize(
    "piece", ["<rationale>", "<think-a><think-b>", "< think ", "<s>x", "x</s>", "Thinking...", "<a "]
)
def test_marks_of_reasoning_are_found_in_time_linear_in_the_length(piece):
    start = time.process_time()
    answers.spoken(piece * (100_000 // len(piece)))
    answers.spoken("## Thinking\n" + piece * (100_000 // len(piece)))
    assert time.process_time() - start < 4  # some 0.1


@pytest.mark.parametrize(
    ("said", "gold"),
    [
        ("Answer: Gout", "gout"),
        ("The final answer is gout.", "gout"),
        ("**Answer:** Gout", "gout"),
        ('{"answer": "Gout"}', "gout"),
        ("答案：痛风", "痛风"),
        ("Yes, there is a fracture.", "Yes"),
        ("Nein", "No."),
        ("是的，图中是CT。", "是"),
        ("否", "不是"),
        ("The answer is no.", "no"),
    ],
)
def test_an_open_answer_may_have_its_name_and_say_its_yes_or_no_in_its_own_words(said, gold):
    response = f"<answer>{said}</answer>"
    assert answers.is_right(response, (), gold) and answers.is_right(response, (), "other", gold)
    assert answers.open_f1(said, (gold,)) == 1.0
    for other in ("sepsis", "yes" if answers.yes_no_key(gold) == "no" else "no"):
        assert not answers.is_right(response, (), other)


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        *(
            (said, "B")
            for said in ("B;", "B,", "- B", ": B", "# B", "\\bf B", "{\\rm B}", "\\textcolor{red}{B}", "**B**;")
        ),
        *(
            (said, "B")
            for said in ("B, not C", "B (not C)", "B rather than C", "B instead of C.", "B. Heart failure, not C")
        ),
        *((said, None) for said in ("not B", "It is not B", "anything, not B", "B or not B", "C or B, not A")),
    ],
)
def test_marks_beside_a_letter_and_another_that_is_denied(said, letter):
    assert answers.choice(f"<answer>{said}</answer>", FOUR) == letter
    assert read_choice(f"\\boxed{{{said}}}", FOUR, "boxed") == letter


@pytest.mark.parametrize(
    ("said", "options", "letter"),
    [
        ("The answer is A, HER2-.", ("HER2+", "HER2-", "ER+"), None),
        ("The answer is A. HER2-", ("HER2+", "HER2-", "ER+"), None),
        ("The answer is A, HER2+.", ("HER2+", "HER2-", "ER+"), "A"),
        ("The answer is A: ↓ T3, ↑ TSH", ("↑ T3, ↓ TSH", "↓ T3, ↑ TSH"), None),
        ("The answer is A (↑ T3, ↓ TSH)", ("↑ T3, ↓ TSH", "↓ T3, ↑ TSH"), "A"),
        ("Yes (B)", ("Yes", "No"), None),
        ("Yes (A)", ("Yes", "No"), "A"),
        (">= 5 mm", ("≤ 5 mm", "≥ 5 mm"), "B"),
        (".5 mg", ("5 mg", "0.5 mg"), "B"),
    ],
)
def test_signs_tell_options_apart(said, options, letter):
    assert read_choice(said, options, "plain") == answers.choice(f"<answer>{said}</answer>", options) == letter


@pytest.mark.parametrize(
    ("verdict", "replies"),
    [
        (
            "no",
            "没有骨折|没有看到骨折|图中没有骨折|未见骨折|无骨折|"
            "不存在肿瘤|لا يوجد كسر|لا كسر|Keine Fraktur|Kein Hinweis auf eine Fraktur|"
            "Es ist keine Fraktur zu sehen|Non il n'y a pas de fracture|Pas de fracture|"
            "Non c'è frattura|Não há fratura|"
            "Geen fractuur|Ingen fraktur|Ei ole murtumaa|Nincs törés|"
            "Нет перелома|Nie ma złamania|Není zlomenina|Kırık yok|"
            "Δεν υπάρχει κάταγμα|Không có gãy xương|Tidak ada fraktur|骨折はありません|"
            "골절이 없습니다|ไม่มีกระดูกหัก|אין שבר|"
            "कोई फ्रैक्चर नहीं है|شکستگی وجود ندارد",
        ),
        (
            "yes",
            "有骨折|存在骨折|图中有骨折|نعم يوجد كسر|"
            "Ja es ist eine Fraktur|Oui il y a une fracture|Có gãy xương|骨折があります|"
            "골절이 있습니다|شکستگی وجود دارد",
        ),
        (
            None,
            "无法判断|没有图像|无疑是骨折|有可能骨折|Keine Ahnung|Non lo so|"
            "Aucune idée|لا أعرف|لا شك|Não é possível dizer|Nie wiem|"
            "Нет сомнений|Không thể|骨折の可能性があります|画像がありません|"
            "알 수 없습니다|ไม่มีภาพ|Ja-Nein|Non-contrast CT",
        ),
    ],
)
def test_a_denial_needs_no_stop_in_any_language_and_doubt_is_none(verdict: str | None, replies: str) -> None:
    for said in replies.split("|"):
        assert answers.yes_no(said, aside=False) == verdict, said


@pytest.mark.parametrize(
    ("verdict", "replies"),
    [
        (
            None,  # of one who sees nothing or does not know
            "没有提供图像|没有任何图片|没有CT图像|没有明确的结论|不是我能判断的|未见上传的图片|没有附件|"
            "ليس لدي صورة|لا توجد صورة مرفقة|لا يوجد ما يكفي من المعلومات|Nessun'immagine|Non ci sono dati sufficienti|"
            "Pas d'accès à l'image|On ne voit pas l'image|Il n'y a pas suffisamment d'informations|Aucun cliché fourni|"
            "Keine sichere Aussage möglich|Kein Röntgenbild beigefügt|Keine genauen Angaben|Não há imagem anexada|"
            "Nenhum arquivo|Geen duidelijke afbeelding|Ingen tydlig bild|Ei ole riittävästi tietoa|Nincs elég adat|"
            "Нет чёткого изображения|Brak załączonego zdjęcia|Není k dispozici obrázek|Yeterli veri yok|"
            "Δεν φαίνεται η εικόνα|Không có bất kỳ hình ảnh nào|Tidak ada cukup informasi|判断材料がありません|"
            "근거가 없습니다|ไม่พบไฟล์|אין מספיק נתונים|داده ای وجود ندارد|डेटा नहीं है|No hay imagen adjunta|"
            "No data available|No clear answer",
        ),
        (None, "有骨折的可能|有一定可能|有骨折嫌疑|有别于肺炎|有骨折么|存在骨折?|图中有骨折吗?|Pas de fracture ?"),
        (
            None,  # nothing but it, and not it alone
            "没有骨折以外的异常|没有别的,只有骨折|不是只有骨折|Il n'y a pas que la fracture|"
            "Aucune hésitation, fracture|ليس فقط كسر|لا يوجد سوى كسر|Не видно ничего кроме перелома|"
            "Non c'è solo una frattura|Kein anderer Befund als eine Fraktur|"
            "骨折だけではない|골절밖에 없습니다|Kırıktan başka bir şey yok|"
            "No hay más que una fractura",
        ),
        (
            "no",
            "Keine Fraktur auf dem Bild|Aucune fracture sur l'image|Pas de plaque d'athérome|"
            "Nessuna frattura nell'immagine|Nenhuma lesão visível na radiografia|Geen fractuur op de foto|"
            "Ingen fraktur på bilden|Нет перелома на снимке|Нет данных за перелом|Brak złamania na zdjęciu|"
            "Δεν υπάρχει κάταγμα στην εικόνα|Tidak ada fraktur pada gambar|图像中没有骨折|无骨折及其他异常|没有片状影|"
            "لا توجد علامات غير طبيعية|شواهدی از شکستگی وجود ندارد|Ei ole muutoksia|なし。|無し|Yok|Yoktur.",
        ),
        (
            "yes",
            "Oui cette image montre une fracture|Ja dieses Bild zeigt eine Fraktur|有两处骨折|有骨折。还有问题吗?|"
            "Evet görüntüde kırık var|あり。|Vardır",
        ),
    ],
)
def test_what_is_lacking_decides_what_a_denial_says(verdict: str | None, replies: str) -> None:
    for said in replies.split("|"):
        assert answers.yes_no(said) == verdict, said
        assert answers.is_right(f"<answer>{said}</answer>", (), "no") == (verdict == "no"), said


@pytest.mark.parametrize(
    ("verdict", "replies"),
    [
        (
            "yes",  # of what an image shows, or is
            "是的这是一张CT图像|是的这是一张胸部X光片|是的这张图像显示了肝脏|包含肝脏影像|存在异常影像|有异常影像|有影像学异常|有充分证据|"
            "はいこの画像は骨折を示しています|はい写真では骨折です|نعم غير طبيعي|Oui, autre lésion visible|"
            "是的我认为有骨折|是的有可疑病灶|是的考虑疑似肺炎|是的可见骨折影像|"
            "有其他异常|有别的病变|存在其他病变|有单纯囊肿|نعم لدي كسر",
        ),
        (
            "no",
            "不是CT图像|不是X光片|不是胸部X光片|不是MRI影像|不存在异常影像|没有影像学异常|未见影像学异常|无影像学异常|未见明显异常影像|"
            "没有占位性病变影像|没有肝脏在图片中|无其他异常|未见其他异常|未见确定骨折|不包含心脏影像|"
            "Aucune donnée en faveur d'une fracture|Aucun signe radiographique de fracture|Aucune autre lésion|"
            "Não há dados sugestivos de malignidade|Não se observam imagens nodulares|Nenhuma outra alteração|"
            "Nenhum sinal radiográfico de pneumonia|"
            "Nessuna immagine di frattura|Nessun segno radiografico di polmonite|Non ci sono altre lesioni|"
            "Kein röntgenologischer Hinweis auf eine Fraktur|Kein röntgenologisch erkennbarer Erguss|"
            "Keine anderen Befunde|"
            "Нет рентгенологических признаков пневмонии|Не выявлено рентгенологических признаков пневмонии|"
            "Нет убедительных данных за пневмонию|Нет достоверных данных за пневмонию|Нет других изменений|"
            "Нет данных, указывающих на перелом|Нет снимок не показывает перелома|"
            "لا تظهر أشعة الصدر أي التهاب|لا يوجد غير طبيعي|"
            "Ei ole murtumaa kuvassa|Ei ole murtumaa röntgenkuvassa|Không có bằng chứng gãy xương|Brak innych zmian|"
            "Geen andere afwijkingen|Inga andra fynd|Ingen annen patologi|Tidak terlihat kelainan lain|Není jiná léze|"
            "No\n\nThe answer is based on the chest X-ray.|No\nThe film is normal.|"
            "No\nThe image is a normal chest X-ray.|"
            "No\n\nThis conclusion is based on the absence of fluid.|no the conclusion is that it is normal|"
            "no that answer is wrong|No this x-ray is normal|No\nImages show a normal lung.|"
            "No data to suggest malignancy|There are no data to support pneumonia|"
            "There is no data that supports pneumonia|"
            "No data on the film suggest fracture|No films with fracture|"
            "No hay imágenes de fractura|No hay imagen sugestiva de fractura|No hay datos de malignidad|"
            "No hay datos de derrame pleural en la imagen|No existe imagen de condensación|"
            "No se ve imagen de neumotórax|"
            "No hay otra lesión visible|No hay respuesta inflamatoria|No hay datos que sugieran fractura|"
            "未见其它明显异常|未见别的异常|不是别的器官|没有其他病变|不是单纯囊肿|不是我认为的肺炎|没有影像学证据表明骨折|没有影像显示骨折|无确定性病变|"
            "没有结论性证据表明骨折|Nein Röntgenbild ist unauffällig|Nein andere Diagnose|"
            "Нет рентгенограмма нормальная|"
            "لا أشعة الصدر طبيعية|いいえ写真ではありません|Δεν υπάρχουν ακτινογραφικά ευρήματα|"
            "No hay suficiente evidencia de fractura|не выявлено данных за пневмонию|Nessuna alterazione radiografica|"
            "Başka lezyon yok|Δεν υπάρχει άλλη βλάβη|Ninguna otra lesión|Ninguna imagen de fractura",
        ),
        (
            None,
            "Keine andere Diagnose als eine Fraktur|Aucune autre lésion que la fracture|"
            "Geen andere afwijking dan een fractuur|"
            "A. Yes\nB. No\n\nThe answer is B.|Yes\nNo\n\nThe answer is hard to tell.|No data|No films available|"
            "No clear image is attached|No answer is possible|No conclusion can be drawn|No hay imagen para analizar|"
            "No tengo acceso a la imagen|No hay suficiente información|No veo ninguna radiografía.|"
            "Нет рентгеновских снимков|Kein anderes Bild|没有其他图像",
        ),
    ],
)
def test_a_denial_of_a_finding_is_a_no_however_it_names_the_image(verdict: str | None, replies: str) -> None:
    for said in replies.split("|"):
        assert answers.yes_no(said) == verdict, said


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("أذن", "إذن"),  # ear, permission
        ("آذان", "أذان"),
        ("ألم", "إلم"),
        ("عَرَق", "عِرْق"),  # sweat, vein
        ("أَلَم", "إلم"),
        ("وجود عَرَق بارد", "وجود عِرْق بارد"),
    ],
)
def test_arabic_words_that_carry_other_signs_are_others(one, other):
    assert not comparison.same_text(one, other) and not comparison.same_text(other, one)
    assert comparison.token_f1(one, other) < 1 and answers.open_f1(one, [other]) < 1
    assert answers.is_right(f"<answer>{one}</answer>", (), one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("حُمَّى", "حمّى"),
        ("مـــرض", "مَرض"),
        ("إِذن", "اذن"),
        ("ٱلم", "ألم"),
        ("َا", "ا"),
        ("١٫٥ سم", "1.5 سم"),
        ("۱٫۵ میلی‌گرم", "1.5 میلی‌گرم"),
        ("١٬٥٠٠", "1500"),
        ("٣،٥ سم", "3.5 سم"),
        ("٥٠ ٪", "50%"),
    ],
)
def test_arabic_in_few_signs_and_its_numbers_are_the_same_text(one, other):
    assert comparison.same_text(one, other) and comparison.same_text(other, one)


def test_a_word_with_other_accents_costs_itself_alone():
    assert comparison.token_f1("The résumé: fever, cough, rash.", "fever cough rash resumë") == 0.75
    assert comparison.token_f1("أذن، التهاب.", "إذن التهاب") == 0.5


def test_the_decimal_mark_of_arabic_is_no_blank():
    assert not comparison.same_text("٣٫٥", "3 5") and not comparison.same_text("٣٫٥", "35")
    assert answers.choice("<answer>0.5 ملغ</answer>", ["٠٫٥ ملغ", "٥ ملغ"]) == "A"


@pytest.mark.parametrize("three", ["٣", "۳", "३", "৩", "๓", "３"])
def test_digits_of_every_script_are_one_number(three):
    assert answers.choice(f"<answer>{three} cm</answer>", ["5 cm", "3 cm"]) == "B"
    assert answers.choice("<answer>3 cm</answer>", ["5 cm", f"{three} cm"]) == "B"
    assert comparison.same_text(f"{three} cm", "3 cm") and not comparison.same_text(f"{three} cm", "4 cm")
