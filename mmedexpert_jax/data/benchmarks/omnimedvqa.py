"""OmniMedVQA (Hu et al. 2024), open access: 42 JSON files and their images, by directory or inside OmniMedVQA.zip.

Keys are texts; options C and D may be missing; one file says `modality` where the others say `modality_type`.
The splits `train_1000` and `test_rest` share no image: the first is what the paper's Table 4 trains on.
"""

from mmedexpert_jax.data.benchmarks import rows
from mmedexpert_jax.data.benchmarks.reading import reader
from mmedexpert_jax.data.benchmarks.source import Files
from mmedexpert_jax.data.benchmarks.subset import apart_by_image
from mmedexpert_jax.data.case import Case

STRATA = ("modality", "question_type")
TRAINING, SPLIT_SEED = 1000, 2026  # one split for all runs, whatever their seed
PUBLISHED = {
    "items": 88_996,
    "question_type": {
        "Disease Diagnosis": 55_387,
        "Anatomy Identification": 16_448,
        "Modality Recognition": 11_565,
        "Other Biological Attributes": 3_498,
        "Lesion Grading": 2_098,
    },
    "modality": {
        "MR (Mag-netic Resonance Imaging)": 31_877,
        "CT(Computed Tomography)": 15_809,
        "ultrasound": 10_991,
        "X-Ray": 7_916,
        "Dermoscopy": 6_679,
        "Microscopy Images": 5_680,
        "Fundus Photography": 5_398,
        "OCT (Optical Coherence Tomography": 4_646,
    },
}


def _choose(items: list[Case], split: str) -> list[Case]:
    if split == "test":
        return items
    training, rest = apart_by_image(items, TRAINING, SPLIT_SEED, STRATA)
    return training if split == "train_1000" else rest


@reader(
    "omnimedvqa",
    "OmniMedVQA",
    files="QA_information/Open-access/*.json",
    splits=("test", "test_rest", "train_1000"),
    hub="foreverbeliever/OmniMedVQA",
    hub_files="OmniMedVQA.zip",
    expects="QA_information/Open-access/*.json and Images/",
    choose=_choose,
    strata=STRATA,
    published=PUBLISHED,
    licence="none on the hub page, which holds users to the 42 datasets' own licences",
)
def _benchmark(row: rows.Row, files: Files, subset: str) -> Case:
    shown = {letter: row.values.get(f"option_{letter}") for letter in "ABCD"}
    options = {letter: row.text(f"option_{letter}") for letter, text in shown.items() if not rows.absent(text)}
    if len(options) < 2:
        raise row.bad("option_A to option_D", "at least two texts are needed")
    gold = row.text("gt_answer")
    return Case(
        id=row.text("question_id"),
        question=row.text("question"),
        options=tuple(options.values()),
        answer=_key(gold, options),
        images=(files.image(row.text("image_path"), row.where),),
        labels={
            "modality": row.label("modality_type", "modality"),
            "question_type": row.label("question_type"),
            "dataset": row.label("dataset"),
        },
        columns={
            "raw_options": tuple(f"{letter}. {shown[letter]}" for letter in options),
            "raw_answer": ([letter for letter in options if shown[letter] == row.values["gt_answer"]] or [gold])[-1],
        },
    )


def _key(gold: str, options: dict[str, str]) -> str:
    """Letter, by place, of the first option with the key's text, exactly or but for case, spaces and a stop, or else of
    the option whose letter it is in the file, alone or before the option's text; else the text."""
    for same in (str, lambda text: " ".join(text.lower().split()).rstrip(". ")):
        forms = [(text, f"{letter}. {text}", letter) for letter, text in options.items()]
        for form in zip(*forms, strict=True):
            for letter, text in zip("ABCD", form, strict=False):
                if same(text) == same(gold):
                    return letter
    return gold
