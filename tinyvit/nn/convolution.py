"""The layers of a convolutional network: convolution, and the two norms that made deep ones trainable.

Batch norm measures mean and variance over the batch, so what an image gives depends on its neighbours; for use it keeps
a running average of both. Group norm measures each image by itself. The paper's ResNets (BiT) have group norm and
standardised weights, which train as well and carry over better to other data sets (Kolesnikov et al. 2020).

Chapter of the course: notebooks/09-inductive-bias.ipynb.
"""

import numpy as np

from tinyvit import functional as F
from tinyvit.nn.initial import he_normal
from tinyvit.nn.module import Module, Parameter, Statistic, evaluating_now, recording_statistics_now


class Conv2d(Module):
    """Slide a window over the image: (B, h, w, C_in) -> (B, oh, ow, C_out), see `functional.conv2d`.

    Args:
        c_in, c_out: channels.
        kernel: side of the window, odd. It is centred on every `stride`-th pixel; outside of the image lie zeros, so
            that oh = ⌈h / stride⌉.
        rng: draws the weight (kernel, kernel, C_in, C_out), He-normal.
        bias: superfluous where a norm follows, which subtracts it.
    """

    def __init__(self, c_in, c_out, kernel, rng, stride=1, bias=True):
        if kernel % 2 == 0:
            raise ValueError(f"the window's side must be odd, so that it has a centre, got {kernel}")
        self.weight = Parameter(he_normal(rng, (kernel, kernel, c_in, c_out)), decay=True)
        self.bias = Parameter(np.zeros(c_out, np.float32)) if bias else None
        self.stride, self.padding = stride, kernel // 2

    def forward(self, x):
        return F.conv2d(x, self.weight, self.bias, stride=self.stride, padding=self.padding)


class StandardisedConv2d(Conv2d):
    """A convolution whose filters are used with mean 0 and variance 1, whatever is learnt; see
    `functional.standardise`."""

    def forward(self, x):
        weight = F.standardise(self.weight)
        return F.conv2d(x, weight, self.bias, stride=self.stride, padding=self.padding)


class GroupNorm(Module):
    """Normalise each image over its pixels and groups of channels, (B, h, w, C) -> the same; see
    `functional.group_norm`."""

    def __init__(self, channels, groups, eps=1e-6):
        if channels % groups:
            raise ValueError(f"groups must divide the channels, got {channels} channels and {groups} groups")
        self.gamma = Parameter(np.ones(channels, np.float32))
        self.beta = Parameter(np.zeros(channels, np.float32))
        self.groups, self.eps = groups, eps

    def forward(self, x, relu=False):
        """`relu` puts max(·, 0) behind it."""
        return F.group_norm(x, self.gamma, self.beta, groups=self.groups, eps=self.eps, relu=relu)


class BatchNorm(Module):
    """Normalise each channel, (B, h, w, C) -> the same: while training over the batch, later by the running mean and
    variance, which training leaves here. See `functional.batch_norm`.

    running ← (1 - momentum) running + momentum · the batch's, with the variance n / (n - 1) times that of the n numbers
    (Ioffe and Szegedy 2015, algorithm 2). Of a batch that is cut into shards each is normalised by itself, and the
    first one's statistics count, see `recording_statistics`.
    """

    def __init__(self, channels, momentum=0.1, eps=1e-5):
        self.gamma = Parameter(np.ones(channels, np.float32))
        self.beta = Parameter(np.zeros(channels, np.float32))
        self.mean = Statistic(np.zeros(channels, np.float32))
        self.variance = Statistic(np.ones(channels, np.float32))
        self.momentum, self.eps = momentum, eps

    def forward(self, x, relu=False):
        """`relu` puts max(·, 0) behind it."""
        if not self.training or evaluating_now():
            running = self.mean.data, self.variance.data
            return F.batch_norm(x, self.gamma, self.beta, running, eps=self.eps, relu=relu)
        seen = []
        y = F.batch_norm(x, self.gamma, self.beta, eps=self.eps, relu=relu, seen=seen)
        if recording_statistics_now():
            mean, variance = seen
            n = x.size // len(mean)
            self.mean.data += self.momentum * (mean - self.mean.data)
            self.variance.data += self.momentum * (variance * (n / max(n - 1, 1)) - self.variance.data)
        return y
