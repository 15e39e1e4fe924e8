"""Merging (section 4.3): TIES and its rivals over the experts' task vectors."""

from ml_collections import ConfigDict

from mmedexpert_jax.data.case import SPECIALTIES
from mmedexpert_jax.launch import presets

PRESETS = ("mini", "smollm2", "qwen2_vl_2b", "lingshu_7b")


def get_config(preset: str = "mini") -> ConfigDict:
    """Fields of the job under a preset."""
    config = presets.common("merge", preset)
    runs = f"runs/dsa-{preset}"
    config.experts = tuple(f"{runs}/{name}" for name in SPECIALTIES)  # runs, adapters or models: "path" or "name=path"
    config.weights = ()  # a number per expert, in their order; empty: all 1
    config.method = "ties"  # "ties" (equation 7), "task_arithmetic", "average" or "slerp"
    config.rules = "paper"  # where TIES codes differ: "paper" (algorithm 1), "official", "mergekit" or "peft"
    config.density = 0.2  # share of each task vector's entries kept; not given in the paper, value of the TIES authors
    config.scale = 1.0  # lambda, factor of the merged task vector; not given in the paper
    config.rank = 0  # 0: a full model; r: an adapter of that rank, by truncated SVD
    config.rl_origin = "base"  # start of the task vector of an expert named RL: "base" (section 4.3), or "start" of GBA
    return config
