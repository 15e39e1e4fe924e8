"""The facts of a config's field, written around its default where it is assigned: `config.lr = Field(1e-6, above=0)`.

A plain number is one from 0 on, any other plain value may be anything of its type, and a resumed run must have either
as it was. Here too: the names that fields have in other tools.
"""

import math
import os
import re
from dataclasses import dataclass
from typing import Any

from ml_collections import ConfigDict, FieldReference

from mmedexpert_jax.errors import ConfigError

SPECIALTIES = ("AM", "CAH", "BS", "CSI")  # section 3.1
BENCHMARK = "benchmark:"  # begins a data path that names a benchmark
HUB = "hub:"  # begins one that names a data set of the hub
# Fields of GBA and of evaluations that runs and stages were saved without, and the values that leave what these did as
# it was.
LATER: dict[str, Any] = {
    "filter.online": False,
    "terms": [],
    "rewards.judge.effort": "",
    "rewards.judge.max_tokens": 256,
    "judge.effort": "",
    "judge.max_tokens": 2048,
}
HUB_ID = re.compile(r"(?P<name>[\w-][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")  # owner/name[@revision]


@dataclass(frozen=True)
class Field:
    """A default with the facts of its field."""

    default: Any = None
    # low, high: inclusive bounds of a number
    low: float = 0.0
    high: float = math.inf
    # above, below: exclusive bounds
    above: float = -math.inf
    below: float = math.inf
    choices: tuple[str, ...] = ()  # allowed texts; empty: any
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

    def takes(self, kind: type) -> str:
        """The values that the field takes, of this type, and whether a resumed run may have another; "" for any."""
        said: list[str] = []
        if self.choices:
            more = ["or several"] * self.several
            said.append(", ".join([*(choice or '""' for choice in self.choices), *more]))
        elif kind in (int, float):
            said.append(self.range())
        if self.resume:
            said.append("a resume may change it" if self.resume == "free" else "a resume may raise it")
        return "; ".join(said)


def free(default: Any, **facts: Any) -> Field:
    """A field that a resumed run may change, since it does not change what is computed."""
    return Field(default, resume="free", **facts)


def grows(default: Any) -> Field:
    """A field that a resumed run may raise, to go on further."""
    return Field(default, resume="grows")


def signed(default: Any) -> Field:
    """A number of any sign, such as the weight of a reward, which may punish."""
    return Field(default, low=-math.inf)


def one_of(*choices: str, default: Any = None, **facts: Any) -> Field:
    """A text among `choices`; the default is the first of them unless it is given."""
    return Field(choices[0] if default is None else default, choices=choices, **facts)


class Derived(FieldReference):
    """A value that follows another field until it is set itself; unlike a placeholder of the library never none."""


class Config(ConfigDict):
    """A config or a group of one: a Field that is assigned leaves its default as the value, and its facts aside."""

    def __setitem__(self, key: str, value: Any) -> None:
        """Sets a value; one that comes without facts leaves those of the field as they are."""
        if isinstance(value, Field):
            self.__dict__.setdefault("_facts", {})[key] = value
            value = value.default
        super().__setitem__(key, value)


def facts_of(config: ConfigDict, prefix: str = "") -> dict[str, Field]:
    """The facts that a config's fields were assigned with, by dotted key; none of a copy or a plain ConfigDict."""
    facts = {prefix + key: field for key, field in vars(config).get("_facts", {}).items()}
    for key, value in config.items():
        facts |= facts_of(value, f"{prefix}{key}.") if isinstance(value, ConfigDict) else {}
    return facts


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
    "cutoff_len": "max_prompt_length",
    "online_filtering": "filter.online", "clip_grad_norm": "max_grad_norm", "grad_clip": "max_grad_norm",
}  # fmt: skip


# What is to be known of a field before it is taken for what was meant.
ADVICE = {"resume_from": "the same command resumes by itself, resume_from goes back to a step; "}


# Values of them -> ours.
VALUES = {
    "4bit": "nf4", "4": "nf4", "int4": "nf4", "fp4": "nf4", "bnb": "nf4", "qlora": "nf4", "8bit": "int8", "8": "int8",
    "bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "ppo": "grpo",
}  # fmt: skip


def elsewhere(name: str, fields: list[str]) -> str:
    """The field of ours among `fields` that other tools call `name`; empty where there is none."""
    ours = ELSEWHERE.get(name.lower().replace("-", "_"), "").split()
    return next((field for field in ours if field in fields), "")


def raw_sources(text: str) -> list[tuple[str, str]]:
    """`raw_source` of each source in `data.path` of the dataset job, which commas divide; a comma in the name of what
    is there belongs to its name."""
    parts, found = text.split(","), []
    while parts:
        joined = [",".join(parts[:count]).strip() for count in range(len(parts), 1, -1)]
        whole = next((one for one in joined if _is_there(raw_source(one)[1])), parts[0].strip())
        parts = parts[whole.count(",") + 1 :]
        if whole:
            found.append(raw_source(whole))
    return found


def raw_source(source: str) -> tuple[str, str]:
    """Format and path of "[format=]path", "" without a format; a path that is there may have "=" of its own."""
    name, path = named_path(source)
    return (name, path) if re.fullmatch(r"[\w-]*", name) else ("", source)


def _is_there(path: str) -> bool:
    return os.path.exists(os.path.expanduser(path))  # False, not an error, for a path that none can be


def named_path(entry: str) -> tuple[str, str]:
    """Name and path of "[name=]path", "" without a name: a path that is there, and an address, may have signs of
    equality of its own."""
    name, equals, path = entry.partition("=")
    if not equals or _is_there(entry) or set(name) & set(":@/"):
        return "", entry
    return name, path


def named_devices(name: str) -> tuple[str, int]:
    """Kind and number of the devices that `plan_mesh` names; Google's number of a v5p counts its cores, two a chip,
    which JAX takes as one device. Raises ConfigError for another name."""
    found = re.fullmatch(
        r"(a100|h100|h200|v5e|v5p|v6e)([x-])([1-9]\d{0,3})", name.lower().replace("v5litepod-", "v5e-")
    )
    if not found:
        raise ConfigError(
            f"config.plan_mesh={name} is unknown; give a100, h100, h200, v5e, v5p or v6e and a number up to 9999, such "
            "as a100x8"
        )
    kind, mark, count = found[1], found[2], int(found[3])
    if (kind, mark) != ("v5p", "-"):
        return kind, count
    if count % 2:
        raise ConfigError(f"config.plan_mesh={name}: the number counts cores, two a chip; give an even one, or v5px4")
    return kind, count // 2
