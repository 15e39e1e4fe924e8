"""Embedding similarity of open answers: cosine of the answer block and the nearest reference answer."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mmedexpert_jax import answers, border
from mmedexpert_jax.data.case import Case
from mmedexpert_jax.gba.askers import Asker, Network, endpoint_asker, guarded, network_of, stored, tower_of
from mmedexpert_jax.gba.judge_reward import endpoint_of, name_of, report_sent


@dataclass(frozen=True)
class SimilarityReward:
    """A reward of all completions of a rollout: the cosine, from 0 on, of the embeddings of answer and nearest
    reference.

    It abstains on multiple choice, and where no embedding is to be had; an empty answer is worth 0.
    """

    embed: Asker  # texts -> vectors as JSON
    privacy: str = "report"  # what becomes of a text that may identify a person, one of `privacy.MODES`
    sends: bool = True  # whether texts leave this process
    reported: set[str] = field(default_factory=set)  # cases that were said to hold one

    @classmethod
    def from_config(cls, config: ConfigDict, folder: Path | None, own: Network | None = None) -> "SimilarityReward":
        """From `config.rewards.similarity`. Raises ConfigError."""
        group, store = config.rewards.similarity, (folder or Path()) / "embeddings.sqlite"
        if group.path:
            name = f"{name_of(group.path, config)} mean of last hidden states"
            return cls(stored(tower_of(network_of(group.path, own)), name, store), sends=False)
        ask = endpoint_asker(endpoint_of(config, "similarity", max_tokens=0), store, embeds=True)
        return cls(guarded(ask, group.privacy), group.privacy)

    def __call__(self, cases: Sequence[Case], texts: Sequence[str], **_: Any) -> list[float | None]:
        """A number from 0 to 1 for each completion, or None. Raises RemoteError."""
        if self.sends:
            report_sent(cases, texts, self.reported, self.privacy, "the embedder")
        given = [(answers.parse(text).answer or "").strip() for text in texts]
        open_ones = [place for place, case in enumerate(cases) if case.kind == "open"]
        asked = [text for place in open_ones if given[place] for text in (given[place], *cases[place].golds)]
        known = dict(zip(asked, self.embed(asked), strict=True)) if asked else {}
        scores: list[float | None] = [None] * len(cases)
        for place in open_ones:
            found = [cosine(known.get(given[place], ""), known.get(gold, "")) for gold in cases[place].golds]
            near = max((score for score in found if score is not None), default=None)
            scores[place] = near if given[place] else 0.0
        return scores


def cosine(one: str, other: str) -> float | None:
    """Of two vectors as JSON, from 0 on; None where one is missing or their lengths differ."""
    if not one or not other:
        return None
    a, b = (np.array(border.parse_json(text, "an embedding", list[float])) for text in (one, other))
    norms = np.linalg.norm(a) * np.linalg.norm(b) if a.shape == b.shape else 0.0
    return max(0.0, float(a @ b / norms)) if norms else None
