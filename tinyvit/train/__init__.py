"""Training: recipes (what), shards (on how many cores), checkpoints (so that nothing is lost), the running average of
the weights, the run's folder, what a run remembers, how it is stopped, ranks (on how many machines), the loop (how),
from a recipe to a run; fine-tuning; the same without labels, and the probe that says what was learned."""

from tinyvit.cores import available_cores, one_blas_thread
from tinyvit.train.average import Average
from tinyvit.train.checkpoint import CheckpointError
from tinyvit.train.finetune import FINETUNING, begin, finetune, finetuning_recipe
from tinyvit.train.fitting import fit, resume
from tinyvit.train.folder import BEST, CHECKPOINT, TrainingError, new_folder
from tinyvit.train.loop import Run, evaluate
from tinyvit.train.pretrain import pretrain, save_pretrained
from tinyvit.train.probe import Probe, linear_probe
from tinyvit.train.progress import read_saved
from tinyvit.train.recipes import FOLDER_RECIPE, PROMISES, RECIPES, Recipe, RecipeError, read_recipe
from tinyvit.train.shards import Shards, classify

__all__ = [
    "Average", "BEST", "CHECKPOINT", "CheckpointError", "FINETUNING", "FOLDER_RECIPE", "PROMISES", "Probe", "RECIPES",
    "Recipe", "RecipeError", "Run", "Shards", "TrainingError", "available_cores", "begin", "classify", "evaluate",
    "finetune", "finetuning_recipe", "fit", "linear_probe", "new_folder", "one_blas_thread",
    "pretrain", "read_recipe", "read_saved", "resume", "save_pretrained",
]  # fmt: skip
