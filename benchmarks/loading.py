"""Loading a checkpoint of a published size: seconds, and the peak of anonymous memory beside the checkpoint.

    python benchmarks/loading.py --sizes medgemma_4b qwen3_vl_4b    # 9 GB of disk and of memory, in turn

Writes a bfloat16 checkpoint in the hub's layout, the same megabytes of random values over and over, in shards of at
most 5 GB, then loads it in a process of its own as `load_model(folder, dtype="bfloat16")` does, on this machine's CPU,
from the page cache as far as that holds it. With `--quantize nf4` or `int8` each weight is quantised as it is read.
Prints one JSON line for each size.
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from mmedexpert_jax.models.config import PUBLISHED, ModelConfig, own_file
from mmedexpert_jax.models.network import tensor_shapes

LOAD = """
import json, sys, threading, time
import jax
from mmedexpert_jax.models import load_policy

class Peak(threading.Thread):
    largest = 0
    def run(self):
        while True:
            with open("/proc/self/status") as status:
                line = next(line for line in status if line.startswith("RssAnon"))
            self.largest = max(self.largest, 1024 * int(line.split()[1]))
            time.sleep(0.005)

jax.devices()
peak = Peak(daemon=True)
peak.start()
began, cpu = time.perf_counter(), time.process_time()
leaves = jax.tree.leaves(jax.block_until_ready(load_policy(sys.argv[1], "bfloat16", quantize=sys.argv[2])[1]))
print(json.dumps({
    "seconds": round(time.perf_counter() - began, 1), "cpu_seconds": round(time.process_time() - cpu, 1),
    "gigabytes": round(sum(leaf.nbytes for leaf in leaves) / 1e9, 2), "peak_gigabytes": round(peak.largest / 1e9, 2),
}))
"""


def write(folder: Path, config: ModelConfig) -> int:
    """A checkpoint of the architecture; returns its bytes."""
    rename = getattr(own_file(config.family), "hub_name", str)
    block = np.random.default_rng(0).standard_normal(2**21, np.float32) * np.float32(0.02)
    block = (block.view(np.uint32) >> 16).astype(np.uint16).tobytes()  # bfloat16 by cutting: 4 MB
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    sizes = [0]
    for name, shape in tensor_shapes(config).items():
        if sizes[-1] + 2 * math.prod(shape) > 5e9 and shards[-1]:
            shards.append({})
            sizes.append(0)
        shards[-1][rename(name)] = shape
        sizes[-1] += 2 * math.prod(shape)
    names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    for file, tensors in zip(names, shards, strict=True):
        header, end = {}, 0
        for name, shape in tensors.items():
            start, end = end, end + 2 * math.prod(shape)
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
        head = json.dumps(header).encode()
        head += b" " * (-len(head) % 8)
        with (folder / file).open("wb") as target:
            target.write(len(head).to_bytes(8, "little") + head)
            for start in range(0, end, len(block)):
                target.write(block[: end - start])
    found = {name: file for file, tensors in zip(names, shards, strict=True) for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": found}))
    (folder / "config.json").write_text(json.dumps(config.to_hf()))
    return sum(sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", choices=PUBLISHED, default=["medgemma_4b", "qwen3_vl_4b"])
    parser.add_argument("--quantize", choices=["none", "int8", "nf4"], default="none")
    parser.add_argument("--folder", default=None, help="where the checkpoint is written and deleted")
    args = parser.parse_args()
    for size in args.sizes:
        folder = Path(tempfile.mkdtemp(dir=args.folder))
        try:
            stored = write(folder, PUBLISHED[size])
            command = [sys.executable, "-c", LOAD, str(folder), args.quantize]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        finally:
            shutil.rmtree(folder)
        figures = {"size": size, "quantize": args.quantize, "checkpoint_gigabytes": round(stored / 1e9, 2)}
        print(json.dumps({"benchmark": "loading"} | figures | found), flush=True)


if __name__ == "__main__":
    main()
