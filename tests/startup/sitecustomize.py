"""Run first by Python in every process that a test starts: tests/conftest.py puts this folder on its path."""

import gc

# As in tests/conftest.py, for the same reason: it takes 1.6 of the 11.7 CPU seconds of a job that trains a tiny model.
gc.set_threshold(100_000, 50, 100)
