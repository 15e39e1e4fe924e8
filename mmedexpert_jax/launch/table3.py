"""Table 3 and Figure 3 of the paper: their rows as stages over one base model, and what the paper says of them.

A stage is a job with some fields set, the model that it starts from, and, of a merge, the experts. Rows share stages
by what they are, not by name: GRPO and GBA both start from the base, "Ours" and "TIES once" train the same policy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ml_collections import ConfigDict

from mmedexpert_jax.data.case import SPECIALTIES

RIVALS = {"Task arithmetic": ("task_arithmetic", 22.70), "SLERP": ("slerp", 22.20), "Naive": ("average", None)}
# The paper gives no scale. Task vectors that are added up whole overshoot; 0.4 is what the method's authors recommend
# untuned, and what TIES (with a scale of 1) was compared with (Yadav et al. 2023, arXiv 2306.01708).
SCALES = {"task_arithmetic": 0.4}
COLUMNS = ("Unified", "Disentangled", "GRPO", "GBA", "Naive", "TIES")  # of Table 3, those that are ticked


@dataclass(frozen=True)
class Stage:
    """A stage: the result of one job."""

    job: str  # "dsa", "merge", "gba" or "evaluate"
    # of its config, beyond those that the sweep has for the job
    fields: Mapping[str, Any] = field(default_factory=dict)
    model: "Stage | None" = None  # the stage that it starts from; None: the base model
    experts: Mapping[str, "Stage"] = field(default_factory=dict)  # of a merge, by name and in order


@dataclass(frozen=True)
class AblationRow:
    """A row of the result."""

    name: str  # as in the paper, where it has the row
    model: Stage | None  # what is evaluated; None: the base model
    ticks: tuple[str, ...] = ()  # columns of Table 3 that the row has ticked
    published: float | None = None  # average score in the paper, percent; None where it prints none
    part: str = "Table 3"  # "Table 3", "Figure 3 (c)", "beside" (not in the paper), or "Table 4"


@dataclass(frozen=True)
class Claim:
    """A sentence of section 5.2.3 or 1, or of ours: rows `better` are above rows `worse` in `measure`, pair by pair."""

    text: str
    better: tuple[str, ...]
    worse: tuple[str, ...]
    measure: str = "accuracy"


BASE: Stage | None = None


def expert(specialty: str) -> Stage:
    """DSA (section 4.1) on one specialty, or on all pooled: "mixed"."""
    return Stage("dsa", {"specialty": specialty})


EXPERTS = {name: expert(name) for name in SPECIALTIES}
MIXED = expert("mixed")


def rl(start: Stage | None = BASE, **fields: Any) -> Stage:
    """Reinforcement learning (section 4.2) from a model; without fields it is GBA."""
    return Stage("gba", fields, start)


def merged(method: str, experts: Mapping[str, Stage], **fields: Any) -> Stage:
    """Experts of the base merged over it (section 4.3)."""
    scale = {"scale": SCALES[method]} if method in SCALES else {}
    return Stage("merge", {"method": method, **scale, **fields}, experts=experts)


def once(method: str, **fields: Any) -> Stage:
    """The four experts merged, then GBA, or with `fields` another reinforcement learning."""
    return rl(merged(method, EXPERTS), **fields)


def twice(method: str, first: str = "", **fields: Any) -> Stage:
    """The multi-stage way: the experts merged, GBA, and all five merged; `first`: another method of the first merge."""
    return merged(method, EXPERTS | {"RL": once(first or method)}, **fields)


GRPO: dict[str, Any] = {"objective": "grpo", "guided": False, "rewards": {"structure": 0.0}}  # fields of `rl`


def rows(rivals: str = "all") -> tuple[AblationRow, ...]:
    """The eleven rows of Table 3, those of Figure 3 (c), and further ones of ours.

    Args:
        rivals: of Figure 3 (c) take the place of TIES in "all" merges, or in the "last" one.
    """
    first = {"all": "", "last": "ties"}[rivals]
    scores = dict(zip(SPECIALTIES, (22.30, 22.80, 19.90, 21.30), strict=True))
    return (
        AblationRow("Base", BASE, (), 20.90),
        *(AblationRow(name, EXPERTS[name], ("Disentangled",), scores[name]) for name in SPECIALTIES),
        AblationRow("Mixed SFT", MIXED, ("Unified",), 22.05),
        AblationRow("GRPO", rl(**GRPO), ("GRPO",), 21.35),
        AblationRow("GBA", rl(), ("GBA",), 21.90),
        AblationRow("Mixed SFT + GBA", rl(MIXED), ("Unified", "GBA", "Naive"), 22.05),
        AblationRow("DSA + GBA", once("average"), ("Disentangled", "GBA", "Naive"), 22.35),
        AblationRow("Ours", twice("ties"), ("Disentangled", "GBA", "TIES"), 23.35),
        *(
            AblationRow(name, twice(method, first), (), score, "Figure 3 (c)")
            for name, (method, score) in RIVALS.items()
        ),
        AblationRow("TIES once", once("ties"), part="beside"),
        AblationRow("TIES once with GRPO", once("ties", **GRPO), part="beside"),
        AblationRow("Ours (rl_origin=start)", twice("ties", rl_origin="start"), part="beside"),
        AblationRow("GBA without structure", rl(rewards={"structure": 0.0}), part="beside"),
        AblationRow("Merged experts (TIES)", merged("ties", EXPERTS), part="beside"),
        AblationRow("Merged experts (naive)", merged("average", EXPERTS), part="beside"),
    )


def rows_of_table_4() -> tuple[AblationRow, ...]:
    """`model.path`, and the same after GBA on the cases of `data.path`."""
    return (
        AblationRow("MMedExpert-R1 before", BASE, part="Table 4"),
        AblationRow("MMedExpert-R1", rl(), published=77.93, part="Table 4"),
    )


PANELS = {
    "(a) Domain-Specific Adaptation": ("Base", *SPECIALTIES),
    "(b) Advantages and integration": ("Base", "GRPO", "GBA", "Mixed SFT + GBA", "DSA + GBA", "Ours"),
    "(c) Merging methods": ("Base", *RIVALS, "Ours"),
}
CLAIMS = (
    Claim("models trained on one specialty generally outperform the base", SPECIALTIES, ("Base",) * 4),
    Claim("CAH achieves a significant boost over the base", ("CAH",), ("Base",)),
    Claim("BS alone falls below the base", ("Base",), ("BS",)),
    Claim("GBA outperforms GRPO", ("GBA",), ("GRPO",)),
    Claim("GBA without its reward for structure outperforms GRPO", ("GBA without structure",), ("GRPO",)),
    Claim("GBA outperforms GBA without its reward for structure", ("GBA",), ("GBA without structure",)),
    Claim("GBA on merged experts outperforms GRPO on them", ("TIES once",), ("TIES once with GRPO",)),
    Claim("GBA on merged experts outperforms the merged experts", ("TIES once",), ("Merged experts (TIES)",)),
    Claim("merging experts before GBA is better than mixing their data", ("DSA + GBA",), ("Mixed SFT + GBA",)),
    Claim("merging at several stages is better than merging once", ("Ours",), ("DSA + GBA",)),
    Claim(
        "a task vector of GBA taken against the base outperforms one against its start",
        ("Ours",),
        ("Ours (rl_origin=start)",),
    ),
    Claim("TIES outperforms task arithmetic", ("Ours",), ("Task arithmetic",)),
    Claim("TIES outperforms SLERP", ("Ours",), ("SLERP",)),
    Claim("task arithmetic outperforms SLERP", ("Task arithmetic",), ("SLERP",)),
    Claim("the whole method outperforms the base", ("Ours",), ("Base",)),
    *(
        Claim(f"DSA starts GBA more diverse than {start}, by {what}", ("Merged experts (TIES)",), (row,), measure)
        for row, start in (("Base", "the base"), ("Mixed SFT", "pooled SFT"))
        for measure, what in (("distinct", "distinct answers"), ("passed", "pass@k"), ("entropy", "token entropy"))
    ),
)
CLAIMS_OF_TABLE_4 = (
    Claim("GBA on 1,000 items of OmniMedVQA improves the model", ("MMedExpert-R1",), ("MMedExpert-R1 before",)),
)


def greedy(config: ConfigDict, model: Stage | None) -> Stage:
    """The evaluation behind a row's accuracy."""
    return Stage("evaluate", {"limit": config.questions or config.limit}, model)


def sampled(config: ConfigDict, model: Stage | None) -> Stage:
    """The evaluation behind a row's diversity: several answers to each of some items."""
    settings = config.diversity
    fields = {"num_samples": settings.num_samples, "temperature": settings.temperature}
    return Stage("evaluate", {"limit": settings.questions or config.limit, **fields}, model)


def wanted(config: ConfigDict, chosen: Sequence[AblationRow]) -> list[Stage]:
    """The evaluations of the rows; all other stages are what these need."""
    return [stage(config, row.model) for row in chosen for stage in (greedy, sampled)]
