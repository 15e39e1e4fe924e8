"""Compiles the programs of GBA with a large model for a mesh of devices that are not here: bytes a device, gathers.

    pip install "jax-cuda12-plugin[with-cuda]==0.10.2"              # for a100 and h100; no device is needed
    pip install "jax[tpu]==0.10.2"                                  # for v5e, v6e and v5p: its libtpu
    python benchmarks/sharded.py --size qwen2_5_vl_7b --kind a100 --mesh 1 8 1 --full
    python benchmarks/sharded.py --size qwen2_5_vl_32b --kind h100 --mesh 1 8 1
    python benchmarks/sharded.py --size qwen2_5_vl_72b --kind h100 --mesh 2 8 1     # two hosts of eight
    python benchmarks/sharded.py --size qwen2_vl_2b --kind v5e --mesh 1 8 1 --full
    python benchmarks/sharded.py --size qwen2_vl_2b --kind h100 --mesh 1 1 1 --prompts 4
    python benchmarks/sharded.py --size qwen2_5_vl_7b --kind h100 --mesh 1 1 1 --quantize nf4   # a LoRA over 4 bits
    python benchmarks/sharded.py --size qwen2_vl_2b --kind h100 --mesh 1 1 1 --prompts 4 --read 32 \\
        --decode 256x256 192x256 128x512 64x1024 32x1024    # what the 1,000 x 8 job meets (gba_thousand.py --count)

The programs are the trainer's own, the KL reference among them, with layers scanned and recomputed and everything that
mesh.fsdp can split in parts (`shard=full`). Each share of the rows has `--prompts` prompts of 700 tokens with an image
and 8 completions of the full length. "all" is what a device holds at the time: a program's arguments, its temporary
memory, what it returns beyond what it gives up, and what stands there besides (moments and the sum of gradients, or
while sampling the float32 weights). "host" counts the places where a program waits for the host: queues, callbacks and
buffers in its memory. CPU seconds are those of tracing and compiling; without a device nothing is
autotuned. Prints one JSON line.
"""

import argparse
import dataclasses
import functools
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import workload
from jax.sharding import AxisType, Mesh, NamedSharding

from mmedexpert_jax.gba.policy_learner import PolicyBatch, PolicyLearner
from mmedexpert_jax.launch import load_config
from mmedexpert_jax.models import Model, fused, sharded
from mmedexpert_jax.models.config import PUBLISHED
from mmedexpert_jax.models.tree import flatten, is_deep, stack
from mmedexpert_jax.plan import deviceless
from mmedexpert_jax.plan.needs import abstract_params, abstract_state
from mmedexpert_jax.rollout.decode import DecodeState, Sampling, advance, empty_state, prefill, resize
from mmedexpert_jax.rollout.logprobs import packed
from mmedexpert_jax.runtime import processes
from mmedexpert_jax.runtime.mesh import AXES, ROWS, shardings
from mmedexpert_jax.train import State

GROUP, PROMPT = 8, 700
BYTES = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1, "u8": 1, "s8": 1}
HOST = re.compile(r"\b(?:infeed|outfeed|send|recv)(?:-done)?\(|callback|:S\(5\)|\)S\(5\)")
GATHERED = re.compile(r"= ([^=]*?) all-gather(?:-start)?\(")
PROGRAMS = ("gradient", "update", "prefill", "decode")


class Job:
    """The shapes of a run on its mesh, and its programs."""

    def __init__(self, args: argparse.Namespace, mesh: Mesh):
        config = PUBLISHED[args.size]
        if args.layers:
            config = dataclasses.replace(config, text=dataclasses.replace(config.text, num_layers=args.layers))
        fields = {"trainable": "full" if args.full else "lora", "shard": "full", "remat": True, "packing": 8}
        fields |= {"max_new_tokens": args.limit, "model.quantize": args.quantize, "beta": args.beta}
        self.model, self.mesh, self.args = Model(config), mesh, args
        settings = load_config("configs/gba.py:qwen2_vl_2b", fields)
        params = abstract_params(config, "bfloat16", args.quantize)
        trained, moments = abstract_state(settings, params)
        moments = stack(moments) if is_deep(params) and not args.full else moments  # as the learner keeps them
        self.params, trained, moments = (
            jax.tree.map(processes.put, tree, shardings(tree, mesh)) for tree in (params, trained, moments)
        )
        self.base = self.params if args.beta or not args.full else None
        self.learner = PolicyLearner(self.model, self.params, settings, (), GROUP, 1, mesh)
        self.state = State(trained, moments)

    def rows(self, tree: Any) -> Any:
        """Shapes split over the devices along their first axis."""
        where = NamedSharding(self.mesh, ROWS)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), tree)

    def gradient(self) -> jax.stages.Lowered:
        """The gradient of one micro-batch."""
        shards, limit = self.learner.shards, self.args.limit
        lengths = np.full((shards * self.args.prompts, GROUP), limit, np.int32)
        floats = np.zeros((*lengths.shape, limit), np.float32)
        packing = packed(lengths, limit, 8, shards)
        batch = workload.prompts(self.model, len(lengths), PROMPT, True)
        part = PolicyBatch(batch, floats.astype(np.int32), lengths, floats, floats[..., 0], packing=packing)
        return self.learner.lower_update(self.state, self.rows(part))

    def update(self) -> jax.stages.Lowered:
        """The optimizer's step."""
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), self.gradient().out_info)
        return self.learner.lower_apply(self.state, shapes)

    def sampler(self) -> Iterator[tuple[str, Callable[[], jax.stages.Lowered]]]:
        """The sampler's programs: prompts read, rows decoded and, where there are several such programs, the step from
        one to the next."""
        limit, mesh, count = self.args.limit, self.mesh, self.learner.shards * (self.args.read or self.args.prompts)
        sampling = Sampling(GROUP, limit, 0, 1.0, 0, 1.0, self.model.config.eos_token_ids, ())
        policy = self.params, None if self.args.full else self.state.trained
        params, deltas = (sharded.shard(x, jax.tree.map(lambda leaf: leaf.sharding, x)) for x in policy)
        keys = self.rows(jax.eval_shape(lambda: jax.random.split(jax.random.key(0), (count, GROUP))))
        batch = self.rows(workload.prompts(self.model, count, PROMPT, True))
        reading = functools.partial(prefill.lower, self.model, sampling, mesh, params, batch, deltas, keys)
        yield "prefill", reading
        prefix, done = self.rows(reading().out_info)
        empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), done)
        before: DecodeState | None = None
        for rows, window in self.args.decode or [(count // self.learner.shards * GROUP, limit)]:
            shapes = jax.eval_shape(lambda r=rows, w=window: empty_state(self.model, r, w, mesh, jnp.bfloat16, empty))
            if before:
                yield f"resize {rows}x{window}", functools.partial(resize.lower, rows, window, mesh, before)
            before = self.rows(shapes)
            given = params, deltas, prefix, keys, before, 0, 0, limit
            name = f"decode {rows}x{window}" if self.args.decode else "decode"
            yield name, functools.partial(advance.lower, self.model, sampling, mesh, *given)

    def programs(self) -> Iterator[tuple[str, Callable[[], jax.stages.Lowered]]]:
        """Names of the programs that are asked for, and functions that trace them."""
        asked = self.args.programs
        yield from ((name, getattr(self, name)) for name in ("gradient", "update") if name in asked)
        if "decode" in asked:
            yield from (found for found in self.sampler() if found[0] != "prefill" or "prefill" in asked)
        elif "prefill" in asked:
            yield next(self.sampler())

    def besides(self, name: str) -> int:
        """Bytes on a device that stand there while a program runs and are none of its arguments."""
        trained, moments, base = share(self.state.trained), share(self.state.opt_state), share(self.base)
        if name == "gradient":  # of an earlier micro-batch
            return moments + trained
        sampling = trained + moments + base if self.args.full else moments
        return base if name == "update" else sampling


def pair(text: str) -> tuple[int, int]:
    """Rows and window of "256x512"."""
    rows, window = map(int, text.split("x"))
    return rows, window


def share(tree: Any) -> int:
    """Bytes of a tree on one device."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if leaf.shape]
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
    parser.add_argument("--kind", choices=["a100", "h100", "v5e", "v6e", "v5p"], default="a100")
    parser.add_argument("--mesh", nargs=3, type=int, default=[1, 8, 1], help="devices along data, fsdp and tensor")
    parser.add_argument("--full", action="store_true", help="train all weights; default: LoRA of rank 16")
    parser.add_argument("--beta", type=float, default=0.001, help="weight of the KL; 0: no reference")
    parser.add_argument("--prompts", type=int, default=1, help="of each share of the rows, 8 completions each")
    parser.add_argument("--read", type=int, default=0, help="prompts of a rollout, of each share; 0: as many")
    parser.add_argument("--decode", nargs="*", type=pair, help="rows x window of each program; default: the longest")
    parser.add_argument("--limit", type=int, default=1024, help="tokens of a completion")
    parser.add_argument("--programs", nargs="*", choices=PROGRAMS, default=PROGRAMS)
    parser.add_argument("--layers", type=int, default=0, help="of the decoder; 0: all")
    parser.add_argument("--text", type=Path, help="a folder where the compiled programs are written")
    parser.add_argument("--quantize", choices=["none", "int8", "nf4"], default="none", help="the base under the LoRA")
    args = parser.parse_args()
    flat = deviceless.mesh(args.kind, int(np.prod(args.mesh)))
    mesh = Mesh(flat.devices.reshape(args.mesh), AXES, axis_types=(AxisType.Auto,) * 3)
    gpu, found = args.kind in deviceless.TARGETS, {}
    if not gpu:  # libtpu then tries fewer schedules and layouts: a third of the time
        jax.config.update("jax_exec_time_optimization_effort", -1.0)
    with fused.traced_for(deviceless.capability(args.kind)):
        job = Job(args, mesh)
        for name, lower in job.programs():
            began = time.process_time()
            lowered = lower()
            traced = time.process_time()
            compiled = lowered.compile(compiler_options=deviceless.OPTIONS if gpu else None)
            found[name] = figures(compiled, job.besides(name), traced - began, time.process_time() - traced)
            if args.text:
                (args.text / f"{name}.hlo").write_text(compiled.as_text())
            print(name, json.dumps(found[name]), file=sys.stderr, flush=True)
    layer = [leaf for name, leaf in flatten(job.params).items() if name.startswith("model.layers.0.")]
    sizes = {
        "weights": gigabytes(share(job.params)),
        "trained, float32": gigabytes(share(job.state.trained)),
        "moments": gigabytes(share(job.state.opt_state)),
        "layer": gigabytes(sum(leaf.size * leaf.dtype.itemsize for leaf in layer)),
    }
    print(json.dumps({"benchmark": "sharded"} | vars(args) | {"gigabytes": sizes, "programs": found}, default=str))


def figures(compiled: Any, besides: int, traced: float, took: float) -> dict[str, Any]:
    """A program's memory on each device, what it gathers at most, and the processor time that it took."""
    size, text = compiled.memory_analysis(), compiled.as_text()
    found = gathered(text)
    new = size.output_size_in_bytes - size.alias_size_in_bytes
    return {
        "arguments_gigabytes": gigabytes(size.argument_size_in_bytes),
        "temporary_gigabytes": gigabytes(size.temp_size_in_bytes),
        "output_gigabytes": gigabytes(new),
        "besides_gigabytes": gigabytes(besides),
        "all_gigabytes": gigabytes(size.argument_size_in_bytes + size.temp_size_in_bytes + new + besides),
        "gathered_megabytes": [(round(size / 1e6, 1), shape) for size, shape in found[:4]],
        "host": len(HOST.findall(text)),
        "trace_cpu_seconds": round(traced, 1),
        "compile_cpu_seconds": round(took, 1),
    }


def gigabytes(size: float) -> float:
    """Bytes in decimal units."""
    return round(size / 1e9, 3)


if __name__ == "__main__":
    main()
