"""Data: read it without trusting it, cut it fairly, change it without changing its meaning, serve it in batches."""

from tinyvit.data.augment import AUGMENTS, Augment
from tinyvit.data.batches import batches
from tinyvit.data.dataset import DataError, Dataset, Split
from tinyvit.data.fetch import NAMES, load

__all__ = ["AUGMENTS", "NAMES", "Augment", "DataError", "Dataset", "Split", "batches", "load"]
