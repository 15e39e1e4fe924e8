"""Every measurement that wants a GPU, one after the other, in less than 20 minutes; nothing is fetched from a network.

    python benchmarks/gpu.py [--out FOLDER] [--only fused rollout ...]

Each part has a limit of its own and writes FOLDER/<part>.txt; a part that fails or runs out of time does not stop the
rest. Without torch for CUDA the peers are left out. Prints what each part took, and fails if any did.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROLLOUT = "rollout.py --sizes qwen2_vl_2b --dtype bfloat16 --repeats 1"
UPDATE = "update.py --model random:qwen2_vl_2b --dtype bfloat16 --prompt 700 --mean 300 --limit 1024"
# part: (command, seconds at most); 1,190 seconds in all
PARTS = {
    "fused": ("fused.py", 60),
    "rollout": (f"{ROLLOUT} --work 1x8x1024 8x8x1024 32x8x1024", 260),
    "rollout_spread": (f"{ROLLOUT} --work 1x8x1024~300 8x8x1024~300 32x8x1024~300", 200),
    "sync": (f"{ROLLOUT} --work 32x8x1024 --sync", 90),
    "update": (f"{UPDATE} --remat --no-torch --peak 989", 130),
    "gba_thousand": ("gba_thousand.py", 330),
    "dsa_thousand": ("dsa_thousand.py", 120),
}


def peers() -> bool:
    """True where torch is there and sees a GPU."""
    if importlib.util.find_spec("torch") is None:
        return False
    check = [sys.executable, "-c", "import sys, torch; sys.exit(not torch.cuda.is_available())"]
    return subprocess.run(check).returncode == 0


def run(name: str, folder: Path, torch: bool) -> bool:
    """One part: whether it ended well within its time."""
    command, limit = PARTS[name]
    words = [sys.executable, *command.split()]
    words[1] = str(HERE / words[1])
    if name.startswith("rollout") and not torch:
        words.append("--no-torch")
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    settings = {
        "PYTHONPATH": path,
        "HF_HUB_OFFLINE": "1",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # torch needs room too
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
    }
    began = time.perf_counter()
    with (folder / f"{name}.txt").open("w") as out:
        try:
            code = subprocess.run(
                words, env=os.environ | settings, stdout=out, stderr=subprocess.STDOUT, timeout=limit
            ).returncode
        except subprocess.TimeoutExpired:
            code = "out of time"
    print(f"{name:16} {time.perf_counter() - began:7.1f} s  {code or 'done'}", flush=True)
    return not code


def main() -> None:
    """Runs the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu"))
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch = peers()
    done = [run(name, arguments.out.resolve(), torch) for name in arguments.only]
    sys.exit(not all(done))


if __name__ == "__main__":
    main()
