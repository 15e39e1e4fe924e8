"""Forward passes and loading, ours beside transformers' on the same weights in one run.

    python benchmarks/forward.py                           # CPU, float32, two sizes
    python benchmarks/forward.py --families qwen3_vl llava gemma3 --sizes small
    python benchmarks/forward.py --sizes qwen2_vl_2b --dtype bfloat16 --batch 8 --side 1120 --peak 989e12  # a GPU

Prefill gives the last position's logits and the cache; the full forward every position's; an answer is greedy. The two
programs take turns, so that other work on the machine meets both; the least and the median of the turns are printed,
with the process's CPU seconds, which other work changes less. Prints a table and one JSON line.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from families import FAMILIES, Size, checkpoint, transformers_inputs
from PIL import Image

import mmedexpert_jax as mx
from mmedexpert_jax.models import ModelConfig, load_model
from mmedexpert_jax.models.config import PUBLISHED, TextConfig, VisionConfig
from mmedexpert_jax.models.flops import forward
from mmedexpert_jax.processing.batch import Batch
from mmedexpert_jax.processing.processor import Processor

WORDS = 150  # tokens of the question beside each image
TOKENS = 16  # of an answer


# about 54 and 239 million parameters as Qwen2-VL
SIZES = {
    "small": Size((512, 2048, 8, 8, 2), (256, 1024, 6, 4), 224, 32768),
    "medium": Size((1024, 2816, 12, 16, 4), (768, 3072, 8, 12), 224, 32768),
}


def published(size: str) -> tuple[TextConfig, VisionConfig]:
    """The decoder and tower of a published size."""
    return PUBLISHED[size].text, PUBLISHED[size].vision


def prompts(processor: Processor, batch: int, side: int) -> tuple[Batch, dict[str, np.ndarray]]:
    """B prompts with one image of `side` pixels each, ours and as transformers' arguments."""
    draw = np.random.default_rng(0)
    words = processor.tokenizer.decode(draw.integers(300, 1500, WORDS))
    talks = []
    for _ in range(batch):
        picture = Image.fromarray(draw.integers(0, 256, (side, side, 3), dtype=np.uint8))
        content = [{"type": "image", "image": picture}, {"type": "text", "text": words}]
        talks.append([{"role": "user", "content": content}])
    rows = [transformers_inputs(processor, talk) for talk in talks]
    return processor(talks), {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def flops(config: ModelConfig, batch: Batch, every_position: bool) -> float:
    """Products of one forward, with the logits of every position or of the last."""
    rows, length = batch.tokens.shape
    images = batch.patch_counts[batch.patch_counts > 0]
    passed = forward(config, batch.lengths, np.zeros((rows, 1)), images)
    return passed + 2.0 * config.text.vocab_size * config.text.hidden_size * rows * (length if every_position else 1)


def take_turns(programs: dict[str, Callable[[], Any]], turns: int) -> dict[str, dict[str, float]]:
    """Wall and CPU seconds of each program: least and median over turns, after one that warms up."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for turn in range(turns + 1):
        for name, program in programs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            program()
            if turn:
                seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: {
            "least": min(wall for wall, _ in pairs),
            "median": statistics.median(wall for wall, _ in pairs),
            "cpu": min(cpu for _, cpu in pairs),
        }
        for name, pairs in seconds.items()
    }


def measure(family: str, size: str, args: argparse.Namespace, folder: Path) -> dict:
    import torch
    import transformers

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    dtype = jnp.dtype(args.dtype)
    processor = checkpoint(SIZES[size].parts(family) if size in SIZES else published(size), folder, 0.02)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def their_load() -> Any:
        model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=getattr(torch, args.dtype))
        return model.to(device).eval()

    loading = take_turns(
        {"ours": lambda: jax.block_until_ready(load_model(folder, dtype=dtype)[1]), "transformers": their_load}, 3
    )
    (model, params), reference = load_model(folder, dtype=dtype), their_load()
    batch, inputs = prompts(processor, args.batch, args.side)
    arrays = {name: torch.tensor(value).to(device) for name, value in inputs.items()}
    reference.generation_config.eos_token_id = None
    placed = jax.device_put(batch)

    @jax.jit
    def prefill(params: dict, batch: Batch) -> Any:
        prefix = model.prefill(params, batch)
        return model.unembed(params, prefix.hidden[:, -1]), prefix.keys, prefix.values

    def theirs(**options: Any) -> Any:
        with torch.inference_mode():
            logits = reference(**arrays, **options).logits
        if device == "cuda":
            torch.cuda.synchronize()
        return logits

    def answer() -> Any:
        how = {"num_samples": 1, "max_new_tokens": TOKENS, "temperature": 0.0, "stop_ids": ()}
        return mx.generate(model, params, batch, key=jax.random.key(0), **how).tokens

    def their_answer() -> Any:
        with torch.inference_mode():
            return reference.generate(**arrays, max_new_tokens=TOKENS, do_sample=False)

    result: dict[str, Any] = {"family": model.config.family, "size": size}
    result |= {"parameters": sum(leaf.size for leaf in jax.tree.leaves(params))}
    kinds = {
        "prefill": (lambda: prefill(params, placed), lambda: theirs(logits_to_keep=1, use_cache=True), False),
        "full": (lambda: model.logits(params, placed), lambda: theirs(use_cache=False), True),
    }
    for kind, (our_run, their_run, every_position) in kinds.items():
        programs = {"ours": lambda run=our_run: jax.block_until_ready(run()), "transformers": their_run}
        result[kind] = take_turns(programs, args.turns)
        for row in result[kind].values():
            row["tokens_per_second"] = batch.tokens.size / row["least"]
            row["flops_per_second"] = flops(model.config, batch, every_position) / row["least"]
    result["answer"] = take_turns({"ours": lambda: np.asarray(answer()), "transformers": their_answer}, args.turns)
    result["loading"] = loading
    gap = np.abs(np.asarray(model.logits(params, placed)) - theirs().float().cpu().numpy())
    result["largest_difference"] = float(gap.max())
    return result


def show(result: dict, peak: float) -> None:
    print(f"{result['family']}, {result['size']}: {result['parameters']:,} parameters")
    for kind in ("prefill", "full", "answer", "loading"):
        for name, row in result[kind].items():
            speed = f"{row['tokens_per_second']:10,.0f} tokens/s" if "tokens_per_second" in row else ""
            share = f" {row['flops_per_second'] / peak:6.1%} of peak" if peak and "flops_per_second" in row else ""
            times = f"least {row['least']:.3f} s, median {row['median']:.3f} s, CPU {row['cpu']:.3f} s"
            print(f"  {kind:8} {name:12} {times} {speed}{share}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=["qwen2_vl"], choices=FAMILIES)
    parser.add_argument("--sizes", nargs="+", default=["small", "medium"], choices=[*SIZES, *PUBLISHED])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=4, help="prompts")
    parser.add_argument("--side", type=int, default=224, help="pixels of the image of each prompt")
    parser.add_argument("--turns", type=int, default=5, help="measurements of each program")
    parser.add_argument("--peak", type=float, default=0.0, help="peak FLOP/s of the device, e.g. 989e12")
    args = parser.parse_args()
    results = []
    for family, size in itertools.product(args.families, args.sizes):
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(family, size, args, Path(folder) / "model"))
        show(results[-1], args.peak)
    versions = {"python": platform.python_version(), "jax": jax.__version__, "device": str(jax.devices()[0])}
    print(json.dumps({"results": results, "load": os.getloadavg()[0], **vars(args), **versions}))


if __name__ == "__main__":
    main()
