"""Brain and Senses: intracerebral haemorrhage, transient ischaemic attack, thrombolysis, headache."""

from mmedexpert_jax.data.embedded.rules import Level, Rule, RuleItem, measure, points, sign

_PRESSURE = ("blood pressure {}/{}",)

ICH = Rule(
    task="ich",
    specialty="BS",
    title="ICH score",
    doi="10.1161/01.STR.32.4.891",
    contexts=("intracerebral haemorrhage", "a brain haemorrhage on CT", "sudden coma and haemorrhage on CT"),
    what="30-day mortality by the ICH score",
    items=(
        measure("gcs", "GCS {}", (0, 13, 15), (1, 5, 12), (2, 3, 4)),
        measure("volume", "volume {} mL", (0, 3, 29), (1, 30, 88)),
        sign("ventricles", 1, "blood in the ventricles", "clear ventricles"),
        sign("infratentorial", 1, "infratentorial origin|cerebellar origin", "lobar origin|thalamic origin"),
        measure("age", "age {}", (0, 34, 79), (1, 80, 95)),
    ),
    bands=((0, "0%"), (1, "13%"), (2, "26%"), (3, "72%"), (4, "97% or more")),
    prior="26%",
    mechanism="Blood volume and coma reflect brain compression",
)

ABCD2 = Rule(
    task="abcd2",
    specialty="BS",
    title="ABCD2",
    doi="10.1016/S0140-6736(07)60150-0",
    contexts=("a transient ischaemic attack", "a TIA this morning", "resolved neurological symptoms"),
    what="ABCD2 stroke risk",
    items=(
        measure("age", "age {}", (0, 36, 59), (1, 60, 92)),
        RuleItem(
            "blood_pressure",
            (
                Level(0, _PRESSURE, ((104, 139), (60, 89))),
                Level(1, _PRESSURE, ((140, 188), (66, 110))),
                Level(1, _PRESSURE, ((122, 139), (90, 104))),
            ),
        ),
        RuleItem(
            "features",
            (
                Level(0, ("numbness only", "dizziness only")),
                Level(1, ("slurred speech", "word-finding trouble")),
                Level(2, ("left arm weakness", "right arm weakness")),
            ),
        ),
        measure("duration", "lasting {} min", (0, 2, 9), (1, 10, 59), (2, 60, 180)),
        sign("diabetes", 1, "diabetes", "no diabetes"),
    ),
    bands=((0, "low risk"), (4, "moderate risk"), (6, "high risk")),
    prior="moderate risk",
    mechanism="Longer motor attacks and vascular risk precede stroke",
)

SEDAN = Rule(
    task="sedan",
    specialty="BS",
    title="SEDAN score",
    doi="10.1002/ana.23546",
    contexts=("ischaemic stroke before thrombolysis", "acute ischaemic stroke", "stroke within two hours"),
    what="SEDAN score",
    items=(
        measure("glucose", "glucose {} mmol/L", (0, 4, 8), (1, 9, 12), (2, 13, 22)),
        sign("early_infarct", 1, "early infarct on CT", "no early infarct"),
        sign("dense_artery", 1, "dense artery", "no dense artery"),
        measure("age", "age {}", (0, 38, 75), (1, 76, 93)),
        measure("nihss", "NIHSS {}", (0, 2, 9), (1, 10, 24)),
    ),
    bands=((0, points(0)), (1, points(1)), (2, points(2)), (3, points(3)), (4, "4 points or more")),
    prior=points(2),
    mechanism="A large infarct with high glucose bleeds easily",
    scored=True,
)

POUND = Rule(
    task="pound",
    specialty="BS",
    title="POUND criteria",
    doi="10.1001/jama.296.10.1274",
    contexts=("recurrent headache", "headaches for a year", "attacks of headache"),
    what="likelihood of migraine by POUND",
    items=(
        sign("pulsatile", 1, "pulsatile pain|throbbing pain", "pressing pain"),
        measure("hours", "attacks of {} hours", (0, 1, 3), (1, 4, 72), (0, 73, 120)),
        sign("unilateral", 1, "unilateral", "bilateral"),
        sign("nausea", 1, "nausea", "no nausea"),
        sign("disabling", 1, "disabling", "not disabling"),
    ),
    bands=((0, "migraine unlikely"), (3, "migraine possible"), (4, "migraine likely")),
    prior="migraine possible",
    mechanism="Trigeminal activation gives throbbing one-sided pain",
)

RULES = (ICH, ABCD2, SEDAN, POUND)
