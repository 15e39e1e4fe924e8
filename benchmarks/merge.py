"""Merging measured beside its peers in the same run: CPU seconds, wall time and peak anonymous memory.

    python benchmarks/merge.py --shape qwen2_0_5b            # TIES of five full checkpoints, against mergekit
    python benchmarks/merge.py --shape qwen2_0_5b --lora     # five rank-16 adapters, against mergekit and peft ties_svd
    python benchmarks/merge.py --shape qwen2_vl_2b --lora --no-peers
    python benchmarks/merge.py --growth                      # ours over models of more layers and larger tensors
    python benchmarks/merge.py --spaces                      # methods of whole matrices, beside fusion_bench's code

mergekit and peft are those of the `test` extra; `--mergekit` takes the mergekit-yaml of another environment. Models are
random, in bf16: a base, and experts that add products of normals (std 1e-3). Prints a table and one JSON line.
"""

import argparse
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save_file

from mmedexpert_jax.merging.checkpoint import Writer

# layers, hidden, intermediate, key-value width, vocabulary
SHAPES = {
    "tiny": (2, 256, 512, 64, 4096),
    "small": (4, 896, 4864, 128, 16384),
    "qwen2_0_5b": (24, 896, 4864, 128, 151936),
    "qwen2_vl_2b": (28, 1536, 8960, 256, 151936),
}
EXPERTS, RANK, DENSITY = 5, 16, 0.2
BF16 = ml_dtypes.bfloat16


def linears(shape):
    layers, hidden, wide, kv, _ = shape
    sizes = {"q": (hidden, hidden), "k": (kv, hidden), "v": (kv, hidden), "o": (hidden, hidden)}
    for layer in range(layers):
        for name, size in sizes.items():
            yield f"model.layers.{layer}.self_attn.{name}_proj", size
        for name, size in (("gate", (wide, hidden)), ("up", (wide, hidden)), ("down", (hidden, wide))):
            yield f"model.layers.{layer}.mlp.{name}_proj", size


def tensors(shape):
    layers, hidden, _, kv, vocabulary = shape
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for name, size in linears(shape):
        yield f"{name}.weight", size
    for layer in range(layers):
        for name, width in (("q", hidden), ("k", kv), ("v", kv)):
            yield f"model.layers.{layer}.self_attn.{name}_proj.bias", (width,)
        for name in ("input", "post_attention"):
            yield f"model.layers.{layer}.{name}_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)


def make(folder: Path, shape, lora: bool) -> None:
    """The base and its experts, where they are not there yet."""
    layers, hidden, wide, kv, vocabulary = shape
    config = {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": hidden, "hidden_act": "silu",
        "num_hidden_layers": layers, "intermediate_size": wide, "num_attention_heads": hidden // 64,
        "num_key_value_heads": kv // 64, "vocab_size": vocabulary, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16", "max_position_embeddings": 4096, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
    }  # fmt: skip
    (folder / "config").mkdir(parents=True, exist_ok=True)
    (folder / "config" / "config.json").write_text(json.dumps(config))
    with ProcessPoolExecutor() as pool:
        list(pool.map(partial(make_full, folder, shape), range(-1, 0 if lora else EXPERTS)))
    for number in range(EXPERTS if lora else 0):
        path = folder / f"lora{number}"
        if path.exists():
            continue
        rng, content = np.random.default_rng(number + 200), {}
        for name, (rows, columns) in linears(shape):
            parts = {"A": (RANK, columns), "B": (rows, RANK)}
            for part, size in parts.items():
                content[f"base_model.model.{name}.lora_{part}.weight"] = rng.standard_normal(size, np.float32) * 0.02
        settings = {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(folder / "base"), "r": RANK,
            "lora_alpha": 2 * RANK, "lora_dropout": 0.0, "bias": "none", "inference_mode": True,
            "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        }  # fmt: skip
        write(path, content, "adapter_model.safetensors", "adapter_config.json", settings)


def make_full(folder: Path, shape, number: int) -> None:
    """A full checkpoint, written chunk by chunk: the base (number -1), or the base and noise of its own."""
    path = folder / ("base" if number < 0 else f"expert{number}")
    if path.exists():
        return
    rng, noise = np.random.default_rng(7), np.random.default_rng(number + 100)
    quantiles = np.sort(rng.standard_normal(65536, np.float32)) * np.float32(0.02)
    steps = noise.standard_normal(65536, np.float32) * noise.standard_normal(65536, np.float32) * np.float32(1e-3)
    writer = Writer(path, {name: (size, BF16) for name, size in tensors(shape)}, "random")
    for name, size in tensors(shape):
        for start in range(0, int(np.prod(size)), 1 << 20):
            count = min(1 << 20, int(np.prod(size)) - start)
            weight = quantiles[rng.integers(0, 65536, count, np.uint16)].astype(BF16)
            if number >= 0:
                weight = (weight.astype(np.float32) + steps[noise.integers(0, 65536, count, np.uint16)]).astype(BF16)
            writer.write(name, start, weight)
    writer.close(folder / "config")


def write(path: Path, content, weights: str, name: str, config) -> None:
    partial = path.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file(content, partial / weights, {"format": "pt"})
    (partial / name).write_text(json.dumps(config))
    partial.rename(path)


def measured(command: list[str]) -> dict[str, float]:
    """Wall and CPU seconds and peak anonymous memory (GB, of the process) of a command."""
    before, began, peak = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), 0
    with open(os.devnull, "w") as nowhere:
        process = subprocess.Popen(command, stdout=nowhere, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            peak = max(peak, int(status.split("RssAnon:")[1].split()[0]))
        except (OSError, IndexError):
            pass
        time.sleep(0.1)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: {process.stderr.read()[-2000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    found = {"wall_s": wall, "cpu_s": cpu, "anonymous_gb": peak * 1024 / 1e9}
    print(f"{Path(command[-1] if '--work' in command else command[0]).name}: {found}", file=sys.stderr, flush=True)
    return found


def ours(folder: Path, out: Path, kind: str) -> list[str]:
    return [sys.executable, __file__, "--work", kind, "--folder", str(folder), "--out", str(out)]


def mergekit(folder: Path, out: Path, program: str, lora: bool) -> list[str]:
    names = [f"{folder}/base+{folder}/lora{i}" if lora else f"{folder}/expert{i}" for i in range(EXPERTS)]
    lines = ["merge_method: ties", f"base_model: {folder}/base", "models:"]
    lines += [f"- model: {name}\n  parameters: {{weight: 1.0, density: {DENSITY}}}" for name in names]
    config = folder / "mergekit.yaml"
    config.write_text("\n".join([*lines, "dtype: float32", "out_dtype: bfloat16\n"]))
    cache = folder / "lora_cache"
    shutil.rmtree(cache, ignore_errors=True)
    flags = ["--no-copy-tokenizer", "--quiet", "--no-write-model-card", "--lora-merge-cache", str(cache)]
    return [program, str(config), str(out), *flags]


def work(kind: str, folder: Path, out: Path) -> None:
    """One of our merges, or peft's, in a process of its own."""
    if kind == "peft":
        return work_peft(folder, out)
    from mmedexpert_jax import lora as adapters
    from mmedexpert_jax.merging.interference import Interference
    from mmedexpert_jax.merging.merge import as_lora, updates_of
    from mmedexpert_jax.merging.merge_recipe import merge_to_disk

    recipe = recipe_of(folder, "expert" if kind == "full" else "lora", "mergekit" if kind == "full" else "peft")
    if kind == "rank":
        job, report = recipe.open(), Interference(tuple(recipe.experts))
        low = as_lora(updates_of(job, report), RANK, report)
        adapters.save_peft(out, low, recipe.base)
    else:
        merge_to_disk(recipe, out)


def recipe_of(folder: Path, stem: str, preset: str):
    from mmedexpert_jax.merging.merge_recipe import Recipe
    from mmedexpert_jax.merging.parameters import Parameters

    experts = {f"{stem}{number}": str(folder / f"{stem}{number}") for number in range(EXPERTS)}
    numbers = {"density": {"": DENSITY}}
    return Recipe(str(folder / "base"), experts, Parameters("ties", tuple(experts), preset, numbers))


def work_peft(folder: Path, out: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(base, folder / "lora0", adapter_name="lora0")
    for number in range(1, EXPERTS):
        model.load_adapter(folder / f"lora{number}", adapter_name=f"lora{number}")
    names = [f"lora{number}" for number in range(EXPERTS)]
    model.add_weighted_adapter(
        names, [1.0] * EXPERTS, "merged", "ties_svd", svd_rank=RANK, density=DENSITY, svd_full_matrices=False
    )
    model.save_pretrained(out, selected_adapters=["merged"])


def errors(folder: Path, adapters: dict[str, Path], modules: int = 14) -> dict[str, float]:
    """Relative error of rank-r adapters to the exact float32 TIES of the products, over the first modules."""
    from mmedexpert_jax.merging.interference import Interference
    from mmedexpert_jax.merging.merge import updates_of

    job = recipe_of(folder, "lora", "peft").open()
    exact = dict(itertools.islice(updates_of(job, Interference(job.how.experts)), modules))
    found = {}
    for label, path in adapters.items():
        path = path / "merged" if (path / "merged").exists() else path
        content = {
            key: np.asarray(value, np.float32) for key, value in load_file(path / "adapter_model.safetensors").items()
        }
        config = json.loads((path / "adapter_config.json").read_text())
        lost = total = 0.0
        for name, update in exact.items():
            key = next(k for k in content if name.removeprefix("model.").removesuffix(".weight") + ".lora_A" in k)
            product = content[key.replace("lora_A", "lora_B")] @ content[key] * (config["lora_alpha"] / config["r"])
            lost, total = lost + float(np.sum((product - update) ** 2)), total + float(np.sum(update**2))
        found[label] = (lost / total) ** 0.5
    return found


def growth(root: Path) -> list[dict[str, float]]:
    """Our TIES over models of more layers and of larger tensors."""
    rows = []
    for layers, hidden, vocabulary in ((1, 896, 8192), (2, 896, 16384), (4, 896, 32768), (8, 896, 65536)):
        shape = (layers, hidden, 4864, 128, vocabulary)
        folder = root / f"growth-{layers}"
        make(folder, shape, False)
        sizes = [int(np.prod(size)) for _, size in tensors(shape)]
        row = {"parameters_m": sum(sizes) / 1e6, "largest_m": max(sizes) / 1e6}
        rows.append(row | measured(ours(folder, folder / "out", "full")))
        shutil.rmtree(folder)
    return rows


def spaces() -> dict[str, dict[str, float]]:
    """CPU seconds of one matrix [128, 192] of five experts, ours and those of fusion_bench 0.2.33, once.

    WUDI is 300 steps of Adam there and the minimiser in closed form here; they compute in float32, we in float64.
    """
    import torch
    from fusion_bench.method.isotropic_merging.iso_utils import iso_c
    from fusion_bench.method.task_singular_vector.utils import TSVM_utils
    from fusion_bench.method.wudi.wudi import wudi_merging

    from mmedexpert_jax.merging import lowrank

    vectors = np.random.default_rng(0).standard_normal((EXPERTS, 128, 192)).astype(np.float32) * np.float32(1e-3)
    states, wide = [{"w": torch.tensor(one)} for one in vectors], vectors.astype(float)
    pairs = {
        "iso_c": (lowrank.iso_merge, iso_c),
        "tsv_m": (lowrank.tsv_merge, TSVM_utils.compute_and_sum_svd_mem_reduction),
        "wudi": (lowrank.wudi_merge, wudi_merging),
    }
    rows: dict[str, dict[str, float]] = {name: {} for name in pairs}
    for name, (ours, theirs) in pairs.items():
        for label, merge in (
            ("ours_cpu_s", partial(ours, wide)),
            ("fusion_bench_cpu_s", partial(theirs, states, accelerator="cpu")),
        ):
            began = time.process_time()
            merge()
            rows[name][label] = time.process_time() - began
    return rows


def compare(folder: Path, lora: bool, peers: bool, program: str) -> dict[str, dict[str, float]]:
    rows = {"ours": measured(ours(folder, folder / "out-ours", "lora" if lora else "full"))}
    if lora:
        rows["ours, rank 16"] = measured(ours(folder, folder / "out-rank", "rank"))
    if peers:
        rows["mergekit"] = measured(mergekit(folder, folder / "out-mergekit", program, lora))
    if peers and lora:
        rows["peft ties_svd, rank 16"] = measured(ours(folder, folder / "out-peft", "peft"))
        pair = {"ours, rank 16": folder / "out-rank", "peft ties_svd, rank 16": folder / "out-peft"}
        for label, error in errors(folder, pair).items():
            rows[label]["relative_error"] = error
    return rows


def table(rows) -> str:
    columns = list(dict.fromkeys(key for row in rows.values() for key in row))
    lines = [["merge", *columns], ["---"] * (len(columns) + 1)]
    lines += [[label, *(f"{row[c]:.4g}" if c in row else "" for c in columns)] for label, row in rows.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--lora", action="store_true", help="merge adapters instead of full checkpoints")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("bench-merge"), help="where models are made and kept")
    parser.add_argument("--mergekit", default=str(Path(sys.executable).parent / "mergekit-yaml"))
    parser.add_argument("--growth", action="store_true", help="measure ours over growing models")
    parser.add_argument("--spaces", action="store_true", help="methods of whole matrices, beside fusion_bench")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        return work(options.work, options.folder, options.out)
    shape = options.shape
    if options.spaces:
        shape, rows = "matrix", spaces()
    elif options.growth:
        shape, rows = "growing", {f"{row['parameters_m']:.0f} M": row for row in growth(options.folder)}
    else:
        folder = (options.folder / options.shape).resolve()
        make(folder, SHAPES[options.shape], options.lora)
        rows = compare(folder, options.lora, not options.no_peers, options.mergekit)
    print(table(rows))
    print(
        json.dumps(
            {
                "benchmark": "merge",
                "shape": shape,
                "lora": options.lora,
                "rows": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
