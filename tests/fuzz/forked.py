"""A job in processes of its own, forked from one that has imported the package: it starts in a moment."""

import multiprocessing
import os
import resource
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmedexpert_jax.runtime.processes import VARIABLES

PRELOADED = [
    *("mmedexpert_jax.launch.jobs", "mmedexpert_jax.sft", "mmedexpert_jax.gba", "mmedexpert_jax.medeval"),
    *("mmedexpert_jax.merging", "mmedexpert_jax.mmedexpert", "mmedexpert_jax.train.learner", "mmedexpert_jax.models"),
    *("mmedexpert_jax.launch.held_out", "mmedexpert_jax.runtime.report", "mmedexpert_jax.runtime.plots"),
    *("mmedexpert_jax.mmedexpert.review.review_job", "mmedexpert_jax.mmedexpert.review.review_server", "openai"),
    *("mmedexpert_jax.launch.serve", "mmedexpert_jax.rollout.server", "mmedexpert_jax.launch.ablation_result"),
    *("transformers", "matplotlib.figure", "matplotlib.backends.backend_svg", "uvicorn", "tests.fuzz.forked"),
]
STARTED: list["Forked"] = []
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Forked:
    """A job's processes, and the file of their output."""

    processes: list[Any]
    output: Path

    def work(self) -> float:
        """CPU seconds so far of those that run: on a machine that is shared, the clock says nothing."""
        return sum(_cpu(process.pid) for process in self.processes)

    def works(self, seconds: float) -> bool:
        """Waits until so much work is done; False where the job has ended before."""
        while self.alive() and self.work() < seconds:
            time.sleep(0.03)
        return self.alive()

    def alive(self) -> bool:
        """True while all processes run."""
        return all(process.exitcode is None for process in self.processes)

    def send(self, number: int) -> None:
        """Sends a signal to all processes that run, as the end of a machine or of a cluster's job does."""
        for process in self.processes:
            if process.exitcode is None:
                os.kill(process.pid, number)

    def kill(self) -> bool:
        """Kills the job and waits for its end; False where it had ended before."""
        self.send(signal.SIGKILL)
        return -signal.SIGKILL in self.ended()

    def ended(self) -> list[int]:
        """The exit codes, waited for."""
        for process in self.processes:
            process.join()
        return [process.exitcode for process in self.processes]

    def finish(self) -> None:
        """Waits for a good end."""
        codes = self.ended()
        assert not any(codes), (codes, self.output.read_text()[-2000:])


def _cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def start(arguments: list[str], output: Path, count: int = 1, devices: int = 1, room: int = 0) -> Forked:
    """Starts a command line in `count` processes of `devices` CPU devices each; runs share compiled programs.

    `room` is the size in bytes beyond which no file grows, as on a disk that is full there; 0: none.
    """
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # of the fork server, which starts with the first
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    begun = []
    for index in range(count):
        values = dict(zip(VARIABLES, (address, str(count), str(index)), strict=True)) if count > 1 else {}
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        given = (arguments, str(output), values | {"XLA_FLAGS": flags}, room)
        begun.append(context.Process(target=run, args=given))
        begun[-1].start()
    STARTED.append(Forked(begun, output))
    return STARTED[-1]


def run(arguments: list[str], output: str, environment: dict[str, str], room: int) -> None:
    """Runs the command line and ends the process with its exit code; what it prints goes to the file `output`."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_WRONLY) if room else file, 1)
    os.dup2(file, 2)
    os.environ.update(environment)
    if room:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    from mmedexpert_jax.launch.cli import main

    sys.exit(main(arguments))
