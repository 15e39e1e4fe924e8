"""`--config.plan=True`: what a job would read, do and write, without loading a model."""

from collections import Counter
from pathlib import Path

from ml_collections import ConfigDict

from mmedexpert_jax.data import SPECIALTIES, load_cases
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.launch.config import fields

SPLITS = ("train", "dev", "test")


def describe(config: ConfigDict) -> str:
    """A text of a few lines about the model, the cases by split and specialty, the run directory and the settings."""
    if config.job == "dataset":
        from mmedexpert_jax.launch import teachers
        from mmedexpert_jax.mmedexpert import plan

        return plan.describe(config, teachers.endpoint)
    run = Path(config.workdir)
    state = "resumes what is there" if (run / "STATUS.json").is_file() and not config.fresh else "starts anew"
    lines = [f"job      {config.job} (preset {config.preset})"]
    if "data" in config:
        lines += [f"model    {config.model.path}", *(f"cases    {line}" for line in _census(config))]
    lines += [f"workdir  {run}: {state}", "fields"]
    lines += [f"  {key} = {value}" for key, (_, _, value) in fields(config).items() if key not in ("job", "preset")]
    return "\n".join([*lines, "nothing was run; leave out --config.plan to start"])


def _census(config: ConfigDict) -> list[str]:
    lines = []
    for split in SPLITS:
        try:
            cases = load_cases(config.data.path, split, limit=config.limit, seed=config.seed)
        except DataError as error:
            lines.append(f"{split}: {error}")
            continue
        counts = Counter(case.specialty for case in cases)
        images = sum(case.modality == "image" for case in cases)
        parts = ", ".join(f"{name} {counts[name]}" for name in SPECIALTIES)
        lines.append(f"{split}: {len(cases)} ({parts}; {images} with images)")
    return lines
