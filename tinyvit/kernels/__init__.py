"""The hot loops of a Vision Transformer, nearly each one twice: as a NumPy spec and as a Numba kernel.

Arrays go in, arrays come out; nothing here knows of gradients or layers. In reading order:

    backend         how a spec and its kernel become one function; the compiler's flags and its cache
    update          AdamW, SGD, norms: one loop over a flat array, the simplest kernels
    elementary      how exp and the normal distribution become vector instructions
    simd            vector registers as values
    softmax         a reduction, the maximum trick, and its backward pass
    layernorm       two reductions, and sums across rows
    groupnorm       batch, group and instance norm: the same over other sets
    gelu            an elementwise function at the speed of memory
    cross_entropy   softmax and logarithm, fused
    matmul          the matrix product in registers, large and many small ones
    linear          x W + b and its gradients, with GELU behind it
    attention       softmax between two matrix products, where q, k and v lie
    block           an encoder block in one kernel, of the loops above; its spec is nn.EncoderBlock
    im2col          windows of an image as the rows of a matrix, for patches and convolutions
    convolution     the sum of products that it is, without copying the windows
    scatter         the transpose of a lookup in a table
    warp            rotate, zoom and shift images, for augmentation
    retouch         and change their colours: RandAugment's operations
"""

from tinyvit.kernels.attention import attention, attention_backward
from tinyvit.kernels.backend import (
    CACHE_FOLDER,
    Kernel,
    announce_compilation,
    backend,
    compiled_before,
    contiguous,
    jit,
    use,
)
from tinyvit.kernels.block import encoder_block, encoder_block_backward, encoder_block_fits
from tinyvit.kernels.convolution import conv2d, conv2d_backward
from tinyvit.kernels.cross_entropy import (
    cross_entropy,
    cross_entropy_backward,
    soft_cross_entropy,
    soft_cross_entropy_backward,
)
from tinyvit.kernels.elementary import exp, normal
from tinyvit.kernels.gelu import gelu, gelu_backward
from tinyvit.kernels.groupnorm import group_norm, group_norm_backward
from tinyvit.kernels.im2col import col2im, im2col
from tinyvit.kernels.layernorm import layernorm, layernorm_backward
from tinyvit.kernels.linear import linear, linear_backward, linear_gelu
from tinyvit.kernels.matmul import batched_matmul
from tinyvit.kernels.retouch import retouch
from tinyvit.kernels.scatter import scatter_add
from tinyvit.kernels.softmax import softmax, softmax_backward
from tinyvit.kernels.update import adamw, add_into, sgd, squared_norm
from tinyvit.kernels.warp import warp

__all__ = [
    "CACHE_FOLDER", "Kernel", "adamw", "add_into", "announce_compilation", "attention", "attention_backward",
    "backend", "batched_matmul", "col2im", "compiled_before", "contiguous", "conv2d", "conv2d_backward",
    "cross_entropy", "cross_entropy_backward", "encoder_block", "encoder_block_backward", "encoder_block_fits", "exp",
    "gelu", "gelu_backward", "group_norm", "group_norm_backward", "im2col", "jit", "layernorm", "layernorm_backward",
    "linear", "linear_backward", "linear_gelu", "normal", "retouch", "scatter_add", "sgd", "soft_cross_entropy",
    "soft_cross_entropy_backward", "softmax", "softmax_backward", "squared_norm", "use", "warp",
]  # fmt: skip
