"""The recipe of the embedded `mini` model: a small Qwen2-VL that learns to read, to look and to answer in the format.

It reads generated cases of the "pretrain" pool alone, whose values never occur in MMedExpert-mini. At first, half of
the time, it reads cases aloud, which teaches attention to copy; then it follows sound traces, with exercises in naming
the letters of options and in answering; twice, for a while, it reads notes of mixed quality, of which the hasty ones
stop at the first evidence, as much of what is written does. So the base knows how to reason and does not always do it,
and what is learned later can be told from what was there.

That is the preset `text`, after which pictures are hardly looked at. The preset `mini` goes on from it: it describes
pictures, several times as many as before and without question, options or rule, then reads mixed notes again, more of
them with a picture. So the base sees what a picture shows, and whether it makes use of all of it is left to learn.
"""

import contextlib
import functools
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from mmedexpert_jax.config.validate import RUN
from mmedexpert_jax.data.case import LETTERS, Case
from mmedexpert_jax.data.embedded import TASKS, Generated, generate
from mmedexpert_jax.data.embedded.seen import ImageTask
from mmedexpert_jax.data.embedded.traces import PARADIGMS, Task
from mmedexpert_jax.data.prompts import conversation, render
from mmedexpert_jax.errors import ConfigError, DataError
from mmedexpert_jax.models import Model, ModelConfig, load_architecture, load_model, load_processor, save_pretrained
from mmedexpert_jax.models.config import TextConfig, VisionConfig
from mmedexpert_jax.models.network import tensor_shapes
from mmedexpert_jax.processing.batch import Batch
from mmedexpert_jax.processing.processor import Processor
from mmedexpert_jax.rollout.logprobs import completion_logprobs
from mmedexpert_jax.rounding import round_up
from mmedexpert_jax.runtime.run import Run
from mmedexpert_jax.train import Learner, Policy, Sums
from mmedexpert_jax.train.initial import CIRCUIT, initial_params
from mmedexpert_jax.train.learner import Loss
from mmedexpert_jax.train.optimizer import Rule
from mmedexpert_jax.train.prefetch import Prefetched
from mmedexpert_jax.train.state import is_due, keep, resume

# what the learner asks of a config and the recipe does not vary
_LEARNER = ConfigDict({"trainable": "full", "shard": "none", "scan_layers": False})
_BLOCK = 16  # steps whose cases are generated together
_PICTURED = tuple(task for task in TASKS if isinstance(task, ImageTask))
_SIGHT_PROMPT, _SIGHT_TOKENS = 48, 40  # tokens that prompts and descriptions of pictures are padded to


def run(config: ConfigDict, run: Run) -> Path:
    """Trains the model and writes it as a Hugging Face directory to `export/model`. Raises ConfigError, DataError."""
    preflight(config)
    processor = load_processor(config.tokenizer)
    model = Model(model_config(config.shape, processor))
    params = jax.tree.map(jnp.asarray, _first_params(config, model))
    learner = Learner(_LEARNER, Policy(params), _loss(model), config.steps, keeps_base=False, rule=optimizer(config))
    state = resume(run, learner.init(jax.random.key(config.seed)))
    ahead = Prefetched(functools.partial(step_examples, config, processor), config.steps)
    with run.progress(config.steps, state.step, "pretrain") as progress:
        for step in range(state.step, config.steps):
            examples = ahead(step)
            tokens = int(examples[0].lengths.sum() + np.count_nonzero(examples[2]))
            state, stats = learner.update(state, [[examples]], tokens)
            if is_due(state.step, config.log_every, config.steps):
                run.log(state.step, stats | {"num_tokens": state.num_tokens})
                progress.update(state.step, stats)
            keep(run, state, config.steps, config.checkpoint_every)
    path = run.path / "export" / "model"
    save_pretrained(path, model, jax.device_get(state.trained), processor)
    return path


def preflight(config: ConfigDict) -> None:
    """Raises what can be known to be wrong before any work; a first model that is not there may have yet to be made.

    Raises:
        ConfigError: spans or sizes that do not go together, a first model of another shape.
        DataError: no such tokenizer.
    """
    for names in (("cosine_starts", "cosine_peaks", "cosine_lengths"), ("mixed_from", "mixed_until", "hasty_shares")):
        counts = [len(config[name]) for name in names]
        if len(set(counts)) > 1:
            raise ConfigError(f"config.{', '.join(names)} have {counts} values; give each as many")
    starts, lengths = config.cosine_starts, config.cosine_lengths
    if not starts or starts[0] != 0 or any(later <= start for start, later in itertools.pairwise(starts)):
        raise ConfigError(f"config.cosine_starts={starts} must rise from 0, such as 0,550")
    if min(lengths) < 1 or lengths[0] <= config.warmup:
        raise ConfigError(f"config.cosine_lengths={lengths} must be from 1, the first above warmup={config.warmup}")
    if not all(0 <= share <= 1 for share in config.hasty_shares):
        raise ConfigError(f"config.hasty_shares={config.hasty_shares} must be shares from 0 to 1")
    _check_shape(config.shape, not config.start)
    with _of_field("tokenizer"):
        shapes = tensor_shapes(model_config(config.shape, load_processor(config.tokenizer)))
    with _of_field("start"):
        theirs = _shapes_of(config.start)
    if theirs:
        for name in (name for name in {**shapes, **theirs} if shapes.get(name) != theirs.get(name)):
            raise ConfigError(
                f"config.start={config.start}: {name} is {theirs.get(name)} there and {shapes.get(name)} by "
                "config.shape; give the shape that it was made with"
            )


@contextlib.contextmanager
def _of_field(name: str) -> Iterator[None]:
    """Names the field in whatever DataError its value leads to."""
    try:
        yield
    except DataError as error:
        raise DataError(f"config.{name}: {error}") from error


def _shapes_of(start: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the first model's tensors; empty where it is random, or what another run of ours has yet to make."""
    if not start or (RUN.fullmatch(start) and not Path(start).is_dir()):
        return {}
    return tensor_shapes(load_architecture(start).config)


def _check_shape(shape: ConfigDict, drawn: bool) -> None:
    """Raises ConfigError for sizes that make no network, or, `drawn` at random, none with heads that copy."""
    head, wrong = shape.width // shape.heads, ""
    if shape.width % shape.heads or shape.heads % shape.kv_heads:
        wrong = f"heads={shape.heads} must divide width={shape.width}, and kv_heads={shape.kv_heads} the heads"
    elif len(shape.mrope_section) != 3 or 2 * sum(shape.mrope_section) != head or min(shape.mrope_section) < 0:
        wrong = f"mrope_section={shape.mrope_section} must be three numbers that add up to half a head, {head / 2:g}"
    elif shape.vision_width % (4 * shape.vision_heads):
        wrong = f"vision_width={shape.vision_width} must be a multiple of 4 times vision_heads={shape.vision_heads}"
    elif drawn and (shape.layers < 2 or shape.kv_heads < 2 or shape.heads < 4 or head < 2 * CIRCUIT):
        wrong = f"random weights need at least 2 layers, 4 heads of {2 * CIRCUIT} and 2 kv_heads, for heads that copy"
    if wrong:
        raise ConfigError(f"config.shape: {wrong}")


def _first_params(config: ConfigDict, model: Model) -> dict:
    """The weights of the model at `config.start`, or random ones where it is empty."""
    if not config.start:
        return initial_params(model.config, config.seed)
    if not Path(config.start).is_dir():
        raise ConfigError(f"start={config.start}: no such folder; `mmedexpert pretrain:text` writes the default one")
    return load_model(config.start)[1]


def model_config(shape: ConfigDict, processor: Processor) -> ModelConfig:
    """The architecture of Qwen2-VL at the recipe's size, with the ids of the processor's tokenizer."""
    ids = processor.tokenizer.get_vocab()
    text = TextConfig(
        vocab_size=round_up(len(ids), 8),
        hidden_size=shape.width,
        intermediate_size=shape.mlp,
        num_layers=shape.layers,
        num_heads=shape.heads,
        num_kv_heads=shape.kv_heads,
        rms_norm_eps=1e-6,
        rope_theta=shape.rope_theta,
        mrope_section=tuple(shape.mrope_section),
        max_position_embeddings=2048,
    )
    vision = VisionConfig(
        "qwen2_vl",
        depth=shape.vision_layers,
        hidden_size=shape.vision_width,
        intermediate_size=4 * shape.vision_width,
        num_heads=shape.vision_heads,
        out_hidden_size=shape.width,
    )
    end, pad = ids["<|im_end|>"], ids["<|endoftext|>"]
    return ModelConfig(
        text,
        vision,
        tie_word_embeddings=True,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        bos_token_id=pad,
        pad_token_id=pad,
        eos_token_ids=(end, pad),
    )


def optimizer(config: ConfigDict) -> Rule:
    """AdamW with the gradient's norm clipped to 1; unlike a fine-tuning's, its decay reaches norms and biases too."""
    decay = optax.add_decayed_weights(config.weight_decay)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.98), decay), _schedule(config)


def _schedule(config: ConfigDict) -> optax.Schedule:
    """Cosines to a twentieth of their peaks, one after another, each cut off where the next begins."""
    (peak, length), *later = zip(config.cosine_peaks, config.cosine_lengths, strict=True)
    schedules = [optax.warmup_cosine_decay_schedule(0.0, peak, config.warmup, length, 0.05 * peak)]
    schedules += [optax.cosine_decay_schedule(peak, length, 0.05) for peak, length in later]
    return optax.join_schedules(schedules, list(config.cosine_starts[1:]))


def step_examples(config: ConfigDict, processor: Processor, step: int) -> tuple[Batch, np.ndarray, np.ndarray]:
    """The batch of a step, by (seed, step) alone: prompts, completions [B, G, R] int32, weights of their tokens."""
    if step < config.describing_steps:
        return _descriptions(config, processor, step)
    rng = Random(f"{config.seed} {step}")
    pictured = round(config.pictured_share * config.prompts_per_step)
    made = _cases(config, step, config.prompts_per_step - pictured, TASKS)
    made += _cases(config, step, pictured, _PICTURED) if pictured else []
    prompts, texts = zip(*(_example(item, rng, config, step) for item in made), strict=True)
    batch = processor(
        prompts,
        min_length=config.max_prompt_length,
        min_patches=config.max_patches,
        min_images=config.max_images,
    )
    tokens, weights = _padded(processor, texts, config.max_new_tokens)
    letters = processor.tokenizer.convert_tokens_to_ids(list(LETTERS))
    if step >= config.answering_from:
        answer = processor.tokenizer.convert_tokens_to_ids("<answer>")
        weights[..., 1:] *= np.where(
            (tokens[..., :-1] == answer) & np.isin(tokens[..., 1:], letters), config.answer_weight, 1
        )
    return batch, tokens, weights


def _descriptions(config: ConfigDict, processor: Processor, step: int) -> tuple[Batch, np.ndarray, np.ndarray]:
    """The batch of a step that describes pictures, one completion each: what they show, and not what follows."""
    made = _cases(config, step, config.pictures_per_step, _PICTURED)
    prompts = [_exercise(item, "Describe.", bare=True) for item in made]
    batch = processor(prompts, min_length=_SIGHT_PROMPT, min_patches=config.max_patches, min_images=len(made))
    texts = [[", ".join(one.text for one in item.problem.steps) + "."] for item in made]
    return batch, *_padded(processor, texts, _SIGHT_TOKENS)


def _padded(processor: Processor, texts: Sequence[Sequence[str]], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of completions [B, G, size] int32, cut or padded to `size`, and weights 1 of those that are theirs."""
    tokens = np.full((len(texts), len(texts[0]), size), processor.pad_id, np.int32)
    weights = np.zeros(tokens.shape, np.float32)
    for i, j in np.ndindex(tokens.shape[:2]):
        ids = processor.completion(texts[i][j])[:size]
        tokens[i, j, : len(ids)] = ids
        weights[i, j, : len(ids)] = 1
    return tokens, weights


def _cases(config: ConfigDict, step: int, count: int, tasks: tuple[Task, ...]) -> list[Generated]:
    """The `count` cases of a step out of a block for several, in which all tasks have their share."""
    number, place = divmod(step, _BLOCK)
    block = _block(
        config.seed * 1_000_000 + number, count * _BLOCK, tasks
    )  # of no other seed: no run has as many blocks
    return block[place * count : (place + 1) * count]


@functools.lru_cache(maxsize=2)
def _block(seed: int, count: int, tasks: tuple[Task, ...]) -> list[Generated]:
    return generate(seed, count, "pretrain", tasks)


def _example(item: Generated, rng: Random, config: ConfigDict, step: int) -> tuple[list[dict], list[str]]:
    """A case's prompt and two completions of it: read aloud, or reasoned, guided by a paradigm or not."""
    if step < config.reading_steps and rng.random() < config.reading_share:
        return _exercise(item, "Read aloud."), [item.case.question, _options(item.case)]  # teaches to copy
    if config.naming_from <= step < config.naming_until and rng.random() < config.naming_share:
        return _naming(item, rng)
    if config.answering_from <= step < config.answering_until and rng.random() < config.answering_share:
        return _answering(item, rng)
    spans = zip(config.mixed_from, config.mixed_until, config.hasty_shares, strict=True)
    # Spans may overlap; their shares then add up.
    hasty_share = sum(share for start, end, share in spans if start <= step < end)
    guided = rng.choice(PARADIGMS) if rng.random() < config.guided_share else None
    texts = []
    # Without a guide the two are of different paradigms, so that none becomes the habit of a neutral prompt.
    for paradigm in (guided, guided) if guided else rng.sample(PARADIGMS, 2):
        hasty = rng.random() < hasty_share
        texts.append(render(*(item.hasty[paradigm] if hasty else (item.traces[paradigm], item.case.answer))))
    return conversation(item.case, guided), texts


def _naming(item: Generated, rng: Random) -> tuple[list[dict], list[str]]:
    """The exercise that teaches to answer: the options, in two random orders, each with its letter after it."""
    named = [f"{text}: {letter}" for letter, text in zip(LETTERS, item.case.options, strict=False)]
    return _exercise(item, "Name the letters."), [", ".join(rng.sample(named, len(named))) for _ in range(2)]


def _answering(item: Generated, rng: Random) -> tuple[list[dict], list[str]]:
    """The exercise that teaches the letter of a conclusion: every option is concluded in turn, in two random orders."""
    ends = ("{} fits best.", "typical of {}.", "means {}.", "{} is most probable.", "therefore {}.")
    options = list(zip(LETTERS, item.case.options, strict=False))

    def conclude() -> str:
        pairs = rng.sample(options, len(options))
        return "".join(render(rng.choice(ends).format(text), letter) for letter, text in pairs)

    return _exercise(item, "Answer each."), [conclude(), conclude()]


def _exercise(item: Generated, instruction: str, bare: bool = False) -> list[dict]:
    """The case with `instruction`, or, where it is `bare`, its images alone with it."""
    case = item.case
    images = [{"type": "image", "image": image} for image in case.images]
    text = instruction if bare else f"{case.question}\n{_options(case)}\n{instruction}"
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


def _options(case: Case) -> str:
    return "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, case.options, strict=False))


def _loss(model: Model) -> Loss:
    """The loss of a step's examples (prompts, completions, weights of their tokens): weighted cross-entropy."""

    def loss(policy: Policy, _: Policy, examples: tuple[Batch, Any, Any]) -> Sums:
        batch, tokens, weights = examples
        logprobs = completion_logprobs(model, policy.params, batch, tokens, jnp.sum(weights > 0, -1))
        return Sums(-jnp.sum(weights * logprobs), jnp.sum(weights))

    return loss
