"""Wilson's interval of a proportion, of accuracies and of agreement."""

import math

Z95 = 1.959963984540054  # 97.5th percentile of the normal distribution


def wilson(right: float, total: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (1927), 95 % by default; (0, 1) without observations."""
    if total == 0:
        return 0.0, 1.0
    fraction = right / total
    centre = fraction + z * z / (2 * total)
    half = z * math.sqrt(fraction * (1 - fraction) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)
