"""GBA in the paper's setting: 1,000 prompts with an image, 8 completions each, clip and KL; projected from some steps.

    python benchmarks/gba_thousand.py                               # one H100: Qwen2-VL-2B's shapes, minutes
    python benchmarks/gba_thousand.py --memory --prompts-per-step 8 # what its programs take for 64 rows, compiled only
    python benchmarks/gba_thousand.py --count                       # the programs that the whole job meets, without any
    python benchmarks/gba_thousand.py --model 64x2x512 --dtype float32 --prompt 96 --limit 24 --mean 8 --micro 2 \\
        --prompts-per-step 2 --steps 3 --warm 1                     # tries the script on a CPU

Weights are random. Lengths come from the stop decision: one token in `--mean` of the vocabulary ends a completion, so
they are geometric, cut at the limit. Rewards are drawn. The paper gives 13 hours on an A100 (appendix B); the target is
10 minutes on one H100. Prints a table and one JSON line.
"""

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

if "--target" in sys.argv:
    import deviceless  # before JAX looks for devices

import jax
import jax.numpy as jnp
import numpy as np
import workload

from mmedexpert_jax.gba import group_advantages
from mmedexpert_jax.gba.padding import deal
from mmedexpert_jax.gba.policy_learner import PolicyBatch, PolicyLearner
from mmedexpert_jax.gba.split import packed_length
from mmedexpert_jax.launch import load_config
from mmedexpert_jax.models import Model
from mmedexpert_jax.processing.batch import Batch
from mmedexpert_jax.rollout.decode import Sampling, advance, empty_state, prefill
from mmedexpert_jax.rollout.logprobs import packed
from mmedexpert_jax.rollout.widths import cache_length_for, next_cache_length, widths
from mmedexpert_jax.train import State

PAPER_SECONDS = 13 * 3600


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="random:qwen2_vl_2b", help="random:<size> or <hidden>x<layers>x<vocabulary>")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--total", type=int, default=1000, help="prompts of the run that is projected")
    parser.add_argument("--prompts-per-step", type=int, default=32)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=700)
    parser.add_argument("--mean", type=float, default=300)
    parser.add_argument("--limit", type=int, default=1024)
    parser.add_argument("--micro", type=int, default=4, help="prompts of a gradient")
    parser.add_argument("--capacities", type=int, default=64, help="sizes of the packed update; 0: padded rows")
    parser.add_argument("--steps", type=int, default=10, help="steady steps that are timed")
    parser.add_argument("--warm", type=int, default=2, help="steps before them")
    parser.add_argument("--no-remat", action="store_true")
    parser.add_argument("--scan", action="store_true", help="compile one layer for all: config.scan_layers")
    names = ["prefill", "decode", "gradient"]
    parser.add_argument("--programs", nargs="*", choices=names, default=names, help="of --memory")
    parser.add_argument("--memory", action="store_true", help="compile the programs for the longest rows and stop")
    parser.add_argument("--count", action="store_true", help="count the programs of lengths that are drawn and stop")
    parser.add_argument("--seeds", type=int, default=20, help="of --count: jobs that are drawn")
    parser.add_argument("--no-fused", action="store_true", help="of --target: attention without the fused kernel")
    parser.add_argument("--target", choices=["h100"], help="of --memory: a device that is not there (deviceless.py)")
    parser.add_argument("--text", type=Path, help="of --memory: a folder where the compiled programs are written")
    return parser.parse_args()


def configured(args: argparse.Namespace):
    """The paper's settings, with the sizes asked for."""
    return load_config(
        "configs/gba.py:qwen2_vl_2b",
        {
            "prompts_per_step": args.prompts_per_step,
            "num_samples": args.samples,
            "max_new_tokens": args.limit,
            "micro_batch": args.micro,
            "packing": args.capacities,
            "remat": not args.no_remat,
            "scan_layers": args.scan,
        },
    )


def dealt(args: argparse.Namespace, lengths: np.ndarray, held: int) -> tuple[list[np.ndarray], int]:
    """Rows of a step's micro-batches, and their packed length, as the trainer has them."""
    work = (lengths - 1).sum(axis=1)
    rows = deal(np.arange(len(work)), work, args.micro)
    full = args.micro * args.samples * (args.limit - 1)
    return rows, packed_length(max(int(work[one].sum()) for one in rows), work, held, full, args.capacities)


def minibatches(
    args: argparse.Namespace, whole: Batch, done, rewards: np.ndarray, held: int
) -> tuple[list[list[PolicyBatch]], int]:
    """A step's one minibatch, and their packed length."""
    advantages, found = np.asarray(group_advantages(rewards)), []
    cuts, length = dealt(args, done.lengths, held)
    for rows in cuts:
        lengths = done.lengths[rows]
        packing = packed(lengths, args.limit, args.capacities, packed_length=length) if args.capacities else None
        batch = workload.taken(whole, rows)
        found.append(
            PolicyBatch(batch, done.tokens[rows], lengths, done.logprobs[rows], advantages[rows], packing=packing)
        )
    return [found], length


def decoded(args: argparse.Namespace, lengths: np.ndarray) -> list[tuple[int, int, int]]:
    """(rows, cache_length, steps) of a rollout as rollout/generate.py goes on, where every sample has a row on an
    accelerator from the first."""
    lengths, sizes, size = -np.sort(-lengths.ravel()), widths(lengths.size, args.limit), args.limit
    width, cache_length, drawn, found = lengths.size, cache_length_for(1, size), 1, []
    while lengths[0] > drawn:
        leave, begun = max((w for w in sizes if w < width), default=0), drawn
        drawn = min(max(drawn, lengths[leave]), cache_length + 1, size)  # until so few go on, or a cache is full
        found.append((width, cache_length, drawn - begun))
        rows = next(w for w in reversed(sizes) if w >= min(max(1, int((lengths > drawn).sum())), width))
        width, cache_length = rows, next_cache_length(cache_length, drawn, size, fewer=rows < width)
    return [one for one in found if one[2]]


def count(args: argparse.Namespace) -> None:
    """Prints the programs that jobs of geometric lengths meet, and what is computed for a token."""
    rows = []
    for seed in range(args.seeds):
        rng, held, tokens, spent, packed_tokens = np.random.default_rng(seed), 0, 0, 0, 0
        decodes, packs = set(), set()
        for _ in range(args.total // args.prompts_per_step):
            shape = args.prompts_per_step, args.samples
            lengths = np.minimum(rng.geometric(1 / args.mean, shape), args.limit)
            runs = decoded(args, lengths)
            cuts, held = dealt(args, lengths, held)
            decodes |= {run[:2] for run in runs}
            packs.add(held)
            tokens += int(lengths.sum())
            spent += sum(width * steps for width, _, steps in runs)
            packed_tokens += held * len(cuts)
        rows.append((len(decodes), len(packs), spent / tokens, packed_tokens / tokens))
        if not seed:
            print(f"rows and window of decode programs {sorted(decodes, reverse=True)}, packed sizes {sorted(packs)}")
    names = "decode_programs", "packed_sizes", "row_steps_per_token", "packed_tokens_per_token"
    print(json.dumps(vars(args) | dict(zip(names, np.mean(rows, axis=0).round(3).tolist(), strict=True)), default=str))


def memory(args: argparse.Namespace, place: Callable) -> dict[str, dict[str, float]]:
    """Gigabytes of the programs of a step in which every completion has the full length."""
    model, params = workload.abstract(args.model, jnp.dtype(args.dtype))
    params = place(params)
    learner = PolicyLearner(model, params, configured(args), (), args.samples, 1)
    trained = place(jax.eval_shape(lambda key: learner.init(key).trained, jax.random.key(0)))
    sampling = Sampling(args.samples, args.limit, 0, 1.0, 0, 1.0, model.config.eos_token_ids, ())
    shape = args.prompts_per_step, args.samples
    keys = place(jax.eval_shape(lambda: jax.random.split(jax.random.key(0), shape)))
    prompts = place(workload.prompts(model, args.prompts_per_step, args.prompt, True))
    reading = functools.partial(prefill, model, sampling, None)
    prefix, done = place(jax.eval_shape(reading, params, prompts, trained, keys))
    rows = args.prompts_per_step * args.samples
    state = place(
        jax.eval_shape(functools.partial(empty_state, model, rows, args.limit, None, prefix.hidden.dtype), done)
    )
    weights = params, trained
    lowered: dict[str, Callable] = {
        "prefill": lambda: prefill.lower(model, sampling, None, params, prompts, trained, keys),
        "decode": lambda: advance.lower(model, sampling, None, *weights, prefix, keys, state, 0, 0, args.limit),
        "gradient": lambda: learner.lower_update(State(trained, ()), place(longest(args, model))),
    }
    found = {}
    for name in args.programs:
        began = time.process_time()
        found[name] = workload.memory(lowered[name](), args.text and args.text / f"{name}.hlo")
        seconds = time.process_time() - began
        print(f"{name}: traced and compiled in {seconds:.1f} CPU seconds", file=sys.stderr, flush=True)
    return found


def longest(args: argparse.Namespace, model: Model) -> PolicyBatch:
    """Prompts of a gradient with completions of the full length."""
    shape = (args.micro, args.samples, args.limit)
    lengths, floats = np.full(shape[:2], args.limit, np.int32), np.zeros(shape, np.float32)
    packing = packed(lengths, args.limit, args.capacities) if args.capacities else None
    batch = workload.prompts(model, args.micro, args.prompt, True)
    return PolicyBatch(batch, np.zeros(shape, np.int32), lengths, floats, floats[..., 0], packing=packing)


def main() -> None:
    args = arguments()
    if args.count:
        count(args)
        return
    if args.memory:
        place = deviceless.on_h100(not args.no_fused) if args.target else lambda tree: tree
        workload.report_memory(vars(args), memory(args, place))
        return
    model, params = workload.build(args.model, jnp.dtype(args.dtype))
    model = workload.imposed(model, args.mean)
    learner = PolicyLearner(model, params, configured(args), (), args.samples, args.warm + args.steps)
    state, rng, rows, length = learner.init(jax.random.key(0)), np.random.default_rng(0), [], 0
    for step in range(args.warm + args.steps):
        whole = workload.prompts(model, args.prompts_per_step, args.prompt, True, step)
        began = time.perf_counter()
        done = learner.sample(state, [(np.arange(len(whole.tokens)), whole)], jax.random.key(step))
        sampled = time.perf_counter()
        rewards = rng.integers(0, 5, done.lengths.shape) / 2
        compilations = learner.compilations
        step_batches, length = minibatches(args, whole, done, rewards, length)
        state, stats = learner.update(state, step_batches)
        rows.append(
            {
                "rollout": sampled - began,
                "update": time.perf_counter() - sampled,
                "mean_length": float(done.lengths.mean()),
                "compiled": learner.compilations > compilations,
                "logp_difference": stats["sampling/logp_difference/mean"],
            }
        )
        print(json.dumps({"step": step, **rows[-1]}), flush=True)
    report(args, rows[args.warm :], learner.compilations)


def report(args: argparse.Namespace, rows: list[dict], compilations: int) -> None:
    """The steps that compiled nothing stand for the run."""
    steady = [row for row in rows if not row["compiled"]] or rows
    means = {name: float(np.mean([row[name] for row in steady])) for name in ("rollout", "update", "mean_length")}
    steps = args.total / args.prompts_per_step
    projected = steps * (means["rollout"] + means["update"])
    print(f"{len(steady)} steady steps of {args.prompts_per_step} prompts x {args.samples}: {means}")
    print(
        f"{args.total} prompts: {projected:.0f} s projected; the paper's 13 hours are {PAPER_SECONDS / projected:.0f} x"
    )
    figures = {"steady_steps": len(steady), **means, "projected_seconds": projected, "compilations": compilations}
    print(json.dumps(vars(args) | workload.machine() | figures))


if __name__ == "__main__":
    main()
