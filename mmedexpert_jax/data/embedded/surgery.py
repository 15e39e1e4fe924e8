"""Cancer and Surgical Interventions: cardiac risk of surgery, liver reserve, bone metastases, thrombosis in cancer."""

from mmedexpert_jax.data.embedded.rules import Level, Rule, RuleItem, measure, sign

RCRI = Rule(
    task="rcri",
    specialty="CSI",
    title="Revised Cardiac Risk Index",
    doi="10.1161/01.CIR.100.10.1043",
    contexts=("elective surgery", "a preoperative visit", "planned surgery"),
    what="Revised Cardiac Risk Index class",
    items=(
        RuleItem(
            "surgery",
            (
                *(
                    Level(0, (name,))
                    for name in ("knee replacement", "hernia repair", "cataract surgery", "mastectomy")
                ),
                *(Level(1, (name,)) for name in ("colectomy", "lobectomy", "aortic repair", "oesophagectomy")),
            ),
        ),
        sign("ischaemic", 1, "angina|past infarction", "no angina"),
        sign("heart_failure", 1, "heart failure", "no heart failure"),
        sign("stroke", 1, "past stroke|past TIA", "no past stroke"),
        sign("insulin", 1, "on insulin", "no insulin"),
        measure("creatinine", "creatinine {} µmol/L", (0, 55, 176), (1, 178, 340)),
    ),
    bands=((0, "class I"), (1, "class II"), (2, "class III"), (3, "class IV")),
    prior="class II",
    mechanism="Limited cardiac reserve meets the stress of surgery",
    most=5,
)

CHILD_PUGH = Rule(
    task="child_pugh",
    specialty="CSI",
    title="Child-Pugh",
    doi="10.1002/bjs.1800600817",
    contexts=("cirrhosis before surgery", "liver cancer in cirrhosis", "planned liver resection"),
    what="Child-Pugh class",
    items=(
        measure("bilirubin", "bilirubin {} µmol/L", (1, 8, 33), (2, 35, 50), (3, 52, 140)),
        measure("albumin", "albumin {} g/L", (1, 36, 46), (2, 28, 35), (3, 18, 27)),
        measure("inr", "INR {}", (1, 10, 16), (2, 17, 23), (3, 24, 36), scale=10),
        RuleItem(
            "ascites",
            (Level(1, ("no ascites",)), Level(2, ("mild ascites",)), Level(3, ("severe ascites", "tense ascites"))),
        ),
        RuleItem(
            "encephalopathy",
            (
                Level(1, ("no encephalopathy",)),
                Level(2, ("mild encephalopathy",)),
                Level(3, ("severe encephalopathy", "coma")),
            ),
        ),
    ),
    bands=((0, "class A"), (7, "class B"), (10, "class C")),
    prior="class A",
    mechanism="A failing liver makes less protein and clears less bilirubin",
)

MIRELS = Rule(
    task="mirels",
    specialty="CSI",
    title="Mirels score",
    doi="10.1097/00003086-198912000-00027",
    contexts=("a bone metastasis", "metastatic breast cancer", "a long-bone metastasis"),
    what="management by the Mirels score",
    items=(
        RuleItem(
            "site",
            (
                Level(1, ("humerus lesion",)),
                Level(2, ("tibia lesion", "femoral shaft lesion")),
                Level(3, ("peritrochanteric lesion",)),
            ),
        ),
        RuleItem("pain", (Level(1, ("mild pain",)), Level(2, ("moderate pain",)), Level(3, ("functional pain",)))),
        RuleItem("kind", (Level(1, ("blastic",)), Level(2, ("mixed",)), Level(3, ("lytic",)))),
        measure("width", "{}% of the width", (1, 5, 33), (2, 34, 66), (3, 67, 95)),
    ),
    bands=((0, "observation"), (8, "individual decision"), (9, "prophylactic fixation")),
    prior="observation",
    mechanism="Bone breaks where loss and load are greatest",
)

KHORANA = Rule(
    task="khorana",
    specialty="CSI",
    title="Khorana score",
    doi="10.1182/blood-2007-10-116327",
    contexts=("cancer before chemotherapy", "chemotherapy next week", "newly found cancer"),
    what="Khorana score",
    items=(
        RuleItem(
            "site",
            (
                *(Level(0, (name,)) for name in ("breast cancer", "colon cancer", "prostate cancer")),
                *(Level(1, (name,)) for name in ("lung cancer", "lymphoma", "bladder cancer")),
                *(Level(2, (name,)) for name in ("stomach cancer", "pancreatic cancer")),
            ),
        ),
        measure("platelets", "platelets {}", (0, 140, 349), (1, 350, 620)),
        measure("haemoglobin", "haemoglobin {} g/L", (0, 100, 152), (1, 72, 99)),
        measure("white_cells", "white cells {}", (0, 4, 11), (1, 12, 24)),
        measure("bmi", "BMI {}", (0, 19, 34), (1, 35, 46)),
    ),
    bands=((0, "0 points"), (1, "1 point"), (2, "2 points"), (3, "3 points or more")),
    prior="1 point",
    mechanism="Tumour and inflammation activate clotting",
    scored=True,
)

RULES = (RCRI, CHILD_PUGH, MIRELS, KHORANA)
