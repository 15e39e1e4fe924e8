"""Whole numbers rounded up: counts of batches and shards, and sizes of padded axes."""


def cdiv(value: int, divisor: int) -> int:
    """The quotient, rounded up."""
    return -(-value // divisor)


def round_up(value: int, multiple: int) -> int:
    """The least multiple that is not below the value."""
    return cdiv(value, multiple) * multiple
