"""What is known of a config's fields beside their defaults and meanings, which stand in configs/*.py."""

from mmedexpert_jax.config.fields import Field, check_value, field_of, resumes

__all__ = ["Field", "check_value", "field_of", "resumes"]
