"""Checks that every family passes beside transformers and peft on a tiny checkpoint."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import mmedexpert_jax as mx
from mmedexpert_jax.models import load_model, load_processor

TOLERANCE = 1e-4  # of the logits' standard deviation


def gap(logits: np.ndarray, expected: torch.Tensor, mask: torch.Tensor) -> float:
    """The largest distance at valid positions, in standard deviations of the expected."""
    valid, expected = mask.numpy().astype(bool), expected.numpy()
    return np.abs(logits[:, : expected.shape[1]] - expected)[valid].max() / expected[valid].std()


def check_greedy_text(
    reference: Any, directory: Path, talks: list, inputs_of: Callable[[list], dict], steps: int, **settings: Any
) -> None:
    """Greedy tokens equal transformers', one conversation at a time, up to where its own two best logits are a tie."""
    model, params = load_model(directory)
    out = mx.generate(
        model, params, load_processor(directory)(talks), key=jax.random.key(0), num_samples=2, max_new_tokens=steps,
        temperature=0.0, stop_ids=(), **settings,
    )  # fmt: skip
    tokens = np.asarray(out.tokens)
    assert np.array_equal(tokens[:, 0], tokens[:, 1])
    reference.generation_config.eos_token_id = None
    agreed = 0
    for row, one in enumerate(talks):
        inputs = inputs_of([one])
        found = reference.generate(
            **inputs, max_new_tokens=steps, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        expected = found.sequences[0, inputs["input_ids"].shape[1] :].numpy()
        logits = torch.stack(found.logits)[:, 0].numpy()
        top = np.sort(logits, -1)
        close = np.flatnonzero(top[:, -1] - top[:, -2] <= 2 * TOLERANCE * logits.std())
        end = close[0] if len(close) else steps
        assert tokens[row, 0, :end].tolist() == expected[:end].tolist()
        agreed += end
    assert agreed > 2 * steps


def check_lora(load: Callable[..., Any], directory: Path, talks: list, inputs: dict, folder: Path) -> None:
    """An adapter of peft's gives its logits here, and one that is written here gives them there."""
    torch.manual_seed(1)
    adapted = get_peft_model(load(directory), LoraConfig(r=4, lora_alpha=12, target_modules="all-linear")).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, 0.0, 0.2)
    adapted.save_pretrained(folder / "peft")
    model, params = load_model(directory)
    lora = mx.lora.load_peft(folder / "peft", params)
    own = mx.lora.init(jax.random.key(0), params, rank=4)
    assert {name: jax.tree.map(jnp.shape, pair) for name, pair in own.factors.items()} == {
        name: jax.tree.map(jnp.shape, pair) for name, pair in lora.factors.items()
    }
    with torch.no_grad():
        expected = adapted(**inputs).logits
    logits = np.asarray(model.logits(params, load_processor(directory)(talks), lora))
    assert gap(logits, expected, inputs["attention_mask"]) < TOLERANCE
    mx.lora.save_peft(folder / "ours", lora, str(directory))
    again = PeftModel.from_pretrained(load(directory), folder / "ours")
    with torch.no_grad():
        assert gap(again(**inputs).logits.numpy(), expected, inputs["attention_mask"]) < TOLERANCE
