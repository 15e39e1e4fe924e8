"""The paper from data to table: DSA x 4, merge, GBA, merge again, and every model evaluated."""

from mmedexpert_jax.config import presets
from mmedexpert_jax.config.fields import Config

PRESETS = ("mini", "smollm2", "qwen2_vl_2b", "lingshu_7b", "medgemma_4b", "medgemma_27b")


def get_config(preset: str = "mini") -> Config:
    """Fields of the job under a preset."""
    config = presets.common("pipeline", preset)
    config.dsa = presets.stage("dsa", preset, without=("specialty",))
    config.merge = presets.stage("merge", preset, without=("experts", "weights"))
    config.gba = presets.stage("gba", preset)
    config.evaluate = presets.stage("evaluate", preset, without=("compare",))

    config.dsa.eval.every = config.gba.eval.every = -1  # the evaluate stage scores every model once
    if preset == "smollm2":  # cut to a look: 830 CPU seconds; raise them for anything else
        config.limit = 16
        config.dsa.steps, config.gba.steps = 3, 2
    return config
