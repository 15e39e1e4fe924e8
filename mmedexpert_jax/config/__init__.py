"""The configs of jobs: fields with their facts, presets, flags, and what does not go together."""

from mmedexpert_jax.config.fields import Config, Field
from mmedexpert_jax.config.job_config import field_of, flatten
from mmedexpert_jax.config.validate import check_value

__all__ = ["Config", "Field", "check_value", "field_of", "flatten"]
