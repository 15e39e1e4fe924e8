"""Numbers that the paper publishes (arXiv 2601.10949): Tables 1, 2, 4 and 5, in percent, as printed."""

from collections.abc import Mapping
from dataclasses import dataclass

SOURCE = "arXiv 2601.10949"

_MEDXPERT, _PMC, _OMNI, _GMAI = "medxpertqa_mm", "pmc_vqa", "omnimedvqa", "gmai_mmbench"


@dataclass(frozen=True)
class Column:
    """A column: its heading, the benchmark it is about, and the heading of the part of it ("" for the whole)."""

    heading: str
    benchmark: str
    part: str = ""


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper."""

    number: int  # in the paper
    title: str  # what it is about
    columns: tuple[Column, ...]  # of figures
    # (name, size) -> a figure per column in percent, None where the paper has a dash. Tables 2, 4 and 5 print no sizes;
    # they are those of Table 1's rows in the same order, and MedGemma's is that of the hub's 4B model.
    rows: Mapping[tuple[str, str], tuple[float | None, ...]]
    note: str = ""  # what one must know to read it


def _rows(text: str) -> dict[tuple[str, str], tuple[float | None, ...]]:
    """Lines of a name, a size and figures."""
    rows = {}
    for line in text.strip().splitlines():
        name, size, *figures = line.split()
        rows[name, size] = tuple(None if figure == "-" else float(figure) for figure in figures)
    return rows


def _gmai(headings: str) -> tuple[Column, ...]:
    return tuple(Column(heading, _GMAI, "" if heading == "Total" else heading) for heading in headings.split())


MAIN = PaperTable(
    1,
    "medical multimodal benchmarks",
    (
        Column("Total", _MEDXPERT),
        Column("Rea.", _MEDXPERT, "Reasoning"),
        Column("Under.", _MEDXPERT, "Understanding"),
        Column("Treatment", _MEDXPERT, "Treatment"),
        Column("Basic Science", _MEDXPERT, "Basic Science"),
        Column("Diagnosis", _MEDXPERT, "Diagnosis"),
        Column("PMC-VQA", _PMC),
        Column("OMVQA", _OMNI),
        Column("GMAI-MM", _GMAI),
    ),
    _rows(
        """
        MedVLM-R1     2B 19.95 19.84 20.21 20.98 17.28 20.35 47.83 -     41.18
        Med-R1        2B 21.15 20.88 21.84 24.33 17.28 21.10 45.48 -     40.79
        MedVLThinker  3B 21.90 20.80 24.72 23.66 20.11 21.76 50.95 64.17 38.81
        MMedExpert-R1 2B 23.35 23.02 24.18 28.12 19.54 22.68 53.27 64.64 43.67
        LLaVA-Med     7B 19.65 19.43 20.21 22.32 19.54 18.68 30.07 43.68 31.23
        HuatuoGPT-V   7B 22.65 21.43 25.81 21.65 20.11 23.76 53.40 75.46 51.27
        BiMediX2      7B 22.15 21.23 24.54 22.54 21.24 22.26 42.79 62.42 34.59
        Lingshu       7B 26.00 25.44 27.43 28.12 22.09 26.35 54.68 82.85 51.21
        MMedExpert-R1 7B 27.50 26.55 29.96 29.91 22.66 28.02 56.78 83.03 52.10
        """
    ),
    "The paper leaves out MedVLM-R1 and Med-R1 on OmniMedVQA: they were trained on part of its test set.",
)
SKILLS = PaperTable(
    2,
    "clinical tasks of GMAI-MMBench val",
    _gmai("CR SAR OR-T OR-H OR-A NT MR"),
    _rows(
        """
        MedVLM-R1     2B 41.73 26.08 42.35 41.29 36.32 57.50 36.29
        Med-R1        2B 42.60 27.82 40.00 40.00 35.91 65.00 37.03
        MedVLThinker  3B 40.86 27.82 38.23 43.87 43.67 52.50 30.37
        MMedExpert-R1 2B 42.60 28.69 42.94 50.32 34.28 72.50 39.25
        MedGemma      4B 31.30 24.34 51.17 57.41 42.44 55.00 35.55
        LLaVA-Med     7B 24.34 13.04 24.11 20.64 31.85 47.50 34.81
        HuatuoGPT-V   7B 38.26 22.60 56.47 60.00 49.79 72.50 51.11
        BiMediX2      7B 27.49 24.34 33.52 37.41 28.57 35.00 35.55
        Lingshu       7B 39.13 27.82 51.17 65.16 50.10 77.50 57.03
        MMedExpert-R1 7B 40.00 31.30 60.58 65.16 54.28 80.00 57.77
        """
    ),
    "BiMediX2 in CR is 27.49 here and 29.47 in Table 5; both as printed.",
)
OMNIMEDVQA = PaperTable(
    4,
    "OmniMedVQA after training on 1,000 of its items",
    (Column("OmniMedVQA", f"{_OMNI}@test_rest"),),
    _rows(
        """
        MedVLM-R1     2B 77.38
        Med-R1        2B 76.08
        MMedExpert-R1 2B 77.93
        """
    ),
    "The paper does not say which 1,000 items it trains on: ours are the seeded split train_1000; test_rest is what"
    " shares no image with it.",
)
GMAI = PaperTable(
    5,
    "all clinical tasks of GMAI-MMBench val",
    _gmai("Total DD SG CR IQG SAR OR-T BVR B OR-H OR-A NT MR SR AR OR-P M SWR C"),
    _rows(
        """
        MedVLM-R1     2B 41.18 48.16 23.01 41.73 32.00 26.08 42.35 44.44 40.00 41.29 36.32 57.50 36.29 30.95 42.96 42.66 32.00 31.42 23.40
        Med-R1        2B 40.79 47.45 25.52 42.60 34.00 27.82 40.00 40.74 38.85 40.00 35.91 65.00 37.03 31.84 45.92 30.66 24.00 34.28 23.93
        MedVLThinker  3B 38.81 43.16 26.35 40.86 26.00 27.82 38.23 42.96 37.14 43.87 43.67 52.50 30.37 30.95 36.29 20.00 30.00 37.14 32.44
        MMedExpert-R1 2B 43.67 52.02 25.94 42.60 34.00 28.69 42.94 42.96 38.28 50.32 34.28 72.50 39.25 31.54 42.96 40.00 26.00 31.42 27.12
        MedGemma      4B 45.25 52.73 25.10 31.30 30.00 24.34 51.17 55.55 49.71 57.41 42.44 55.00 35.55 33.63 46.66 41.33 30.00 34.28 22.87
        LLaVA-Med     7B 31.23 36.05 23.01 24.34 18.00 13.04 24.11 25.18 22.85 20.64 31.85 47.50 34.81 37.50 37.03 17.33 20.00 24.28 22.34
        HuatuoGPT-V   7B 51.27 59.70 29.70 38.26 44.00 22.60 56.47 60.74 49.71 60.00 49.79 72.50 51.11 32.14 49.62 49.33 30.00 38.57 37.76
        BiMediX2      7B 34.59 39.34 24.26 29.47 28.00 24.34 33.52 36.29 26.85 37.41 28.57 35.00 35.55 33.63 36.29 37.33 34.00 35.71 19.68
        Lingshu       7B 51.21 59.70 26.77 39.13 40.00 27.82 51.17 54.07 52.71 65.16 50.10 77.50 57.03 31.84 45.18 60.66 40.00 28.57 32.44
        MMedExpert-R1 7B 52.10 58.71 30.96 40.00 40.00 31.30 60.58 52.59 60.00 65.16 54.28 80.00 57.77 32.44 47.40 70.66 42.00 31.42 30.31
        """  # noqa: E501
    ),
    "OR-H is Organ Recognition - Head and Neck; Total is the mean over items. SG and SR stand exchanged in the paper:"
    " the figures printed under SG are those of Surgical Instrument Recognition (239 items), under SR those of Severity"
    " Grading (336), which our rows follow.",
)
TABLES = (MAIN, SKILLS, OMNIMEDVQA, GMAI)
