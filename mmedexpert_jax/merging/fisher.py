"""Fisher information of an expert from prompts alone: how sharply each entry of its weights decides what it says."""

import itertools
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from mmedexpert_jax.data.case import Case
from mmedexpert_jax.data.prompts import conversation
from mmedexpert_jax.merging.blockwise import Merge
from mmedexpert_jax.merging.merge import merge_in_memory
from mmedexpert_jax.merging.merge_recipe import Recipe, ingredients, opened
from mmedexpert_jax.merging.parameters import Parameters
from mmedexpert_jax.models import Model, load_model, load_processor
from mmedexpert_jax.models.tree import flatten, nest
from mmedexpert_jax.processing.batch import Batch
from mmedexpert_jax.runtime import files

_MULTIPLE = 128  # of the tokens of a prompt and the patches of its images: few shapes, each compiled once


def with_fisher(
    recipe: Recipe, folder: Path, cases: Sequence[Case], seed: int = 0, told: Callable[[int], Any] = lambda done: None
) -> Recipe:
    """The recipe with its experts' Fisher information, one model after the other in memory, on the prompts of cases.

    Args:
        recipe: of a merge by Fisher information.
        folder: where it is kept, by expert; what is there of the same files, cases and seed is not measured again.
        cases: whose prompts are read, not their answers.
        told: called with the number of prompts done.
    """
    model, params = load_model(recipe.base, np.float32)
    base, processor, count = flatten(params), load_processor(recipe.base), itertools.count(1)
    job = opened(recipe, base)
    mark, wanted = folder / "sources.json", [ingredients(recipe, job), [case.id for case in cases], seed]
    if (known := files.json_or_none(mark)) != files.plain(wanted):
        if known is not None:  # a folder without a mark is of a run that wrote none yet
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        files.write_json(mark, wanted)

    def prompts() -> Iterable[Batch]:
        for case in cases:
            yield processor([conversation(case)], multiple=_MULTIPLE)
            told(next(count))

    for expert in job.experts:
        if (folder / expert.name).exists():
            continue
        alone = Merge(job.base, (expert,), Parameters("task_arithmetic", (expert.name,)))
        found = diagonal(model, nest(merge_in_memory(alone, base)[0]), job.touched, prompts(), seed)
        with files.writing(folder), files.replacing(folder / expert.name) as whole:
            save_file(found, whole / "model.safetensors")
    return replace(recipe, fisher=str(folder))


def diagonal(
    model: Model, params: dict, names: Iterable[str], prompts: Iterable[Batch], seed: int = 0
) -> dict[str, np.ndarray]:
    """Diagonal of the Fisher information, tensor by tensor in its shape, float32: the mean over prompts of squares.

    Squared is the gradient of sum_t log p(y_t | x_<t), every y_t drawn from the model itself, so that no answer is
    needed and products of two places vanish in the mean (the true Fisher information, not the empirical one).
    """
    tensors = {name: jnp.asarray(tensor) for name, tensor in flatten(params).items()}
    chosen = {name: tensors.pop(name) for name in names}
    total, count = {name: jnp.zeros(tensor.shape, jnp.float32) for name, tensor in chosen.items()}, 0
    for count, prompt in enumerate(prompts, 1):
        total = _added(model, total, chosen, tensors, prompt, jax.random.key(seed * 2**20 + count))
    return {name: np.asarray(found) / max(count, 1) for name, found in total.items()}


@partial(jax.jit, static_argnums=0, donate_argnums=1)
def _added(model: Model, total: dict, chosen: dict, rest: dict, prompt: Batch, key: jax.Array) -> dict:
    """The sums with the squares of one prompt."""

    def said(chosen: dict) -> jax.Array:
        logits = model.logits(nest(rest | chosen), prompt)[0]  # [T, V]
        drawn = jax.random.categorical(key, jax.lax.stop_gradient(logits))
        scores = jnp.take_along_axis(jax.nn.log_softmax(logits), drawn[:, None], axis=-1)[:, 0]
        return jnp.sum(jnp.where(jnp.arange(len(scores)) < prompt.lengths[0], scores, 0))

    return {name: total[name] + jnp.square(found.astype(jnp.float32)) for name, found in jax.grad(said)(chosen).items()}
