"""Contamination: training cases held against test sets, by 8-gram containment and image hashes, as a table of pairs."""

from mmedexpert_jax.config import presets
from mmedexpert_jax.config.fields import Config, free

PRESETS = ("mini",)


def get_config(preset: str = "mini") -> Config:
    """Fields of the job under a preset."""
    config = presets.common("contamination", preset)
    del config.model, config.data
    config.training = ("mmedexpert_mini@train",)  # name[:subset][@split][=source]; mmedexpert_mini reads any cases
    config.benchmarks = ("mmedexpert_mini@test",)  # test sets, written likewise; source: a directory, a zip, or "hub"
    config.images = True  # compare images too, which reads all of them
    config.skip_broken = free(False)  # go on without malformed rows and items whose images are missing
    return config
