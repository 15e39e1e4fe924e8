"""Floating-point operations of a forward pass, counted from shapes: two for each product of a weight or a score."""

import numpy as np

from mmedexpert_jax.models.config import ModelConfig, VisionConfig


def forward(config: ModelConfig, prompts: np.ndarray, completions: np.ndarray, patches: np.ndarray) -> float:
    """Operations of reading prompts once each, and completions that attend to them.

    Norms, softmaxes, activations, the products with LoRA's factors, and padding are left out; logits are counted for
    the tokens of completions only.

    Args:
        prompts: [N] lengths in tokens, images included.
        completions: [N, S] lengths in tokens.
        patches: [I] patches of each image.
    """
    text = config.text
    read, written = np.asarray(prompts, np.float64), np.asarray(completions, np.float64)
    tokens = read.sum() + written.sum()
    windows = [text.window if windowed else 0 for windowed in text.windowed or (False,) * text.num_layers]
    pairs = sum(windows.count(window) * _pairs(read, written, window) for window in set(windows))
    keys, inner = text.num_kv_heads * text.head_dim, text.num_heads * text.head_dim
    layer = text.hidden_size * (2 * inner + 2 * keys + 3 * text.intermediate_size)
    products = text.num_layers * tokens * layer + 2 * pairs * inner
    products += written.sum() * text.hidden_size * text.vocab_size
    return 2.0 * float(products + _tower(config.vision, np.asarray(patches, np.float64)))


def _pairs(read: np.ndarray, written: np.ndarray, window: int) -> float:
    """Queries times the keys that each sees in a layer, of the `window` last tokens; 0: of all."""

    def seen(length: np.ndarray) -> np.ndarray:
        near = np.minimum(length, window) if window else length
        return near * (near + 1) / 2 + (length - near) * window

    whole = read[:, None]
    return float(seen(read).sum() + (seen(whole + written) - seen(whole)).sum())


def trained(once: float, full: bool, remat: bool) -> float:
    """Operations of a gradient, from those of a forward pass: the backward pass costs as much for the activations, and
    again for the weights where all are trained; `remat` repeats the forward pass."""
    return once * (2 + full + remat)


def _tower(vision: VisionConfig, patches: np.ndarray) -> float:
    """Products of the vision tower for images of so many patches."""
    total, width = patches.sum(), vision.hidden_size
    windowed = vision.family == "qwen2_5_vl"
    mlps = 3 if windowed else 2
    block = width * (4 * width + mlps * vision.intermediate_size)
    whole = vision.depth if not windowed else len(vision.full_attention_blocks)
    window = np.minimum(patches, vision.window_side**2)
    pairs = whole * (patches**2).sum() + (vision.depth - whole) * (patches * window).sum()
    patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    merged = vision.merge_size**2 * width
    mergers = 1 + len(vision.deepstack_blocks)
    merger = mergers * merged * (merged + vision.out_hidden_size) / vision.merge_size**2
    if vision.image_size:  # plain towers: one product of averaged patches (Gemma 3), or two of each (LLaVA)
        projected = width * vision.out_hidden_size
        both = projected + vision.out_hidden_size**2
        merger = projected / vision.merge_size**2 if vision.bidirectional else both
    return total * (patch * width + vision.depth * block + merger) + 2 * pairs * width
