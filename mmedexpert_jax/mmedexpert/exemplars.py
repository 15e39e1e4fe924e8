"""Worked examples of the four paradigms: the same two vignettes in each, so that only the way of reasoning differs.

Vignettes and traces are our own. That one pair of cases is shown in every paradigm's style follows Savage et al. 2024.
"""

from dataclasses import dataclass

VERSION = "1"


@dataclass(frozen=True)
class Exemplar:
    """A vignette with options, key, and one trace for each paradigm."""

    question: str
    options: tuple[str, ...]
    answer: str
    traces: dict[str, str]


EXEMPLARS = (
    Exemplar(
        "A 58-year-old man with long-standing hypertension has sudden tearing pain between the shoulder blades. Blood "
        "pressure is 178/96 mmHg in the right arm and 138/80 mmHg in the left. A soft early diastolic murmur is new. "
        "The ECG shows no ST-segment changes and troponin is normal. What is the most likely diagnosis?",
        ("Acute myocardial infarction", "Aortic dissection", "Pulmonary embolism", "Acute pericarditis"),
        "B",
        {
            "differential": "(1) Sudden chest and back pain in a hypertensive man: the candidates are acute "
            "myocardial infarction, aortic dissection, pulmonary embolism and acute pericarditis. (2) Acute "
            "myocardial infarction: age and hypertension support it, but an unchanged ECG, normal troponin and pain "
            "felt in the back argue against it. (3) Pulmonary embolism: the sudden onset fits, but it explains "
            "neither the difference between the arms nor the murmur, so it is unlikely. (4) Acute pericarditis: a "
            "rub, pain on lying flat and diffuse ST elevation are absent, so it is excluded. (5) Tearing pain, a "
            "difference of 40 mmHg between the arms and a new murmur of aortic regurgitation all fit aortic "
            "dissection.",
            "intuitive": "(1) Tearing interscapular pain, unequal arm pressures and a new diastolic murmur in a man "
            "with hypertension form one picture. (2) This pattern is classic of aortic dissection.",
            "analytical": "(1) Years of high pressure degenerate the aortic media, so the intima can tear. (2) Blood "
            "that enters the wall splits it, and stretching of its nerve endings causes tearing pain. (3) The false "
            "lumen narrows the left subclavian artery, therefore pressure in the left arm is lower. (4) Spread to the "
            "root pulls a cusp down and leads to aortic regurgitation, hence the early diastolic murmur, while the "
            "coronary arteries stay open, so ECG and troponin are normal. (5) The chain starts in the aortic wall: "
            "aortic dissection.",
            "bayesian": "(1) Prior: among hypertensive men of 58 with acute chest pain, acute myocardial infarction "
            "is common, about 15%, and aortic dissection rare, about 2%. (2) Evidence: an unchanged ECG and normal "
            "troponin lower acute myocardial infarction to about 4%. (3) Tearing pain in the back raises aortic "
            "dissection to about 15%. (4) A difference of 40 mmHg between the arms raises it to about 60%, and a new "
            "diastolic murmur raises it further to about 85%. (5) Posterior: with about 85%, aortic dissection is far "
            "ahead of all other options.",
        },
    ),
    Exemplar(
        "A 24-year-old woman has had fatigue, weight loss and a craving for salty food for four months. The creases "
        "of her palms and her gums are darkened. Blood pressure is 92/58 mmHg. Sodium is 128 mmol/L, potassium 5.8 "
        "mmol/L and glucose 3.6 mmol/L. What is the most likely diagnosis?",
        ("Anorexia nervosa", "Secondary adrenal insufficiency", "Hypothyroidism", "Primary adrenal insufficiency"),
        "D",
        {
            "differential": "(1) Wasting with low pressure, low sodium and high potassium in a young woman: the "
            "candidates are anorexia nervosa, secondary adrenal insufficiency, hypothyroidism and primary adrenal "
            "insufficiency. (2) Anorexia nervosa: weight loss supports it, but potassium would be low and the skin "
            "not darkened, so it is unlikely. (3) Hypothyroidism: fatigue and low sodium fit, but weight loss and "
            "high potassium argue against it. (4) Secondary adrenal insufficiency: cortisol is missing, yet "
            "aldosterone is kept and ACTH is low, so high potassium and pigmentation are not explained; it is "
            "excluded. (5) Hypotension, salt craving, hyperkalaemia and pigmentation together fit primary adrenal "
            "insufficiency.",
            "intuitive": "(1) A tired young woman who craves salt, with dark palmar creases, low pressure, low sodium "
            "and high potassium, is a picture that one recognises. (2) It is typical of primary adrenal insufficiency.",
            "analytical": "(1) Destruction of the adrenal cortex stops cortisol and aldosterone. (2) Without "
            "aldosterone the distal nephron loses sodium and keeps potassium, therefore sodium is low, potassium high "
            "and pressure low, which causes the craving for salt. (3) Without cortisol less glucose is made, so "
            "glucose is low and she tires. (4) Missing feedback raises ACTH and its precursor, which stimulates "
            "melanocytes, hence the dark creases; a pituitary cause would lower ACTH. (5) All of it follows from "
            "primary adrenal insufficiency.",
            "bayesian": "(1) Prior: in a young woman with fatigue and weight loss, anorexia nervosa and "
            "hypothyroidism are common, primary adrenal insufficiency is rare, about 1%. (2) Evidence: low pressure "
            "with craving for salt raises it to about 10% and lowers anorexia nervosa little. (3) Low sodium with "
            "high potassium raises it to about 60%, since secondary adrenal insufficiency and hypothyroidism leave "
            "potassium normal. (4) Darkened creases and gums raise it to about 97%. (5) Posterior: about 97% for "
            "primary adrenal insufficiency.",
        },
    ),
)
