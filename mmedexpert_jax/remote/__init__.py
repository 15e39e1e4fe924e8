"""Endpoints that speak OpenAI's protocol: asked at a bounded rate and cost, each answer stored once. No JAX here."""

from mmedexpert_jax.remote.answer_store import Answers
from mmedexpert_jax.remote.client import Client
from mmedexpert_jax.remote.embeddings import EmbeddingClient
from mmedexpert_jax.remote.protocol import Attempt, Endpoint, EndpointReply, Request, Usage

__all__ = ["Answers", "Attempt", "Client", "EmbeddingClient", "Endpoint", "EndpointReply", "Request", "Usage"]
