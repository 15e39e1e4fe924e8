"""Forward passes and loading, ours beside transformers' on the same weights in one run.

    python benchmarks/forward.py                           # CPU, float32, two sizes
    python benchmarks/forward.py --sizes qwen2_vl_2b --dtype bfloat16 --batch 8 --length 1792 --peak 989e12  # a GPU

Prefill gives the last position's logits and the cache; the full forward gives every position's logits. The two
programs take turns, so that other work on the machine meets both; the least and the median of the turns are printed,
with the process's CPU seconds, which other work changes less. Prints a table and one JSON line.
"""

import argparse
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

from mmedexpert_jax.models import Model, ModelConfig, load_model, save_pretrained
from mmedexpert_jax.models.config import PUBLISHED, TextConfig, VisionConfig
from mmedexpert_jax.models.random import init_params
from mmedexpert_jax.processing import mrope_positions, patch_positions
from mmedexpert_jax.processing.batch import Batch


def shape(width: int, ffn: int, layers: int, heads: int, kv_heads: int, vision: tuple[int, int, int]) -> ModelConfig:
    depth, vision_width, vision_heads = vision
    text = TextConfig(32768, width, ffn, layers, heads, kv_heads, rms_norm_eps=1e-6, mrope_section=(8, 12, 12))
    tower = VisionConfig("qwen2_vl", depth, vision_width, 4 * vision_width, vision_heads, out_hidden_size=width)
    ids = dict(zip(("image", "video", "vision_start", "vision_end"), (32767, 32766, 32765, 32764), strict=True))
    return ModelConfig(text, tower, tie_word_embeddings=True, **{f"{name}_token_id": id for name, id in ids.items()})


SIZES = {
    "small": shape(512, 2048, 8, 8, 2, (6, 256, 4)),
    "medium": shape(1024, 2816, 12, 16, 4, (8, 768, 12)),
} | PUBLISHED


def prompts(config: ModelConfig, batch: int, length: int, patches: int) -> tuple[Batch, dict[str, np.ndarray]]:
    """B prompts of `length` tokens with one image of about `patches` each, ours and as transformers' arguments."""
    side = 2 * max(1, round(patches**0.5 / 2))
    merged = side * side // 4
    draw = np.random.default_rng(0)
    rows = draw.integers(0, 1000, (batch, length))
    rows[:, 8 : 10 + merged] = [
        config.vision_start_token_id,
        *[config.image_token_id] * merged,
        config.vision_end_token_id,
    ]
    pads = rows == config.image_token_id
    pixels = draw.standard_normal((batch, side * side, 1176)).astype(np.float32)
    positions, following = mrope_positions(rows[0], config.image_token_id, [(side, side)])
    ours = Batch(
        tokens=rows.astype(np.int32),
        lengths=np.full(batch, length, np.int32),
        positions=np.tile(positions, (batch, 1, 1)),
        next_position=np.full(batch, following, np.int32),
        vision_index=np.where(pads, np.cumsum(pads).reshape(rows.shape) - 1, -1).astype(np.int32),
        patches=pixels,
        patch_positions=np.tile(patch_positions(side, side), (batch, 1, 1)),
        patch_counts=np.full(batch, side * side, np.int32),
    )
    theirs = {
        "input_ids": rows,
        "attention_mask": np.ones_like(rows),
        "mm_token_type_ids": pads.astype(np.int32),
        "image_grid_thw": np.array([[1, side, side]] * batch),
        "pixel_values": pixels.reshape(-1, 1176),
    }
    return ours, theirs


def flops(config: ModelConfig, batch: Batch, every_position: bool) -> float:
    """Products of one forward: 2 per weight and token, and causal attention; the tower's attention is whole."""
    text, vision = config.text, config.vision
    rows, length = batch.tokens.shape
    images, patches, width = batch.patches.shape
    kv_width = text.num_kv_heads * text.head_dim
    layer = text.hidden_size * (2 * text.hidden_size + 2 * kv_width + 3 * text.intermediate_size)
    head = text.vocab_size * text.hidden_size * rows * (length if every_position else 1)
    mlps = 2 if vision.family == "qwen2_vl" else 3
    block = vision.hidden_size * (4 * vision.hidden_size + mlps * vision.intermediate_size)
    merger = 4 * vision.hidden_size * (4 * vision.hidden_size + vision.out_hidden_size)
    products = rows * length * text.num_layers * (layer + length * text.hidden_size) + head
    products += images * patches * (width * vision.hidden_size + merger / 4)
    products += images * patches * vision.depth * (block + 2 * patches * vision.hidden_size)
    return 2.0 * products


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


def measure(size: str, args: argparse.Namespace, folder: Path) -> dict:
    import torch
    import transformers

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    config, dtype = SIZES[size], jnp.dtype(args.dtype)
    save_pretrained(folder, Model(config), jax.tree.map(np.asarray, init_params(config, 0, dtype)))
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def their_load() -> Any:
        model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=getattr(torch, args.dtype))
        return model.to(device).eval()

    loading = take_turns(
        {"ours": lambda: jax.block_until_ready(load_model(folder, dtype=dtype)[1]), "transformers": their_load}, 3
    )
    (model, params), reference = load_model(folder, dtype=dtype), their_load()
    batch, inputs = prompts(config, args.batch, args.length, args.patches)
    arrays = {name: torch.tensor(value).to(device) for name, value in inputs.items()}
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

    result: dict[str, Any] = {"size": size, "parameters": sum(leaf.size for leaf in jax.tree.leaves(params))}
    kinds = {
        "prefill": (lambda: prefill(params, placed), lambda: theirs(logits_to_keep=1, use_cache=True), False),
        "full": (lambda: model.logits(params, placed), lambda: theirs(use_cache=False), True),
    }
    for kind, (our_run, their_run, every_position) in kinds.items():
        programs = {"ours": lambda run=our_run: jax.block_until_ready(run()), "transformers": their_run}
        result[kind] = take_turns(programs, args.turns)
        for row in result[kind].values():
            row["tokens_per_second"] = batch.tokens.size / row["least"]
            row["flops_per_second"] = flops(config, batch, every_position) / row["least"]
    result["loading"] = loading
    gap = np.abs(np.asarray(model.logits(params, placed)) - theirs().float().cpu().numpy())
    result["largest_difference"] = float(gap.max())
    return result


def show(result: dict, peak: float) -> None:
    print(f"{result['size']}: {result['parameters']:,} parameters")
    for kind in ("prefill", "full", "loading"):
        for name, row in result[kind].items():
            speed = f"{row['tokens_per_second']:10,.0f} tokens/s" if "tokens_per_second" in row else ""
            share = f" {row['flops_per_second'] / peak:6.1%} of peak" if peak and "flops_per_second" in row else ""
            times = f"least {row['least']:.3f} s, median {row['median']:.3f} s, CPU {row['cpu']:.3f} s"
            print(f"  {kind:8} {name:12} {times} {speed}{share}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["small", "medium"], choices=SIZES)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batch", type=int, default=4, help="prompts")
    parser.add_argument("--length", type=int, default=288, help="tokens of a prompt, its image included")
    parser.add_argument("--patches", type=int, default=256, help="of the image of each prompt, about")
    parser.add_argument("--turns", type=int, default=5, help="measurements of each program")
    parser.add_argument("--peak", type=float, default=0.0, help="peak FLOP/s of the device, e.g. 989e12")
    args = parser.parse_args()
    results = []
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            results.append(measure(size, args, Path(folder) / "model"))
        show(results[-1], args.peak)
    versions = {"python": platform.python_version(), "jax": jax.__version__, "device": str(jax.devices()[0])}
    print(json.dumps({"results": results, "load": os.getloadavg()[0], **vars(args), **versions}))


if __name__ == "__main__":
    main()
