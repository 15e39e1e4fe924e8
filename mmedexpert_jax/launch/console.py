"""The console script: `mmedexpert gba:mini lr=1e-5 steps=10`, and commands that are no jobs.

The short form is the long one, `python -m mmedexpert_jax.launch --config=configs/gba.py:mini --config.lr=1e-5
--config.steps=10`, with less to type: both go through `cli.main`.
"""

import difflib
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmedexpert_jax import border
from mmedexpert_jax.config import flatten
from mmedexpert_jax.config import job_config as configs
from mmedexpert_jax.config.flags import COUNT
from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.launch import cli, output
from mmedexpert_jax.report import text_tables
from mmedexpert_jax.runtime import files, metrics
from mmedexpert_jax.runtime.run import read_status, saved_config

SWITCHES = ("--plan", "--fresh")  # fields that are so often set by hand that they are flags here
GROUPS = {
    "make data": ("dataset", "review", "contamination"),
    "train": ("dsa", "gba", "merge", "pipeline"),
    "look": ("evaluate", "ablation"),
    "use": ("export", "ask", "serve"),
    "the model that ships": ("pretrain",),
}
# Figures of a row of metrics that tell how a run went, with their names for people.
FIGURES = {
    "eval/accuracy": "held-out accuracy",
    "rewards/accuracy/mean": "accuracy of samples",
    "reward": "reward",
    "loss": "loss",
    "kl": "KL",
    "completions/mean_length": "tokens of an answer",
}
# What other tools, and people, call a job or a command -> ours.
JOBS_ELSEWHERE = {
    **dict.fromkeys(("sft", "finetune", "fine-tune", "lora", "experts"), "dsa"),
    **dict.fromkeys(("train", "grpo", "rl", "ppo", "rlhf", "rlvr"), "gba"),
    **dict.fromkeys(("eval", "test", "score", "benchmark", "lm_eval"), "evaluate"),
    **dict.fromkeys(("generate", "infer", "inference", "predict", "answer"), "ask"),
    **dict.fromkeys(("chat", "api", "server", "web", "webui"), "serve"),
    **dict.fromkeys(("ties", "mergekit", "mergekit-yaml", "merge_adapter"), "merge"),
    **dict.fromkeys(("data", "factory", "synthesize", "traces"), "dataset"),
    **dict.fromkeys(("validate", "check", "lint"), "check-data"),
    **dict.fromkeys(("init", "new", "example"), "new-data"),
    **dict.fromkeys(("convert", "import"), "convert-data"),
    **dict.fromkeys(("save", "push", "upload"), "export"),
    **dict.fromkeys(("diff", "report"), "compare"),
}
USAGE = """\
usage: mmedexpert <job>[:preset] [field=value ...] [--plan] [--fresh]
       mmedexpert <command> ...

  mmedexpert gba:mini lr=1e-5 steps=10     a job; the same again resumes it
  mmedexpert gba:mini --plan               what it would read, need and write
  mmedexpert gba --help                    the fields of a job, explained
"""
COMPLETIONS = {
    "bash": """\
_mmedexpert() {
  local line=${COMP_LINE:0:COMP_POINT} breaks=${COMP_WORDBREAKS//[^:=]/} IFS=' ' before cut=
  local word=${line##* }
  read -ra before <<< "${line%"$word"}"
  IFS=$'\\n'
  COMPREPLY=($(compgen -W "$(mmedexpert completion words "${before[1]}" 2>/dev/null)" -- "$word"))
  [[ ${COMPREPLY[0]} == *= ]] && compopt -o nospace
  [[ $breaks ]] && cut=${word%"${word##*[$breaks]}"}  # readline takes what follows : or = for a word
  COMPREPLY=("${COMPREPLY[@]#"$cut"}")
}
complete -F _mmedexpert mmedexpert
""",
    "zsh": """\
#compdef mmedexpert
_mmedexpert() { compadd -S '' -- ${(f)"$(mmedexpert completion words ${words[2]} 2>/dev/null)"} }
compdef _mmedexpert mmedexpert
""",
    "fish": """\
complete -c mmedexpert -f -a '(mmedexpert completion words (commandline -opc)[2] 2>/dev/null)'
""",
}


def main(argv: list[str] | None = None) -> int:
    """Runs a command or a job; `argv` holds the arguments after the program's name. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or (argv[0] in ("-h", "--help", "help") and len(argv) == 1):
        return cli.guarded(lambda: output.say(usage()))
    if argv[0] == "help":
        argv = [*argv[1:], "--help"]
    if argv[0] in COMMANDS:
        return cli.guarded(lambda: output.say(_command(*argv)))
    return cli.guarded(lambda: _known(argv[0])) or cli.main(expand(argv))


def _command(name: str, *arguments: str) -> str:
    """The text that a command which is no job prints; its help is its line in `usage`. Raises UserError."""
    meaning, run = COMMANDS[name]
    if {"-h", "--help"} & {*arguments}:
        return f"mmedexpert {name}: {meaning}"
    if flags := [argument for argument in arguments if argument.startswith("-")]:
        raise ConfigError(f"{name} has no flag {border.shown(flags[0])}; {meaning}")
    return run(list(arguments))


def _known(word: str) -> int:
    """0 for a first word that is a job's name, or has another form; raises ConfigError for the name of none."""
    name, *_ = word.split(":")
    if not re.fullmatch(r"[A-Za-z][\w-]*", name):
        return 0
    names = [*(path.stem for path in configs.available().values()), *COMMANDS]
    if name in names:
        return 0
    meant = name.lower()
    close = [JOBS_ELSEWHERE[meant]] if meant in JOBS_ELSEWHERE else difflib.get_close_matches(meant[:100], names, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    raise ConfigError(f"no job or command {border.shown(name)}; {hint}there are {', '.join(names)}; see --help")


def expand(argv: list[str]) -> list[str]:
    """The long form of a command line: a job, fields, also as --name=value, and switches become `--config...` flags."""
    found: list[str] = []
    waiting = ""  # the word before, where it is a flag of the long form that may have its value in this one
    for argument in argv:
        name, equals, value = argument.partition("=")
        chosen = any(flag == "--config" or flag.startswith("--config=") for flag in found)
        if _is_value(waiting, argument, chosen):
            found.append(argument)
            waiting = ""
            continue
        waiting = argument if not equals and name.startswith(("--config", "--overrides", COUNT)) else ""
        if argument in SWITCHES:
            found.append(f"--config.{argument[2:]}=True")
        elif argument in ("-h", "--help") and found:
            found.append("--list_config")
        elif equals and name.startswith("--") and not name.startswith(("--config", "--overrides", COUNT)):
            found.append(f"--config.{name[2:].replace('-', '_')}={value}")  # a field, as most other tools write one
        elif argument.startswith("-"):
            found.append(argument)
        elif equals and re.fullmatch(r"[A-Za-z_][\w.]*", name):
            found.append(f"--config.{argument}")
        elif not chosen:
            found.append(f"--config={_config(argument)}")
        else:
            found.append(argument)
    return found


def _is_value(flag: str, argument: str, chosen: bool) -> bool:
    """True for a word that is the value of the flag before it, and no field (a switch may stand before one) or job."""
    name, equals, _ = argument.partition("=")
    if not flag or argument.startswith("-") or (equals and configs.is_field(name)):
        return False
    return chosen or not flag.startswith("--config.")


def _config(word: str) -> str:
    """The config file of a job's name, with its preset; what has the form of a path, or of a module, stays."""
    name, _, preset = word.partition(":")
    path = name if "." in name or "/" in name else f"configs/{name}.py"
    return f"{path}:{preset}" if preset else path


def usage() -> str:
    """The text of --help: the jobs by what they are for, with their presets, and the other commands."""
    known = {path.stem: path for path in configs.available().values()}
    lines = [USAGE]
    grouped = [name for names in GROUPS.values() for name in names]
    for title, names in (GROUPS | {"more": tuple(name for name in known if name not in grouped)}).items():
        here = [name for name in names if name in known]
        lines += [f"{title}:"] if here else []
        for name in here:
            summary, presets = configs.about(known[name])
            lines.append(f"  {name:15}{summary}" + (f" [{', '.join(presets)}]" if presets else ""))
    lines += ["commands:", *(f"  {name:15}{help}" for name, (help, _) in COMMANDS.items())]
    return "\n".join(
        [*lines, "exit codes: 0 done, 2 usage or config, 3 data, 4 resources, 5 endpoint, 129/130/143 interrupted"]
    )


def completion(arguments: list[str]) -> str:
    """The script that teaches a shell to complete; with "words", the words that may follow a first one."""
    if arguments[:1] == ["words"]:
        return "\n".join(_words(arguments[1] if len(arguments) > 1 else ""))
    if len(arguments) != 1 or arguments[0] not in COMPLETIONS:
        raise ConfigError(f"give a shell: mmedexpert completion {'|'.join(COMPLETIONS)}")
    return COMPLETIONS[arguments[0]]


def _words(first: str) -> list[str]:
    """Jobs with their presets and commands, or, behind a job, its fields."""
    try:
        config = configs.read_config(_config(first)) if first else None
    except ConfigError:
        config = None
    if config is not None:
        return [*(f"{key}=" for key in configs.fields(config) if key not in configs.FIXED), *SWITCHES]
    jobs = [
        f"{path.stem}:{preset}" if preset else path.stem
        for path in configs.available().values()
        for preset in ("", *configs.about(path)[1])
    ]
    return [*jobs, *COMMANDS]


def compare(arguments: list[str]) -> str:
    """Runs side by side: fields that differ, the last and best figures of each, and what evaluations measured."""
    if len(arguments) < 2:
        raise ConfigError("give at least two run directories: mmedexpert compare runs/a runs/b")
    return "\n\n".join([side_by_side(arguments), *_evaluated(arguments)])


def side_by_side(folders: Sequence[str]) -> str:
    """Two tables: the fields in which the runs differ, and state, step and figures, first -> last, of each.

    Raises ConfigError where a folder is no run.
    """
    paths = [Path(folder).expanduser() for folder in folders]
    for path in paths:
        if not files.is_run(path):
            raise ConfigError(f"{border.cut(str(path), 200)} is no run directory; give folders such as runs/gba-mini")
    names = [str(path) for path in paths]
    configs = [dict(flatten(saved_config(path))) for path in paths]
    for path in (path for path, config in zip(paths, configs, strict=True) if not config):
        output.complain(f"{path / 'config.json'} is missing or damaged: its fields are not compared")
    known = [name for name, config in zip(names, configs, strict=True) if config]
    configs = [config for config in configs if config]
    keys = dict.fromkeys(key for config in configs for key in config if key != "workdir")
    different = [key for key in keys if len({repr(config.get(key)) for config in configs}) > 1]
    fields = [
        {"field": key} | {name: border.shown(config.get(key), 40) for name, config in zip(known, configs, strict=True)}
        for key in different
    ]
    columns = [_figures(path) for path in paths]
    rows = [
        {"": row} | {name: column.get(row, "-") for name, column in zip(names, columns, strict=True)}
        for row in dict.fromkeys(row for column in columns for row in column)
    ]
    same = "the configs are the same but for their workdir" if len(known) > 1 else "no two configs to compare"
    head = text_tables.aligned(fields) if fields else same
    return f"{head}\n\n{text_tables.aligned(rows)}"


def _evaluated(folders: Sequence[str]) -> list[str]:
    """A table of the accuracies that the runs' evaluations have, in a list; an empty one where none has."""
    paths = [Path(folder).expanduser() for folder in folders]
    if not any((path / "export" / "summary.json").exists() for path in paths):
        return []
    from mmedexpert_jax.launch.closing import compared_runs

    rows = [{key: str(cell) for key, cell in row.items()} for row in compared_runs(paths)]
    return [text_tables.aligned(rows)] if rows else []


def _figures(path: Path) -> dict[str, Any]:
    """State and step of a run, and its figures from first to last."""
    status, rows = read_status(path), metrics.read(path)
    found: dict[str, Any] = {"state": status.get("state", "unknown"), "step": status.get("step", 0)}
    for name, label in FIGURES.items():
        values = [row[name] for row in rows if isinstance(row.get(name), int | float)]
        if values:
            found[label] = f"{values[0]:.4g} -> {values[-1]:.4g}"
    seconds = (status.get("cost") or {}).get("wall_seconds")
    return found | ({"wall seconds": f"{seconds:.0f}"} if seconds else {})


def new_data(arguments: list[str]) -> str:
    """Writes the example of a data set of one's own."""
    from mmedexpert_jax.data.new_data import write_example

    if len(arguments) != 1:
        raise ConfigError("give a new folder: mmedexpert new-data my_cases")
    files = write_example(arguments[0])
    return "\n".join([*map(str, files), f"next: mmedexpert check-data {shlex.quote(arguments[0])}"])


def check_data(arguments: list[str]) -> str:
    """All faults of a data set, counted; raises DataError behind them where there are any."""
    from mmedexpert_jax.data.check_data import check

    if len(arguments) != 1:
        raise ConfigError("give a folder or file: mmedexpert check-data my_cases")
    checked = check(arguments[0])
    text = "\n".join(line for one in checked for line in one.lines())
    faults = sum(map(len, (numbers for one in checked for numbers in one.faults.values())))
    if faults:
        output.say(text)
        raise DataError(f"{arguments[0]}: {faults} faults, listed above; fix the rows or leave them out")
    return text


def convert_data(arguments: list[str]) -> str:
    """Rows of another form, or a folder of scans, as rows of ours."""
    from mmedexpert_jax.data.convert_data import convert

    if len(arguments) not in (2, 3):
        raise ConfigError("give a table or folder and a new one: mmedexpert convert-data theirs.json my_cases [split]")
    made = convert(*arguments)
    refused = [f"refused: {line}" for line in made.refused]
    return "\n".join([f"{made.file}: {made.rows} rows", *made.notes, *refused])


COMMANDS: dict[str, tuple[str, Callable[[list[str]], str]]] = {
    "compare": ("runs side by side: mmedexpert compare runs/a runs/b", compare),
    "new-data": ("an example of a data set of one's own: mmedexpert new-data my_cases", new_data),
    "convert-data": ("messages, LLaVA, ShareGPT, CSV or scans to rows of ours: theirs.json my_cases", convert_data),
    "check-data": ("all faults of a data set with counts: mmedexpert check-data my_cases", check_data),
    "completion": ("a script for your shell: mmedexpert completion bash >> ~/.bashrc", completion),
}
