"""The wait of a device for the host in DSA: seconds that a step's rows take to be encoded and padded, against a step.

    python benchmarks/fed.py                    # appendix B: 8 rows a step, images of 512 tokens, a step of the 2B
    python benchmarks/fed.py --steps 40 --image 1024
    python benchmarks/fed.py --padding          # GBA: tokens and patches that are computed over those there are
    python benchmarks/fed.py --load 10000       # rows of 4-megapixel JPEGs: seconds, peak of memory, files opened

The rows are read from JPEG files and made by `sft.examples.Examples`, as a run does, one step after the other, and
timed by the thread's processor clock, which other programs do not move. The device is a clock too: it is busy for as
long as a step of Qwen2-VL-2B takes at a third of a device's peak, by the operations of these very rows. What it waits
for is computed from both, for threads that have a core each. Prints a table and one JSON line.
"""

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import workload
from PIL import Image

from mmedexpert_jax.data import Case, load_cases
from mmedexpert_jax.data.tables import InFolder
from mmedexpert_jax.gba.batches import Batches
from mmedexpert_jax.gba.guidelines import Guidelines
from mmedexpert_jax.launch import load_config
from mmedexpert_jax.models import flops, load_processor
from mmedexpert_jax.models.config import PUBLISHED
from mmedexpert_jax.processing.images import ImageRef
from mmedexpert_jax.processing.patches import ImageConfig
from mmedexpert_jax.processing.processor import Processor
from mmedexpert_jax.sft.dsa import AHEAD
from mmedexpert_jax.sft.examples import Examples

CORES = (1, 2, 3)
PEAKS = {"a100": 312e12, "h100": 989e12}  # operations a second in bfloat16, as the vendor states them
SHARE = 1 / 3  # of the peak that a training step reaches; what well-kept trainers do


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8, help="steps that are timed, after a first one")
    parser.add_argument("--image", type=int, default=1024, help="pixels along an image's side, as it is stored")
    parser.add_argument("--words", type=int, default=120, help="words of a question, and twice as many of a trace")
    parser.add_argument("--padding", action="store_true", help="of GBA's micro-batches, by mixes of rows")
    parser.add_argument("--load", type=int, default=0, help="rows of 4-megapixel JPEGs to load")
    return parser.parse_args()


def cases(args: argparse.Namespace, folder: Path) -> list[Case]:
    """Questions with a JPEG each and a trace."""
    rng, made = np.random.default_rng(0), []
    for number in range(args.cases):
        small = Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8))
        path = folder / f"{number}.jpg"
        small.resize((args.image, args.image)).save(path, quality=90)
        words = " ".join(["rate"] * args.words)
        image = ImageRef(path.name, InFolder(path))
        made.append(
            Case(f"case-{number}", words, ("1", "2"), "A", "AM", "", (image,), "analytical", f"{words} {words}")
        )
    return made


# Sides of the images of a row, in units of 28 pixels, which are four patches in the square.
MIXES: dict[str, Callable[[np.random.Generator, int], list[int]]] = {
    "one row of six images": lambda rng, row: [8] * (6 * (row == 7)),
    "0 to 3 images, alike in a row": lambda rng, row: [int(rng.integers(4, 17))] * int(rng.integers(0, 4)),
    "0 to 3 images of any size": lambda rng, row: [int(side) for side in rng.integers(4, 17, rng.integers(0, 4))],
}


STEPS = {1: 8, 4: 32}  # prompts of a micro-batch: of a step, as in the presets and in the 1,000 x 8 job


def padding(folder: Path, rows: int = 128, epochs: int = 2) -> dict[str, dict[int, list[float]]]:
    """By mix of `rows` rows and prompts of a micro-batch: tokens and patches computed over those that there are."""
    processor, found = Processor(load_processor("mini").tokenizer, ImageConfig()), {}
    for mix, sides in MIXES.items():
        rng, made, real = np.random.default_rng(0), [], {}
        for row in range(rows):
            images = []
            for side in sides(rng, row):
                path = folder / f"{len(found)}-{row}-{len(images)}.png"
                Image.new("RGB", (28 * side, 28 * side)).save(path)
                images.append(ImageRef(path.name, InFolder(path)))
                real[str(row)] = real.get(str(row), 0) + 4 * side * side
            words = " ".join(["rate"] * int(rng.integers(20, 160)))
            made.append(Case(str(row), words, ("1", "2"), "A", "AM", "", tuple(images), "", ""))
        found[mix] = {}
        for part, prompts in STEPS.items():
            guidelines = Guidelines(made, seed=0, groups=prompts, num_samples=2)
            known, steps = {}, guidelines.steps(epochs)
            batches = Batches(processor, guidelines, steps, part, 4096, known=known)
            computed, there = np.zeros(2), np.zeros(2)
            for asked in map(guidelines.prompts, range(steps)):
                sizes = [known[prompt.case.id, prompt.paradigm] for prompt in asked]
                for cut in batches.micro_batches(sizes):
                    bucket = batches.bucket_of([sizes[i] for i in cut])
                    computed += bucket.tokens * len(cut), bucket.computed
                    there += sum(sizes[i].tokens for i in cut), sum(real.get(asked[i].case.id, 0) for i in cut)
            found[mix][part] = (computed / there).tolist()
    return found


def loading(folder: Path, rows: int) -> dict[str, float]:
    """Of `rows` cases with a JPEG of 2,000 x 2,000 pixels each, one file under as many names: seconds until they are
    loaded, the most resident memory of this process before and until then, in MB, and files opened with limit=4."""
    small = Image.fromarray(np.random.default_rng(0).integers(0, 255, (500, 500, 3), np.uint8))
    small.resize((2000, 2000)).save(folder / "0.jpg", quality=90)
    told = {"question": "Which?", "options": ["1", "2"], "answer": "A"}
    with (folder / "train.jsonl").open("w") as file:
        for row in range(rows):
            if row:
                os.link(folder / "0.jpg", folder / f"{row}.jpg")
            file.write(json.dumps({"id": str(row), "images": [f"{row}.jpg"]} | told) + "\n")
    opened, opens = [], Image.open
    Image.open = lambda file, *given, **named: opened.append(file) or opens(file, *given, **named)
    try:
        load_cases(folder, "train", limit=4)
        few, before, began = len(opened), peak(), time.perf_counter()
        load_cases(folder, "train")
        return {"seconds": time.perf_counter() - began, "before": before, "peak": peak(), "limit_4_opened": few}
    finally:
        Image.open = opens


def peak() -> float:
    """Megabytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def step_seconds(examples: Examples, kind: str) -> float:
    """Seconds of a step of Qwen2-VL-2B on a device, from the operations of the rows of the first one."""
    once = 0.0
    for micro in examples.micro_batches(0):
        prompts, lengths = micro.prompts, micro.lengths[:, None]
        once += flops.forward(PUBLISHED["qwen2_vl_2b"], prompts.lengths, lengths, prompts.patch_counts)
    return flops.trained(once, full=False, remat=True) / (SHARE * PEAKS[kind])


def spent(examples: Examples, step: int) -> float:
    """Processor seconds in which one thread makes the rows of a step; other programs do not count."""
    began = time.thread_time()
    examples.micro_batches(step)
    return time.thread_time() - began


def waited(seconds: list[float], busy: float, cores: int) -> float:
    """Share of the time after the first step that a device waits, where steps take `busy`, and their rows, `seconds`
    each, are made by `cores` threads, AHEAD steps at most before they are asked for, as `train.Prefetched` does."""
    free, ready, clock, waits = [0.0] * cores, list[float](), 0.0, list[float]()
    for step in range(len(seconds)):
        for made in seconds[len(ready) : step + AHEAD + 1]:
            core = free.index(min(free))
            free[core] = max(free[core], clock) + made
            ready.append(free[core])
        waits.append(max(0.0, ready[step] - clock))
        clock += waits[-1] + busy
    return sum(waits[1:]) / (clock - waits[0] - busy)


def main() -> None:
    args = arguments()
    if args.load:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(workload.machine() | {"rows": args.load} | loading(Path(folder), args.load)))
        return
    if args.padding:
        with tempfile.TemporaryDirectory() as folder:
            found = padding(Path(folder))
        head = " | ".join(f"tokens, {part} of {prompts} prompts | patches" for part, prompts in STEPS.items())
        print(f"| rows | {head} |\n| --- | --- | --- | --- | --- |")
        for mix, parts in found.items():
            print(f"| {mix} | " + " | ".join(f"{ratio:.2f}" for part in parts.values() for ratio in part) + " |")
        print(json.dumps(workload.machine() | {"padding": found}))
        return
    config = load_config("configs/dsa.py:qwen2_vl_2b", {"steps": args.steps + 1, "max_prompt_length": 4096})
    processor = Processor(load_processor("mini").tokenizer, ImageConfig())
    with tempfile.TemporaryDirectory() as folder:
        examples = Examples(cases(args, Path(folder)), processor, config)
        seconds = [spent(examples, step) for step in range(examples.steps)]
        figures: dict[str, object] = {"host_cpu_seconds_per_step": float(np.mean(seconds))}
        head = " | ".join(f"waited, {cores} core{'s' * (cores > 1)}" for cores in CORES)
        print(f"| device | step, s | host, CPU s | {head} |\n{'| --- ' * (3 + len(CORES))}|")
        for kind in PEAKS:
            busy = step_seconds(examples, kind)
            shares = {cores: waited(seconds, busy, cores) for cores in CORES}
            figures |= {f"{kind}_step_seconds": busy, f"{kind}_waited": shares}
            row = " | ".join(f"{share:.1%}" for share in shares.values())
            print(f"| {kind} | {busy:.2f} | {np.mean(seconds):.2f} | {row} |", flush=True)
    print(json.dumps(vars(args) | workload.machine() | figures))


if __name__ == "__main__":
    main()
