"""Generated tokens per second, against transformers' `generate` with the same weights and prompts, in the same run.

    python benchmarks/rollout.py                                   # a CPU: two sizes, 4 prompts x 8 samples x 64 tokens
    python benchmarks/rollout.py --sizes qwen2_vl_2b --dtype bfloat16 --prompts 1 8 32 --tokens 1024 --mean 300

Each prompt has a 224 x 224 image. All samples get `--tokens` tokens; with `--mean` a share 1 / mean of the vocabulary
ends a sample, so that random weights give geometric lengths cut at `--tokens`. The peers take turns, so that other work
on the machine meets both; the table has the medians of wall and of processor time. The share of the memory bandwidth is
(weights and keys and values that decoding must read) / (time x bandwidth measured in the same run).
`--sync` measures the adapter folded into the weights against the adapter in low-rank form, without the peer.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import mmedexpert_jax as mx
from mmedexpert_jax.models.config import PUBLISHED, ModelConfig, TextConfig, VisionConfig
from mmedexpert_jax.models.random import init_params
from mmedexpert_jax.processing.batch import Batch
from mmedexpert_jax.processing.processor import Processor
from mmedexpert_jax.rollout.decode import programs

VOCABULARY = 151_936


def network(size: str, processor: Processor) -> ModelConfig:
    """A published size, or "<width>x<layers>" with heads of 64, two key heads and a vision tower of half the width."""
    ids = {
        "image_token_id": processor.image_token_id,
        "pad_token_id": processor.pad_id,
        "bos_token_id": processor.pad_id,
        "eos_token_ids": (processor.chat_end_id,),
    }
    if size in PUBLISHED:
        return ModelConfig(**(vars(PUBLISHED[size]) | ids))
    width, layers = map(int, size.split("x"))
    text = TextConfig(VOCABULARY, width, 4 * width, layers, width // 64, 2, 1e-6, mrope_section=(8, 12, 12))
    vision = VisionConfig("qwen2_vl", 6, width // 2, 2 * width, width // 128, width)
    return ModelConfig(text, vision, tie_word_embeddings=True, **ids)


def prompts(processor: Processor, count: int) -> Batch:
    rng = np.random.default_rng(0)
    words = ["fever", "cough", "pain", "rash", "swelling", "dyspnoea", "syncope", "oedema"]
    asked = []
    for _ in range(count):
        image = Image.fromarray(rng.integers(0, 255, (224, 224, 3), np.uint8))
        text = "A patient has " + ", ".join(rng.choice(words, rng.integers(4, 12))) + ". What is it?"
        asked.append([{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}])
    return processor(asked)


def torch_inputs(batch: Batch, image_token_id: int, device: str, dtype: Any) -> dict:
    """The same prompts as transformers takes them, padded on the left."""
    import torch

    size = batch.tokens.shape[1]
    shifted = np.stack([np.roll(row, size - n) for row, n in zip(batch.tokens, batch.lengths, strict=True)])
    mask = np.arange(size) >= size - batch.lengths[:, None]
    sides = batch.patch_positions.max(1) + 1
    patches = np.concatenate([p[:n] for p, n in zip(batch.patches, batch.patch_counts, strict=True)])
    return {
        "input_ids": torch.tensor(shifted, device=device).long(),
        "attention_mask": torch.tensor(mask, device=device).long(),
        "mm_token_type_ids": torch.tensor(shifted == image_token_id, device=device).int(),
        "pixel_values": torch.tensor(patches, device=device, dtype=dtype),
        "image_grid_thw": torch.tensor([[1, *side] for side in sides.tolist()], device=device),
    }


def clock(run: Callable[[], float]) -> tuple[float, float, float]:
    """(what `run` returns: tokens, wall seconds, processor seconds)."""
    wall, processor = time.perf_counter(), time.process_time()
    tokens = run()
    return tokens, time.perf_counter() - wall, time.process_time() - processor


def bandwidth(megabytes: int = 512) -> float:
    """Bytes per second that a sum over a large array reads, the best of five."""
    array = jnp.ones(megabytes * 2**18, jnp.float32)
    total = jax.jit(jnp.sum)
    float(total(array))
    return array.nbytes / min(clock(lambda: float(total(array)))[1] for _ in range(5))


def bytes_read(config: ModelConfig, params: dict, batch: Batch, lengths: np.ndarray) -> float:
    """Bytes that decoding must read: the decoder's weights at each step, the keys and values of prompts and samples
    that have not ended."""
    text = config.text
    weight = params["model"]["embed_tokens"]["weight"]
    layers = sum(leaf.nbytes for leaf in jax.tree.leaves(params["model"]["layers"]))
    token = 2 * text.num_layers * text.num_kv_heads * text.head_dim * weight.dtype.itemsize
    lengths = lengths.astype(float)
    longest = lengths.max(1)
    own = (lengths * (lengths - 1) / 2).sum() * token
    return (longest.max() - 1) * (layers + weight.nbytes) + (longest * batch.lengths).sum() * token + own


def measure(size: str, count: int, arguments: argparse.Namespace) -> dict:
    processor = mx.load_processor("mini")
    config = network(size, processor)
    model, params = mx.models.Model(config), init_params(config, 0, jnp.dtype(arguments.dtype))
    batch = prompts(processor, count)
    stops = tuple(range(VOCABULARY // 2, VOCABULARY // 2 + VOCABULARY // arguments.mean)) if arguments.mean else ()
    lengths: list[np.ndarray] = []

    def ours(seed: int = 0) -> float:
        done = jax.device_get(
            mx.generate(
                model,
                params,
                batch,
                key=jax.random.key(seed),
                num_samples=arguments.samples,
                max_new_tokens=arguments.tokens,
                stop_ids=stops,
            )
        )
        lengths.append(done.lengths)
        return float(done.lengths.sum())

    theirs = None if arguments.no_torch else peer(model, params, batch, stops, arguments)
    before = len(programs)
    first = clock(ours)[1]
    if theirs:
        theirs(1, 2)
    sides = [run for run in (ours, theirs) if run]
    turns = [[clock(run) for run in sides] for _ in range(arguments.repeats)]
    speed = bandwidth()
    rates = [statistics.median(turn[i][0] / turn[i][1] for turn in turns) for i in range(len(sides))]
    work = [statistics.median(turn[i][2] / turn[i][0] * 1e3 for turn in turns) for i in range(len(sides))]
    read = bytes_read(config, params, batch, lengths[-1])
    return {
        "size": size,
        "rows": count * arguments.samples,
        "tokens_per_second": rates[0],
        "transformers": rates[-1] if theirs else None,
        "ratio": rates[0] / rates[1] if theirs else None,
        "cpu_ms_per_token": work[0],
        "cpu_ms_per_token_transformers": work[-1] if theirs else None,
        "cpu_ratio": work[1] / work[0] if theirs else None,
        "roofline_share": read / (turns[-1][0][1] * speed),
        "bandwidth_gb_per_second": speed / 1e9,
        "first_call_seconds": first,
        "programs": len(programs) - before,
    }


def peer(
    model: mx.models.Model, params: dict, batch: Batch, stops: tuple[int, ...], arguments: argparse.Namespace
) -> Callable[..., float]:
    """A function (samples, tokens) that samples with transformers and gives the tokens sampled."""
    import torch
    import transformers

    device = "cpu" if jax.default_backend() == "cpu" else "cuda"
    with tempfile.TemporaryDirectory() as directory:
        mx.save_pretrained(directory, model, params)
        network = transformers.AutoModelForImageTextToText.from_pretrained(
            directory, dtype=getattr(torch, arguments.dtype)
        ).to(device)
    inputs = torch_inputs(batch, model.config.image_token_id, device, network.dtype)
    network.generation_config = transformers.GenerationConfig(pad_token_id=model.config.pad_token_id, eos_token_id=None)

    def sampled(samples: int = arguments.samples, tokens: int = arguments.tokens) -> float:
        with torch.no_grad():
            rows = network.generate(
                **inputs,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                num_return_sequences=samples,
                max_new_tokens=tokens,
                eos_token_id=list(stops) or None,
            )[:, inputs["input_ids"].shape[1] :]
        ended = torch.isin(rows, torch.tensor(stops, device=device))
        return float(torch.where(ended.any(1), ended.int().argmax(1) + 1, rows.shape[1]).sum())

    return sampled


def sync(size: str, arguments: argparse.Namespace) -> dict:
    """Seconds of a rollout with the adapter folded (the fold included) and in low-rank form, and what rounding does."""
    processor = mx.load_processor("mini")
    config = network(size, processor)
    model, params = mx.models.Model(config), init_params(config, 0, jnp.dtype(arguments.dtype))
    batch = prompts(processor, arguments.prompts[0])
    lora = mx.lora.init(jax.random.key(0), params, rank=16, alpha=32)
    noise = lambda leaf: leaf + 1e-3 * jax.random.normal(jax.random.key(1), leaf.shape)  # noqa: E731
    lora = jax.tree.map(noise, lora)
    settings = {"num_samples": arguments.samples, "max_new_tokens": arguments.tokens, "stop_ids": ()}

    def run(fold: bool) -> mx.rollout.Completions:
        weights, deltas = (mx.lora.fold(params, lora), None) if fold else (params, lora)
        return jax.block_until_ready(
            mx.rollout.generate(model, weights, batch, key=jax.random.key(0), lora=deltas, fold=False, **settings)
        )

    @jax.jit
    def trainer(done: mx.rollout.Completions) -> jax.Array:
        return mx.rollout.completion_logprobs(model, params, batch, done.tokens, done.lengths, lora=lora)

    result: dict = {"size": size, "dtype": arguments.dtype}
    done = {fold: run(fold) for fold in (True, False)}
    for name, fold in (("folded", True), ("low_rank", False)):
        turns = [clock(lambda fold=fold: float(run(fold).lengths.sum())) for _ in range(arguments.repeats)]
        gap = np.abs(np.asarray(trainer(done[fold])) - np.asarray(done[fold].logprobs))
        result[name] = {
            "seconds": statistics.median(turn[1] for turn in turns),
            "cpu_seconds": statistics.median(turn[2] for turn in turns),
            "gap_mean": float(gap.mean()),
            "gap_max": float(gap.max()),
        }
    return result


def main() -> None:
    """Measures each size and number of prompts; prints the table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["512x8", "256x4"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--prompts", type=int, nargs="+", default=[4])
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--mean", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sync", action="store_true")
    parser.add_argument("--no-torch", action="store_true", help="without the peer")
    arguments = parser.parse_args()
    libraries = ("jax",) if arguments.no_torch else ("jax", "torch", "transformers")
    about = {
        "benchmark": "rollout",
        "device": jax.devices()[0].device_kind,
        "load": os.getloadavg()[0],
        "versions": {name: version(name) for name in libraries},
        "python": platform.python_version(),
    }
    if arguments.sync:
        rows = [sync(size, arguments) for size in arguments.sizes]
    else:
        rows = [measure(size, count, arguments) for size in arguments.sizes for count in arguments.prompts]
        columns = list(rows[0])
        print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
        for row in rows:
            print("| " + " | ".join(f"{x:.3g}" if isinstance(x, float) else str(x) for x in row.values()) + " |")
    print(json.dumps(about | {"settings": vars(arguments), "rows": rows}))


if __name__ == "__main__":
    main()
