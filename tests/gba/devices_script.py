"""Two GBA steps under each of several meshes: what test_devices.py runs in a process with devices of its own.

    python devices_script.py MODEL CASES OUT.npz mesh,shard[,trainable] ... [--process=NUMBER,COUNT,ADDRESS]
    python devices_script.py MODEL CASES OUT.npz mesh,shard[,trainable] ... --scanned
    python devices_script.py MODEL CASES OUT.npz mesh,shard[,trainable] --program

A mesh is data x fsdp x tensor, such as 2x2x2.

Writes OUT-<number>.npz with the samples, the trained weights (w0, w1, ...) and Adam's moments of them after each step
(m0, ..., v0, ...), and prints the statistics of each step. With `--program` it prints the gradient's compiled program.
"""

import json
import sys

import jax
import numpy as np
import optax

from mmedexpert_jax.data import load_cases
from mmedexpert_jax.gba import trainer
from mmedexpert_jax.gba.batches import Batches
from mmedexpert_jax.gba.policy_learner import PolicyLearner
from mmedexpert_jax.gba.rollouts import Rollout
from mmedexpert_jax.launch import load_config
from mmedexpert_jax.models import load_model, load_processor, tree
from mmedexpert_jax.runtime.mesh import make_mesh

STEPS, LR = 2, 1e-2


def run(model_path, cases_path, sizes, shard, trainable="lora", program=False):
    config = load_config(
        "configs/gba.py:mini",
        {
            "model.path": model_path, "data.path": cases_path, "prompts_per_step": 8, "num_samples": 2,
            "max_new_tokens": 6, "temperature": 0.7, "lr": LR, "beta": 0.01, "lora.rank": 2, "packing": 2,
            "shard": shard, "trainable": trainable,
        },
    )  # fmt: skip
    mesh = make_mesh(*map(int, sizes.split("x")))
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    cases = load_cases(config.data.path, "train")
    processor = load_processor(config.model.path)
    guidelines = trainer._guidelines(config, cases)
    batches = Batches(processor, guidelines, STEPS, 8 // shards, config.max_prompt_length, shards)
    model, params = load_model(config.model.path)
    learner = PolicyLearner(model, params, config, processor.special_vision_ids, 2, STEPS, mesh)
    state = learner.init(jax.random.key(1))
    done, rows, moments = [], [], []
    for step in range(STEPS):
        prompts = guidelines.prompts(step)
        encoded = [batches.encode(prompt) for prompt in prompts]
        completions = learner.sample(
            state, batches.prompt_batches(encoded), jax.random.fold_in(jax.random.key(2), step)
        )
        rollout = Rollout.of(prompts, encoded, completions, processor)
        rollout = rollout.with_advantages(np.random.default_rng(step).normal(size=(8, 2)).astype(np.float32))
        minibatches, _ = trainer._minibatches(rollout, batches, config, 8 // shards, shards)
        if program:
            return learner.lower_update(state, minibatches[0][0]).compile().as_text()
        state, stats = learner.update(state, minibatches)
        done.append(completions)
        rows.append(stats)
        # of each layer, as the weights are: scanned, the learner keeps moments stacked
        moments.append([leaves(tree.unstack(optax.tree.get(state.opt_state, name))) for name in ("mu", "nu")])
    weights = {f"w{i}": leaf for i, leaf in enumerate(leaves(state.trained))}
    for name, steps in zip("mv", zip(*moments, strict=True), strict=True):
        weights |= {f"{name}{i}": np.stack(leaf) for i, leaf in enumerate(zip(*steps, strict=True))}
    samples = {name: np.stack([getattr(d, name) for d in done]) for name in ("tokens", "logprobs")}
    return weights | samples | {"lr": np.float32(LR)}, rows


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


def main():
    model_path, cases_path, out, *settings = sys.argv[1:]
    if settings[-1].startswith("--process="):
        number, count, address = settings.pop().removeprefix("--process=").split(",")
        jax.distributed.initialize(address, int(count), int(number))
    if program := settings[-1] == "--program":
        print(run(model_path, cases_path, *settings.pop(0).split(","), program=program))
        return
    if settings[-1] == "--scanned":
        settings.pop()
        tree.DEEP = 2  # layers of the tiny model
    jax.config.update("jax_default_matmul_precision", "highest")
    for number, setting in enumerate(settings):
        arrays, rows = run(model_path, cases_path, *setting.split(","))
        np.savez(out.replace(".npz", f"-{number}.npz"), **arrays)
        print(json.dumps(rows), flush=True)


if __name__ == "__main__":
    main()
