"""Runs small jobs and keeps their pages for the site: `python docs/gallery.py` before `mkdocs build`.

Every page of the gallery is what a job of this source wrote, a few minutes of two cores in all; nothing of it is kept
in the repository. The hook in docs/generate.py puts what lies in build/gallery on the site, and without it says so.
"""

import shutil
from pathlib import Path

from mmedexpert_jax.launch.console import main

FOLDER = Path(__file__).resolve().parents[1] / "build" / "gallery"
SMALL = ["prompts_per_step=4", "num_samples=4", "max_new_tokens=48", "eval.limit=32"]
# name of the page -> (a sentence, the command, the page that it writes)
PAGES = {
    "gba": ("A training by GBA: curves, held-out accuracy, completions to read.",
            ["gba", "steps=12", *SMALL], "report.html"),
    "dsa": ("An expert (DSA).", ["dsa", "specialty=AM", "steps=8", "eval.limit=32"], "report.html"),
    "evaluate": ("An evaluation of the base and the policy, with a control without pictures.",
                 ["evaluate", "limit=48", "model.path=base=mini", "compare=policy={gba}", "controls=blank"],
                 "report.html"),
    "merge": ("A merge of the expert and the policy: where they pull against each other.",
              ["merge", "experts=AM={dsa},RL={gba}"], "merge_report.html"),
}  # fmt: skip


def make() -> None:
    """Runs what is not there yet, in this order, and copies the pages."""
    runs = {name: FOLDER / "runs" / name for name in PAGES}
    for name, (_, command, page) in PAGES.items():
        given = [word.format(**runs) for word in command]
        if code := main([*given, f"workdir={runs[name]}"]):
            raise SystemExit(code)
        shutil.copyfile(runs[name] / page, FOLDER / f"{name}.html")


def index() -> str:
    """The page that names them."""
    lines = ["# Gallery", "", "Pages as the jobs write them, each one file that works without a network.", ""]
    for name, (said, command, _) in PAGES.items():
        typed = " ".join(word.format(gba="runs/gba-mini", dsa="runs/dsa-mini/AM") for word in command)
        made = (FOLDER / f"{name}.html").is_file()
        link = f"[{name}.html]({name}.html)" if made else "(not made in this build: `python docs/gallery.py`)"
        lines += [f"## {name}", "", said, "", f"```sh\nmmedexpert {typed}\n```", "", link, ""]
    return "\n".join(lines)


if __name__ == "__main__":
    make()
