"""A terminal for tests: a command runs in it, and its screen comes back as lines, as a person would see them.

`pyte` emulates it in this process; `tmux` is the real thing, where it is installed.
"""

import fcntl
import os
import pty
import re
import select
import shlex
import shutil
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyte

EMULATORS = ["pyte", *(["tmux"] if shutil.which("tmux") else [])]
LONGEST = 300  # seconds that a command may take on a busy machine


def screen(emulator: str, command: Sequence[str], columns: int, lines: int = 40, **given: str) -> list[str]:
    """The lines of a terminal of `columns` x `lines` after a command has ended in it; `given`: of its environment."""
    unset = {"NO_COLOR", "COLUMNS", "LINES", "FORCE_COLOR", "TERM"}
    environment = {name: value for name, value in os.environ.items() if name not in unset} | given
    run: Callable = {"pyte": _pyte, "tmux": _tmux}[emulator]
    shown = [line.rstrip() for line in run(list(command), columns, lines, environment)]
    while shown and not shown[-1]:
        shown.pop()
    return shown


def coloured(command: Sequence[str], columns: int = 80, **given: str) -> bool:
    """True where a command draws in colours or bold on a terminal."""
    raw = b"".join(_run(list(command), columns, 40, {"TERM": "xterm-256color", **os.environ, **given}))
    return bool(re.search(rb"\x1b\[[0-9;]*3[0-9]", raw))


def steady(lines: Sequence[str]) -> str:
    """A screen as text whose clocks are all 0:00:00, so that it is the same on every machine."""
    return "\n".join(re.sub(r"\d+:\d\d:\d\d", "0:00:00", line) for line in lines)


def _pyte(command: list[str], columns: int, lines: int, environment: Mapping[str, str]) -> list[str]:
    emulated = pyte.Screen(columns, lines)
    stream = pyte.ByteStream(emulated)
    for content in _run(command, columns, lines, {"TERM": "xterm-256color", **environment}):
        stream.feed(content)
    return list(emulated.display)


def _run(command: list[str], columns: int, lines: int, environment: Mapping[str, str]):
    """What a command writes to a terminal of its own, as it comes."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=dict(environment))
    os.close(theirs)
    while select.select([ours], [], [], LONGEST)[0]:
        try:
            content = os.read(ours, 65536)
        except OSError:  # how Linux says that the other side is closed
            break
        yield content
    process.wait(LONGEST)
    os.close(ours)


def _tmux(command: list[str], columns: int, lines: int, environment: Mapping[str, str]) -> list[str]:
    """tmux starts its server with the environment that it is given; the pane stays when the command has ended."""
    name = f"mmedexpert-{os.getpid()}-{time.monotonic_ns()}"
    tmux = ["tmux", "-L", name, "-f", "/dev/null"]
    settings = "set -g remain-on-exit on ; set -g status off ; set -g remain-on-exit-format ''"
    kept = {key: value for key, value in environment.items() if key not in ("TMUX", "TMUX_PANE")}
    kept["TERM"] = "xterm-256color"
    try:
        words = ["new-session", "-d", "-x", str(columns), "-y", str(lines), shlex.join(["sleep", "1"])]
        subprocess.run([*tmux, *words, ";", *shlex.split(settings)], env=kept, check=True)
        respawn = ["respawn-pane", "-k", "-c", str(Path.cwd()), shlex.join(command)]
        subprocess.run([*tmux, *respawn], env=kept, check=True)
        state = [*tmux, "list-panes", "-F", "#{pane_dead}"]
        for _ in range(10 * LONGEST):
            dead = subprocess.run(state, capture_output=True, text=True, check=True)
            if dead.stdout.strip() == "1":
                break
            time.sleep(0.1)
        shown = subprocess.run([*tmux, "capture-pane", "-p"], capture_output=True, text=True, check=True)
        return shown.stdout.splitlines()
    finally:
        subprocess.run([*tmux, "kill-server"], capture_output=True, check=False)
