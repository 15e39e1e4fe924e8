"""The backends that answer: this project's engine, an endpoint of the OpenAI protocol, or transformers."""

from mmedexpert_jax.medeval.backends.base import Asked, Backend, OnReply, Refuse

__all__ = ["Asked", "Backend", "OnReply", "Refuse"]
