"""Requests a second that `configs/serve.py` answers at 1, 8 and 64 clients, beside vLLM's server, same checkpoint.

    python benchmarks/serve.py                                # the embedded model
    python benchmarks/serve.py --vllm ~/vllm/bin/python       # beside vLLM (benchmarks/vllm_peer.py installs it)

Each client asks one question after the other for `--seconds`: text alone, 16 tokens sampled at temperature 1. Servers
take turns; both have answered before the clock begins.
"""

import argparse
import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rollout import found

import mmedexpert_jax as mx

CLIENTS = (1, 8, 64)


@contextlib.contextmanager
def ours(folder: Path) -> Iterator[str]:
    """The address of our server."""
    command = [sys.executable, "-m", "mmedexpert_jax.launch", "--config=configs/serve.py", "--config.name=served"]
    command += [f"--config.model.path={folder}", "--config.port=0", "--config.rows=64"]
    with _running(command, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()  # type: ignore[union-attr]
        yield re.findall(r"http://\S+/v1", line)[0]


@contextlib.contextmanager
def theirs(folder: Path, python: str) -> Iterator[str]:
    """The address of vLLM's server, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python, "-m", "vllm.entrypoints.openai.api_server", f"--model={folder}", f"--port={port}"]
    command += ["--host=127.0.0.1", "--served-model-name=served", "--max-model-len=1024", "--enforce-eager"]
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    outside |= {"VLLM_CPU_KVCACHE_SPACE": "2"}
    with _running([*command, "--dtype=float32"], env=outside, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        address = f"http://127.0.0.1:{port}/v1"
        while True:
            try:
                urllib.request.urlopen(f"{address}/models", timeout=5).close()
                break
            except OSError:
                time.sleep(1)
        yield address


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
    body = {"model": "served", "messages": messages, "max_tokens": 16, "temperature": 1.0, "seed": number}
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{address}/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=600) as response:
        response.read()


def rate(address: str, clients: int, seconds: float) -> float:
    """Requests a second."""
    began, counts = time.perf_counter(), [0] * clients

    def run(client: int) -> None:
        while time.perf_counter() - began < seconds:
            ask(address, counts[client] * clients + client)
            counts[client] += 1

    threads = [threading.Thread(target=run, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)


def main() -> None:
    """Starts the servers, measures, prints the table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--vllm", default=found(), help="Python of the environment of vllm_peer.py; empty: without")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name) / "model"
        mx.save_pretrained(folder, *mx.load_model(arguments.model), mx.load_processor(arguments.model))
        sides = {"ours": stack.enter_context(ours(folder))}
        if arguments.vllm:
            sides["vllm"] = stack.enter_context(theirs(folder, arguments.vllm))
        for address in sides.values():
            ask(address, 0)
        rates: dict[str, dict[int, float]] = {side: {} for side in sides}
        for clients in CLIENTS:
            for side, address in sides.items():
                rates[side][clients] = rate(address, clients, arguments.seconds)
    print("| side | " + " | ".join(f"{clients} clients" for clients in CLIENTS) + " |\n" + "| --- " * 4 + "|")
    for side, found_rates in rates.items():
        print(f"| {side} | " + " | ".join(f"{value:.2f}" for value in found_rates.values()) + " |")
    print(json.dumps({"benchmark": "serve", "model": arguments.model, "load": os.getloadavg()[0], "requests": rates}))


if __name__ == "__main__":
    main()
