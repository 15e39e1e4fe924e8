"""Compiles a GBA step of a large model for a mesh of devices that are not here: bytes a device, largest gathers.

    pip install "jax-cuda12-plugin[with-cuda]==0.10.2"                  # or libtpu for v5e; no device is needed
    python benchmarks/sharded.py --size qwen2_5_vl_7b --kind a100 --mesh 1 8 1 --full
    python benchmarks/sharded.py --size qwen2_5_vl_32b --kind h100 --mesh 1 8 1
    python benchmarks/sharded.py --size qwen2_5_vl_72b --kind h100 --mesh 2 8 1     # two hosts of eight
    python benchmarks/sharded.py --size qwen2_vl_2b --kind h100 --mesh 1 1 1 --prompts 4
    python benchmarks/sharded.py --size qwen2_5_vl_7b --kind h100 --mesh 1 1 1 --quantize nf4   # a LoRA over 4 bits

Weights lie in parts by the rules of runtime/mesh.py; in the gradient layers are stacked and recomputed. Each share of
the rows has `--prompts` prompts of 700 tokens with an image and 8 completions of the full length. Held besides a
program's temporary memory: the weights, what is trained in float32, its two moments, its gradient, and in a rollout
keys and values. CPU seconds are those of tracing and compiling; without a device nothing is autotuned. Prints one JSON
line.
"""

import argparse
import dataclasses
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import workload
from jax.sharding import AxisType, Mesh, NamedSharding

from mmedexpert_jax import lora as lora_module
from mmedexpert_jax.models import Model, fused, parts, stack
from mmedexpert_jax.models.config import PUBLISHED
from mmedexpert_jax.models.tree import flatten
from mmedexpert_jax.plan import deviceless
from mmedexpert_jax.plan.needs import abstract_params
from mmedexpert_jax.rollout import completion_logprobs
from mmedexpert_jax.rollout.decode import Sampling, advance, read, start
from mmedexpert_jax.rollout.logprobs import packed
from mmedexpert_jax.runtime.mesh import AXES, ROWS, shardings
from mmedexpert_jax.train.layout import Layout

GROUP, PROMPT = 8, 700
BYTES = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1}
GATHERED = re.compile(r"= ([^=]*?) all-gather(?:-start)?\(")


def placed(tree: Any, where: Any) -> Any:
    """Shapes where their shardings say."""
    return jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), tree, where)


def held(model: Model, mesh: Mesh, full: bool, quantize: str, stacked: bool) -> dict[str, Any]:
    """Shapes, on the mesh, of the weights and of what is trained."""
    single = abstract_params(model.config, "bfloat16", quantize)
    of_layout = stack if stacked else lambda tree: tree
    params = of_layout(single)
    trained: Any = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), params)
    if not full:
        trained = of_layout(jax.eval_shape(lambda: lora_module.init(jax.random.key(0), single, 16, 32)))
    return {name: placed(x, shardings(x, mesh)) for name, x in (("weights", params), ("trained", trained))}


def gradient(model: Model, mesh: Mesh, given: dict[str, Any], full: bool, prompts: int, limit: int) -> Any:
    """The gradient's program, its layers stacked, split as train/layout.py does."""
    layout = Layout(mesh, "full")
    lengths = np.full((layout.shares * prompts, GROUP), limit, np.int32)
    batch = workload.prompts(model, len(lengths), PROMPT, True)
    rows: Any = batch, np.zeros((*lengths.shape, limit), np.int32), lengths, packed(lengths, limit, 8, layout.shares)
    rows = placed(rows, jax.tree.map(lambda _: NamedSharding(mesh, ROWS), rows))

    def of_share(policy: tuple[Any, Any], rows: Any) -> jax.Array:
        (params, deltas), (batch, tokens, lengths, packing) = policy, rows
        how = {"lora": deltas, "remat": True, "packing": packing}
        return completion_logprobs(model, params, batch, tokens, lengths, **how).sum()

    def loss(trained: Any, params: Any, rows: Any) -> jax.Array:
        policy = (jax.tree.map(lambda x: x.astype(jnp.bfloat16), trained), None) if full else (params, trained)
        return layout.by_share(of_share, policy, rows).sum()

    def program(trained: Any, params: Any, rows: Any) -> Any:
        return layout.weights(jax.grad(loss)(trained, params, rows))

    return jax.jit(program).lower(given["trained"], None if full else given["weights"], rows)


def rollout(model: Model, mesh: Mesh, given: dict[str, Any], full: bool, prompts: int, limit: int) -> dict[str, Any]:
    """The sampler's programs: prompts read, and rows decoded with caches of the full length."""
    sampling, shares = Sampling(GROUP, limit, 0, 1.0, 0, 1.0, model.config.eos_token_ids, ()), Layout(mesh).shares
    count, rows = shares * prompts, NamedSharding(mesh, ROWS)

    def on_rows(tree: Any) -> Any:
        return placed(tree, jax.tree.map(lambda _: rows, tree))

    policy = given["weights"], None if full else given["trained"]
    params, deltas = (parts.in_parts(x, jax.tree.map(lambda leaf: leaf.sharding, x)) for x in policy)
    keys = on_rows(jax.eval_shape(lambda: jax.random.split(jax.random.key(0), (count, GROUP))))
    batch = on_rows(workload.prompts(model, count, PROMPT, True))
    reading = read.lower(model, sampling, mesh, params, batch, deltas, keys)
    prefix, done = on_rows(reading.out_info)
    dtype = jnp.dtype(jnp.bfloat16)
    state = on_rows(jax.eval_shape(lambda: start(model, prompts * GROUP, limit, mesh, dtype, zeros(done))))
    decoding = advance.lower(model, sampling, mesh, params, deltas, prefix, keys, state, 0, 0, limit)
    caches = {"prompts' keys and values": share((prefix.keys, prefix.values)), "caches": share(state.cache)}
    return {"prefill": reading, "decode": decoding, "caches": caches}


def zeros(tree: Any) -> Any:
    """Arrays of the shapes, for `jax.eval_shape`."""
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)


def share(tree: Any) -> int:
    """Bytes of a tree on one device."""
    leaves = jax.tree.leaves(tree)
    return sum(int(np.prod(leaf.sharding.shard_shape(leaf.shape))) * leaf.dtype.itemsize for leaf in leaves)


def gathered(program: str) -> list[tuple[int, str]]:
    """Bytes and shape of what the program gathers, the largest first."""
    shapes = {found for line in GATHERED.findall(program) for found in re.findall(r"(\w+)\[([\d,]+)\]", line)}
    sizes = [
        (int(np.prod([int(n) for n in dims.split(",")])) * BYTES[kind], f"{kind}[{dims}]") for kind, dims in shapes
    ]
    return sorted(sizes, reverse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=PUBLISHED, default="qwen2_5_vl_7b")
    parser.add_argument("--kind", choices=["a100", "h100", "v5e"], default="a100")
    parser.add_argument("--mesh", nargs=3, type=int, default=[1, 8, 1], help="devices along data, fsdp and tensor")
    parser.add_argument("--full", action="store_true", help="train all weights; default: LoRA of rank 16")
    parser.add_argument("--prompts", type=int, default=1, help="of each share of the rows, 8 completions each")
    parser.add_argument("--limit", type=int, default=1024, help="tokens of a completion")
    programs = ["gradient", "prefill", "decode"]
    parser.add_argument("--programs", nargs="*", choices=programs, default=programs)
    parser.add_argument("--layers", type=int, default=0, help="of the decoder; 0: all")
    parser.add_argument("--text", type=Path, help="a folder where the compiled programs are written")
    parser.add_argument("--quantize", choices=["none", "int8", "nf4"], default="none", help="the base under the LoRA")
    args = parser.parse_args()
    flat = deviceless.mesh(args.kind, int(np.prod(args.mesh)))
    mesh = Mesh(flat.devices.reshape(args.mesh), AXES, axis_types=(AxisType.Auto,) * 3)
    config, gpu = PUBLISHED[args.size], args.kind in deviceless.GPUS
    if args.layers:
        config = dataclasses.replace(config, text=dataclasses.replace(config.text, num_layers=args.layers))
    model, found = Model(config), {}
    single = held(model, mesh, args.full, args.quantize, stacked=False)
    with fused.traced_for(deviceless.capability(args.kind)):
        for name in args.programs:
            began = time.process_time()
            if name == "gradient":
                given = held(model, mesh, args.full, args.quantize, stacked=True)
                lowered: Any = {name: gradient(model, mesh, given, args.full, args.prompts, args.limit)}
            else:
                lowered = rollout(model, mesh, single, args.full, args.prompts, args.limit)
            traced = time.process_time()
            compiled = lowered[name].compile(compiler_options=deviceless.OPTIONS if gpu else None)
            found[name] = figures(compiled, traced - began, time.process_time() - traced)
            if args.text:
                (args.text / f"{name}.hlo").write_text(compiled.as_text())
            found[name] |= {what: gigabytes(size) for what, size in lowered.get("caches", {}).items()}
            print(name, json.dumps(found[name]), file=sys.stderr, flush=True)
    weights, trained = share(single["weights"]), share(single["trained"])
    layer = [leaf for name, leaf in flatten(single["weights"]).items() if name.startswith("model.layers.0.")]
    sizes = {
        "weights": gigabytes(weights),
        "trained, float32": gigabytes(trained),
        "two moments": gigabytes(2 * trained),
        "gradient": gigabytes(trained),
        "layer": gigabytes(sum(2 * leaf.size for leaf in layer)),
    }
    print(json.dumps({"benchmark": "sharded"} | vars(args) | {"gigabytes": sizes, "programs": found}, default=str))


def figures(compiled: Any, traced: float, took: float) -> dict[str, Any]:
    """A program's temporary memory, what it gathers at most, and the processor time that it took."""
    found = gathered(compiled.as_text())
    return {
        "temporary_gigabytes": gigabytes(compiled.memory_analysis().temp_size_in_bytes),
        "gathered_megabytes": [(round(size / 1e6, 1), shape) for size, shape in found[:4]],
        "trace_cpu_seconds": round(traced, 1),
        "compile_cpu_seconds": round(took, 1),
    }


def gigabytes(size: float) -> float:
    """Bytes in decimal units."""
    return round(size / 1e9, 3)


if __name__ == "__main__":
    main()
