"""Reports of chest X-rays: IU X-Ray, CheXpert Plus and MIMIC-CXR in the form of MedEvalKit's test.json, with images/.

A row has an image or several, findings and impression; one without either is left out, as the kit does. The images of
the last two stand behind agreements of use; CheXpert Plus is also read from its authors' table, of which the part
"valid" is taken.
"""

from collections.abc import Iterable

from mmedexpert_jax.data.benchmarks import rows
from mmedexpert_jax.data.benchmarks.reading import Spec, reader
from mmedexpert_jax.data.benchmarks.source import Files
from mmedexpert_jax.data.case import Case

REQUEST = (
    "Please generate a report for the given images, including both findings and impressions. Return the report in the "
    "following format: Findings: {} Impression: {}."
)
CHEXPERT = "df_chexpert_plus_240401.csv"
SETS = {  # name -> title, items by the kit's list, place, licence
    "iu_xray": ("IU X-Ray", 296, "https://openi.nlm.nih.gov", "CC BY-NC-ND 4.0 (a hub copy's card)"),
    "chexpert_plus": ("CheXpert Plus", 0, f"{CHEXPERT} and its images", "the research agreement of Stanford AIMI"),
    "mimic_cxr": ("MIMIC-CXR", 0, "https://physionet.org", "PhysioNet credentialed health data licence 1.5.0"),
}


def _rows(files: Files, split: str, subset: str) -> Iterable[rows.Row]:
    for row in rows.read(files.one("test.json", CHEXPERT)):
        values = dict(row.values)
        if "path_to_image" in values:
            if not row.label("path_to_image").startswith("valid/"):
                continue
            values |= {"id": values["path_to_image"], "image": values["path_to_image"]}
            values |= {key: values.get(f"section_{key}") for key in ("findings", "impression")}
        if row.problem or str(values.get("findings") or values.get("impression") or "").strip():
            yield rows.Row(values, row.where, row.number, row.problem)


def _item(row: rows.Row, files: Files, subset: str) -> Case:
    names = row.values.get("image")
    names = names if isinstance(names, list) else [row.text("image")]
    if not names:
        raise row.bad("image", "no image is named")
    findings, impression = row.label("findings"), row.label("impression")
    return Case(
        id=row.label("id") or str(row.number),
        question=REQUEST,
        options=(),
        answer=f"Findings: {findings} Impression: {impression}.",  # as MedEvalKit joins them
        # CheXpert Plus names .jpg and ships .png
        images=tuple(
            files.image(name, row.where, instead=f"{name.rpartition('.')[0]}.png") for name in map(str, names)
        ),
        kind="report",
        columns={"raw_question": f"You are a helpful assistant. {REQUEST}"},
    )


def _benchmark(name: str, title: str, count: int, place: str, licence: str) -> Spec:
    published = {"items": count} if count else {}
    expects = f"test.json and images/ ({place})"
    return reader(name, title, rows=_rows, expects=expects, published=published, licence=licence)(_item)


BENCHMARKS = tuple(_benchmark(name, *facts) for name, facts in SETS.items())
