"""Writes docs/reproduction.md and its figures from a sweep of configs/ablation.py; nothing on the page is typed.

python docs/reproduce.py runs/ablation-mini   # keeps the sweep's result in docs/results/ablation.json, and writes
python docs/reproduce.py                      # writes again from the result that is kept
"""

import json
import sys
from pathlib import Path
from typing import Any

from mmedexpert_jax import __version__
from mmedexpert_jax.launch import ablation_result, table3

DOCS = Path(__file__).resolve().parent
KEPT, PAGE, IMAGES = DOCS / "results" / "ablation.json", DOCS / "reproduction.md", DOCS / "images"
HEAD = """\
# The paper's ablations here

Table 3 and Figure 3 over seeds, on a model and data set of this package:

```sh
{command} --config.plan=True  # stages left, and their time
{command}
python docs/reproduce.py runs/ablation-{preset}  # writes this page
```

Every stage (an expert, a merge, a policy, an evaluation) is a run in a directory named by a hash of the fields, the
seed and the stages that it depends on. What two rows need is made once; the same command goes on after a kill; a
changed field makes anew what depends on it and nothing else. `--config.rows="Base,GRPO,GBA"` asks for some rows,
`--config.rivals=last` replaces TIES in the last merge alone, `--config.stages=FOLDER` shares stages among sweeps.
`configs/ablation.py:omnimedvqa` is the job of Table 4: GBA on 1,000 items of OmniMedVQA, evaluated on those that share
no image with them.

"""
NOTHING = "No sweep has been recorded yet.\n"
VERSIONS = ("jax", "jaxlib", "numpy")


def keep(run: Path) -> None:
    """Keeps the result of a sweep with the date, hardware and versions that it was made with."""
    result = json.loads((run / ablation_result.RESULT).read_text())
    status, environment = (json.loads((run / name).read_text()) for name in ("STATUS.json", "env.json"))
    result["made"] = {
        "date": status["updated"][:10],
        "package": __version__,
        "python": environment["python"],
        "cpus": environment["cpus"],
        "devices": environment.get("devices", []),
        **{name: environment["versions"].get(name) for name in VERSIONS},
    }
    KEPT.parent.mkdir(exist_ok=True)
    KEPT.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def page(result: dict[str, Any] | None) -> str:
    """The text of docs/reproduction.md."""
    preset = result["preset"] if result else "mini"
    seeds = ",".join(map(str, result["seeds"])) if result else "0,1,2,3,4"
    command = f"python -m mmedexpert_jax.launch --config=configs/ablation.py:{preset} --config.seeds={seeds}"
    if result and len(result["rows"]) < len(table3.rows()):
        command += f' --config.rows="{",".join(row["name"] for row in result["rows"])}"'
    head = HEAD.format(command=command, preset=preset)
    if result is None:
        return head + NOTHING
    made = result["made"]
    devices = ", ".join(made["devices"])
    versions = ", ".join(f"{name} {made[name]}" for name in VERSIONS)
    hours = sum(stage["runs"] * float(stage["wall seconds"]) for stage in result["costs"]) / 3600
    about = (
        f"Run on {made['date']} with {made['cpus']} cores ({devices}), mmedexpert-jax {made['package']}, Python "
        f"{made['python']}, {versions}; the stages counted under Costs took {hours:.1f} h.\n\n"
    )
    return head + about + ablation_result.page(result, images="images")


def kept() -> dict[str, Any] | None:
    """The result that is kept."""
    return json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.exists() else None


if __name__ == "__main__":
    if len(sys.argv) > 1:
        keep(Path(sys.argv[1]))
    if found := kept():
        ablation_result.draw(found, IMAGES)
    PAGE.write_text(page(found), encoding="utf-8")
