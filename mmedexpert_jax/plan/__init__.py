"""A plan's numbers: devices, memory, steps, tokens and disk of a job, without loading a weight."""
