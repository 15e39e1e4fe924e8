"""DSA in the paper's setting: 1,000 samples with an image x 3 epochs, 8 sequences an update; projected from some steps.

    python benchmarks/dsa_thousand.py                                # one H100: Qwen2-VL-2B's shapes, minutes
    python benchmarks/dsa_thousand.py --memory                       # what a gradient takes, compiled only
    python benchmarks/dsa_thousand.py --model 64x2x512 --dtype float32 --prompt 96 --limit 24 --mean 8 --batch 2 \\
        --accumulation 2 --steps 3 --warm 1                          # tries the script on a CPU

Weights, prompts and traces are random. The paper gives 0.4 hours for an expert on an A100 (appendix B); the target is
3 minutes on one H100. Prints the figures and one JSON line.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable

if "--target" in sys.argv:
    import deviceless  # before JAX looks for devices

import jax
import jax.numpy as jnp
import numpy as np
import workload
from ml_collections import ConfigDict

from mmedexpert_jax import lora as lora_module
from mmedexpert_jax.launch import load_config
from mmedexpert_jax.lora import Lora
from mmedexpert_jax.sft import dsa
from mmedexpert_jax.sft.loss import MicroBatch
from mmedexpert_jax.train import Policy, State

PAPER_SECONDS = 0.4 * 3600


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="random:qwen2_vl_2b", help="random:<size> or <hidden>x<layers>x<vocabulary>")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--total", type=int, default=3000, help="samples of the run that is projected, epochs included")
    parser.add_argument("--batch", type=int, default=8, help="sequences of a gradient")
    parser.add_argument("--accumulation", type=int, default=1, help="gradients of an update")
    parser.add_argument("--prompt", type=int, default=700)
    parser.add_argument("--mean", type=float, default=300)
    parser.add_argument("--limit", type=int, default=768)
    parser.add_argument("--steps", type=int, default=10, help="steady steps that are timed")
    parser.add_argument("--warm", type=int, default=2, help="steps before them")
    parser.add_argument("--no-remat", action="store_true")
    parser.add_argument("--memory", action="store_true", help="compile the gradient of the longest rows and stop")
    parser.add_argument("--no-fused", action="store_true", help="of --target: attention without the fused kernel")
    parser.add_argument("--target", choices=["h100"], help="of --memory: a device that is not there (deviceless.py)")
    return parser.parse_args()


def micro_batch(args: argparse.Namespace, model, seed: int) -> MicroBatch:
    """Random prompts and traces."""
    lengths = workload.ragged((args.batch,), args.mean, args.limit, seed)
    tokens = np.random.default_rng(seed).integers(2, model.config.text.vocab_size - 8, (args.batch, args.limit))
    return MicroBatch(workload.prompts(model, args.batch, args.prompt, True, seed), tokens.astype(np.int32), lengths)


def memory(args: argparse.Namespace, config: ConfigDict, place: Callable) -> dict[str, dict[str, float]]:
    """Gigabytes of the gradient of sequences that all have the full length."""
    model, params = workload.abstract(args.model, jnp.dtype(args.dtype))
    trained = jax.eval_shape(lambda params: fresh(config, params), params)
    learner = dsa.learner_of(config, model, Policy(place(params)), 1)
    micro = dataclasses.replace(micro_batch(args, model, 0), lengths=np.full(args.batch, args.limit, np.int32))
    return {"gradient": workload.memory(learner.lower_update(State(place(trained), ()), place(micro)))}


def fresh(config: ConfigDict, params: dict) -> Lora:
    """The adapter before the first step."""
    return lora_module.init(jax.random.key(0), params, config.lora.rank, config.lora.alpha, config.lora.targets)


def main() -> None:
    args = arguments()
    config = load_config("configs/dsa.py:qwen2_vl_2b", {"remat": not args.no_remat})
    if args.memory:
        place = deviceless.on_h100(not args.no_fused) if args.target else lambda tree: tree
        workload.report_memory(vars(args), memory(args, config, place))
        return
    model, params = workload.build(args.model, jnp.dtype(args.dtype))
    learner = dsa.learner_of(config, model, Policy(params), args.warm + args.steps)
    state, seconds = learner.init(jax.random.key(0)), []
    for step in range(args.warm + args.steps):
        micros = [micro_batch(args, model, step * args.accumulation + i) for i in range(args.accumulation)]
        began = time.perf_counter()
        state, stats = learner.update(state, [micros])
        seconds.append(time.perf_counter() - began)
        print(json.dumps({"step": step, "seconds": seconds[-1], "loss": stats["loss"]}), flush=True)
    mean = float(np.mean(seconds[args.warm :]))
    rows = args.batch * args.accumulation
    projected = args.total / rows * mean
    ratio = PAPER_SECONDS / projected
    print(f"{args.total} samples: {projected:.0f} s projected; the paper's 0.4 hours are {ratio:.0f} x")
    figures = {"seconds_per_step": mean, "samples_per_second": rows / mean, "projected_seconds": projected}
    print(json.dumps(vars(args) | workload.machine() | figures))


if __name__ == "__main__":
    main()
