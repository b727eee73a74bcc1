"""Training: recipes (what), shards (on how many cores), checkpoints (so that nothing is lost), the loop (how)."""

from tinyvit.train.checkpoint import CheckpointError
from tinyvit.train.loop import CHECKPOINT, Run, TrainingError, evaluate, fit, new_folder
from tinyvit.train.recipes import FOLDER_RECIPE, RECIPES, Recipe
from tinyvit.train.shards import Shards, available_cores, one_blas_thread

__all__ = [
    "CHECKPOINT", "CheckpointError", "FOLDER_RECIPE", "RECIPES", "Recipe", "Run", "Shards", "TrainingError",
    "available_cores", "evaluate", "fit", "new_folder", "one_blas_thread",
]  # fmt: skip
