"""A running average of the weights: smoother than any one of them, for one line a step.

Near a minimum, steps of a finite length jump to and fro around it; the mean of where they land lies nearer to it
(Polyak and Juditsky 1992). The average here forgets, exponentially, so that it keeps up with what is learned:

    a ← d a + (1 - d) w,   d = min(decay, (1 + t) / (10 + t)) at step t = 0, 1, …

With d = 0.999 it looks back about a thousand steps. The second term is the warm-up: without it the first weights, drawn
at random, would weigh in it for as long. (TensorFlow's and timm's moving averages do the same.)

Batch norm's running statistics are averaged too: they belong to the weights that they were measured with.

Chapter of the course: notebooks/07-training.ipynb.
"""

import numpy as np

from tinyvit.nn import Statistic


class Average:
    """The running average of what a model learns, from its present state on.

    In a `with` block the model *is* the average, and after it what it was before::

        with average:
            evaluate(model, …)

    Args:
        model: whose parameters lie in `flat`, its FlatParameters.
        decay: d above, in [0, 1).
    """

    def __init__(self, model, flat, decay):
        self.decay = decay
        self.values = [flat.values, *(p.data for p in model.parameters() if isinstance(p, Statistic))]
        self.averages = [values.copy() for values in self.values]

    def update(self, step):
        """Take in the weights after step 0, 1, …"""
        rate = 1 - min(self.decay, (1 + step) / (10 + step))
        with np.errstate(over="ignore", invalid="ignore"):  # of a run that diverges, which the loop will say
            for average, values in zip(self.averages, self.values, strict=True):
                average += rate * (values - average)

    def swap(self):
        """Exchange the model's values for the average, or back: copies, so that not one bit is lost."""
        for average, values in zip(self.averages, self.values, strict=True):
            values[...], average[...] = average, values.copy()

    def __enter__(self):
        self.swap()
        return self

    def __exit__(self, *exception):
        self.swap()
