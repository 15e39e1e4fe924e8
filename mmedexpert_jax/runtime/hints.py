"""Hints in plain words when a run of RL goes wrong, from its metrics alone."""

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


def hints(rows: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """Hints at what looks wrong in the last steps: name -> a sentence with the figure and the field to change.

    Args:
        rows: of metrics.jsonl, in order; rows of evaluations are passed over.
    """
    steps = [row for row in rows if "reward" in row or "frac_reward_zero_std" in row]
    if len(steps) < RECENT:
        return {}
    found = [_equal(steps), _truncated(steps), _runaway(steps), _form_alone(steps), _gap(steps), _collapsed(steps)]
    return dict(hint for hint in found if hint is not None)


def _recent(steps: Sequence[Mapping[str, float]], name: str) -> float:
    """Mean of a metric over the recent steps; NaN, which no comparison holds for, where it is missing."""
    values = [row[name] for row in steps[-RECENT:] if name in row]
    return statistics.fmean(values) if values else float("nan")


def _equal(steps: Sequence[Mapping[str, float]]) -> tuple[str, str] | None:
    fraction = _recent(steps, "frac_reward_zero_std")
    if not fraction > SAME:
        return None
    level = _recent(steps, "rewards/accuracy/mean")
    cause = "samples are alike"
    if level < HARD:
        cause = "the cases are too hard"
    elif level > EASY:
        cause = "the cases are too easy"
    return "equal rewards", (
        f"{fraction:.0%} of the groups have equal rewards and teach nothing ({cause}): filter cases by pass rate, "
        "raise num_samples or temperature, or set zero_variance=refill"
    )


def _truncated(steps: Sequence[Mapping[str, float]]) -> tuple[str, str] | None:
    fraction = _recent(steps, "completions/clipped_ratio")
    if not fraction > TRUNCATED:
        return None
    return "truncation", (
        f"{fraction:.0%} of the completions ran into max_new_tokens and cannot be right: raise it, or set "
        "rewards.length or mask_truncated"
    )


def _runaway(steps: Sequence[Mapping[str, float]]) -> tuple[str, str] | None:
    before = [row["kl"] for row in steps[:-RECENT] if "kl" in row]
    now = _recent(steps, "kl")
    if not before or not now > max(KL_FLOOR, RUNAWAY * statistics.median(before)):
        return None
    times = now / max(statistics.median(before), 1e-9)
    return "KL", (
        f"the KL to the reference is {now:.3g} nats a token, {times:.0f} times its median before: lower lr, raise beta"
    )


def _form_alone(steps: Sequence[Mapping[str, float]]) -> tuple[str, str] | None:
    """Form learned while accuracy stays: the reward of the form may be all that is climbed."""
    tenth = max(RECENT, len(steps) // 10)
    if len(steps) < 2 * tenth:
        return None
    rise = {
        name: statistics.fmean(row.get(name, 0.0) for row in steps[-tenth:])
        - statistics.fmean(row.get(name, 0.0) for row in steps[:tenth])
        for name in ("rewards/format/mean", "rewards/accuracy/mean")
    }
    form, right = rise.values()
    if not (form > ROSE and right < STOOD):
        return None
    return "form alone", (
        f"format rose by {form:.2f} while accuracy moved by {right:+.2f}: lower rewards.format and rewards.structure, "
        "or let form count only where the answer is right (rewards.gated=True)"
    )


def _gap(steps: Sequence[Mapping[str, float]]) -> tuple[str, str] | None:
    gap = _recent(steps, "sampling/logp_difference/mean")
    if not gap > GAP:
        return None
    return "sampler gap", f"sampler and trainer differ by {gap:.3f} nats a token: set importance_cap=2"


def _collapsed(steps: Sequence[Mapping[str, float]]) -> tuple[str, str] | None:
    first = next((row["entropy"] for row in steps if row.get("entropy")), 0.0)
    now = _recent(steps, "entropy")
    if not now < COLLAPSE * first:
        return None
    return "entropy", (
        f"entropy fell from {first:.2f} to {now:.3f} nats a token, and samples are nearly alike: lower lr, raise "
        "clip_high, or raise temperature"
    )
