"""Requests a second that `configs/serve.py` answers at 1, 8 and 64 clients, beside vLLM's server, same checkpoint.

    python benchmarks/serve.py                                # the embedded model
    python benchmarks/serve.py --vllm ~/vllm/bin/python       # beside vLLM (benchmarks/vllm_peer.py installs it)

Each client asks one question after the other for `--seconds`: text alone, 16 tokens sampled at temperature 1, the last
of which may be the end. Servers take turns, `--repeats` of them; before the clock begins each has answered as many
clients as will ask at a time, so that what is compiled on demand is there. Prints the median and the best turn.
"""

import argparse
import contextlib
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rollout import found

import mmedexpert_jax as mx

CLIENTS = (1, 8, 64)


@contextlib.contextmanager
def ours(folder: Path) -> Iterator[str]:
    """The address of our server."""
    command = [sys.executable, "-m", "mmedexpert_jax.launch", "--config=configs/serve.py", "--config.name=served"]
    command += [f"--config.model.path={folder}", f"--config.workdir={folder.parent / 'run'}"]
    command += ["--config.port=0", "--config.rows=64"]
    with _running(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:  # type: ignore[union-attr]  # it is a pipe
            if found_address := re.search(r"http://\S+/v1", line):
                yield found_address[0]
                return
    sys.exit("our server ended; the lines above say why")


@contextlib.contextmanager
def theirs(folder: Path, python: str, eager: bool, log: Path) -> Iterator[str]:
    """The address of vLLM's server, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", f"--model={folder}", f"--port={port}"]
    command += ["--host=127.0.0.1", "--served-model-name=served", "--max-model-len=1024", "--dtype=float32"]
    command += ["--generation-config=vllm", '--limit-mm-per-prompt={"image": 1, "video": 0}']
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    processors = sorted(os.sched_getaffinity(0))
    outside |= {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, processors))}
    outside.setdefault("OMP_NUM_THREADS", str(len(processors)))  # else vLLM leaves torch one thread
    address = f"http://127.0.0.1:{port}/v1"
    with log.open("w") as said:
        command += ["--enforce-eager"] * eager
        with _running(command, env=outside, stdout=said, stderr=subprocess.STDOUT) as process:
            while process.poll() is None:
                try:
                    urllib.request.urlopen(f"{address}/models", timeout=5).close()
                    yield address
                    return
                except OSError:
                    time.sleep(1)
    sys.exit(f"vLLM ended; the last lines of {log} say why")


@contextlib.contextmanager
def _running(command: list[str], **options: Any) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(command, **options)
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def ask(address: str, number: int) -> None:
    """One question, answered."""
    messages = [{"role": "user", "content": f"Is a score of {number % 20} high?"}]
    body = {"model": "served", "messages": messages, "max_tokens": 16, "temperature": 1.0}
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{address}/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=600) as response:
        response.read()


def rate(address: str, clients: int, seconds: float) -> float:
    """Requests a second."""
    began = time.perf_counter()

    def run(client: int) -> int:
        count = 0
        while not count or time.perf_counter() - began < seconds:
            ask(address, count * clients + client)
            count += 1
        return count

    with ThreadPoolExecutor(clients) as pool:
        counts = list(pool.map(run, range(clients)))
    return sum(counts) / (time.perf_counter() - began)


def main() -> None:
    """Starts the servers, measures, prints the table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--vllm", default=found(), help="Python of the environment of vllm_peer.py; empty: without")
    parser.add_argument("--vllm-eager", action="store_true", help="without torch.compile, which takes minutes")
    parser.add_argument("--vllm-log", type=Path, default=Path(tempfile.gettempdir()) / "vllm_server.log")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name) / "model"
        mx.save_pretrained(folder, *mx.load_model(arguments.model), mx.load_processor(arguments.model))
        sides = {"ours": stack.enter_context(ours(folder))}
        if arguments.vllm:
            peer = theirs(folder, arguments.vllm, arguments.vllm_eager, arguments.vllm_log)
            sides["vllm"] = stack.enter_context(peer)
        rates: dict[str, dict[int, list[float]]] = {side: {clients: [] for clients in CLIENTS} for side in sides}
        for clients in CLIENTS:
            for address in sides.values():
                rate(address, clients, 2)
            for _ in range(arguments.repeats):
                for side, address in sides.items():
                    rates[side][clients].append(rate(address, clients, arguments.seconds))
    print("| side | " + " | ".join(f"{n} clients: median | best" for n in CLIENTS) + " |\n" + "| --- " * 7 + "|")
    for side, by_clients in rates.items():
        cells = [f"{statistics.median(turns):.1f} | {max(turns):.1f}" for turns in by_clients.values()]
        print(f"| {side} | " + " | ".join(cells) + " |")
    print(json.dumps({"benchmark": "serve", "model": arguments.model, "load": os.getloadavg()[0], "requests": rates}))


if __name__ == "__main__":
    main()
