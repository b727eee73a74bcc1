"""Curves that grow in a notebook while a run goes on."""

import threading
import time

from tinyvit.train.checkpoint import CheckpointError
from tinyvit.train.runs import NotYet, read_run
from tinyvit.viz.figure import message
from tinyvit.viz.training import curves


class live:
    """Draw the curves of the run in `folder` where the cell's output is, again after each epoch.

        with viz.live(folder): train.fit(recipe, dataset, folder)      a run of this notebook
        viz.live(folder).wait()                                        one of another process, until that ends

    It looks every so many seconds, in a thread of its own, and needs IPython, which each notebook has. What is damaged
    is said in place of the curves, and by `wait` raised, a CheckpointError.
    """

    def __init__(self, folder, every=1.0):
        from IPython.display import display

        self.folder, self.every, self.drawn = folder, every, None
        self.left = threading.Event()
        self.output = display(message(f"waiting for {folder}"), display_id=True)

    def look(self):
        """Draw what is new; returns whether there may come more."""
        try:
            record = read_run(self.folder)
        except NotYet:
            return True
        if record.history != self.drawn:
            self.drawn = record.history
            self.show(curves(record.history))
        return record.state == "running"

    def show(self, figure):
        if self.output:  # outside of a notebook there is none
            self.output.update(figure)

    def wait(self):
        while self.look():
            time.sleep(self.every)

    def __enter__(self):
        self.thread = threading.Thread(target=self._keep_looking, daemon=True)
        self.thread.start()
        return self

    def _keep_looking(self):
        while not self.left.wait(self.every):
            self._look_or_say()

    def _look_or_say(self):
        try:
            self.look()
        except CheckpointError as error:  # no reason to stop the training
            self.show(message(str(error)))

    def __exit__(self, *exception):
        self.left.set()
        self.thread.join()
        self._look_or_say()
