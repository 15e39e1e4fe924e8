"""The job `merge` (section 4.3): experts from their directories, one model or adapter, and the interference report."""

import json
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
from ml_collections import ConfigDict

from mmedexpert_jax import lora as adapters
from mmedexpert_jax.errors import ConfigError
from mmedexpert_jax.lora import Lora
from mmedexpert_jax.merging.interference import Interference
from mmedexpert_jax.merging.merge import merge_with_report
from mmedexpert_jax.merging.vectors import Expert
from mmedexpert_jax.models import Model, load_model, load_processor, save_pretrained
from mmedexpert_jax.runtime import Run, files, report


def run(config: ConfigDict, run: Run, evaluate: Callable[[Model, dict], dict[str, float]] | None = None) -> None:
    """Merges `experts` over `model.path`.

    Writes export/model (or, with `rank`, export/adapter), export/interference.json, table.md and report.html.

    Args:
        config: of the job; `experts` are runs, adapters or models as "path" or "name=path".
        run: the open run.
        evaluate: figures of the merged model, which are logged and join the summary.
    """
    model, base = load_model(config.model.path, dtype=config.model.dtype)
    paths = expert_paths(config)
    experts = {name: load_expert(path, config, base, name) for name, path in paths.items()}
    weights, rank = config.weights or None, config.get("rank") or None
    merged, found = merge_with_report(
        base, experts, config.method, config.rules, config.density, weights, config.scale, rank
    )
    if isinstance(merged, Lora):
        adapters.save_peft(run.path / "export" / "adapter", merged, config.model.path)
        merged = adapters.fold(base, merged)
    else:
        save_pretrained(run.path / "export" / "model", model, merged, load_processor(config.model.path))
    figures = evaluate(model, merged) if evaluate else {}
    if figures:
        run.log(0, figures)
    _finish(run, paths, found, figures)


def expert_paths(config: ConfigDict) -> dict[str, str]:
    """Name -> path of the experts; a path without a name has that of its folder. Raises ConfigError on a name twice."""
    paths: dict[str, str] = {}
    for entry in config.experts:
        name, _, path = entry.rpartition("=")
        name = name or Path(path).name
        if name in paths:
            raise ConfigError(f"two experts are called {name}: give names as name=path")
        paths[name] = path
    return paths


def load_expert(path: str, config: ConfigDict, base: dict, name: str) -> Expert:
    """An adapter over this very base as its factors; everything else as full float32 parameters.

    With `rl_origin="start"` the expert RL is its adapter alone, so that its task vector starts where GBA began.
    """
    adapter = next(
        (a for a in (Path(path), Path(path) / "export" / "adapter") if (a / "adapter_config.json").exists()), None
    )
    if adapter is not None:
        own_base = json.loads((adapter / "adapter_config.json").read_text()).get("base_model_name_or_path")
        if same_model(own_base, config.model.path) or (name == "RL" and config.get("rl_origin") == "start"):
            return adapters.load_peft(adapter, base)
    return load_model(path, dtype=jnp.float32)[1]


def same_model(first: str, second: str) -> bool:
    """Whether two model paths name the same directory, or the same hub id."""
    return first == second or (Path(first).exists() and Path(first).resolve() == Path(second).resolve())


def _finish(run: Run, paths: dict[str, str], found: Interference, figures: dict[str, float]) -> None:
    overall = found.rates()
    if not overall:
        raise ConfigError("no expert differs from the base: name trained experts in experts")
    values = {"experts": paths, "conflict": overall["conflict"], "shared": overall["shared"]}
    values |= {"kept_mass": overall["kept_mass"], "kept_energy": found.kept_energy, **figures}
    files.write_json(run.path / "export" / "interference.json", found.to_json())
    files.write_text(run.path / "table.md", found.markdown())
    run.finish(values)
    tables = {"Cosine between the experts, and mass kept": found.cosine_rows(), "Interference": found.kind_rows()}
    report.report_run(run.path, [report.Table(title, rows) for title, rows in tables.items()])
    print(found.markdown(), flush=True)
