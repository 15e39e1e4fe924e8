"""Seeded samples of a benchmark: in proportion to its strata, and apart by image."""

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from mmedexpert_jax.data.case import Case
from mmedexpert_jax.errors import DataError


def stratified(items: Sequence[Case], limit: int, seed: int, labels: Sequence[str] = ()) -> list[Case]:
    """`limit` items in proportion to the values of `labels`, in their own order; all of them for limit 0.

    Of each stratum it takes its share of `limit` to within one item or two, whatever the seed, and the sample of a
    smaller limit is part of the sample of a larger one under the same seed.
    """
    if not 0 < limit < len(items):
        return list(items)
    strata = [tuple(item.labels.get(label, "") for label in labels) for item in items]
    return [items[i] for i in sorted(proportional_order(strata, seed)[:limit])]


def proportional_order(strata: Sequence[Hashable], seed: int) -> list[int]:
    """A random order of indices in which every prefix holds the strata in proportion."""
    rng = np.random.default_rng(seed)
    members: dict[Hashable, list[int]] = defaultdict(list)
    for index, stratum in enumerate(strata):
        members[stratum].append(index)
    places = np.empty(len(strata))
    for indices in members.values():
        places[rng.permutation(indices)] = (np.arange(len(indices)) + rng.random()) / len(indices)
    return np.argsort(places, kind="stable").tolist()


def apart_by_image(
    items: Sequence[Case], count: int, seed: int, labels: Sequence[str] = ()
) -> tuple[list[Case], list[Case]]:
    """Draws `count` items that share no image with the rest, in proportion to the values of `labels`.

    Items that share an image, directly or by way of others, are drawn together or not at all.

    Args:
        count: items to draw.
        seed: of the draw.
        labels: of the strata; a group counts by its first item.

    Returns:
        (drawn, rest), both in the order of `items`.

    Raises:
        DataError: groups of this size cannot make up `count`.
    """
    groups = _groups(items)
    strata = [tuple(items[group[0]].labels.get(label, "") for label in labels) for group in groups]
    drawn: set[int] = set()
    for number in proportional_order(strata, seed):
        if len(drawn) + len(groups[number]) <= count:
            drawn.update(groups[number])
        if len(drawn) == count:
            return [items[i] for i in sorted(drawn)], [item for i, item in enumerate(items) if i not in drawn]
    raise DataError(f"{len(items)} items do not hold {count} that share no image with the rest")


def _groups(items: Sequence[Case]) -> list[list[int]]:
    """Indices of items that share images, directly or by way of others; by union-find."""
    parent = list(range(len(items)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = index = parent[parent[index]]
        return index

    first: dict[str, int] = {}
    for index, item in enumerate(items):
        for image in item.images:
            parent[root(index)] = root(first.setdefault(image.name, index))
    groups: dict[int, list[int]] = defaultdict(list)
    for index in range(len(items)):
        groups[root(index)].append(index)
    return list(groups.values())
