"""Compiles the decode loop for GPUs on a machine without one, and tells its memory and what stands in the loop.

    pip install "jax-cuda12-plugin[with-cuda]==0.10.2"       # 5 GB; matches the installed jax
    python benchmarks/deviceless.py --layers 28 [--kind a100] [--rank 16] [--devices 8] [--text program.hlo]
    python benchmarks/deviceless.py --kernels [--model qwen2_5_vl_7b]   # of a layer in a step, and of its rest
    pip install "jax[tpu]" && python benchmarks/deviceless.py --tpu v5e  # or v6e, v5p: the step for a TPU

Shapes are those of `--model` in bfloat16 with prompts of 704 tokens. Without a device nothing is autotuned, so the
kernels of a real run may differ. The plugin may print a traceback about a missing driver.
"""

import argparse
import dataclasses
import json
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_autotune_level=0"

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmedexpert_jax import lora as lora_module
from mmedexpert_jax.models import Model, fused
from mmedexpert_jax.models.config import PUBLISHED
from mmedexpert_jax.models.model import PromptCache
from mmedexpert_jax.models.network import tensor_shapes
from mmedexpert_jax.models.tree import nest
from mmedexpert_jax.plan import deviceless
from mmedexpert_jax.rollout.decode import Completions, Sampling, advance, empty_state
from mmedexpert_jax.runtime.mesh import ROWS

GROUP = 8
TPUS = {"v5e": "v5litepod-8", "v6e": "v6e-8", "v5p": "v5p-8"}  # as libtpu knows them
PROMPT = 704
IDLE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast")  # instructions that launch nothing


def on_h100(fuse: bool = True) -> Callable:
    """A function that places the shapes of a tree's arrays on a compile-only H100; its fused attention on or off."""
    fused.supported = lambda queries: fuse and queries.dtype.itemsize == 2
    fused.on_cpu = lambda: False
    sharding = NamedSharding(deviceless.mesh("h100"), PartitionSpec())
    return lambda tree: jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def compile_loop(
    name: str,
    layers: int,
    rows: int,
    window: int,
    mesh: Mesh,
    rank: int = 0,
    capability: str = "9.0",
    options: Any = None,
) -> Any:
    """The compiled stretch of decoding, `rows` on each device, with a LoRA of a rank in all linear layers; 0: none."""
    config = PUBLISHED[name]
    text = dataclasses.replace(config.text, num_layers=layers, windowed=config.text.windowed[:layers])
    model = Model(dataclasses.replace(config, text=text))
    count = mesh.size * rows // GROUP
    sampling = Sampling(GROUP, 1024, 0, 1.0, 0, 1.0, config.eos_token_ids, ())

    def place(tree: Any, spec: PartitionSpec) -> Any:
        sharding = NamedSharding(mesh, spec)
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)

    shapes = {name: jax.ShapeDtypeStruct(shape, jnp.bfloat16) for name, shape in tensor_shapes(model.config).items()}
    keyed = jax.ShapeDtypeStruct((count, text.num_kv_heads, PROMPT, text.head_dim), jnp.bfloat16)
    number = jax.ShapeDtypeStruct((count,), jnp.int32)
    hidden = jax.ShapeDtypeStruct((count, 1, text.hidden_size), jnp.bfloat16)
    prefix = PromptCache(hidden, (keyed,) * layers, (keyed,) * layers, number, number)
    whole, group = (count, GROUP, sampling.max_new_tokens), (count, GROUP)
    shaped = [(whole, jnp.int32), (whole, jnp.float32), (group, jnp.int32), (group, bool)]
    done = Completions(*(jax.ShapeDtypeStruct(*shape) for shape in shaped))
    state = jax.eval_shape(lambda done: empty_state(model, rows, window, mesh, jnp.dtype(jnp.bfloat16), done), done)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), (count, GROUP)))
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh, PartitionSpec()))
    split = [place(tree, ROWS) for tree in (prefix, keys, state)]
    weights, lora = nest(shapes), None
    if rank:
        lora = jax.eval_shape(
            lambda weights: lora_module.init(jax.random.key(0), weights, rank, 2 * rank, "text"), weights
        )
    weights, lora = place((weights, lora), PartitionSpec())
    with fused.traced_for(capability):
        return advance.lower(model, sampling, mesh, weights, lora, *split, step, step, step).compile(options)


def in_step(text: str) -> int:
    """Kernels that a step of the decode loop launches: the instructions of the largest loop's body."""
    bodies = {m[1]: m[2] for m in re.finditer(r"^%?([\w.\-]+) [^\n]*\{\n(.*?)^\}", text, re.M | re.S)}
    loops = [bodies[name] for name in re.findall(r"body=%?([\w.\-]+)", text)]
    return max(sum(found not in IDLE for found in re.findall(r" = .*?[\])}] ([\w\-]+)\(", body)) for body in loops)


def kernels(name: str, kind: str, rank: int) -> dict[str, int]:
    """Kernels of a step of 64 rows: those that one more layer adds, and those that are left without layers."""
    mesh = deviceless.mesh(kind)
    fewer, more = (in_step(compile_loop(name, layers, 64, 1024, mesh, rank).as_text()) for layers in (2, 3))
    return {"of a layer": more - fewer, "outside the layers": 3 * fewer - 2 * more}


def captured(name: str, kind: str) -> dict[str, int]:
    """Kernels of a step of two layers inside command buffers and outside, by XLA's list of what a program launches."""
    with tempfile.TemporaryDirectory() as folder:
        dumped = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        compile_loop(name, 2, 64, 1024, deviceless.mesh(kind), options=dumped)
        launched = next(Path(folder).glob("*advance*thunk_sequence_after_thunk_passes.txt")).read_text()
    depths = [(len(line) - len(line.lstrip()), line.split()[1]) for line in launched.splitlines() if ": k" in line]
    loop = max(number for number, (_, name) in enumerate(depths) if name == "kWhile")  # the inner one
    found, buffer = Counter(), None
    for depth, name in depths[loop + 1 :]:
        if depth <= depths[loop][0]:
            break
        buffer = None if buffer is not None and depth <= buffer else buffer
        if name == "kCommandBuffer":
            buffer = depth
        else:
            found["inside" if buffer is not None else "outside"] += 1
    return {name: found[name] for name in ("inside", "outside")}


def for_tpu(name: str, kind: str) -> dict[str, Any]:
    """Attention kernels in the compiled step of two layers for a TPU, copies of rings, and the temporary memory."""
    os.environ["TPU_ACCELERATOR_TYPE"] = TPUS[kind]
    compiled = compile_loop(name, 2, 64, 1024, deviceless.mesh(kind), capability="")
    text, config = compiled.as_text(), PUBLISHED[name].text
    ring = rf"bf16\[64,{config.num_kv_heads},1024,{config.head_dim}\]"
    return {
        "kernels": len(re.findall(r'custom_call_target="tpu_custom_call"', text)),
        "ring_copies": len(
            re.findall(rf" = \(?{ring}\S* .*\bcopy(?:-start)?\(|{ring}\S* custom-call\(.*ConcatBitcast", text)
        ),
        "temporary_megabytes": round(compiled.memory_analysis().temp_size_in_bytes / 1e6, 1),
    }


def main() -> None:
    """Compiles, and prints one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=list(PUBLISHED), default="qwen2_vl_2b")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--kind", choices=list(deviceless.TARGETS), default="h100")
    parser.add_argument("--rank", type=int, default=0, help="of a LoRA in all linear layers; 0: none")
    parser.add_argument("--text", type=Path, help="where to write the compiled program")
    parser.add_argument("--kernels", action="store_true")
    parser.add_argument("--tpu", choices=list(TPUS), help="compile the step for this TPU: libtpu takes one a process")
    arguments = parser.parse_args()
    name = arguments.model
    if arguments.kernels:
        found = {f"{kind}, rank {rank}": kernels(name, kind, rank) for kind in ("h100", "a100") for rank in (0, 16)}
        buffers = {kind: captured(name, kind) for kind in ("h100", "a100")}
        print(json.dumps({"benchmark": "deviceless", "model": name, "kernels": found, "command buffers": buffers}))
        return
    if arguments.tpu:
        print(json.dumps({"benchmark": "deviceless", "tpu": arguments.tpu} | for_tpu(name, arguments.tpu)))
        return
    began = time.perf_counter()
    compiled = compile_loop(
        name,
        arguments.layers,
        arguments.rows,
        arguments.window,
        deviceless.mesh(arguments.kind, arguments.devices),
        arguments.rank,
    )
    memory, text = compiled.memory_analysis(), compiled.as_text()
    if arguments.text:
        arguments.text.write_text(text)
    instructions = Counter(re.findall(r"\S+ (fusion|custom-call|copy|transpose|all-reduce\S*)\(", text))
    figures = {
        "compile_seconds": round(time.perf_counter() - began, 1),
        "temporary_megabytes": round(memory.temp_size_in_bytes / 1e6, 1),
        "cache_megabytes": round(memory.alias_size_in_bytes / 1e6, 1),
        "arguments_megabytes": round(memory.argument_size_in_bytes / 1e6, 1),
        "instructions": dict(instructions),
    }
    print(json.dumps({"benchmark": "deviceless"} | vars(arguments) | figures, default=str))


if __name__ == "__main__":
    main()
