"""Training: recipes (what), shards (on how many cores), checkpoints (so that nothing is lost), the loop (how);
fine-tuning; the same without labels, and the probe that says what was learned."""

from tinyvit.train.checkpoint import CheckpointError
from tinyvit.train.finetune import FINETUNING, begin, finetune, finetuning_recipe
from tinyvit.train.loop import CHECKPOINT, Run, TrainingError, evaluate, fit, new_folder
from tinyvit.train.pretrain import pretrain, save_pretrained
from tinyvit.train.probe import Probe, linear_probe
from tinyvit.train.recipes import FOLDER_RECIPE, RECIPES, Recipe
from tinyvit.train.shards import Shards, available_cores, classify, one_blas_thread

__all__ = [
    "CHECKPOINT", "CheckpointError", "FINETUNING", "FOLDER_RECIPE", "Probe", "RECIPES", "Recipe", "Run", "Shards",
    "TrainingError", "available_cores", "begin", "classify", "evaluate", "finetune", "finetuning_recipe", "fit",
    "linear_probe", "new_folder", "one_blas_thread", "pretrain", "save_pretrained",
]  # fmt: skip
