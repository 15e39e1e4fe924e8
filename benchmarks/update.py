"""One GRPO gradient of LoRA, three ways: a row for each completion, rows that share their prompt, and packed.

    python benchmarks/update.py                                        # two cores, minutes
    python benchmarks/update.py --against ../before                    # beside another checkout, which takes turns
    python benchmarks/update.py --model random:qwen2_vl_2b --dtype bfloat16 --prompt 700 --mean 300 --limit 1024 \\
        --remat --no-torch --peak 989                                  # one H100

"plain" repeats the prompt for every completion, as the peers do. Where torch is present, the same batch goes through
transformers, peft and TRL's own selective log-softmax, with the same weights; the norm of its gradient must be ours.
Prints a table and one JSON line. Target: packed over plain at least 0.8 of the ratio of the tokens that are computed.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import workload

from mmedexpert_jax import lora as lora_module
from mmedexpert_jax.gba.objective import policy_loss
from mmedexpert_jax.models import save_pretrained
from mmedexpert_jax.rollout import completion_logprobs
from mmedexpert_jax.rollout.logprobs import in_chunks, packed


def whole_rows(batch, tokens, lengths):
    """Prompts and completions as rows of their own, and where each completion's predictions stand: [B * G, R]."""
    groups, limit = tokens.shape[1], tokens.shape[2]
    rows = np.repeat(np.arange(len(batch.tokens)), groups)
    size = batch.tokens.shape[1]
    after = batch.next_position[rows][:, None] + np.arange(limit)
    positions = np.concatenate([batch.positions[rows], np.repeat(after[:, None], 3, 1)], -1).astype(np.int32)
    images = batch.patches.shape[0] > 0
    per_image = batch.patches.shape[1] // 4
    index = batch.vision_index[rows]
    if images:
        index = np.where(index >= 0, index % per_image + np.arange(len(rows))[:, None] * per_image, -1)
    return dataclasses.replace(
        batch,
        tokens=np.concatenate([batch.tokens[rows], tokens.reshape(-1, limit)], 1),
        lengths=(batch.lengths[rows] + lengths.ravel()).astype(np.int32),
        positions=positions,
        next_position=(after[:, -1] + 1).astype(np.int32),
        vision_index=np.concatenate([index, np.full((len(rows), limit), -1)], 1).astype(np.int32),
        patches=batch.patches[rows] if images else batch.patches,
        patch_positions=batch.patch_positions[rows] if images else batch.patch_positions,
        patch_counts=batch.patch_counts[rows] if images else batch.patch_counts,
    ), size - 1 + np.arange(limit)


def plain_logprobs(model, params, lora, rows, places, tokens, remat):
    """Log-probabilities [B * G, R] from whole rows."""
    hidden = model.prefill(params, rows, lora, remat).hidden[:, places]

    def score(hidden, tokens):
        logprobs = jax.nn.log_softmax(model.unembed(params, hidden, lora))
        return (jnp.take_along_axis(logprobs, tokens[..., None], -1)[..., 0],)

    return in_chunks(score, hidden[None], tokens.reshape(1, -1, tokens.shape[-1]))[0][0]


def compiled(kind, model, params, lora, work, remat):
    """The gradient's program and its arguments."""
    batch, tokens, lengths, advantages = work
    rows, places = whole_rows(batch, tokens, lengths)
    packing = packed(lengths, tokens.shape[-1], 8)
    given = {"plain": rows, "shared": batch, "packed": (batch, packing)}[kind]

    def run(params, lora, given, tokens, lengths, advantages):
        def loss(lora):
            if kind == "plain":
                logprobs = plain_logprobs(model, params, lora, given, places, tokens, remat)
            else:
                batch, packing = given if kind == "packed" else (given, None)
                logprobs = completion_logprobs(
                    model, params, batch, tokens, lengths, lora=lora, remat=remat, packing=packing
                ).reshape(-1, tokens.shape[-1])
            mask = jnp.arange(tokens.shape[-1]) < lengths.reshape(-1, 1)
            return policy_loss(logprobs, None, None, advantages.ravel(), mask, beta=0.0)[0]

        return jax.value_and_grad(loss)(lora)

    arguments = jax.device_put((params, lora, given, tokens, lengths, advantages))
    return jax.jit(run).lower(*arguments).compile(), arguments


def peer(model, params, lora, work, folder):
    """A function that computes the gradient with transformers, peft and TRL's selective log-softmax: -> its norm."""
    import torch
    from peft import PeftModel
    from transformers import Qwen2VLForConditionalGeneration
    from trl.trainer.utils import selective_log_softmax

    batch, tokens, lengths, advantages = work
    rows, _ = whole_rows(batch, tokens, lengths)
    save_pretrained(folder, model, params)
    lora_module.save_peft(f"{folder}/adapter", lora, folder)
    base = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    policy = PeftModel.from_pretrained(base, f"{folder}/adapter", is_trainable=True)
    limit = tokens.shape[-1]
    ids = torch.tensor(rows.tokens, dtype=torch.long)
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.tensor(np.arange(ids.shape[1]) < rows.lengths[:, None]).long(),
        "mm_token_type_ids": torch.tensor(rows.vision_index >= 0).int(),
        "logits_to_keep": limit + 1,
    }
    if len(rows.patches):
        side = int(rows.patches.shape[1] ** 0.5)
        inputs["pixel_values"] = torch.tensor(rows.patches.reshape(-1, rows.patches.shape[-1]))
        inputs["image_grid_thw"] = torch.tensor([[1, side, side]] * len(rows.patches))
    mask = torch.tensor(np.arange(limit) < lengths.reshape(-1, 1)).float()
    weights = torch.tensor(advantages.ravel())[:, None]

    def run():
        policy.zero_grad()
        logits = policy(**inputs).logits[:, :-1]
        logprobs = selective_log_softmax(logits, ids[:, -limit:])
        ratio = torch.exp(logprobs - logprobs.detach())
        losses = -torch.min(ratio * weights, ratio.clamp(0.8, 1.2) * weights)
        loss = ((losses * mask).sum(-1) / mask.sum(-1)).mean()
        loss.backward()
        return float(torch.sqrt(sum((p.grad**2).sum() for p in policy.parameters() if p.grad is not None)))

    return run


def beside(args):
    """Runs this script over two packages, ours and that of the checkout `--against`, whose measurements take turns in
    one run, so that other work on the machine meets both; prints what they take."""
    trees = {"ours": Path(__file__).resolve().parents[1], "theirs": args.against.resolve()}
    given = [*sys.argv[1:], "--no-torch", "--take-turns"]
    workers = {
        name: subprocess.Popen(
            [sys.executable, "-P", "-c", f"import runpy; runpy.run_path({__file__!r}, run_name='__main__')", *given],
            env=os.environ | {"PYTHONPATH": f"{tree}{os.pathsep}{tree / 'benchmarks'}"},  # its package and workload.py
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, tree in trees.items()
    }
    rows = {name: json.loads(worker.stdout.readline()) for name, worker in workers.items()}
    turns = {name: [] for name in trees}
    for _ in range(args.repeats):
        for name, worker in workers.items():
            print("go", file=worker.stdin, flush=True)
            turns[name].append(json.loads(worker.stdout.readline()))
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    for kind in rows["ours"]:
        for name, row in ((name, rows[name][kind]) for name in trees):
            for clock in ("seconds", "processor_seconds"):
                row[clock] = min(turn[kind][clock] for turn in turns[name])
            print(
                f"{kind:8} {name:7} {row['seconds']:8.3f} s {row['processor_seconds']:8.2f} CPU s "
                f"{row['temporary_bytes'] / 1e6:8.1f} MB  {row['grad_norm']:.6f}"
            )
    print(json.dumps(vars(args) | workload.machine() | {"rows": rows}, default=str))


def take_turns(rows, norms, functions):
    """Answers each line of the standard input by one measurement."""
    print(json.dumps({kind: row | {"grad_norm": norms[kind]} for kind, row in rows.items()}), flush=True)
    for _ in sys.stdin:
        print(json.dumps(workload.measure(functions, 1)), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="256x4x8192", help="<hidden>x<layers>x<vocabulary>, or random:<size>")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--prompts", type=int, default=1, help="prompts of a gradient")
    parser.add_argument("--samples", type=int, default=8, help="completions of each")
    parser.add_argument("--prompt", type=int, default=176, help="tokens of a prompt, 64 of them the image's")
    parser.add_argument("--mean", type=float, default=75, help="mean length of a completion")
    parser.add_argument("--limit", type=int, default=256, help="longest completion")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--remat", action="store_true")
    parser.add_argument("--no-image", action="store_true")
    parser.add_argument("--no-torch", action="store_true")
    parser.add_argument("--peak", type=float, default=0, help="of the device, TFLOP/s: adds the share of it")
    parser.add_argument("--against", type=Path, help="another checkout of this repository")
    parser.add_argument("--take-turns", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.against and not args.take_turns:
        beside(args)
        return

    model, params = workload.build(args.model, jnp.dtype(args.dtype))
    lora = lora_module.init(jax.random.key(0), params, 16, 32)
    lora = jax.tree.map(lambda leaf: leaf + 0.01, lora)
    rng = np.random.default_rng(0)
    lengths = workload.ragged((args.prompts, args.samples), args.mean, args.limit)
    limit = int(lengths.max())  # a plain trainer pads to the longest of its batch
    tokens = rng.integers(2, model.config.text.vocab_size - 8, (*lengths.shape, limit)).astype(np.int32)
    batch = workload.prompts(model, args.prompts, args.prompt, not args.no_image)
    advantages = rng.normal(size=lengths.shape).astype(np.float32)
    work = batch, tokens, lengths, advantages

    packing = packed(lengths, limit, 8)
    seen = {
        "plain": args.prompts * args.samples * (args.prompt + limit),
        "shared": args.prompts * (args.prompt + args.samples * (limit - 1)),
        "packed": args.prompts * args.prompt + packing.index.size,
    }
    functions, rows, norms = {}, {}, {}
    for kind in seen:
        program, arguments = compiled(kind, model, params, lora, work, args.remat)
        rows[kind] = {"tokens": seen[kind], "temporary_bytes": program.memory_analysis().temp_size_in_bytes}
        functions[kind] = partial(program, *arguments)
        norms[kind] = float(optax.global_norm(functions[kind]()[1]))
    if args.take_turns:
        take_turns(rows, norms, functions)
        return
    with tempfile.TemporaryDirectory() as folder:
        if not args.no_torch:
            functions["trl"] = peer(model, params, lora, work, folder)
            rows["trl"] = {"tokens": seen["plain"]}
            norms["trl"] = functions["trl"]()
        for kind, seconds in workload.measure(functions, args.repeats).items():
            rows[kind] |= seconds
    report(args, model, lengths, rows, norms)


def report(args, model, lengths, rows, norms):
    layers, head = workload.text_parameters(model)
    useful = 4 * (layers * (args.prompts * args.prompt + int(lengths.sum())) + head * int(lengths.sum()))
    print(f"{'':8} {'tokens':>8} {'seconds':>9} {'cpu s':>8} {'samples/s':>10} {'temp MB':>8}  gradient's norm")
    for kind, row in rows.items():
        row["samples_per_second"] = lengths.size / row["seconds"]
        row["grad_norm"] = norms[kind]
        if args.peak:
            row["share_of_peak"] = useful / row["seconds"] / (args.peak * 1e12)
        temporary = f"{row['temporary_bytes'] / 1e6:8.0f}" if "temporary_bytes" in row else " " * 8
        print(
            f"{kind:8} {row['tokens']:8} {row['seconds']:9.3f} {row['processor_seconds']:8.2f} "
            f"{row['samples_per_second']:10.2f} {temporary}  {row['grad_norm']:.6f}"
        )
    ratio = rows["plain"]["tokens"] / rows["packed"]["tokens"]
    speed = rows["plain"]["seconds"] / rows["packed"]["seconds"]
    busy = rows["plain"]["processor_seconds"] / rows["packed"]["processor_seconds"]
    print(f"packed over plain: {speed:.2f}x (processor time {busy:.2f}x) of {ratio:.2f}x tokens: {speed / ratio:.2f}")
    figures = {"rows": rows, "token_ratio": ratio, "speedup": speed}
    print(json.dumps(vars(args) | workload.machine() | figures, default=str))


if __name__ == "__main__":
    main()
