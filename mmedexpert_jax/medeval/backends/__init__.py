"""The backends that answer: this project's engine, an endpoint of the OpenAI protocol, or transformers."""

from mmedexpert_jax.medeval.backends.base import Backend, OnReply, Refuse

__all__ = ["Backend", "OnReply", "Refuse"]
