"""The job `review`: serve the page, pass verdicts to and from other tools, or report."""

import contextlib
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ml_collections import ConfigDict

from mmedexpert_jax.errors import ConfigError, DataError, needs
from mmedexpert_jax.mmedexpert.factory_store import Store, private
from mmedexpert_jax.mmedexpert.record import Trace
from mmedexpert_jax.mmedexpert.review import argilla, import_export, label_studio, review_report
from mmedexpert_jax.mmedexpert.review.access import Access, secret
from mmedexpert_jax.mmedexpert.review.adjudication import ReviewSettings
from mmedexpert_jax.mmedexpert.review.events import since
from mmedexpert_jax.mmedexpert.review.review_queue import ReviewQueue
from mmedexpert_jax.mmedexpert.review.review_traces import locate, open_review
from mmedexpert_jax.runtime import files

EVENTS, EVENT = 10, 2000  # actions of a verdict (opened, rubric, reasons, ...), and bytes of one, on the safe side


@dataclass(frozen=True)
class Opened:
    """A review that is open: where its traces come from, and its store."""

    data: str
    folder: Path
    store: Store
    traces: list[Trace]


def run(config: ConfigDict) -> None:
    """Carries out `config.action`: "serve" until interrupted, "export", "import" or "report".

    The trail is never deleted: `fresh` is refused.

    Raises:
        ConfigError, DataError, ResourceError: as the parts say.
    """
    if config.fresh:
        raise ConfigError("config.fresh: verdicts of people are never deleted; choose another workdir to start over")
    with private():
        opened = _open(config)
        with contextlib.closing(opened.store):
            print(f"reviewing {len(opened.traces)} traces of {opened.data}, events in {opened.store.path}", flush=True)
            {"serve": _serve, "export": _export, "import": _import, "report": _report}[config.action](config, opened)


def describe(config: ConfigDict) -> str:
    """A plan of the job in a few lines; nothing is written."""
    if config.action == "serve":
        needs("serve")
    opened = _open(config)
    settings = settings_of(config)
    double = sum(settings.needed(trace.id) > 1 for trace in opened.traces)
    required = sum(settings.needed(trace.id) for trace in opened.traces)
    events = len(since(opened.store))
    opened.store.close()
    lines = [
        f"job      {config.job}, {config.action}",
        f"traces   {len(opened.traces)} of {opened.data}, {double} of them for {settings.raters} reviewers",
        f"verdicts {required} in all, {events} events so far",
        f"people   {', '.join(settings.reviewers)}; adjudicators {', '.join(settings.adjudicators) or 'none'}",
        f"workdir  {opened.folder}",
        f"disk     at most about {required * EVENTS * EVENT / 1e6:.1f} MB of events for all verdicts",
        "nothing was run; leave out --config.plan to start",
    ]
    return "\n".join(lines)


def settings_of(config: ConfigDict) -> ReviewSettings:
    """The settings that decide who sees what."""
    return ReviewSettings(config.reviewers, config.adjudicators, config.overlap, config.raters, config.seed)


def _open(config: ConfigDict) -> Opened:
    folder = Path(config.workdir)
    data = locate(config.data.path, config.preset)
    if not config.plan:
        with files.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
    found = open_review(data, folder, config.split, config.limit, config.seed, make=not config.plan)
    return Opened(data, folder, *found)


def _serve(config: ConfigDict, opened: Opened) -> None:
    desk = ReviewQueue(opened.store, opened.traces, settings_of(config))
    access = Access(secret(opened.folder), config.reviewers, config.adjudicators)
    needs("serve")
    from mmedexpert_jax.mmedexpert.review.review_server import ReviewServer

    server = ReviewServer(config.host, config.port, desk, access, config.blind)
    desk.announce()
    for person, link in access.links(config.host, server.port).items():
        print(f"{person.role} {person.name}: {link}", flush=True)
    if not server.loopback:
        print(
            f"warning: {config.host} may be reached by others, over plain HTTP; an SSH tunnel to 127.0.0.1 is safer",
            file=sys.stderr,
        )
    print("every action is saved as it happens; Ctrl-C stops, the same command goes on", flush=True)
    with _stoppable():
        server.run()
    progress = desk.progress()
    print(f"\n{progress['verdicts']} of {progress['required']} verdicts, {progress['conflict']} to adjudicate")
    if command := build_command(Path(opened.data)):
        print(f"to build what was accepted: {command}", flush=True)


def build_command(folder: Path) -> str:
    """The command that builds from the verdicts: the one that made the dataset run in `folder`, for this stage alone;
    "" where it is not known."""
    try:
        words = shlex.split((folder / "cmd.txt").read_text().splitlines()[-1])
    except (OSError, IndexError, ValueError):
        return ""
    if "mmedexpert_jax.launch" not in words:
        return ""
    once = ("--config.stages", "--config.reviewed", "--config.fresh", "--config.plan")
    kept, rest = [], words[words.index("mmedexpert_jax.launch") :]
    while rest:
        word = rest.pop(0)
        if word.partition("=")[0] not in once:
            kept.append(word)
        elif "=" not in word and rest and not rest[0].startswith("--"):  # its value stands behind a blank
            rest.pop(0)
    return shlex.join(["python", "-m", *kept, "--config.stages=build", "--config.reviewed=accepted"])


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Ends quietly at SIGINT and SIGTERM, also where the process was started with SIGINT ignored (a shell's `&`)."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    main = threading.current_thread() is threading.main_thread()  # Python allows handlers nowhere else
    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM) if main}
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _export(config: ConfigDict, opened: Opened) -> None:
    folder = Path(config.exchange.path or opened.folder / "export").expanduser()
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    verdicts = config.exchange.verdicts
    if config.exchange.tool == "label_studio":
        paths = label_studio.write(opened.store, opened.traces, folder, verdicts)
    elif config.exchange.tool == "argilla":
        raters = config.raters if config.overlap == 1 else 1
        paths = argilla.write(opened.store, opened.traces, folder, verdicts, raters)
    else:
        paths = import_export.write_trail(opened.store, opened.traces, folder)
    print("\n".join(f"  wrote {path}" for path in paths), flush=True)


def _import(config: ConfigDict, opened: Opened) -> None:
    if not config.exchange.path:
        raise ConfigError("config.exchange.path is empty; name the file to import")
    path, tool = Path(config.exchange.path).expanduser(), config.exchange.tool
    if not path.exists():
        raise DataError(f"config.exchange.path: no such file: {path}")
    names = _names(config.exchange.names)
    if tool == "trail":
        counts: Mapping[str, int] = import_export.read_trail(opened.store, path)
    else:
        read = {"label_studio": label_studio.read, "argilla": argilla.read}[tool]
        opinions = list(read(path, names))
        counts = import_export.take_in(opened.store, opened.traces, opinions, tool)
        nobody = sorted(set(names.values()) - {opinion.reviewer for opinion in opinions})
        if nobody:
            print(f"config.exchange.names: {path} holds nobody who is {', '.join(nobody)}", flush=True)
    found = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
    print(f"imported {path}: {found or 'no verdict in it'}", flush=True)


def _names(pairs: tuple[str, ...]) -> dict[str, str]:
    names: dict[str, str] = {}
    for pair in pairs:
        theirs, equals, ours = pair.partition("=")
        if not equals or not theirs or not ours:
            raise ConfigError(f"config.exchange.names: {pair!r} is not theirs=ours, such as anna@clinic.example=anna")
        if names.setdefault(theirs, ours) != ours:
            raise ConfigError(f"config.exchange.names: {theirs!r} is both {names[theirs]!r} and {ours!r}")
    return names


def _report(config: ConfigDict, opened: Opened) -> None:
    figures = review_report.summary(opened.store, opened.traces)
    text = review_report.markdown(figures)
    files.write_json(opened.folder / "agreement.json", figures)
    files.write_text(opened.folder / "report.md", f"# Review of {opened.data}\n\n{text}")
    print(f"{text}\n  wrote {opened.folder / 'agreement.json'} and report.md", flush=True)
