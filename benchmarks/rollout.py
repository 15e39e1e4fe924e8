"""Generated tokens per second beside transformers and vLLM: the same weights and prompts, in the same run.

    python benchmarks/rollout.py                   # a CPU: equal lengths and two spreads of them, width 512, 8 layers
    python benchmarks/rollout.py --vllm ~/vllm/bin/python    # beside vLLM (installed by benchmarks/vllm_peer.py)
    python benchmarks/rollout.py --work 1x1x64 --no-torch    # one stream: its share of the memory's bandwidth
    python benchmarks/rollout.py --sizes qwen2_vl_2b --dtype bfloat16 --work 8x8x1024 32x8x1024~300

Work is prompts x samples x tokens, each prompt with a 224 x 224 image. All samples get that many tokens; behind a `~`
stands the mean of a spread: a share 1 / mean of the vocabulary ends a sample, so that random weights give geometric
lengths cut at the tokens. The peers take turns, so that other work on the machine meets all of them; beside the median
over the turns stands the best, which is nearest to the idle machine's. Row-steps are rows times steps computed. The
share of the memory bandwidth is (weights, keys and values that decoding must read) / (time x bandwidth measured in the
same run). `--sync` measures the adapter folded into the weights against the adapter in low-rank form.
"""

import argparse
import dataclasses
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

import mmedexpert_jax as mx
from mmedexpert_jax.models.config import PUBLISHED, ModelConfig, TextConfig, VisionConfig
from mmedexpert_jax.models.random import init_params
from mmedexpert_jax.processing.batch import Batch
from mmedexpert_jax.processing.processor import Processor
from mmedexpert_jax.rollout.decode import programs

VOCABULARY = 151_936
generation = sys.modules["mmedexpert_jax.rollout.generate"]
Turn = tuple[float, float, float]  # tokens, wall seconds, processor seconds


@dataclasses.dataclass(frozen=True)
class Work:
    """Prompts x samples x tokens, and the mean length of a spread; 0: all samples have all tokens."""

    prompts: int
    samples: int
    tokens: int
    mean: int

    @classmethod
    def of(cls, text: str) -> "Work":
        """Of "4x8x64" or "16x8x256~48"."""
        if not (found := re.fullmatch(r"(\d+)x(\d+)x(\d+)(?:~(\d+))?", text)):
            raise argparse.ArgumentTypeError(f"{text!r} is not prompts x samples x tokens, such as 16x8x256~48")
        return cls(*(int(number or 0) for number in found.groups()))

    def __str__(self) -> str:
        spread = f"~{self.mean}" if self.mean else ""
        return f"{self.prompts}x{self.samples}x{self.tokens}{spread}"

    @property
    def stops(self) -> tuple[int, ...]:
        """A share 1 / mean of the vocabulary, from its middle: no tokens of the prompts."""
        return tuple(range(VOCABULARY // 2, VOCABULARY // 2 + VOCABULARY // self.mean)) if self.mean else ()


def network(size: str, processor: Processor) -> ModelConfig:
    """A published size, or "<width>x<layers>" with heads of 64, two key heads and a vision tower of half the width."""
    ids = {
        "image_token_id": processor.image_token_id,
        "pad_token_id": processor.pad_id,
        "bos_token_id": processor.pad_id,
        "eos_token_ids": (processor.chat_end_id,),
    }
    if size in PUBLISHED:
        return ModelConfig(**(vars(PUBLISHED[size]) | ids))
    width, layers = map(int, size.split("x"))
    text = TextConfig(VOCABULARY, width, 4 * width, layers, width // 64, 2, 1e-6, mrope_section=(8, 12, 12))
    vision = VisionConfig("qwen2_vl", 6, width // 2, 2 * width, width // 128, width)
    return ModelConfig(text, vision, tie_word_embeddings=True, **ids)


def conversations(count: int) -> list[list[dict]]:
    """One question about one image each."""
    rng = np.random.default_rng(0)
    words = ["fever", "cough", "pain", "rash", "swelling", "dyspnoea", "syncope", "oedema"]
    asked = []
    for _ in range(count):
        image = Image.fromarray(rng.integers(0, 255, (224, 224, 3), np.uint8))
        text = "A patient has " + ", ".join(rng.choice(words, rng.integers(4, 12))) + ". What is it?"
        asked.append([{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}])
    return asked


def torch_inputs(batch: Batch, image_token_id: int, device: str, dtype: Any) -> dict:
    """The same prompts as transformers takes them, padded on the left."""
    import torch

    size = batch.tokens.shape[1]
    shifted = np.stack([np.roll(row, size - n) for row, n in zip(batch.tokens, batch.lengths, strict=True)])
    mask = np.arange(size) >= size - batch.lengths[:, None]
    sides = batch.patch_positions.max(1) + 1
    patches = np.concatenate([p[:n] for p, n in zip(batch.patches, batch.patch_counts, strict=True)])
    return {
        "input_ids": torch.tensor(shifted, device=device).long(),
        "attention_mask": torch.tensor(mask, device=device).long(),
        "mm_token_type_ids": torch.tensor(shifted == image_token_id, device=device).int(),
        "pixel_values": torch.tensor(patches, device=device, dtype=dtype),
        "image_grid_thw": torch.tensor([[1, *side] for side in sides.tolist()], device=device),
    }


def clock(run: Callable[[], float]) -> Turn:
    """(what `run` returns: tokens, wall seconds, processor seconds)."""
    wall, processor = time.perf_counter(), time.process_time()
    tokens = run()
    return tokens, time.perf_counter() - wall, time.process_time() - processor


def bandwidth(megabytes: int = 512) -> float:
    """Bytes per second that a sum over a large array reads, the best of five."""
    array = jnp.ones(megabytes * 2**18, jnp.float32)
    total = jax.jit(jnp.sum)
    float(total(array))
    return array.nbytes / min(clock(lambda: float(total(array)))[1] for _ in range(5))


def bytes_read(config: ModelConfig, params: dict, batch: Batch, lengths: np.ndarray) -> float:
    """Bytes that decoding must read: the decoder's weights at each step, the keys and values of prompts and samples
    that have not ended."""
    text = config.text
    weight = params["model"]["embed_tokens"]["weight"]
    layers = sum(leaf.nbytes for leaf in jax.tree.leaves(params["model"]["layers"]))
    token = 2 * text.num_layers * text.num_kv_heads * text.head_dim * weight.dtype.itemsize
    lengths = lengths.astype(float)
    longest = lengths.max(1)
    own = (lengths * (lengths - 1) / 2).sum() * token
    return (longest.max() - 1) * (layers + weight.nbytes) + (longest * batch.lengths).sum() * token + own


def measure(size: str, works: list[Work], arguments: argparse.Namespace) -> list[dict]:
    """A row for each work, our own sampler and the peers in turns, from one checkpoint."""
    processor = mx.load_processor("mini")
    config = network(size, processor)
    model, params = mx.models.Model(config), init_params(config, 0, jnp.dtype(arguments.dtype))
    with ExitStack() as stack:
        peers: dict[str, Callable[[Work], Turn]] = {}
        if not arguments.no_torch or arguments.vllm:
            checkpoint = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            mx.save_pretrained(checkpoint, model, params, processor)
            if not arguments.no_torch:
                peers["transformers"] = transformers_peer(checkpoint, model, processor, arguments.dtype)
            if arguments.vllm:
                peers["vllm"] = stack.enter_context(Vllm(checkpoint, processor, arguments))
        rows = []
        for work in works:
            rows.append({"size": size} | compared(work, model, params, processor, peers, arguments.repeats))
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)  # a long run that is stopped leaves what it has
        return rows


def compared(
    work: Work, model: mx.models.Model, params: dict, processor: Processor, peers: dict, repeats: int
) -> dict[str, Any]:
    """The figures of one work."""
    batch, lengths, spent = processor(conversations(work.prompts)), np.zeros(0), [0]

    def sampled() -> float:
        nonlocal lengths
        settings = {"num_samples": work.samples, "max_new_tokens": work.tokens, "stop_ids": work.stops}
        lengths = np.asarray(mx.generate(model, params, batch, key=jax.random.key(0), **settings).lengths)
        return float(lengths.sum())

    sides: dict[str, Callable[[Work], Turn]] = {"ours": lambda _: clock(sampled)} | peers
    before, advance = len(programs), generation.advance

    def counted(*args: Any) -> Any:
        state, status = advance(*args)
        spent[0] = int(state.spent.sum())
        return state, status

    generation.advance = counted
    first = {name: side(work)[1] for name, side in sides.items()}
    turns = [{name: side(work) for name, side in sides.items()} for _ in range(repeats)]
    generation.advance = advance
    speed = bandwidth()
    fastest = min(turn["ours"][1] for turn in turns)
    return {
        "work": str(work),
        "dtype": str(params["model"]["embed_tokens"]["weight"].dtype),
        "sides": {name: _figures([turn[name] for turn in turns], first[name]) for name in sides},
        "row_steps_over_tokens": spent[0] / float(lengths.sum()),
        "roofline_share": bytes_read(model.config, params, batch, lengths) / (fastest * speed),
        "bandwidth_gb_per_second": speed / 1e9,
        "programs": len(programs) - before,
    }


def _figures(turns: list[Turn], first: float) -> dict[str, float]:
    rates = [tokens / wall for tokens, wall, _ in turns]
    return {
        "median": statistics.median(rates),
        "best": max(rates),
        "cpu_ms_per_token": statistics.median(spent / tokens * 1e3 for tokens, _, spent in turns),
        "first_call_seconds": first,
    }


def transformers_peer(
    checkpoint: Path, model: mx.models.Model, processor: Processor, dtype: str
) -> Callable[[Work], Turn]:
    """A function that samples a work with transformers."""
    import torch
    import transformers

    device = "cpu" if jax.default_backend() == "cpu" else "cuda"
    loaded = transformers.AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=getattr(torch, dtype))
    network = loaded.to(device)
    network.generation_config = transformers.GenerationConfig(pad_token_id=model.config.pad_token_id, eos_token_id=None)

    def sampled(work: Work) -> float:
        batch = processor(conversations(work.prompts))
        inputs = torch_inputs(batch, model.config.image_token_id, device, network.dtype)
        with torch.no_grad():
            rows = network.generate(
                **inputs,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                num_return_sequences=work.samples,
                max_new_tokens=work.tokens,
                eos_token_id=list(work.stops) or None,
            )[:, inputs["input_ids"].shape[1] :]
        ended = torch.isin(rows, torch.tensor(work.stops, device=device))
        return float(torch.where(ended.any(1), ended.int().argmax(1) + 1, rows.shape[1]).sum())

    return lambda work: clock(lambda: sampled(work))


class Vllm:
    """vLLM in a process and an environment of its own; a work's turn is measured there."""

    def __init__(self, checkpoint: Path, processor: Processor, arguments: argparse.Namespace):
        self._folder, self._processor = checkpoint, processor
        command = [arguments.vllm, Path(__file__).with_name("vllm_peer.py"), "run", checkpoint, "--dtype"]
        command += [arguments.dtype, *(["--eager"] if arguments.vllm_eager else [])]
        outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": outside}
        self._process = subprocess.Popen(list(map(str, command)), stderr=arguments.vllm_log.open("w"), **pipes)
        self._log = arguments.vllm_log
        self.about = self._read()
        print(json.dumps(self.about), file=sys.stderr)

    def __enter__(self) -> "Vllm":
        return self

    def __exit__(self, *_: Any) -> None:
        self._process.stdin.close()  # type: ignore[union-attr]  # it is a pipe
        self._process.wait()

    def __call__(self, work: Work) -> Turn:
        """The work's tokens and seconds."""
        asked = {"samples": work.samples, "tokens": work.tokens, "stops": work.stops}
        print(json.dumps(asked | {"prompts": self._prompts(work.prompts)}), file=self._process.stdin, flush=True)
        turn = self._read()
        return turn["tokens"], turn["wall"], turn["processor"]

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            sys.exit(f"vLLM ended; the last lines of {self._log} say why")
        return json.loads(line)

    def _prompts(self, count: int) -> str:
        """A file of token ids with one pad an image, as vLLM takes them, and of the images' files."""
        found, pad = [], self._processor.image_token_id
        for number, conversation in enumerate(conversations(count)):
            image = self._folder / f"{number}.png"
            conversation[0]["content"][0]["image"].save(image)
            ids = self._processor.encode(conversation).tokens
            again = np.append(False, (ids[1:] == pad) & (ids[:-1] == pad))
            found.append({"tokens": ids[~again].tolist(), "image": str(image)})
        file = self._folder / f"prompts-{count}.json"
        file.write_text(json.dumps(found))
        return str(file)


def sync(size: str, work: Work, arguments: argparse.Namespace) -> dict:
    """Seconds of a rollout with the adapter folded (the fold included) and in low-rank form, and what rounding does."""
    processor = mx.load_processor("mini")
    config = network(size, processor)
    model, params = mx.models.Model(config), init_params(config, 0, jnp.dtype(arguments.dtype))
    batch = processor(conversations(work.prompts))
    lora = mx.lora.init(jax.random.key(0), params, rank=16, alpha=32)
    noise = lambda leaf: leaf + 1e-3 * jax.random.normal(jax.random.key(1), leaf.shape)  # noqa: E731
    lora = jax.tree.map(noise, lora)
    settings = {"num_samples": work.samples, "max_new_tokens": work.tokens, "stop_ids": ()}

    def run(fold: bool) -> mx.rollout.Completions:
        weights, deltas = (mx.lora.fold(params, lora), None) if fold else (params, lora)
        return jax.block_until_ready(
            mx.rollout.generate(model, weights, batch, key=jax.random.key(0), lora=deltas, fold=False, **settings)
        )

    @jax.jit
    def trainer(done: mx.rollout.Completions) -> jax.Array:
        return mx.rollout.completion_logprobs(model, params, batch, done.tokens, done.lengths, lora=lora)

    result: dict = {"size": size, "dtype": arguments.dtype}
    done = {fold: run(fold) for fold in (True, False)}
    for name, fold in (("folded", True), ("low_rank", False)):
        turns = [clock(lambda fold=fold: float(run(fold).lengths.sum())) for _ in range(arguments.repeats)]
        gap = np.abs(np.asarray(trainer(done[fold])) - np.asarray(done[fold].logprobs))
        result[name] = {
            "seconds": statistics.median(turn[1] for turn in turns),
            "cpu_seconds": statistics.median(turn[2] for turn in turns),
            "gap_mean": float(gap.mean()),
            "gap_max": float(gap.max()),
        }
    return result


def table(rows: list[dict]) -> str:
    """Tokens a second, median and best, and processor time, by side."""
    lines = [
        "| size | work | dtype | side | tokens/s | best | CPU ms/token | row-steps/tokens | share of bandwidth |",
        "|" + " --- |" * 9,
    ]
    for row in rows:
        for name, side in row["sides"].items():
            own = (
                [f"{row['row_steps_over_tokens']:.3f}", f"{row['roofline_share']:.3f}"] if name == "ours" else ["", ""]
            )
            rates = [f"{side[key]:.3g}" for key in ("median", "best", "cpu_ms_per_token")]
            lines.append("| " + " | ".join([row["size"], row["work"], row["dtype"], name, *rates, *own]) + " |")
    return "\n".join(lines)


def found() -> str:
    """The interpreter in $VLLM_PYTHON, or in ~/vllm if that is there; else empty."""
    usual = Path.home() / "vllm" / "bin" / "python"
    return os.environ.get("VLLM_PYTHON", str(usual) if usual.exists() else "")


def main() -> None:
    """Measures each size and work; prints the table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["512x8"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    works = [Work(4, 8, 64, 0), Work(16, 8, 256, 48), Work(8, 8, 1024, 300)]
    parser.add_argument("--work", nargs="+", type=Work.of, default=works, help="prompts x samples x tokens[~mean]")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sync", action="store_true")
    parser.add_argument("--no-torch", action="store_true", help="without transformers")
    parser.add_argument("--vllm", default=found(), help="Python of the environment of vllm_peer.py; empty: without")
    parser.add_argument("--vllm-eager", action="store_true", help="without torch.compile, which takes minutes")
    parser.add_argument("--vllm-log", type=Path, default=Path(tempfile.gettempdir()) / "vllm.log")
    arguments = parser.parse_args()
    libraries = ("jax",) if arguments.no_torch else ("jax", "torch", "transformers")
    about = {
        "benchmark": "rollout",
        "device": jax.devices()[0].device_kind,
        "load": os.getloadavg()[0],
        "versions": {name: version(name) for name in libraries},
        "python": platform.python_version(),
    }
    if arguments.sync:
        rows = [sync(size, arguments.work[0], arguments) for size in arguments.sizes]
    else:
        rows = [row for size in arguments.sizes for row in measure(size, arguments.work, arguments)]
        print(table(rows))
    settings = {name: value for name, value in vars(arguments).items() if name not in ("vllm", "vllm_log")}  # paths
    print(json.dumps(about | {"settings": settings, "rows": rows}, default=str))


if __name__ == "__main__":
    main()
