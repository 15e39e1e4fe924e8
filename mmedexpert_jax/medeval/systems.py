"""The systems of the paper's tables: where their weights are, how they are asked and run, under which licence."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from mmedexpert_jax.config.fields import named_path
from mmedexpert_jax.errors import ConfigError

KINDS = ("jax", "endpoint", "transformers")


@dataclass(frozen=True)
class System:
    """One row of the paper's tables."""

    title: str  # as the paper writes it
    size: str  # as the paper writes it; "" where it does not
    model: str  # hub id
    kind: str  # what runs it, one of KINDS
    prompt: str  # style that its authors use (`prompt_styles.styles()`)
    licence: str  # of the weights
    source: str = ""  # where the licence was read; "" where it was not seen and the card must be
    note: str = ""  # what one must know to run it
    # some of the hub repository's, each with a checkpoint of its own, one of which must be named; () where the
    # repository is one checkpoint
    folders: tuple[str, ...] = ()
    served: bool = False  # whether it is asked at an endpoint where one is given

    @property
    def row(self) -> tuple[str, str]:
        """Name and size of the published row."""
        return self.title, self.size


SYSTEMS: Mapping[str, System] = {
    "medvlm-r1": System(
        *("MedVLM-R1", "2B", "JZPeterPan/MedVLM-R1", "jax", "medvlm_r1", "Apache-2.0"),
        source="model card",
    ),
    "med-r1": System(
        *("Med-R1", "2B", "yuxianglai117/Med-R1", "jax", "med_r1", "Apache-2.0"),
        source="model card",
        note="a checkpoint for each modality (VQA_CT, VQA_MRI ...) and task (VQA_AI, VQA_LG ...); the paper does not "
        "say which it took. Those under Qwen_2.5_3B_nothink/ are 3B and were trained without reasoning",
        folders=("VQA_CT", "VQA_MRI"),
    ),
    "medvlthinker": System(
        *("MedVLThinker", "3B", "UCSC-VLAA/MedVLThinker-3B-RL_m23k", "jax", "medvlthinker", "Apache-2.0"),
        source="its repository, git a3163b1",
    ),
    "lingshu": System(
        *("Lingshu", "7B", "lingshu-medical-mllm/Lingshu-7B", "jax", "medevalkit", "MIT"),
        source="a third party's list (bio.rodeo)",
    ),
    "medgemma": System(
        *("MedGemma", "4B", "google/medgemma-4b-it", "jax", "medevalkit"),
        licence="Health AI Developer Foundations terms",
        source="a copy of the model card",
        served=True,
        note="gated on the hub; the paper's tables do not give its size",
    ),
    "llava-med": System(
        *("LLaVA-Med", "7B", "microsoft/llava-med-v1.5-mistral-7b", "jax", "medevalkit"),
        licence="that of Mistral-7B-Instruct-v0.2, for research only",
        source="model card",
        note="in the original LLaVA's layout, for which transformers has no class; asked in its authors' template "
        "mistral_instruct",
        served=True,
    ),
    "huatuogpt-v": System(
        *("HuatuoGPT-V", "7B", "FreedomIntelligence/HuatuoGPT-Vision-7B-hf", "jax", "medevalkit", "Apache-2.0"),
        source="hub page of HuatuoGPT-Vision-7B",
        note="-hf is the form for vLLM, transformers' LLaVA; HuatuoGPT-Vision-7B, in the original's layout, loads too. "
        "HuatuoGPT-Vision-7B-Qwen2.5VL is a later model",
        served=True,
    ),
    "bimedix2": System(
        *("BiMediX2", "7B", "MBZUAI/BiMediX2-8B-hf", "jax", "medevalkit", "CC-BY-NC-SA-4.0"),
        source="its repository, git 00f8bf2",
        note="8B on the hub, 7B in the paper's table; -hf is the form for vLLM; BiMediX2-8B, in the "
        "original's layout, loads too",
        served=True,
    ),
}


# Later models of the families that the JAX engine runs. Their own figures are in docs/evaluation.md, apart from the
# paper's, which has no row of them. Hulu-Med is not among them: its tower (a SigLIP for images of any shape) and its
# class are its authors' own, so it is asked through transformers or an endpoint.
NEWER: Mapping[str, System] = {
    "octomed": System(
        *("OctoMed", "7B", "OctoMed/OctoMed-7B", "jax", "medevalkit", "Apache-2.0"),
        note="a Qwen2.5-VL-7B; the prompt of its authors was not seen",
    ),
    "octomed-4b": System(
        *("OctoMed", "4B", "OctoMed/OctoMed-4B", "jax", "medevalkit", "not seen: read its card"),
        note="a Qwen3-VL-4B; the id is its 7B's with another size, its page was not seen",
    ),
    "medix-r1": System(
        *("MediX-R1", "8B", "MBZUAI/MediX-R1-8B", "jax", "medevalkit", "CC-BY-NC-SA-4.0"),
        source="the cards of its 2B and 30B",
        note="a Qwen3-VL-8B; the prompt of its training was not seen",
    ),
    "medix-r1-2b": System(
        *("MediX-R1", "2B", "MBZUAI/MediX-R1-2B", "jax", "medevalkit", "CC-BY-NC-SA-4.0"),
        source="model card",
        note="a Qwen3-VL-2B; its 30B is a mixture of experts, which the engine does not run",
    ),
    "medmo": System(
        *("MedMO", "8B", "MBZUAI/MedMO-8B-Next", "jax", "medevalkit", "not seen: read its card"),
        note="a Qwen3-VL-8B",
    ),
    "medvlthinker-7b": System(
        *("MedVLThinker", "7B", "UCSC-VLAA/MedVLThinker-7B-RL_m23k", "jax", "medvlthinker", "Apache-2.0"),
        source="its repository, git a3163b1",
        note="a Qwen2.5-VL-7B",
    ),
    "lingshu-32b": System(
        *("Lingshu", "32B", "lingshu-medical-mllm/Lingshu-32B", "jax", "medevalkit", "not seen: read its card"),
        note="a Qwen2.5-VL-32B",
    ),
    "huatuogpt-v-qwen2.5vl": System(
        *("HuatuoGPT-V", "7B-Qwen2.5VL", "FreedomIntelligence/HuatuoGPT-Vision-7B-Qwen2.5VL", "jax", "medevalkit"),
        licence="not seen: read its card",
        note="a Qwen2.5-VL-7B, not the model of the paper's row",
    ),
}


@dataclass(frozen=True)
class Target:
    """A model to evaluate."""

    name: str  # in tables
    kind: str  # what runs it, one of KINDS
    model: str  # path, hub id, or the name that an endpoint serves it under
    url: str = ""  # of the endpoint; "" for config.endpoint.url
    prompt: str = ""  # style of its own; "" where it has none
    folder: str = ""  # of the hub repository `model`, where its checkpoint is not at the top
    # name and size of the published row that it stands beside; None where there is none
    row: tuple[str, str] | None = None


def parse(entry: str, url: str = "") -> Target:
    """A model from `[name=]model`: a path or hub id for the JAX engine; "system:NAME[/FOLDER]" for a row of the
    registry; "endpoint:MODEL[@URL]"; "transformers:PATH".

    Args:
        entry: as above.
        url: of the endpoint where the entry names none; with it, a registered system that may be `served` is asked
            there.

    Raises:
        ConfigError: no such system, or no folder where its repository has several checkpoints.
    """
    named, spec = named_path(entry)
    if not spec:
        named, spec = "", entry
    kind, _, rest = spec.partition(":")
    if not (rest if kind in ("system", *KINDS[1:]) else spec).partition("@")[0]:
        raise ConfigError(f"{entry!r} names no model; give a directory, a hub id, system:NAME or endpoint:MODEL@URL")
    if kind == "system":
        name, _, folder = rest.partition("/")
        system = _system(name)
        if bool(folder) != bool(system.folders):
            raise ConfigError(_folders(name, system))
        runs = "endpoint" if url and system.served else system.kind
        title = f"{system.title} {system.size} {folder}".strip()
        row = system.row if name in SYSTEMS else None
        return Target(named or title, runs, system.model, url, system.prompt, folder, row)
    if kind == "endpoint":
        model, _, place = rest.partition("@")
        return Target(named or model, "endpoint", model, place or url, row=_row(named))
    if kind == "transformers":
        return Target(named or rest, "transformers", rest, row=_row(named))
    return Target(named or spec, "jax", spec, row=_row(named))


def _system(name: str) -> System:
    known = {**SYSTEMS, **NEWER}
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(f"no system {name!r}; {hint}choose one of {', '.join(known)}")
    return known[name]


def _folders(name: str, system: System) -> str:
    if not system.folders:
        return f"system:{name} is one checkpoint: leave the folder away"
    some = ", ".join(f"system:{name}/{folder}" for folder in system.folders)
    return f"{system.model} holds several checkpoints: name one, such as {some}"


def _row(name: str) -> tuple[str, str] | None:
    """The published row that a model's name spells out, such as "MMedExpert-R1 7B"."""
    title, _, size = name.rpartition(" ")
    return (title, size.upper()) if title and size[:-1].isdigit() and size[-1:].upper() == "B" else None
