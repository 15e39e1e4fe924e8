"""The jobs that answer people and programs: an endpoint, and one question in the terminal."""

import os
import queue
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from PIL import Image

from mmedexpert_jax import lora as lora_module
from mmedexpert_jax import models
from mmedexpert_jax.config.fields import HUB_ID
from mmedexpert_jax.errors import ConfigError, DataError, Interrupted, NotFinite, ResourceError, needs
from mmedexpert_jax.launch.job_plan import INSTALLED, check_models
from mmedexpert_jax.processing.processor import IMAGES, TEMPLATES, TOKENIZERS
from mmedexpert_jax.rollout.decode import Completions
from mmedexpert_jax.rollout.desk import Choice, Desk
from mmedexpert_jax.runtime.progress import doing

VOTES = "votes.jsonl"  # in the workdir
CONNECTIONS = 64  # beyond those in the queue; uvicorn answers any more with 503


def run(config: ConfigDict) -> None:
    """Serves until it is interrupted."""
    needs("serve")
    import uvicorn

    from mmedexpert_jax.remote.guard import Guard, PromptProtocol
    from mmedexpert_jax.remote.protocol import LOOPBACK
    from mmedexpert_jax.rollout.server import application

    key, votes = _key(config), _votes(config)
    desk = open_desk(config)
    settings = uvicorn.Config(
        Guard(application(desk, key, votes), config.host in LOOPBACK),
        host=config.host,
        port=config.port,
        http=PromptProtocol,
        log_level="warning",
        limit_concurrency=config.queue + CONNECTIONS,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=5,
        server_header=False,
    )
    try:
        socket = settings.bind_socket()
    except SystemExit:  # uvicorn's way to say that the port is taken
        raise ResourceError(f"config.port: cannot listen on {config.host}:{config.port}; choose another") from None
    host, port = socket.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    try:
        with doing("compiling"):
            desk.warm_up()
        socket.listen(settings.backlog)  # who reads the next line may connect at once; uvicorn listens a moment later
        print(f"serving {', '.join(desk.loras)} on http://{host}:{port}/v1, a page at / (stop with Ctrl-C)", flush=True)
        if config.host not in LOOPBACK and not key:
            print("anyone who reaches this address may ask: set config.key_env, or host to 127.0.0.1", flush=True)
        uvicorn.Server(settings).run(sockets=[socket])
    except KeyboardInterrupt:
        raise Interrupted("the server has stopped", signal.SIGINT) from None
    finally:
        desk.close()


def _key(config: ConfigDict) -> str:
    """The key that requests must carry; empty for none. Raises ConfigError where it is not set."""
    key = os.environ.get(config.key_env, "").strip() if config.key_env else ""
    if config.key_env and not key:
        raise ConfigError(f"config.key_env: {config.key_env} is not set; export the key that requests must carry")
    return key


def _votes(config: ConfigDict) -> Path:
    """The file of the page's votes. Raises ResourceError where its folder cannot be one."""
    if Path(config.workdir).exists() and not Path(config.workdir).is_dir():
        raise ResourceError(f"config.workdir: {config.workdir} is no directory; votes of the page go into it")
    return Path(config.workdir) / VOTES


def describe(config: ConfigDict) -> str:
    """The plan of either job. Raises what the job would raise, as far as it can be known without the network."""
    here = Path(config.model.path).is_dir() or config.model.path in INSTALLED  # a hub id is not fetched
    if here:
        _check_context(config)
        check_models(config)
    if config.job == "ask":
        messages = _asked(config)
        if here:
            models.load_processor(config.model.path).encode(messages, max_length=config.max_prompt_length)
        return f"ask: load {config.model.path} and answer {config.question[:80]!r}; nothing is written"
    needs("serve")
    _key(config)
    for source in _adapters(config).values():
        if here and (Path(source).expanduser().is_dir() or not HUB_ID.fullmatch(source)):
            models.load.check_files(config.model.path, _on_base(source, config.model.path))
    what = f"listen on {config.host}:{config.port}; votes of the page go to {_votes(config)}"
    return f"serve: load {config.model.path} and {what}"


def ask(config: ConfigDict) -> None:
    """Prints the answer to a question as it comes."""
    messages = _asked(config)
    desk = open_desk(config)
    encoded = desk.processor.encode(messages, max_length=config.max_prompt_length)
    news: queue.Queue[tuple[Completions | None, bool]] = queue.Queue()
    name = next(iter(desk.loras))
    tell = lambda done, over: news.put((done, over))  # noqa: E731
    limits = float(config.temperature), float(config.top_p), 0, config.max_new_tokens
    desk.submit([Choice(name, encoded, config.seed, *limits, tell, watched=True)])
    shown, over = "", False
    while not over:
        done, over = news.get()
        if done is None:
            if isinstance(desk.failure, NotFinite):
                raise NotFinite(config.model.path)
            raise ResourceError("the model failed to answer; the line above says why")
        text = desk.processor.decode(done.tokens[0, : int(done.lengths[0])])  # type: ignore[arg-type]  # of the host
        ready = text if over else text.rstrip("\ufffd")  # half a letter waits for its other bytes
        print(ready[len(shown) :], end="", flush=True)
        shown = ready if len(ready) > len(shown) else shown
    print(flush=True)
    desk.close()


def _asked(config: ConfigDict) -> list[dict[str, Any]]:
    """The conversation of a question. Raises ConfigError where it is empty."""
    if not config.question.strip():
        raise ConfigError('config.question is empty: mmedexpert ask question="..."')
    window = config.window
    if "," in window:
        with suppress(ValueError):
            window = [float(number) for number in window.strip("[]() ").split(",")]
    view = {"window": window or None, "slices": config.slices or None, "plane": config.plane}
    parts = [{"type": "image", "image": path, **view} for path in config.images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": config.question}]}]


def open_desk(config: ConfigDict) -> Desk:
    """The desk over the model of a config, and over its adapters if it names any. Raises ConfigError."""
    path, dtype = config.model.path, config.model.dtype
    _check_context(config)
    with doing(f"loading {path}"):
        model, params, lora = models.load_policy(path, dtype=dtype, seed=config.seed)
        loras = {_name(config): lora}
        for name, source in _adapters(config).items():
            loras[name] = lora_module.stack([lora_module.load_peft(part, params) for part in _on_base(source, path)])
    limits = config.get("rows", 1), config.get("queue", 1), config.max_prompt_length, config.max_new_tokens
    return Desk(model, params, loras, models.load_processor(path), *limits)


def _check_context(config: ConfigDict) -> None:
    """Raises ConfigError where prompt and answer together may be longer than the model's context."""
    most, asked = config.max_new_tokens, config.max_prompt_length + config.max_new_tokens
    context = models.load_architecture(config.model.path).config.text.max_position_embeddings
    if asked > context:
        fix = f"set --config.max_new_tokens={context - config.max_prompt_length}"
        raise ConfigError(
            f"config.max_prompt_length={config.max_prompt_length} and config.max_new_tokens={most} are {asked} tokens, "
            f"and {config.model.path} has positions for {context}; {fix if asked - most < context else 'lower both'}"
        )


def _name(config: ConfigDict) -> str:
    """The name under which the model itself is served."""
    path = config.model.path
    return config.get("name", "") or Path(path).name or path


def _adapters(config: ConfigDict) -> dict[str, str]:
    """Sources of the further adapters by name. Raises ConfigError."""
    found: dict[str, str] = {}
    for entry in config.get("adapters", ()):
        name, equals, source = entry.partition("=")
        if not equals or not name or name in found or name == _name(config):
            raise ConfigError(f"config.adapters: {entry[:80]!r}: give name=path, each name once")
        found[name] = source
    return found


def _on_base(source: str, path: str) -> list[Path]:
    """The adapters behind an adapter or run, which must be of the base that is served. Raises ConfigError."""
    try:
        base, adapters = models.locate.trace(source)
    except DataError as error:
        raise DataError(f"config.adapters: {error}") from error
    if not adapters:
        raise ConfigError(f"config.adapters: {source[:80]} holds no adapter; serve it as model.path")
    served, over = models.locate.trace(path)
    if base.resolve() != served.resolve():
        raise ConfigError(f"config.adapters: {source[:80]} stands on another base than {path[:80]}")
    own = any((part / name).is_file() for part in (*over, *adapters) for name in (*TOKENIZERS, *IMAGES, *TEMPLATES))
    if own and over != adapters and _prompts(source) != _prompts(path):
        raise ConfigError(
            f"config.adapters: {source[:80]} has a chat template, tokenizer or image settings of its own, under which "
            f"prompts are others than those of {path[:80]}; serve it by itself, as config.model.path"
        )
    return adapters


def _prompts(source: str) -> list[Any]:
    """Probes as a model's own tokenizer and template write them, and its image settings: equal where they are alike."""
    processor, found = models.load_processor(source), []
    turns = [{"role": role, "content": f" {role}: 3 mg/L\n"} for role in ("system", "user", "assistant", "user")]
    shown = {"type": "image", "image": Image.new("RGB", (64, 48))}
    for conversation in (turns, turns[1:2], [{"role": "user", "content": [shown, {"type": "text", "text": "Why?"}]}]):
        try:
            found.append(processor.encode(conversation).tokens.tolist())
        except DataError:  # a template without system turns, a model without images
            found.append(None)
    return [*found, processor.image_config.to_hf()]
