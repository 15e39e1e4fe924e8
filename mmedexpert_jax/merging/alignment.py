"""Experts as they come, laid over the base: tied heads, extra heads, other vocabularies, text models under a VLM."""

import filecmp
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmedexpert_jax import border
from mmedexpert_jax.errors import DataError
from mmedexpert_jax.lora import EMBEDDING, HEAD, TOWERS

# Heads that trainers put beside a language model: TRL's value head, reward and classification heads.
EXTRA = ("v_head.", "value_head.", "reward_head.", "score.", "classifier.")
_LAYER = re.compile(r"^model\.layers\.(\d+)\.")
_LEAST_SHARED = 0.5  # share of the base's tokens that an expert must know, so that the two are of one base


def aligned(
    expert: Mapping[str, np.ndarray], base: Mapping[str, Any], name: str, tokens: np.ndarray | None, tied: bool = True
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """An expert's tensors under the base's names and in its shapes, and what was done to them, in words.

    An output layer tied in one of the two is filled in or left out; heads of a trainer are dropped; a text model has
    the base's vision tower; rows of tokens are put where the base has them, and tokens that only one of the two knows
    stay as the base has them.

    Args:
        expert: its tensors by canonical name.
        name: of the expert, for messages.
        tokens: [V] the expert's row of each of the base's tokens, -1 for none; None: rows are the same.
        tied: its embedding is its output layer where it has none of its own.

    Raises:
        DataError: the base ties its output layer and the expert has one of its own that differs.
    """
    tensors, notes = dict(expert), []
    if extra := [key for key in tensors if key.startswith(EXTRA) and key not in base]:
        tensors = {key: tensor for key, tensor in tensors.items() if key not in extra}
        notes.append(f"dropped {', '.join(extra[:3])}{' and more' if len(extra) > 3 else ''}, which the base lacks")
    towers = [key for key in base if key.startswith(TOWERS)]
    if towers and not any(key.startswith(TOWERS) for key in tensors) and EMBEDDING in tensors:
        tensors |= {key: base[key] for key in towers}
        notes.append("a text model: the base's vision tower stays")
    if HEAD in base and HEAD not in tensors and EMBEDDING in tensors:
        tied &= not any(key.startswith(("score.", "classifier.")) for key in extra)  # they stand in its place
        tensors[HEAD] = tensors[EMBEDDING] if tied else base[HEAD]
        notes += [] if tied else [f"no output layer of its own: the base's {HEAD} stays"]
    if HEAD not in base and HEAD in tensors:
        head = tensors.pop(HEAD)
        if not np.array_equal(head, tensors.get(EMBEDDING, ())):
            raise DataError(
                f"expert {name}: {HEAD} is not its embedding, but the base ties them: it is not of this base"
            )
    if tokens is not None:
        for key in (EMBEDDING, HEAD):
            if key in tensors and key in base and tensors[key] is not base[key]:
                tensors[key] = _by_token(tensors[key], base[key], tokens)
        absent = int(np.count_nonzero(tokens < 0))
        notes.append(f"another vocabulary: {absent} of the base's {len(tokens)} rows are unknown to it and stay")
    return tensors, tuple(notes)


def vocabularies(expert: Path, base: Path) -> np.ndarray | None:
    """[V] the row that an expert has for each row of the base's embedding, -1 for none; None where they agree.

    Rows behind the last token of both are padding, which stays. Raises DataError for a tokenizer of another family.
    """
    ours, theirs = base / "tokenizer.json", expert / "tokenizer.json"
    rows, own = _vocabulary(base), _vocabulary(expert)
    if not (ours.exists() and theirs.exists() and rows and own):
        return None
    if rows == own and filecmp.cmp(ours, theirs, shallow=False):
        return None
    known, found = _tokens(ours), _tokens(theirs)
    if rows == own and known == found:
        return None
    index = np.full(rows, -1, np.int64)
    shared = {row: found[token] for token, row in known.items() if row < rows and found.get(token, own) < own}
    if len(shared) < _LEAST_SHARED * len(known):
        if rows != own:
            return None  # its shapes will say so
        raise DataError(
            f"{expert}: shares {len(shared):,} of the {len(known):,} tokens of {base}: it has another tokenizer and is "
            "not of this base"
        )
    index[list(shared)] = list(shared.values())
    return index


def union(base: Path, experts: Iterable[Path]) -> dict[str, int]:
    """Token -> row: the base's tokens at their rows, behind them those that only experts have (mergekit's union).

    Raises:
        DataError: a model without tokenizer.json or vocab_size.
    """
    tokens = _known(base)
    free = max(tokens.values()) + 1
    for folder in experts:
        own = _known(folder)
        for token in sorted(own, key=own.__getitem__):
            if token not in tokens:
                tokens[token], free = free, free + 1
    return tokens


def rows_of(tokens: Mapping[str, int], folder: Path) -> np.ndarray:
    """The row that a model has for each row of a vocabulary, -1 for none."""
    index, own = np.full(max(tokens.values()) + 1, -1, np.int64), _known(folder)
    for token in own.keys() & tokens.keys():
        index[tokens[token]] = own[token]
    return index


def enlarged(
    tokens: Mapping[str, int], base: Mapping[str, Any], folder: Path, experts: Mapping[Path, Mapping[str, Any]]
) -> dict[str, np.ndarray]:
    """The base's embedding and output layer over a vocabulary; a token that it lacks is the mean of the experts' rows.

    Of a token that one expert alone knows that is its own row, which the merge therefore keeps (mergekit's default).

    Args:
        folder: the base's.
        experts: tensors by directory.
    """
    index, found = rows_of(tokens, folder), {}
    for key in (EMBEDDING, HEAD):
        if key not in base:
            continue
        rows = np.zeros((len(index), base[key].shape[1]), np.float32)
        count = np.zeros(len(index))
        for directory, tensors in experts.items():
            own = rows_of(tokens, directory)
            known = (own >= 0) & (index < 0)
            rows[known] += np.asarray(tensors.get(key, tensors[EMBEDDING]))[own[known]]
            count += known
        rows /= np.maximum(count, 1)[:, None].astype(np.float32)
        rows[index >= 0] = np.asarray(base[key])[index[index >= 0]]
        found[key] = rows.astype(base[key].dtype)
    return found


def _known(folder: Path) -> dict[str, int]:
    """Token -> row of those that have a row."""
    rows, file = _vocabulary(folder), folder / "tokenizer.json"
    if not (rows and file.exists()):
        raise DataError(f"{folder}: a union of vocabularies needs tokenizer.json and vocab_size of every model")
    return {token: row for token, row in _tokens(file).items() if row < rows}


def _by_token(own: np.ndarray, base: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The expert's rows in the base's order, the base's where the expert has none."""
    known = tokens[: len(base)] >= 0
    dtype = own.dtype if own.dtype == base.dtype else np.dtype(np.float32)
    rows = np.asarray(base).astype(dtype)
    rows[known] = np.asarray(own)[tokens[: len(base)][known]].astype(dtype)
    return rows


def _vocabulary(directory: Path) -> int:
    """Rows of a checkpoint's embedding, as its config says."""
    try:
        config = border.read_json(directory / "config.json")
        return int(config.get("vocab_size") or config.get("text_config", {}).get("vocab_size") or 0)
    except (DataError, ValueError, AttributeError, TypeError):
        return 0


def _tokens(file: Path) -> dict[str, int]:
    """Token -> id."""
    try:
        content = border.read_json(file)
        vocabulary = content["model"]["vocab"]
        if not isinstance(vocabulary, dict):  # a unigram model's list of pairs
            vocabulary = {token: number for number, (token, _) in enumerate(vocabulary)}
        added = {entry["content"]: int(entry["id"]) for entry in content.get("added_tokens", ())}
        return {str(token): int(number) for token, number in vocabulary.items()} | added
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: not a tokenizer ({str(error)[:80]}); copy it again from the model") from error


def layers(start: int, stop: int, first: int, outside: tuple[bool, bool], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The decoder's layers start:stop under new numbers from `first` on.

    Args:
        start, stop: layers that are taken.
        first: number of the first of them in the stack.
        outside: whether what stands before the layers (embedding, vision tower), and behind them (final norm, head),
            comes along.
        tensors: by canonical name.
    """
    found = {}
    for name, tensor in tensors.items():
        match = _LAYER.match(name)
        if match is None:
            behind = name.startswith(("model.norm.", "lm_head."))
            if outside[behind]:
                found[name] = tensor
        elif start <= int(match[1]) < stop:
            found[f"model.layers.{int(match[1]) - start + first}.{name[match.end() :]}"] = tensor
    return found
