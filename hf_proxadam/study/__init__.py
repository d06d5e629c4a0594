"""Comparisons of optimizers: spec, cells, one trial, runners, statistics."""

RUNNERS = ("local", "ray")


class RunnerError(RuntimeError):
    """Cells can't be run here at all, whatever they are."""
