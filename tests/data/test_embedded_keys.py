"""Every key of MMedExpert-mini computed a second time, from the question's text or the image's pixels."""

import re
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_medicine.mcp.calculators import abcd2, apgar, centor_mcisaac, chadsvasc, child_pugh, curb65, qsofa, rcri, tbsa

from mmedexpert_jax.data import LETTERS, load_cases
from mmedexpert_jax.data.case import SPLITS
from mmedexpert_jax.data.embedded import TASKS, charts, generate, materials
from mmedexpert_jax.data.embedded.rules import RULES


@cache
def cases(modality):
    return [case for split in SPLITS for case in load_cases("mini", split) if case.modality == modality]


def right(case):
    return case.options[LETTERS.index(case.answer)]


class Findings(set):
    """The findings of a vignette; `findings("age")` is the number after "age"."""

    def __call__(self, name, index=0):
        (text,) = [piece for piece in self if re.match(rf"{re.escape(name)} \d|{re.escape(name)} -\d", piece)]
        return float(re.findall(r"\d+(?:\.\d+)?", text)[index])

    def any(self, *texts):
        return not self.isdisjoint(texts)


def findings(question):
    return Findings(re.split(r", |: |\. | has | shows ", question))


def pool(score, limits, texts):
    """The text of the band: `limits` are the highest scores of all but the last."""
    return texts[next((i for i, limit in enumerate(limits) if score <= limit), len(limits))]


def score(count, last):
    """ "2 points", or "4 points or more" from `last` on."""
    return f"{count} points or more" if count >= last else "1 point" if count == 1 else f"{count} points"


def curb65_key(f):
    value = curb65.calculate_curb65(
        curb65.CURB65Params(
            confusion=f.any("new confusion", "disoriented in time"),
            bun=f("urea") * 2.8,
            respiratory_rate=f("respiratory rate"),
            systolic_bp=f("blood pressure"),
            diastolic_bp=f("blood pressure", 1),
            age=f("age"),
        )
    ).value
    places = ("home treatment", "short hospital stay", "urgent admission", "intensive care review")
    return pool(value, (1, 2, 3), places)


def chadsvasc_key(f):
    value = chadsvasc.calculate_chadsvasc(
        chadsvasc.CHADSVAScParams(
            age=f("age"),
            female_sex="female sex" in f,
            congestive_heart_failure="heart failure" in f,
            hypertension="hypertension" in f,
            diabetes="diabetes" in f,
            stroke_tia_thromboembolism=f.any("past stroke", "past TIA"),
            vascular_disease=f.any("past infarction", "aortic plaque"),
        )
    ).value
    return "1 point or fewer" if value <= 1 else score(min(value, 5), 5)


def qsofa_key(f):
    params = qsofa.QSOFAParams(
        respiratory_rate=f("respiratory rate"),
        systolic_blood_pressure=f("systolic"),
        altered_mentation=f.any("new confusion", "drowsy"),
    )
    return score(qsofa.calculate_qsofa(params).value, 9)


def hypertension_key(f):
    if f("systolic") >= 140 or f("diastolic") >= 90:
        return "stage 2 hypertension"
    if f("systolic") >= 130 or f("diastolic") >= 80:
        return "stage 1 hypertension"
    return "elevated pressure" if f("systolic") >= 120 else "normal pressure"


def apgar_key(f):
    def grade(one, two):
        return 2 if f.any(*two) else 1 if f.any(*one) else 0

    value = apgar.calculate_apgar(
        apgar.ApgarParams(
            appearance=grade(["blue hands"], ["pink all over"]),
            pulse=2 if f("heart rate") >= 100 else 1,
            grimace=grade(["grimace"], ["sneeze", "cough"]),
            activity=grade(["some flexion"], ["active motion"]),
            respiration=grade(["weak cry", "slow breathing"], ["strong cry"]),
        )
    ).value
    return pool(value, (3, 6), ("low score", "abnormal score", "reassuring score"))


def mcisaac_key(f):
    value = centor_mcisaac.calculate_centor_mcisaac(
        centor_mcisaac.CentorMcIsaacParams(
            age=f("age"),
            fever=f("temperature") > 38,
            absence_of_cough="no cough" in f,
            tender_anterior_cervical_lymphadenopathy="tender neck nodes" in f,
            tonsillar_swelling_or_exudate=f.any("tonsil exudate", "swollen tonsils"),
        )
    ).value
    return "1 point or fewer" if value <= 1 else score(min(value, 4), 4)


def kocher_key(f):
    count = (f("temperature") > 38.5) + ("cannot bear weight" in f) + (f("ESR") > 40) + (f("white cells") > 12)
    return ("below 1%", "3%", "40%", "93%", "99%")[count]


def meningitis_key(f):
    count = 2 * ("positive Gram stain" in f) + (f("CSF protein") >= 80) + (f("CSF neutrophils") >= 1000)
    return score(min(count + (f("blood neutrophils") >= 10) + ("seizure" in f), 3), 3)


def ich_key(f):
    count = (2 if f("GCS") <= 4 else 1 if f("GCS") <= 12 else 0) + (f("volume") >= 30) + (f("age") >= 80)
    count += ("blood in the ventricles" in f) + f.any("infratentorial origin", "cerebellar origin")
    return ("0%", "13%", "26%", "72%", "97% or more")[min(count, 4)]


def abcd2_key(f):
    weak, speech = ("left arm weakness", "right arm weakness"), ("slurred speech", "word-finding trouble")
    minutes = f("lasting")
    value = abcd2.calculate_abcd2(
        abcd2.ABCD2Params(
            age_ge_60=f("age") >= 60,
            bp_ge_140_90=f("blood pressure") >= 140 or f("blood pressure", 1) >= 90,
            clinical_features=list(abcd2.ABCD2ClinicalFeature)[0 if f.any(*weak) else 1 if f.any(*speech) else 2],
            duration=list(abcd2.ABCD2Duration)[0 if minutes >= 60 else 1 if minutes >= 10 else 2],
            diabetes="diabetes" in f,
        )
    ).value
    return pool(value, (3, 5), ("low risk", "moderate risk", "high risk"))


def sedan_key(f):
    count = (2 if f("glucose") > 12 else 1 if f("glucose") > 8 else 0) + (f("age") > 75) + (f("NIHSS") >= 10)
    return score(min(count + ("early infarct on CT" in f) + ("dense artery" in f), 4), 4)


def pound_key(f):
    count = f.any("pulsatile pain", "throbbing pain") + (4 <= f("attacks of") <= 72)
    count += ("unilateral" in f) + ("nausea" in f) + ("disabling" in f)
    return pool(count, (2, 3), ("migraine unlikely", "migraine possible", "migraine likely"))


def rcri_key(f):
    value = rcri.calculate_rcri(
        rcri.RCRIParams(
            high_risk_surgery=f.any("colectomy", "lobectomy", "aortic repair", "oesophagectomy"),
            history_of_ischemic_heart_disease=f.any("angina", "past infarction"),
            history_of_congestive_heart_failure="heart failure" in f,
            history_of_cerebrovascular_disease=f.any("past stroke", "past TIA"),
            preoperative_insulin_treatment="on insulin" in f,
            preoperative_creatinine_above_2=f("creatinine") / 88.4 > 2.0,
        )
    ).value
    return pool(value, (0, 1, 2), ("class I", "class II", "class III", "class IV"))


def child_pugh_key(f):
    ascites, coma = list(child_pugh.AscitesGrade), list(child_pugh.EncephalopathyGrade)
    interpretation = child_pugh.calculate_child_pugh(
        child_pugh.ChildPughParams(
            bilirubin=f("bilirubin") / 17.1,
            albumin=f("albumin") / 10,
            inr=f("INR"),
            ascites=ascites[0 if "no ascites" in f else 1 if "mild ascites" in f else 2],
            encephalopathy=coma[0 if "no encephalopathy" in f else 1 if "mild encephalopathy" in f else 2],
        )
    ).interpretation
    return "class " + re.search(r"Class ([ABC])", interpretation)[1]


def mirels_key(f):
    width = next(int(piece.split("%")[0]) for piece in f if "% of the width" in piece)
    count = 3 if "peritrochanteric lesion" in f else 1 if "humerus lesion" in f else 2
    count += 3 if "functional pain" in f else 2 if "moderate pain" in f else 1
    count += 3 if "lytic" in f else 2 if "mixed" in f else 1
    count += 3 if width / 100 > 2 / 3 else 2 if width / 100 > 1 / 3 else 1
    return pool(count, (7, 8), ("observation", "individual decision", "prophylactic fixation"))


def khorana_key(f):
    count = 2 * f.any("stomach cancer", "pancreatic cancer") + f.any("lung cancer", "lymphoma", "bladder cancer")
    count += (f("platelets") >= 350) + (f("haemoglobin") < 100) + (f("white cells") > 11) + (f("BMI") >= 35)
    return score(min(count, 3), 3)


TEXT_KEYS = {task: globals()[f"{task}_key"] for task in RULES}


@pytest.mark.parametrize("task", RULES)
def test_shipped_text_key(task):
    members = [case for case in cases("text") if case.task == task]
    assert members
    for case in members:
        assert TEXT_KEYS[task](findings(case.question)) == right(case), case.question


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_rule_at_its_thresholds(data):
    """Every finding at the lowest or the highest value of a level, any wording."""
    rule = RULES[data.draw(st.sampled_from(sorted(RULES)))]
    texts, counts = [], []
    for item in rule.items:
        level = data.draw(st.sampled_from(item.levels))
        numbers = tuple(data.draw(st.sampled_from(span)) / level.scale for span in level.spans)
        texts.append(level.write(data.draw(st.sampled_from(level.phrases)), numbers))
        counts.append(level.points)
    total = max(counts) if rule.highest else sum(counts)
    assert rule.options[rule.band(total)] == TEXT_KEYS[rule.task](Findings(texts))


def pixels(case):
    return np.asarray(case.images[0].picture()).astype(int)


def near(image, colour, slack=0):
    return (abs(image - np.array(colour)) <= slack).all(-1)


def centre(mask):
    rows, columns = np.nonzero(mask)
    return rows.mean(), columns.mean()


def ecg_pixels(image):
    dark = np.flatnonzero((image[8:20].sum(-1) < 150).any(0))
    beats = [group.mean() for group in np.split(dark, np.flatnonzero(np.diff(dark) > 1) + 1)]
    gaps = np.diff(beats)
    if gaps.max() - gaps.min() > 12:
        return "irregular rhythm"
    rate = 300 / (gaps.mean() / 14)
    return "tachycardia" if rate > 100 else "bradycardia" if rate < 60 else "normal rate"


def growth_pixels(image):
    row, column = centre(near(image, (20, 40, 220)))

    def height(colour, upper):
        """Row of a line at the dot, from the columns beside it; of the two red lines the upper or the lower."""
        rows = []
        for side in (-9, 9):
            hits = np.flatnonzero(near(image, colour)[:, round(column) + side])
            clusters = np.split(hits, np.flatnonzero(np.diff(hits) > 1) + 1)
            rows.append(clusters[0 if upper else -1].mean())
        return sum(rows) / 2

    red = (210, 20, 20)
    if row > height((0, 0, 0), True):
        return "severe wasting"
    if row > height(red, False):
        return "moderate wasting"
    return "overweight" if row < height(red, True) else "normal weight"


def audiogram_pixels(image):
    dots = near(image, (210, 20, 20)) | near(image, (20, 40, 220))
    mean = np.mean([np.flatnonzero(dots[:, 14 + 28 * i]).mean() - 6 for i in range(4)])
    grades = ("normal hearing", "mild loss", "moderate loss", "moderately severe loss", "severe loss")
    return grades[np.searchsorted([20, 35, 50, 65], mean + 1e-9)]


def burns_pixels(image):
    front = [(12, 27), (42, 9), (42, 46), (32, 27), (52, 27), (86, 21), (86, 34)]
    back = [(32, 83), (52, 83), (86, 77), (86, 90)]
    return f"{9 * sum(bool(near(image[place], (170, 0, 0))) for place in front + back)}%"


def chest_ct_pixels(image):
    row, column = (round(i) for i in centre(near(image, (255, 220, 0))))
    units = image[row - 2 : row + 3, column - 2 : column + 3].mean() / 255 * 500 - 200
    return ("lung", "fat", "soft tissue", "bone")[np.searchsorted([-160, -20, 110], units)]


def brain_mr_pixels(image):
    image = image[4:-4, 4:-4]  # within the bars along the sides
    mark = near(image, (255, 220, 0))
    row, column = centre(mark)
    rows, columns = np.nonzero((image.sum(-1) > 90) & ~mark)
    side = "left" if column > (columns.min() + columns.max()) / 2 else "right"
    return f"{side} {'back' if row > (rows.min() + rows.max()) / 2 else 'front'}"


@pytest.mark.parametrize("task", sorted(task.task for task in TASKS if task.task not in RULES))
def test_shipped_image_key(task):
    members = [case for case in cases("image") if case.task == task]
    assert members
    for case in members:
        assert globals()[f"{task}_pixels"](pixels(case)) == right(case), case.id


def test_eleven_areas_of_nine_per_cent_and_the_perineum_are_the_body():
    whole = {name: True for name in tbsa.TBSAParams.model_fields if name != "perineum"}
    assert tbsa.calculate_tbsa(tbsa.TBSAParams(**whole)).value == 9 * len(charts.AREAS) == 99


def test_growth_class_follows_the_z_score():
    """z by the LMS formula with the WHO's linear extension beyond 3 SD."""
    for made in generate(7, 60, "dev", tasks=(charts.GROWTH,)):
        values = made.problem.values
        table = materials._materials()[f"lms_{values['sex']}"][values["length"] - materials.FIRST_LENGTH]
        power, median, spread = table
        z = ((values["weight"] / median) ** power - 1) / (power * spread)
        expected = pool(z, (-3, -2, 2), charts.WEIGHTS)
        assert right(made.case) == expected


@pytest.mark.parametrize(
    ("sex", "length", "row"),
    [
        ("boys", 80, (8.2, 8.9, 9.6, 10.4, 11.4, 12.4, 13.6)),
        ("girls", 70, (6.3, 6.9, 7.5, 8.2, 9.0, 9.9, 10.9)),
    ],
)
def test_weight_for_length_gives_the_field_tables_of_the_who(sex, length, row):
    got = [materials.weight_for_length(sex, length, z) for z in range(-3, 4)]
    np.testing.assert_allclose(got, row, atol=0.055)
