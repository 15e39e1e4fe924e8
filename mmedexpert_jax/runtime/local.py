"""`--processes=N`: a job as N processes of this machine, which find each other as those of a cluster would."""

import os
import signal
import socket
import subprocess
import sys
import time

from mmedexpert_jax.runtime.processes import GRACE, LAUNCHER, VARIABLES
from mmedexpert_jax.runtime.signals import watched

_EVERY = 0.1  # seconds between two looks at the processes


def run(count: int, argv: list[str]) -> int:
    """Runs the command line `argv` in `count` processes, which share the devices of this machine: one each on GPUs.

    SIGINT, SIGTERM and SIGHUP are passed on. When a process fails, the others end too, by themselves or killed; when
    this one is killed, they save and stop.

    Returns:
        The exit code of the first process that failed, 128 + signal where one killed it; 0 where none did.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "mmedexpert_jax.launch", *argv]
    children: list[subprocess.Popen] = []

    def forward(number: int, frame: object) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(number)

    for number in watched():
        signal.signal(number, forward)
    # Keep the processes' talk on loopback, unless the user's own say otherwise: the coordinator listens everywhere by
    # default, and NCCL on the first network that it finds. Gloo, of CPUs, takes the address of the host's name.
    at_home = {"JAX_COORDINATOR_BIND_ADDRESS": address, "NCCL_SOCKET_IFNAME": "lo"}
    for i in range(count):
        variables = dict(zip(VARIABLES, (address, str(count), str(i)), strict=True))
        variables[LAUNCHER] = str(os.getpid())
        environment = {"JAX_LOCAL_DEVICE_IDS": str(i)} | at_home | os.environ | variables
        # a session of its own: the terminal's Ctrl-C reaches a process once, through `forward`
        children.append(subprocess.Popen(command, env=environment, start_new_session=True))
    return _wait(children)


def _wait(children: list[subprocess.Popen]) -> int:
    failed, since = -1, 0.0
    while any(child.poll() is None for child in children):
        if failed < 0:
            failed = next((i for i, child in enumerate(children) if child.poll()), -1)
            since = time.monotonic()
        elif time.monotonic() - since > 2 * GRACE:
            for child in children:
                child.kill()
        time.sleep(_EVERY)
    codes = [child.returncode for child in children]
    first = codes[failed] if failed >= 0 else max(codes, key=abs)
    code = first if first >= 0 else 128 - first
    if first < 0:
        name = signal.Signals(-first).name
        print(f"error: process {codes.index(first)} of {len(codes)} was ended by {name}", file=sys.stderr)
    return code
