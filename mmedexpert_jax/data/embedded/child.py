"""Child and Adolescent Health: the newborn, sore throat, the septic hip, meningitis."""

from mmedexpert_jax.data.embedded.rules import Level, Rule, RuleItem, measure, points, sign

APGAR = Rule(
    task="apgar",
    specialty="CAH",
    title="Apgar score",
    doi="10.1213/00000539-195301000-00041",
    who="newborn",
    contexts=("a check at five minutes", "a check after birth"),
    what="class of the Apgar score",
    items=(
        measure("pulse", "heart rate {}", (1, 40, 99), (2, 100, 172)),
        RuleItem(
            "respiration",
            (Level(0, ("not breathing",)), Level(1, ("weak cry", "slow breathing")), Level(2, ("strong cry",))),
        ),
        RuleItem("activity", (Level(0, ("limp",)), Level(1, ("some flexion",)), Level(2, ("active motion",)))),
        RuleItem("grimace", (Level(0, ("no reflex",)), Level(1, ("grimace",)), Level(2, ("sneeze", "cough")))),
        RuleItem(
            "appearance", (Level(0, ("pale", "blue all over")), Level(1, ("blue hands",)), Level(2, ("pink all over",)))
        ),
    ),
    bands=((0, "low score"), (4, "abnormal score"), (7, "reassuring score")),
    prior="reassuring score",
    mechanism="Lack of oxygen depresses each sign in turn",
)

MCISAAC = Rule(
    task="mcisaac",
    specialty="CAH",
    title="Centor score modified by McIsaac",
    doi="10.1001/jama.291.13.1587",
    who="child",
    contexts=("sore throat", "sore throat for two days", "painful swallowing"),
    what="McIsaac score",
    items=(
        measure("age", "age {}", (0, 15, 17), (1, 3, 14)),
        measure("temperature", "temperature {}", (0, 362, 380), (1, 381, 402), scale=10),
        sign("cough", 1, "no cough", "cough"),
        sign("nodes", 1, "tender neck nodes", "no neck nodes"),
        sign("tonsils", 1, "tonsil exudate|swollen tonsils", "clear tonsils"),
    ),
    bands=((0, "1 point or fewer"), (2, points(2)), (3, points(3)), (4, "4 points or more")),
    prior=points(2),
    mechanism="Streptococci inflame tonsils and nodes, viruses cause cough",
    scored=True,
)

KOCHER = Rule(
    task="kocher",
    specialty="CAH",
    title="Kocher criteria",
    doi="10.2106/00004623-199912000-00002",
    who="child",
    contexts=("an irritable hip", "hip pain", "a painful hip and limp"),
    what="Kocher probability of septic arthritis",
    items=(
        measure("temperature", "temperature {}", (0, 362, 385), (1, 386, 402), scale=10),
        sign("weight_bearing", 1, "cannot bear weight", "bears weight|walks"),
        measure("esr", "ESR {}", (0, 3, 40), (1, 41, 98)),
        measure("white_cells", "white cells {}", (0, 4, 12), (1, 13, 26)),
    ),
    bands=((0, "below 1%"), (1, "3%"), (2, "40%"), (3, "93%"), (4, "99%")),
    prior="3%",
    mechanism="Pus under pressure inflames and hurts",
)

MENINGITIS = Rule(
    task="meningitis",
    specialty="CAH",
    title="Bacterial Meningitis Score",
    doi="10.1001/jama.297.1.52",
    who="child",
    contexts=("pleocytosis of the CSF", "suspected meningitis", "fever and CSF pleocytosis"),
    what="Bacterial Meningitis Score",
    items=(
        sign("gram_stain", 2, "positive Gram stain", "negative Gram stain"),
        measure("csf_protein", "CSF protein {} mg/dL", (0, 15, 79), (1, 80, 240)),
        measure("csf_neutrophils", "CSF neutrophils {}", (0, 5, 999), (1, 1000, 4000)),
        measure("blood_neutrophils", "blood neutrophils {}", (0, 2, 9), (1, 10, 28)),
        sign("seizure", 1, "seizure", "no seizure"),
    ),
    bands=((0, points(0)), (1, points(1)), (2, points(2)), (3, "3 points or more")),
    prior=points(0),
    mechanism="Bacteria draw neutrophils and protein into the CSF",
    scored=True,
)

RULES = (APGAR, MCISAAC, KOCHER, MENINGITIS)
