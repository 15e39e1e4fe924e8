"""`main`: from the command line to an exit code. Every error a user can cause is one line on stderr."""

import contextlib
import errno
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterator

import mmedexpert_jax
from mmedexpert_jax import border
from mmedexpert_jax.config import job_config as configs
from mmedexpert_jax.config.flags import COUNT, Flags, parse_flags
from mmedexpert_jax.errors import ConfigError, Interrupted, UserError, without_login
from mmedexpert_jax.launch.output import complain, say
from mmedexpert_jax.runtime import processes

USAGE = """\
usage: python -m mmedexpert_jax.launch --config configs/<job>.py[:preset] [--config.key=value ...]

  --config.key=value     set a field: numbers (1e-6, 1e3), true/false/yes/no, none, tuples (2,4); the last one wins
  --processes=N          run the job in N processes of this machine; on a cluster, see docs/cluster.md
  --overrides=file.json  set fields from a JSON object, before those of the command line
  --list_config          print the fields of a config with type, value and meaning
  --debug                show the traceback of an error
  --help, --version      print this, or the version

The same command again resumes a run; --config.fresh=True starts over.
Exit codes: 0 done, 1 unexpected error, 2 usage or config, 3 data, 4 resources, 5 remote endpoint,
130, 143 or 129 interrupted with a checkpoint saved.
"""


LONGEST = 900  # characters of an error
ALONE = ("ask", "serve", "review")  # jobs that talk to people, once


def main(argv: list[str]) -> int:
    """Runs one command; `argv` holds the arguments after the program's name. Returns the exit code."""
    return guarded(lambda: _dispatch(parse_flags(argv), argv), "--debug" in argv)


class Outlet(io.TextIOWrapper):
    """Output of a job, which goes on where its reader has gone, and escapes letters that its encoding lacks."""

    def __init__(self, stream: io.TextIOWrapper):
        at_once = stream.line_buffering, stream.write_through
        super().__init__(stream.buffer, stream.encoding, "backslashreplace", None, *at_once)

    def write(self, text: str) -> int:
        """Writes, to nowhere where nobody reads."""
        with self._steadily():
            super().write(text)
        return len(text)

    def flush(self) -> None:
        """Flushes, to nowhere where nobody reads."""
        with self._steadily():
            super().flush()

    @contextlib.contextmanager
    def _steadily(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # what could not be written stays in the buffer, and must not fail once more when the process ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            if error.errno not in (errno.EPIPE, errno.EIO):  # the end of a pipe, a terminal that was closed
                raise


def steady() -> None:
    """Makes the process's own output such that it ends no job; a stream that was closed before leads nowhere."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (open as long as the process)
        elif stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            stream.flush()
            setattr(sys, name, Outlet(stream))


def guarded(command: Callable[[], int], debug: bool = False) -> int:
    """The exit code of a command: whatever it raises becomes one line, behind a traceback where one debugs."""
    steady()
    try:
        return command()
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _fail(*explain(error))
    except KeyboardInterrupt:
        return _fail("interrupted before anything was saved", 130)


def _fail(message: str, code: int) -> int:
    """Says the last line and gives the exit code; with several processes, the others end with this one."""
    if code == 1 and (failure := processes.failure()):  # another one's: the connection to it broke
        message, code = failure
    complain(processes.signed(message))
    processes.leave(message, code)
    return code


def explain(error: Exception) -> tuple[str, int]:
    """One line for an exception, and the exit code that goes with it."""
    text = " ".join(without_login(str(error)).split())
    if len(text) > LONGEST:  # the file or key comes first, the fix last
        text = f"{text[: LONGEST // 2]} ... {text[-LONGEST // 3 :]}"
    if isinstance(error, Interrupted):
        return f"interrupted: {text}", error.exit_code
    if isinstance(error, UserError):
        return f"error: {text}", error.exit_code
    if isinstance(error, RuntimeError) and "home directory" in text:  # of Path.expanduser, which does not say whose
        return "error: a path begins with ~ and the name of nobody here; write the folder out", 2
    if isinstance(error, ValueError) and text.startswith("embedded null"):  # of any call that takes a path
        return "error: a path holds a zero byte, which no file's name can; write it out", 2
    if isinstance(error, FileNotFoundError) and error.filename is None and not _in_a_folder():
        return "error: the current folder is gone; cd to one that is there", 4
    if isinstance(error, PermissionError):
        return f"error: {error.strerror}: {error.filename}; fix its permissions or choose another path", 4
    if isinstance(error, OSError) and error.filename is not None:
        reason = (error.strerror or type(error).__name__).lower()
        return f"error: {border.cut(os.fspath(error.filename), 200)}: {reason}; choose another path", 4
    if isinstance(error, OSError) and error.errno in border.DISK_ERRORS:
        return (
            f"error: {(error.strerror or '').lower()}: the output cannot be written; free some, or send it elsewhere",
            4,
        )
    return f"error: {type(error).__name__}: {text[:300]}; run with --debug for the traceback", 1


def _in_a_folder() -> bool:
    """False where the current folder has been deleted."""
    try:
        return bool(os.getcwd())
    except FileNotFoundError:
        return False


def usage() -> str:
    """The text of --help: usage, jobs and their presets."""
    lines = [USAGE, "configs (presets; the first is the default):"]
    for name, path in configs.available().items():
        summary, presets = configs.about(path)
        lines += [f"  {name} ({', '.join(presets) or 'no presets'})", f"      {summary}"]
    return "\n".join(lines)


def _dispatch(flags: Flags, argv: list[str]) -> int:
    if flags.help:
        return say(usage())
    if flags.version:
        return say(f"mmedexpert-jax {mmedexpert_jax.__version__}")
    if not flags.config:
        known = ", ".join(configs.available())
        raise ConfigError(f"no config given; add --config=<file>, one of {known}, or see --help")
    config = configs.read_config(flags.config)
    configs.override(config, flags.overrides)
    if flags.list_config:
        docs = configs.field_docs(configs.locate(flags.config), config.get("job", ""))
        return say(configs.format_config(config, docs, tall=sys.stdout.isatty()))
    if flags.processes > 1 and config.get("job") in ALONE:
        raise ConfigError(f"the job {config.job} answers in one process; leave out {COUNT}={flags.processes}")
    if flags.processes > 1 and not processes.named():
        from mmedexpert_jax.runtime import local

        return local.run(flags.processes, argv)
    if config.get("job") != "review":
        processes.start()
    from mmedexpert_jax.launch import jobs

    if configs.hides(path := configs.locate(flags.config)) and processes.is_writer():
        complain(f"{path} is read, not the package's own of this name")
    jobs.launch(config)
    return 0
