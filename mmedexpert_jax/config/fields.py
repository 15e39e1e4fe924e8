"""One table of the fields: bounds, choices, whether a resumed run may change them, and their names in other tools.

Default, unit, meaning and source of a field stand beside each other where it is assigned, in configs/*.py and in
config/presets.py; all else that is known of it stands here and nowhere else. A field is looked up by the longest end
of its dotted key that the table has: `gba.lora.rank` is `lora.rank`, `rank` alone is the merge's. A number that the
table lacks is from 0 on; a test keeps the table whole.
"""

import difflib
import functools
import math
import re
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from mmedexpert_jax import border
from mmedexpert_jax.errors import ConfigError, holds_login

INT_MAX = 2**31 - 1  # of any integer field: what an int32 holds


@dataclass(frozen=True)
class Field:
    """The facts of a field."""

    # low, high: inclusive bounds of a number
    low: float = 0.0
    high: float = math.inf
    # above, below: exclusive bounds
    above: float = -math.inf
    below: float = math.inf
    choices: tuple[str, ...] = ()  # allowed texts; empty: any
    own: bool = False  # whether a user's own function, a text with a dot, is allowed beside the choices
    several: bool = False  # whether the text may name several choices, comma-separated
    # "" where a resumed run must have the same value, "free" where it may have another since the field does not change
    # what is computed, "grows" where it may be raised, to go on further
    resume: str = ""

    def range(self) -> str:
        """The allowed numbers in words."""
        bounds = [f"above {self.above:g}" if self.above > -math.inf else f"at least {self.low:g}"]
        if self.low == -math.inf and self.above == -math.inf:
            bounds = []
        if self.high < math.inf:
            bounds.append(f"at most {self.high:g}")
        if self.below < math.inf:
            bounds.append(f"below {self.below:g}")
        return " and ".join(bounds) or "a finite number"

    def holds(self, value: float) -> bool:
        """True for a number within the bounds."""
        return self.low <= value <= self.high and self.above < value < self.below


COUNT = Field(low=1)
FROM_ZERO = Field()
POSITIVE = Field(above=0)
SHARE = Field(high=1)
FRACTION = Field(above=0, high=1)
SIGNED = Field(low=-math.inf)
FREE = Field(resume="free")
FREE_COUNT = Field(low=1, resume="free")


def _choice(*choices: str, resume: str = "") -> Field:
    return Field(choices=choices, resume=resume)


def _each(field: Field, names: str) -> dict[str, Field]:
    return dict.fromkeys(names.split(), field)


SPECIALTIES = ("AM", "CAH", "BS", "CSI")  # section 3.1
PARADIGMS = ("differential", "intuitive", "analytical", "bayesian")  # section 3.2
BENCHMARK = "benchmark:"  # begins a data path that names a benchmark

# -- every job ---------------------------------------------------------------------------------------------------------
FIELDS: dict[str, Field] = {
    "job": _choice(
        *("dsa", "gba", "merge", "evaluate", "pipeline", "ablation", "export", "pretrain", "review", "dataset"),
        *("contamination", "serve", "ask"),
    ),
    **_each(FREE, "workdir fresh plan plan_mesh plan_compile debug explain price samples_every report_items"),
    "tracker": Field(choices=("", "tensorboard", "wandb", "trackio"), several=True, resume="free"),
    "model.dtype": _choice("", "float32", "bfloat16", "float16"),
    "model.quantize": _choice("none", "int8", "nf4"),
    **_each(FROM_ZERO, "seed limit process port sweep.trials model.max_pixels"),
    "port": Field(high=65535),
    "processes": COUNT,
}

# -- training: sections 4.1 and 4.2 ------------------------------------------------------------------------------------
FIELDS |= {
    "steps": Field(resume="grows"),
    "epochs": Field(resume="grows"),
    **_each(POSITIVE, "lr lora.alpha clip clip_high advantage_eps"),
    **_each(FROM_ZERO, "beta weight_decay max_grad_norm warmup_steps importance_cap temperature top_k"),
    **_each(COUNT, "batch_size accumulation buckets prompts_per_step num_samples max_new_tokens max_prompt_length"),
    **_each(COUNT, "lora.rank inner_epochs minibatches paradigms_per_query refill_rounds"),
    **_each(FREE_COUNT, "checkpoint_every log_every keep_checkpoints"),
    **_each(FREE, "micro_batch remat scan_layers shard packing resume_from allow_changes"),
    "advantage_ddof": Field(high=1),
    "rollout_ahead": Field(high=1),
    "mesh.data": Field(low=-1, resume="free"),
    "mesh.fsdp": Field(low=-1, resume="free"),
    "mesh.tensor": FREE_COUNT,
    "warmup_ratio": SHARE,
    "eval.patience": FREE,
    "shard": _choice("none", "optimizer", "full", resume="free"),
    "top_p": FRACTION,
    "eval.every": Field(low=-1),
    "specialty": _choice("all", *SPECIALTIES, "mixed"),
    "trainable": _choice("lora", "full"),
    "overlong": _choice("error", "drop"),
    "lora.targets": _choice("all-linear", "text"),
    "objective": _choice(
        *("gba", "grpo", "dr_grpo", "dapo", "gspo", "sapo", "cispo", "rloo", "reinforce_pp", "gdpo", "papo", "drpo")
    ),
    "aggregation": _choice("sequence", "token", "constant"),
    "ratio_level": _choice("token", "sequence"),
    "surrogate": Field(choices=("clip", "cispo", "sapo"), own=True),
    "advantage_scale": Field(choices=("group", "none", "batch", "leave_one_out", "global", "decoupled"), own=True),
    "advantage_weights": _choice("equal", "specialty", "drpo"),
    "filter.samples": FROM_ZERO,
    **_each(SHARE, "filter.least filter.most"),
    **_each(FROM_ZERO, "ref_every entropy_coef perception perception_entropy"),
    **_each(FRACTION, "ref_mixup perception_mask"),
    "zero_variance": _choice("keep", "drop", "refill"),
    "group_by": _choice("prompt", "query"),
    "schedule": _choice("constant", "linear", "cosine"),
    "paradigm": _choice("", *PARADIGMS, "all"),
    # a reward may punish: its weight has any sign
    **_each(SIGNED, "rewards.accuracy rewards.format rewards.length rewards.structure rewards.token_f1"),
    **_each(SIGNED, "rewards.answer_first rewards.judge.weight rewards.similarity.weight"),
    **_each(FREE_COUNT, "rewards.attempts rewards.workers"),
    "rewards.timeout": FREE,
    "rewards.judge.kind": _choice("rubric", "pairwise"),
}

# -- merge: section 4.3 ------------------------------------------------------------------------------------------------
FIELDS |= {
    "method": _choice(
        *("ties", "task_arithmetic", "magnitude_prune", "dots", "dare_linear", "dare_ties", "della", "della_linear"),
        *("breadcrumbs", "breadcrumbs_ties", "fisher", "sar", "sce", "ram", "ramplus", "nearswap", "arcee_fusion"),
        *("average", "slerp", "slerp_rows", "slerp_columns", "multislerp", "karcher", "model_stock"),
        *("model_stock_rows", "tsv_m", "iso_c", "wudi", "optmerge", "weight_sum", "weight_slerp", "weight_slerp_rows"),
        *("weight_slerp_columns", "weight_multislerp", "weight_karcher"),
    ),
    "rules": _choice("paper", "official", "mergekit", "peft"),
    "result": _choice("model", "recipe"),
    "rl_origin": _choice("base", "start"),
    "normalize_vectors": _choice("none", "tensor", "module", "global", "median"),
    "space": _choice("", "core", "knots"),
    "rivals": _choice("all", "last"),
    "density": FRACTION,
    "scale": SIGNED,
    "fisher_prompts": COUNT,
    "rank": FROM_ZERO,
}

# -- evaluation, endpoints: section 5 ----------------------------------------------------------------------------------
FIELDS |= {
    "controls": Field(choices=("blank", "other_image", "question_only", "shuffle", "pairs"), several=True),
    "scorer": _choice("strict", "medevalkit", "medxpertqa"),
    "judge.what": _choice("open", "unparsed", "all"),
    "privacy": _choice("report", "redact", "refuse"),
    **_each(FREE, "skip_broken url budget requests_per_minute tokens_per_minute"),
    **_each(FREE_COUNT, "concurrency max_attempts"),
    **_each(Field(above=0, resume="free"), "timeout retry_wait"),
    **_each(FROM_ZERO, "price_input price_output price_cached"),
    "image_side": COUNT,
    "rotations": COUNT,
    "max_tokens": COUNT,
}

# -- dataset, review, export: section 3 --------------------------------------------------------------------------------
FIELDS |= {
    **_each(FREE, "stages include_restricted push_to"),
    "teacher.kind": _choice("local", "chat", "batch"),
    "judge.kind": _choice("", "chat", "batch"),
    "teacher.prompt": _choice("full", "short"),
    "paradigm_policy": _choice("balanced", "all"),
    "reviewed": _choice("any", "accepted", resume="free"),
    "duplicates": FRACTION,
    "batch_discount": SHARE,
    **_each(SHARE, "overlap data.max_rejected dev_share test_share"),
    **_each(COUNT, "candidates raters"),
    "action": _choice("serve", "report", "export", "import"),
    "exchange.tool": _choice("trail", "label_studio", "argilla"),
    "format": _choice("model", "adapter"),
    "push": FREE,
}

# -- serve, ask --------------------------------------------------------------------------------------------------------
FIELDS |= _each(FREE_COUNT, "rows queue")

# -- ablation, pretrain ------------------------------------------------------------------------------------------------
FIELDS |= {
    "table": Field(low=3, high=4),
    **_each(COUNT, "diversity.questions max_images max_patches pictures_per_step"),
    **_each(COUNT, "shape.heads shape.kv_heads shape.layers shape.mlp shape.vision_heads shape.vision_layers"),
    **_each(COUNT, "shape.vision_width shape.width"),
    "shape.rope_theta": POSITIVE,
    **_each(SHARE, "answering_share guided_share naming_share pictured_share reading_share"),
    **_each(
        FROM_ZERO,
        "questions answer_weight answering_from answering_until naming_from naming_until reading_steps warmup",
    ),
    **_each(FROM_ZERO, "describing_steps expected.answer expected.dsa expected.gba expected.merge expected.start"),
}

# Names of fields in TRL, transformers, peft, verl, LLaMA-Factory and mergekit -> ours; of several the job's first.
ELSEWHERE = {
    "learning_rate": "lr", "num_generations": "num_samples", "n": "num_samples", "max_steps": "steps",
    "total_training_steps": "steps", "num_train_epochs": "epochs", "num_epochs": "epochs", "total_epochs": "epochs",
    "max_completion_length": "max_new_tokens", "max_response_length": "max_new_tokens",
    "max_tokens": "max_new_tokens", "response_length": "max_new_tokens",
    "per_device_train_batch_size": "batch_size prompts_per_step", "train_batch_size": "batch_size prompts_per_step",
    "bs": "batch_size prompts_per_step", "batch_size": "batch_size prompts_per_step",
    "per_device_batch_size": "batch_size prompts_per_step", "global_batch_size": "batch_size prompts_per_step",
    "rollout_batch_size": "prompts_per_step", "num_prompts": "prompts_per_step",
    "ppo_mini_batch_size": "minibatches", "mini_batch_size": "minibatches",
    "group_size": "num_samples", "n_rollouts": "num_samples", "num_rollouts": "num_samples",
    "num_return_sequences": "num_samples", "clip_range": "clip", "lambda": "scale", "do_sample": "temperature",
    "n_gpus": "mesh.data", "num_gpus": "mesh.data", "n_gpus_per_node": "mesh.data", "world_size": "mesh.data",
    "tensor_parallel": "mesh.tensor", "bf16": "model.dtype", "fp16": "model.dtype", "precision": "model.dtype",
    "quantization": "model.quantize", "use_lora": "trainable", "use_peft": "trainable", "peft": "trainable",
    "train_files": "data.path", "data_files": "data.path", "dataset_path": "data.path", "dataset_dir": "data.path",
    "max_seq_length": "max_prompt_length", "model_max_length": "max_prompt_length", "max_pixels": "model.max_pixels",
    "save_dir": "workdir", "run_name": "workdir", "experiment_name": "workdir", "logging_dir": "workdir",
    "eval_strategy": "eval.every", "use_wandb": "tracker", "random_seed": "seed",
    "prompt": "question", "text": "question", "image_path": "images", "tasks": "benchmarks", "resume": "resume_from",
    "gradient_accumulation_steps": "accumulation", "grad_accum": "accumulation",
    "lora_r": "lora.rank", "lora_rank": "lora.rank", "r": "lora.rank", "lora_alpha": "lora.alpha",
    "lora_target": "lora.targets", "target_modules": "lora.targets", "gradient_checkpointing": "remat",
    "epsilon": "clip", "epsilon_low": "clip", "clip_ratio": "clip", "cliprange": "clip", "epsilon_high": "clip_high",
    "kl_coef": "beta", "kl_loss_coef": "beta", "init_kl_coef": "beta", "loss_type": "objective",
    "lr_scheduler_type": "schedule", "warmup": "warmup_steps", "num_warmup_steps": "warmup_steps",
    "reward_funcs": "rewards.functions", "reward_weights": "rewards.functions", "scale_rewards": "advantage_scale",
    "num_iterations": "inner_epochs", "ppo_epochs": "inner_epochs", "save_steps": "checkpoint_every",
    "eval_steps": "eval.every", "logging_steps": "samples_every", "report_to": "tracker",
    "output_dir": "workdir", "out_dir": "workdir", "model": "model.path", "base_model": "model.path",
    "model_name": "model.path", "model_name_or_path": "model.path", "pretrained_model_name_or_path": "model.path",
    "dataset": "data.path", "data": "data.path", "train_file": "data.path", "dataset_name": "data.path",
    "max_samples": "limit", "merge_method": "method", "torch_dtype": "model.dtype", "dtype": "model.dtype",
    "overwrite_output_dir": "fresh", "resume_from_checkpoint": "resume_from", "save_total_limit": "keep_checkpoints",
    "betas": "adam_betas", "adam_beta1": "adam_betas", "adam_beta2": "adam_betas", "lr_warmup_ratio": "warmup_ratio",
    "lr_warmup_steps": "warmup_steps", "lr_warmup_steps_ratio": "warmup_ratio", "lr_scheduler": "schedule",
    "early_stopping_patience": "eval.patience", "load_best_model_at_end": "eval.best", "val_freq": "eval.every",
    "filter_overlong_prompts": "overlong", "truncation": "overlong", "dry_run": "plan",
    "max_length": "max_prompt_length",
    "sequence_len": "max_prompt_length", "micro_batch_size": "batch_size", "finetuning_type": "trainable",
    "per_device_eval_batch_size": "eval.batch_size", "ppo_micro_batch_size_per_gpu": "micro_batch",
    "load_in_4bit": "model.quantize", "load_in_8bit": "model.quantize", "quantization_bit": "model.quantize",
    "tensor_parallel_size": "mesh.tensor", "tensor_model_parallel_size": "mesh.tensor", "test_freq": "eval.every",
    "save_freq": "checkpoint_every", "logger": "tracker", "image_max_pixels": "model.max_pixels",
    "ref_model_sync_steps": "ref_every", "ref_model_mixup_alpha": "ref_mixup", "entropy_coeff": "entropy_coef",
    "adv_estimator": "objective", "mask_truncated_completions": "mask_truncated",
    "importance_sampling_level": "ratio_level", "loss_agg_mode": "aggregation", "rollout_n": "num_samples",
    "cutoff_len": "max_prompt_length", "clip_grad_norm": "max_grad_norm", "grad_clip": "max_grad_norm",
}  # fmt: skip


def field_of(key: str) -> Field:
    """The table's entry for a dotted key; that of a number from 0 on where it has none."""
    return FIELDS.get(_name(key), FROM_ZERO)


def known(key: str) -> bool:
    """True for a dotted key that the table has an entry for."""
    return _name(key) in FIELDS


def resumes(key: str) -> str:
    """Changes that a resumed run may make to the field of a dotted key: "" (not), "free" or "grows"."""
    return field_of(key).resume


def allowed(key: str, kind: type) -> str:
    """The values that a field of this type takes, and whether a resumed run may have another, in words; "" for any."""
    field = field_of(key)
    said: list[str] = []
    if field.choices:
        more = [word for word, there in (("your own", field.own), ("several", field.several)) if there]
        said.append(", ".join([*(choice or '""' for choice in field.choices), *(f"or {word}" for word in more)]))
    elif kind in (int, float):
        said.append(field.range())
    if field.resume:
        said.append("a resume may change it" if field.resume == "free" else "a resume may raise it")
    return "; ".join(said)


def elsewhere(name: str, fields: list[str]) -> str:
    """The field of ours among `fields` that other tools call `name`; empty where there is none."""
    ours = ELSEWHERE.get(name.lower().replace("-", "_"), "").split()
    return next((field for field in ours if field in fields), "")


def check_value(key: str, value: Any) -> None:
    """Raises ConfigError where the value of a field is outside its bounds or choices."""
    texts = value if isinstance(value, tuple) else (value,)
    if any(isinstance(text, str) and holds_login(text) for text in texts):  # never shown, and in no run's files
        raise ConfigError(f"config.{key} holds a URL with a user name or password; put the key where key_env names it")
    field = field_of(key)
    listed = value if isinstance(value, tuple) else str(value).split(",")
    given = [name.strip() for name in listed] if field.several else [value]
    wrong = [name for name in given if field.choices and name not in field.choices]
    if wrong and not (field.own and "." in str(value)):
        close = difflib.get_close_matches(str(wrong[0])[:100], field.choices, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}? " if close else ""
        names = ", ".join(choice or '""' for choice in field.choices)
        raise ConfigError(f"config.{key}={border.cut(str(wrong[0]))} is unknown; {hint}choose one of {names}")
    if key.rpartition(".")[2] == "url" and value:
        _check_url(key, value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if isinstance(value, int):
        field = replace(field, high=min(field.high, INT_MAX))
    if not field.holds(value):
        raise ConfigError(f"config.{key} must be {field.range()}, got {border.shown(value)}")


def named_devices(name: str) -> tuple[str, int]:
    """Kind and number of the devices that `plan_mesh` names. Raises ConfigError for another name."""
    if not (found := re.fullmatch(r"(a100|h100|v5e)[x-]([1-9]\d*)", name)):
        raise ConfigError(f"config.plan_mesh={name} is unknown; give a100, h100 or v5e and a number, such as a100x8")
    return found[1], int(found[2])


def _check_url(key: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # brackets that do not close, a port that is no number
        good = False
    if not good:
        raise ConfigError(f"config.{key} must be a URL such as https://host/v1, got {border.shown(url)}")


@functools.lru_cache(maxsize=4096)  # a sweep asks for the fields of hundreds of stages
def _name(key: str) -> str:
    """The longest end of a dotted key that the table has; the key itself where it has none."""
    names = key.split(".")
    ends = (".".join(names[start:]) for start in range(len(names)))
    return next((end for end in ends if end in FIELDS), key)
