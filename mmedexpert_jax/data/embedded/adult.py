"""Adult Medicine: pneumonia severity, stroke risk in atrial fibrillation, stage of hypertension, sepsis screening."""

from mmedexpert_jax.data.embedded.rules import Level, Rule, RuleItem, measure, points, sign

_PRESSURE = ("blood pressure {}/{}",)

CURB65 = Rule(
    task="curb65",
    specialty="AM",
    title="CURB-65",
    doi="10.1136/thorax.58.5.377",
    contexts=("pneumonia", "community-acquired pneumonia", "pneumonia on the chest film"),
    what="place of care by CURB-65",
    items=(
        sign("confusion", 1, "new confusion|disoriented in time", "no confusion|fully oriented"),
        measure("urea", "urea {} mmol/L", (0, 3, 7), (1, 8, 22)),
        measure("respiratory_rate", "respiratory rate {}", (0, 14, 29), (1, 30, 44)),
        RuleItem(
            "blood_pressure",
            (
                Level(0, _PRESSURE, ((96, 148), (64, 92))),
                Level(1, _PRESSURE, ((72, 89), (40, 58))),
                Level(1, _PRESSURE, ((92, 124), (44, 60))),
            ),
        ),
        measure("age", "age {}", (0, 22, 64), (1, 65, 94)),
    ),
    bands=((0, "home treatment"), (2, "short hospital stay"), (3, "urgent admission"), (4, "intensive care review")),
    prior="home treatment",
    mechanism="Organ strain in pneumonia raises mortality",
)

CHADSVASC = Rule(
    task="chadsvasc",
    specialty="AM",
    title="CHA2DS2-VASc",
    doi="10.1378/chest.09-1584",
    contexts=("atrial fibrillation", "new atrial fibrillation", "an irregular pulse from atrial fibrillation"),
    what="CHA2DS2-VASc score",
    items=(
        measure("age", "age {}", (0, 18, 64), (1, 65, 74), (2, 75, 95)),
        sign("female", 1, "female sex", "male sex"),
        sign("heart_failure", 1, "heart failure", "no heart failure"),
        sign("hypertension", 1, "hypertension", "no hypertension"),
        sign("diabetes", 1, "diabetes", "no diabetes"),
        sign("stroke", 2, "past stroke|past TIA", "no past stroke"),
        sign("vascular", 1, "past infarction|aortic plaque", "no vascular disease"),
    ),
    bands=(
        (0, "1 point or fewer"),
        (2, points(2)),
        (3, points(3)),
        (4, points(4)),
        (5, "5 points or more"),
    ),
    prior=points(3),
    mechanism="Each risk factor favours clots in the left atrium",
    scored=True,
    most=5,
)

HYPERTENSION = Rule(
    task="hypertension",
    specialty="AM",
    title="ACC/AHA blood pressure category",
    doi="10.1161/HYP.0000000000000065",
    contexts=("a routine check", "raised readings", "headache"),
    what="ACC/AHA blood pressure category",
    items=(
        measure("systolic", "systolic {}", (0, 92, 119), (1, 120, 129), (2, 130, 139), (3, 140, 189)),
        measure("diastolic", "diastolic {}", (0, 42, 79), (2, 80, 89), (3, 90, 119)),
    ),
    bands=((0, "normal pressure"), (1, "elevated pressure"), (2, "stage 1 hypertension"), (3, "stage 2 hypertension")),
    prior="normal pressure",
    mechanism="The higher of both pressures decides",
    highest=True,
)

QSOFA = Rule(
    task="qsofa",
    specialty="AM",
    title="qSOFA",
    doi="10.1001/jama.2016.0288",
    contexts=("suspected infection", "fever and suspected sepsis", "urinary infection"),
    what="qSOFA score",
    items=(
        measure("respiratory_rate", "respiratory rate {}", (0, 12, 21), (1, 22, 40)),
        sign("mentation", 1, "new confusion|drowsy", "no confusion|alert"),
        measure("systolic", "systolic {}", (0, 101, 160), (1, 70, 100)),
    ),
    bands=((0, points(0)), (1, points(1)), (2, points(2)), (3, points(3))),
    prior=points(0),
    mechanism="A poor host response strains organs",
    scored=True,
)

RULES = (CURB65, CHADSVASC, HYPERTENSION, QSOFA)
