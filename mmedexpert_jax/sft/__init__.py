"""DSA (section 4.1): supervised fine-tuning of one LoRA expert per specialty."""

from mmedexpert_jax.sft.dsa import train

__all__ = ["train"]
