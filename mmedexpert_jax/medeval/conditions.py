"""The conditions under which each model was asked: two accuracies compare only as far as their conditions do."""

import hashlib
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from mmedexpert_jax.errors import UserError
from mmedexpert_jax.medeval.results import Result
from mmedexpert_jax.medeval.systems import Target
from mmedexpert_jax.models import load_processor

# Conditions that make two evaluations differ whatever the models are; what was left out or refused is counted apart.
COMPARED = ("prompt", "template", "decoding", "image budget")
NOTE = (
    "The prompt's style, the chat template (by its hash where it is ours to apply), greedy or sampled answers, the "
    "largest image that a model was shown, the name under which a server says that it answered, and the answers that "
    "it refused. Two runs compare only as far as this table is the same in both; published rows were asked under their "
    "authors' conditions."
)
_ASKED_FOR = " (asked for "  # behind the name that a server gives, where it is not the one that was asked for


def table(
    config: ConfigDict,
    targets: Sequence[Target],
    styles: Mapping[str, str],
    results: Mapping[str, Result],
    requests: Sequence[Mapping[str, str]] = (),
) -> list[dict[str, str]]:
    """A row for each model: what runs it, prompt, template, decoding, image budget, what a server said and refused,
    questions left out.

    Args:
        styles: prompt style by model.
        requests: a row for each endpoint, with the settings that its server refused.
    """
    told = {row["model"]: row for row in requests}
    asked = sum(len(result.benchmark.items) for result in results.values())
    under = f", {config.paradigm}" if config.paradigm else ""
    rows = []
    for target in targets:
        server = told.get(target.name, {})
        template, budget = _prompting(config, target)
        served_as = server.get("answered as", "–")
        if served_as not in ("–", "not said", target.model):
            served_as = f"{served_as}{_ASKED_FOR}{target.model})"
        evaluations = [result.evaluations.get(target.name) for result in results.values()]
        answered = sum(len(evaluation.by_item()) for evaluation in evaluations if evaluation)
        kept = sum(result.kept_back.get(target.name, 0) for result in results.values())
        withheld = f", {kept} of them for privacy" if kept else ""
        rows.append(
            {
                "model": target.name,
                "runs on": target.url or target.kind,
                "prompt": styles[target.name] + under,
                "template": template,
                "decoding": _decoding(config, target, server.get("settings refused", "none")),
                "image budget": budget,
                "answered as": served_as,
                "refused": server.get("answers refused", "–"),
                "left out": f"{asked - answered} of {asked}{withheld}",
            }
        )
    return rows


def warning(rows: Sequence[Mapping[str, str]]) -> str:
    """A sentence where the models were not asked alike; "" where they were."""
    unlike = [name for name in COMPARED if len({row[name] for row in rows}) > 1]
    if any(not row["left out"].startswith("0 ") for row in rows):
        unlike.append("questions left out")
    if any(not row["refused"].startswith(("0 ", "–")) for row in rows):
        unlike.append("answers refused")
    if any(_ASKED_FOR in row["answered as"] for row in rows):
        unlike.append("another model's name in the answers")
    return f"The models were not asked alike ({', '.join(unlike)}): see How they were asked." if unlike else ""


def _decoding(config: ConfigDict, target: Target, refused: str) -> str:
    """Greedy or sampled, its limits, tokens and answers an item, and what a server took no notice of."""
    said = ["greedy"]
    if config.temperature:
        said = [f"temperature {config.temperature:g}"]
        said += [f"top_k {config.top_k}"] if config.top_k else []
        said += [f"top_p {config.top_p:g}"] if config.top_p < 1 else []
    said.append(f"{config.max_new_tokens} tokens")
    said += [f"{config.num_samples} answers an item"] if config.num_samples > 1 else []
    if target.kind == "endpoint":
        said += [f"effort {config.endpoint.effort}"] if config.endpoint.effort else []
        said += [f"the server refused {refused}"] if refused != "none" else []
    return ", ".join(said)


def _prompting(config: ConfigDict, target: Target) -> tuple[str, str]:
    """Chat template and image budget, in words."""
    if target.kind == "endpoint":
        return "the server's", f"{config.endpoint.image_side} px a side, then the server's"
    if target.kind == "transformers":
        return "its own processor's", "its own processor's"
    try:
        processor = load_processor(target.model)
    except UserError:  # the run has its answers stored, and the model is gone
        return "not known", "not known"
    digest = hashlib.sha256(str(processor.tokenizer.chat_template).encode()).hexdigest()
    return digest[:12], f"{processor.image_config.max_pixels:,} px"
