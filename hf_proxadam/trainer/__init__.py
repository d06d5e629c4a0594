"""The optimizers' place in transformers: the catalog of names and its registration."""

from .catalog import CATALOG, OptimizerEntry

__all__ = ["CATALOG", "OptimizerEntry"]
