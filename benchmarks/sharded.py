"""Compiles a GBA gradient of a large model for a mesh of devices that are not here: bytes a device, largest gathers.

    pip install "jax-cuda12-plugin[with-cuda]==0.10.2"                  # or libtpu for v5e; no device is needed
    python benchmarks/sharded.py --size qwen2_5_vl_7b --kind a100 --mesh 1 8 1 --full
    python benchmarks/sharded.py --size qwen2_5_vl_32b --kind h100 --mesh 1 8 1
    python benchmarks/sharded.py --size qwen2_5_vl_72b --kind h100 --mesh 2 8 1     # two hosts of eight
    python benchmarks/sharded.py --size qwen2_vl_2b --kind h100 --mesh 1 1 1 --prompts 4
    python benchmarks/sharded.py --size qwen2_5_vl_7b --kind h100 --mesh 1 1 1 --quantize nf4   # a LoRA over 4 bits

Layers are stacked and recomputed, weights lie in parts by the rules of runtime/mesh.py. Each share of the rows has
`--prompts` prompts of 700 tokens with an image and 8 completions of the full length. Held besides the program's
temporary memory: the weights, what is trained in float32, its two moments, its gradient. CPU seconds are those of
tracing and compiling; without a device nothing is autotuned. Prints one JSON line.
"""

import argparse
import json
import os
import re
import time
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import workload
from jax.sharding import AxisType, Mesh, NamedSharding

from mmedexpert_jax import lora as lora_module
from mmedexpert_jax.models import Model, fused, stack
from mmedexpert_jax.models.config import PUBLISHED
from mmedexpert_jax.models.tree import flatten
from mmedexpert_jax.plan import deviceless
from mmedexpert_jax.plan.needs import abstract_params
from mmedexpert_jax.rollout import completion_logprobs
from mmedexpert_jax.rollout.logprobs import packed
from mmedexpert_jax.runtime.mesh import AXES, ROWS, shardings

GROUP, PROMPT = 8, 700
BYTES = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1}
GATHERED = re.compile(r"= ([^=]*?) all-gather(?:-start)?\(")


def lower(
    model: Model, mesh: Mesh, full: bool, prompts: int, limit: int, quantize: str = "none"
) -> tuple[jax.stages.Lowered, dict[str, Any]]:
    """The gradient's program, and what it is given: trees of shapes that lie on the mesh."""

    def placed(tree: Any, where: Any) -> Any:
        return jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), tree, where)

    single = abstract_params(model.config, "bfloat16", quantize)
    params = stack(single)
    trained: Any = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), params)
    if not full:
        trained = stack(jax.eval_shape(lambda: lora_module.init(jax.random.key(0), single, 16, 32)))
    shares = mesh.shape["data"] * mesh.shape["fsdp"]
    lengths = np.full((shares * prompts, GROUP), limit, np.int32)
    batch = workload.prompts(model, shares * prompts, PROMPT, True)
    rows: Any = batch, np.zeros((*lengths.shape, limit), np.int32), lengths, packed(lengths, limit, 8, shares)
    rows = placed(rows, jax.tree.map(lambda _: NamedSharding(mesh, ROWS), rows))
    given = {"weights": placed(params, shardings(params, mesh)), "trained": placed(trained, shardings(trained, mesh))}

    def gradient(trained: Any, params: Any, rows: Any) -> Any:
        split = jax.tree.map(lambda x: x.reshape(shares, x.shape[0] // shares, *x.shape[1:]), rows)
        split = jax.lax.with_sharding_constraint(split, NamedSharding(mesh, ROWS))

        def loss(trained: Any) -> jax.Array:
            weights = jax.tree.map(lambda x: x.astype(jnp.bfloat16), trained) if full else params

            def of_share(rows: Any) -> jax.Array:
                batch, tokens, lengths, packing = rows
                deltas = None if full else trained
                return completion_logprobs(
                    model, weights, batch, tokens, lengths, lora=deltas, remat=True, packing=packing
                )

            return jax.vmap(of_share, spmd_axis_name=ROWS[0])(split).sum()

        found = jax.grad(loss)(trained)
        return jax.lax.with_sharding_constraint(found, shardings(found, mesh))

    return jax.jit(gradient).lower(given["trained"], given["weights"], rows), given


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
    parser.add_argument("--quantize", choices=["none", "int8", "nf4"], default="none", help="the base under the LoRA")
    args = parser.parse_args()
    flat = deviceless.mesh(args.kind, int(np.prod(args.mesh)))
    mesh = Mesh(flat.devices.reshape(args.mesh), AXES, axis_types=(AxisType.Auto,) * 3)
    model, gpu = Model(PUBLISHED[args.size]), args.kind in deviceless.GPUS
    with fused.traced_for(deviceless.capability(args.kind)):
        began = time.process_time()
        lowered, given = lower(model, mesh, args.full, args.prompts, args.limit, args.quantize)
        traced = time.process_time()
        compiled = lowered.compile(compiler_options=deviceless.OPTIONS if gpu else None)
        ended = time.process_time()
    weights, trained = share(given["weights"]), share(given["trained"])
    parts = {"weights": weights, "trained, its moments and gradient": 4 * trained}
    parts["temporary"] = compiled.memory_analysis().temp_size_in_bytes
    layers = (leaf for name, leaf in flatten(given["weights"]).items() if name.startswith("model.layers.*"))
    layer = sum(int(np.prod(leaf.shape[1:])) * 2 for leaf in layers)
    figures = {
        "trace_cpu_seconds": round(traced - began, 1),
        "compile_cpu_seconds": round(ended - traced, 1),
        "gigabytes": {name: round(size / 1e9, 2) for name, size in parts.items()},
        "all_gigabytes": round(sum(parts.values()) / 1e9, 2),
        "layer_megabytes": round(layer / 1e6, 1),
        "gathered_megabytes": [(round(size / 1e6, 1), shape) for size, shape in gathered(compiled.as_text())[:4]],
    }
    print(json.dumps({"benchmark": "sharded"} | vars(args) | figures))


if __name__ == "__main__":
    main()
