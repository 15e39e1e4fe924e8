"""Hints in plain words when a run of RL goes wrong, from its metrics alone."""

import re
import statistics
from collections.abc import Mapping, Sequence

RECENT = 8  # steps that a hint is about; fewer are noise at the group sizes in use
SAME = 0.8  # fraction of groups of equal rewards from which most of a step teaches nothing
TRUNCATED = 0.2  # fraction of completions that ran into the limit
RUNAWAY = 10.0  # times its own median before, from which a KL runs away
KL_FLOOR = 0.05  # nats a token below which no KL is worth a word
GAP = 0.05  # nats a token between sampler and trainer; bfloat16 gives 0.01 to 0.02
HARD, EASY = 0.2, 0.8  # accuracy beyond which equal groups are all wrong, or all right
ROSE, STOOD = 0.1, 0.02  # of a reward from the first tenth of a run to the last: learnt, and not
COLLAPSE = 0.1  # of the first entropy
ABSTAINED = 0.5  # share of the completions on which a reward abstains, from which it is hardly the reward asked for


def hints(rows: Sequence[Mapping[str, float | None]]) -> dict[str, str]:
    """Hints at what looks wrong in the last steps: name -> a sentence with the figure and the field to change.

    Args:
        rows: of metrics.jsonl, in order; rows of evaluations are passed over, and so is a metric that was no number
            in a step (None).
    """
    steps = [
        {name: value for name, value in row.items() if value is not None}
        for row in rows
        if "reward" in row or "frac_reward_zero_std" in row
    ]
    if len(steps) < RECENT:
        return {}
    found = {}
    equal, level = _recent(steps, "frac_reward_zero_std"), _recent(steps, "rewards/accuracy/mean")
    if equal > SAME:
        cause = "samples are alike"
        if level < HARD:
            cause = "the cases are too hard"
        elif level > EASY:
            cause = "the cases are too easy"
        found["equal rewards"] = (
            f"{equal:.0%} of the groups have equal rewards and teach nothing ({cause}): filter cases by pass rate, "
            "raise num_samples or temperature, or set zero_variance=refill"
        )
    if (clipped := _recent(steps, "completions/clipped_ratio")) > TRUNCATED:
        found["truncation"] = (
            f"{clipped:.0%} of the completions ran into max_new_tokens and cannot be right: raise it, or set "
            "rewards.length or mask_truncated"
        )
    for key in sorted({key for row in steps[-RECENT:] for key in row if re.fullmatch("rewards/.+/abstained", key)}):
        if (share := _recent(steps, key)) > ABSTAINED:
            name = key.split("/")[1]
            found[f"abstentions of {name}"] = (
                f"the reward {name} abstained on {share:.0%} of the completions, which count without it: a reply of a "
                "judge that cannot be read or is cut at rewards.judge.max_tokens, or a reward of open answers on "
                "multiple choice"
            )
    # a LoRA begins at the reference, with a KL of 0 from which any other is a multiple
    kl, leasts = _recent(steps, "kl"), [KL_FLOOR] * RECENT + [KL_FLOOR / RUNAWAY] * len(steps)
    before = [max(row["kl"], least) for row, least in zip(steps[:-RECENT], leasts, strict=False) if "kl" in row]
    usual = statistics.median(before) if before else float("nan")
    if kl > RUNAWAY * usual:
        found["KL"] = (
            f"the KL to the reference is {kl:.3g} nats a token, {kl / usual:.0f} times {usual:.2g}, its median before "
            f"(a step counts {KL_FLOOR / RUNAWAY:g} at least, each of the first {RECENT} {KL_FLOOR:g}): "
            "lower lr, raise beta"
        )
    form, right = _rise(steps, "rewards/format/mean"), _rise(steps, "rewards/accuracy/mean")
    if form > ROSE and right < STOOD:  # the reward of the form may be all that is climbed
        found["form alone"] = (
            f"format rose by {form:.2f} while accuracy moved by {right:+.2f}: lower rewards.format and "
            "rewards.structure, or let form count only where the answer is right (rewards.gated=True)"
        )
    if (gap := _recent(steps, "sampling/logp_difference/mean")) > GAP:
        found["sampler gap"] = f"sampler and trainer differ by {gap:.3f} nats a token: set importance_cap=2"
    first = next((row["entropy"] for row in steps if row.get("entropy")), 0.0)
    if (now := _recent(steps, "entropy")) < COLLAPSE * first:
        found["entropy"] = (
            f"entropy fell from {first:.2f} to {now:.3f} nats a token, and samples are nearly alike: lower lr, raise "
            "clip_high, or raise temperature"
        )
    return found


def _recent(steps: Sequence[Mapping[str, float]], name: str) -> float:
    """Mean of a metric over the recent steps; NaN, which no comparison holds for, where it is missing."""
    values = [row[name] for row in steps[-RECENT:] if name in row]
    return statistics.fmean(values) if values else float("nan")


def _rise(steps: Sequence[Mapping[str, float]], name: str) -> float:
    """Of a metric from the first tenth of the steps to the last; NaN where these are fewer than two tenths, or one of
    them has no such metric."""
    tenth = max(RECENT, len(steps) // 10)
    if len(steps) < 2 * tenth:
        return float("nan")
    first, last = ([row[name] for row in part if name in row] for part in (steps[:tenth], steps[-tenth:]))
    if not (first and last):
        return float("nan")
    return statistics.fmean(last) - statistics.fmean(first)
