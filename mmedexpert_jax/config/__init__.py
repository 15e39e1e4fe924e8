"""Bounds, choices and other facts of a config's fields; defaults and meanings stand in configs/*.py."""

from mmedexpert_jax.config.fields import Field, check_value, field_of, resumes

__all__ = ["Field", "check_value", "field_of", "resumes"]
