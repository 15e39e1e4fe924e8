"""The wait of a device for the host in DSA: seconds that a step's rows take to be encoded and padded, against a step.

    python benchmarks/fed.py                    # appendix B: 8 rows a step, images of 512 tokens, a step of the 2B
    python benchmarks/fed.py --steps 40 --image 1024

The rows are read from JPEG files and made by `sft.examples.Examples`, as a run does, one step after the other, and
timed by the thread's processor clock, which other programs do not move. The device is a clock too: it is busy for as
long as a step of Qwen2-VL-2B takes at a third of a device's peak, by the operations of these very rows. What it waits
for is computed from both, for threads that have a core each. Prints a table and one JSON line.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import workload
from PIL import Image

from mmedexpert_jax.data import Case
from mmedexpert_jax.data.tables import InFolder
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
