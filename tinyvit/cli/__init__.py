"""The `tinyvit` command: train, finetune, eval, predict, figures, export, watch, report, compare, recipes, info, data,
bench.

A user's mistake gets one line and exit code 2 (the words of the command) or 1 (the world: data, disk, checkpoint); a
traceback here would be our mistake. `words.py` lists the commands with their options; a command's own work stands in
the file that it is called from there.
"""

import itertools
import os

from tinyvit import data, train
from tinyvit.cli.shared import Mistake, complain
from tinyvit.cli.words import parser
from tinyvit.train.ranks import LAUNCHERS, job, launched

TOGETHER = ("train", "finetune")  # the commands that the ranks of a job carry out together


def main(arguments=None):
    """Run the command line `arguments` (sys.argv by default) and return the exit code: 0 done, 1 failed, 2 misused,
    130 interrupted, 143 terminated."""
    options = parser().parse_args(arguments)
    command = f"tinyvit {options.command}"
    if options.command not in TOGETHER:
        if launched()[0] > 0:
            return 0
        for name in itertools.chain(*LAUNCHERS):  # rank 0 does it as a process of its own
            os.environ.pop(name, None)
    try:
        with job().together():
            return options.run(options) or 0
    except Mistake as error:
        return complain(f"{command}: {error}", 2)
    except (data.DataError, train.CheckpointError, train.TrainingError) as error:
        return complain(f"{command}: {error}", 1)
    except MemoryError as error:
        remedy = "a smaller --batch-size or --image-size, or a larger --patch, needs less"
        return complain(f"{command}: memory is too small{f' ({error})' if str(error) else ''}; {remedy}", 1)
    except OSError as error:
        return complain(f"{command}: {error.filename or 'input/output'}: {error.strerror or error}", 1)
    except KeyboardInterrupt:
        return complain("interrupted", 130)
