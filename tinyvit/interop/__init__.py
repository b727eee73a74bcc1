"""Models from elsewhere, and ours for elsewhere: formats of other libraries, read and written. In reading order:

    files      safetensors and npz, read without running or believing anything in them
    layouts    how Google, timm and Hugging Face name and turn the same parameters: one table each, for both directions
    settings   what weights do not say: heads, class names, how pictures are prepared
    folding    what another library has and ours says in other words
    reading    from a file to a model
    onnx_operators    each of our ops in the words of ONNX
    onnx       the tape, written once more with them
    writing    from a model to a file

`tinyvit.load` reads all of them, `tinyvit export` writes.
"""

from tinyvit.interop.layouts import LAYOUTS
from tinyvit.interop.reading import Foreign, find_weights, is_ours, read
from tinyvit.interop.writing import WRITERS, theirs, write

__all__ = ["Foreign", "LAYOUTS", "WRITERS", "find_weights", "is_ours", "read", "theirs", "write"]
