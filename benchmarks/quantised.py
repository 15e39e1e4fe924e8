"""A quantised base against the plain one: bytes of weights, distance of logits, agreement of the likeliest token.

    python benchmarks/quantised.py                                     # the embedded model
    python benchmarks/quantised.py --model smollm2 --cases 16          # a pretrained decoder of 135M parameters
    python benchmarks/quantised.py --model path/to/a/checkpoint --cases 64

Prompts are those of the embedded test cases, images among them. The distance is the root mean square of the difference
over the deviation of the plain logits, over all valid positions; the divergence is KL(plain, quantised) in nats. What a
training takes is in the compiled program: benchmarks/sharded.py --quantize. Prints one JSON line for each kind.
"""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np

import mmedexpert_jax as mx
from mmedexpert_jax.models.quantised import KINDS, quantise_params


def size(tree: dict) -> int:
    """Bytes of a tree of arrays."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--cases", type=int, default=32)
    args = parser.parse_args()
    model, params = mx.load_model(args.model)
    cases = mx.data.load_cases("mini", "test", limit=args.cases)
    batch = mx.load_processor(args.model)([mx.data.prompts.conversation(case) for case in cases])
    valid = np.arange(batch.tokens.shape[1]) < batch.lengths[:, None]
    plain = np.asarray(model.logits(params, batch))[valid]
    for kind in KINDS:
        small = quantise_params(params, kind)
        found = np.asarray(model.logits(small, batch))[valid]
        expected = jax.nn.log_softmax(plain)
        divergence = jnp.sum(jnp.exp(expected) * (expected - jax.nn.log_softmax(found)), axis=-1)
        figures = {
            "kind": kind,
            "positions": int(valid.sum()),
            "megabytes": round(size(params) / 1e6, 2),
            "quantised_megabytes": round(size(small) / 1e6, 2),
            "distance": round(float(np.sqrt(np.mean((found - plain) ** 2)) / plain.std()), 4),
            "same_likeliest": round(float((found.argmax(-1) == plain.argmax(-1)).mean()), 4),
            "divergence": round(float(divergence.mean()), 5),
        }
        print(json.dumps({"benchmark": "quantised"} | vars(args) | figures))


if __name__ == "__main__":
    main()
