"""Attention by cuDNN's fused kernel against the plain one, on a CUDA device: values, gradients, time.

    python benchmarks/fused.py

Shapes are those of Qwen2-VL-2B in bfloat16: prompts of unequal length, and 8 answers to each joined to it. The
differences are those of bfloat16's rounding, the gradients finite. Prints one JSON line.
"""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import workload

from mmedexpert_jax.models import attention, fused

PROMPTS, GROUP, HEADS, KEY_HEADS, PROMPT, ANSWER, WIDTH = 2, 8, 12, 2, 704, 1023, 128


def main() -> None:
    """Compares both parts of a batch that the update attends over."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.bfloat16)  # noqa: E731
    prompt = [draw(PROMPTS, heads, PROMPT, WIDTH) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    own = [draw(PROMPTS, GROUP, heads, ANSWER, WIDTH) for heads in (HEADS, KEY_HEADS, KEY_HEADS)]
    lengths = jnp.asarray([PROMPT, 517], jnp.int32)
    inside = (jnp.arange(PROMPT) < lengths[:, None])[:, None, :, None]
    kernel, found = fused.supported, {}
    if not kernel(prompt[0]):
        raise SystemExit("no device with cuDNN's attention here")
    cases = {
        "prompts": (lambda q, k, v: inside * attention.attend(q, k, v, lengths, causal=True), prompt),
        "answers": (lambda q, k, v: attention.attend_extended(q, *prompt[1:], lengths, k, v), own),
    }
    for name, (attend, inputs) in cases.items():
        results, programs = {}, {}
        for kind, supported in (("fused", kernel), ("plain", lambda queries: False)):
            fused.supported = supported
            loss = lambda *x, attend=attend: (attend(*x).astype(jnp.float32) ** 2).mean()  # noqa: E731
            program = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).lower(*inputs).compile()
            programs[kind] = partial(program, *inputs)
            results[kind] = [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(programs[kind]())]
        pairs = list(zip(results["fused"], results["plain"], strict=True))
        found[name] = {
            "finite": bool(all(np.isfinite(one).all() for one, _ in pairs)),
            "differences": [float(np.abs(one - other).max() / np.abs(other).max()) for one, other in pairs],
            "seconds": {kind: row["seconds"] for kind, row in workload.measure(programs, 5).items()},
        }
    print(json.dumps({"benchmark": "fused", **workload.machine(), **found}))


if __name__ == "__main__":
    main()
