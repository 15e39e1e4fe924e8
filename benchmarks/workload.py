"""Models, prompts and completions of given sizes and random content, for the benchmarks of training."""

import dataclasses
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mmedexpert_jax.models import Model, ModelConfig, load_model
from mmedexpert_jax.models.config import PUBLISHED, TextConfig, VisionConfig
from mmedexpert_jax.models.network import tensor_shapes
from mmedexpert_jax.models.random import init_params
from mmedexpert_jax.models.tree import nest
from mmedexpert_jax.processing.batch import Batch

SIDE = 16  # patches along an image of 224 pixels


def build(size: str, dtype: jnp.dtype, seed: int = 0) -> tuple[Model, dict]:
    """A model with random weights: in published shapes, "random:<size>", or "<hidden>x<layers>x<vocabulary>"."""
    if size.startswith("random:"):
        model, params = load_model(size, dtype=str(jnp.dtype(dtype)), seed=seed)
        return model, params
    config = network(size)
    return Model(config), init_params(config, seed, dtype)


def abstract(size: str, dtype: jnp.dtype) -> tuple[Model, dict]:
    """A model as `build` makes it, with the shapes of its weights alone."""
    config = network(size)
    return Model(config), nest({n: jax.ShapeDtypeStruct(shape, dtype) for n, shape in tensor_shapes(config).items()})


def network(size: str) -> ModelConfig:
    """The configuration of a size."""
    if size.startswith("random:"):
        return PUBLISHED[size.removeprefix("random:")]
    hidden, layers, vocabulary = map(int, size.split("x"))
    heads = max(2, hidden // 64)
    half = hidden // heads // 2
    sections = (half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8)
    text = TextConfig(vocabulary, hidden, hidden * 4, layers, heads, max(1, heads // 4), mrope_section=sections)
    vision = VisionConfig("qwen2_vl", 2, 64, 256, 2, hidden)
    ids = {"image_token_id": vocabulary - 1, "video_token_id": vocabulary - 2, "pad_token_id": 0, "bos_token_id": 0}
    return ModelConfig(text, vision, True, eos_token_ids=(1,), **ids)


def imposed(model: Model, mean: float) -> Model:
    """The model with so many stop ids that samples of random weights have a mean length of about `mean` tokens."""
    vocabulary = model.config.text.vocab_size
    ids = np.random.default_rng(0).choice(vocabulary, max(1, round(vocabulary / mean)), replace=False)
    return Model(dataclasses.replace(model.config, eos_token_ids=tuple(map(int, sorted(ids)))))


def prompts(model: Model, count: int, length: int, image: bool, seed: int = 0) -> Batch:
    """`count` prompts of `length` tokens, with one image of 16 x 16 patches each (64 tokens)."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, model.config.text.vocab_size - 8, (count, length)).astype(np.int32)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), (count, 3, length)).copy()
    index = np.full((count, length), -1, np.int32)
    after = np.full(count, length, np.int32)
    images = count if image else 0
    places = np.arange(SIDE * SIDE).reshape(SIDE // 2, 2, SIDE // 2, 2).swapaxes(1, 2).ravel()  # the processor's order
    lines, columns = np.divmod(places, SIDE)
    if image:
        side = SIDE // 2
        span = np.arange(side * side)
        tokens[:, 1 : 1 + len(span)] = model.config.image_token_id
        index[:, 1 : 1 + len(span)] = np.arange(count)[:, None] * len(span) + span
        positions[:, :, 1 : 1 + len(span)] = 1 + np.stack([0 * span, span // side, span % side])
        positions[:, :, 1 + len(span) :] -= len(span) - side
        after -= len(span) - side
    vision = model.config.vision
    pixels = 3 * vision.temporal_patch_size * vision.patch_size**2
    return Batch(
        tokens=tokens,
        lengths=np.full(count, length, np.int32),
        positions=positions,
        next_position=after,
        vision_index=index,
        patches=rng.normal(size=(images, SIDE * SIDE, pixels)).astype(np.float32),
        patch_positions=np.broadcast_to(np.stack([lines, columns], -1).astype(np.int32), (images, SIDE * SIDE, 2)),
        patch_counts=np.full(images, SIDE * SIDE, np.int32),
    )


def taken(batch: Batch, rows: np.ndarray) -> Batch:
    """The prompts `rows` [b] of a batch of `prompts` with an image each, which are numbered through."""
    index, moved = batch.vision_index[rows], (rows - np.arange(len(rows)))[:, None] * (SIDE // 2) ** 2
    chosen = {field.name: getattr(batch, field.name)[rows] for field in dataclasses.fields(batch)}
    return Batch(**chosen | {"vision_index": np.where(index >= 0, index - moved, -1).astype(np.int32)})


def ragged(shape: tuple[int, ...], mean: float, limit: int, seed: int = 0) -> np.ndarray:
    """Lengths of answers: log-normal with deviation 0.6, cut at the limit, the mean about `mean`."""
    rng = np.random.default_rng(seed)
    return np.clip(rng.lognormal(np.log(mean) - 0.18, 0.6, shape), 2, limit).astype(np.int32)


def text_parameters(model: Model) -> tuple[int, int]:
    """Parameters of the decoder's layers, and of its output layer: 2 operations each for a token forward."""
    shapes = tensor_shapes(model.config)
    layers = sum(int(np.prod(shape)) for name, shape in shapes.items() if name.startswith("model.layers"))
    return layers, int(np.prod(shapes["model.embed_tokens.weight"]))


def measure(functions: dict[str, Callable[[], object]], repeats: int) -> dict[str, dict[str, float]]:
    """Least wall and processor seconds of each function, one after the other `repeats` times, so that all see the same
    machine; processor seconds, of all threads, bear other work on a CPU better."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            wall, processor = time.perf_counter(), time.process_time()
            jax.block_until_ready(function())
            taken[name].append((time.perf_counter() - wall, time.process_time() - processor))
    return {n: {"seconds": min(w for w, _ in t), "processor_seconds": min(p for _, p in t)} for n, t in taken.items()}


def memory(program: jax.stages.Lowered, text: Path | None = None) -> dict[str, float]:
    """Gigabytes of a compiled program: what it is given, what it needs besides, what it gives, and all of them.

    The compiled program itself goes to the file `text`.
    """
    compiled = program.compile()
    if text:
        text.write_text(compiled.as_text())
    analysis = compiled.memory_analysis()
    given, besides = analysis.argument_size_in_bytes, analysis.temp_size_in_bytes
    new = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    sizes = {"arguments": given, "temporary": besides, "output": new, "all": given + besides + new}
    return {name: round(size / 1e9, 4) for name, size in sizes.items()}


def report_memory(settings: dict, rows: dict[str, dict[str, float]]) -> None:
    """Prints the table and one JSON line."""
    for name, row in rows.items():
        print(f"{name:10} " + "  ".join(f"{kind} {size:7.2f} GB" for kind, size in row.items()), file=sys.stderr)
    print(json.dumps(settings | machine() | {"gigabytes": rows}, default=str))


def machine() -> dict[str, str]:
    """The facts that a figure must stand with."""
    device = jax.devices()[0]
    return {"device": device.device_kind, "python": platform.python_version(), "jax": jax.__version__}
