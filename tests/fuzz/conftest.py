"""What the generators damage: a tiny checkpoint with tokenizer, eight cases a split."""

from tests.launch.conftest import tiny_cases, tiny_checkpoint  # noqa: F401
