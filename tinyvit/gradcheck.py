"""Trust, but check: a derivative is right when it agrees with the function's own differences.

For an output y = f(x), a random seed c and a random direction v of length 1, the number s(t) = Σ c · f(x + t v) has the
derivative s'(0) = dL/dx · v. The left side needs only forward passes (the central difference below); the right side is
what `backward` computed. One direction tests all entries at once: an error anywhere shows, unless it is by chance
orthogonal to v. (A full Jacobian costs a pass per entry; `jacobian` does that for small examples.)

Step h: the central difference (s(h) - s(-h)) / 2h errs by h² s'''/6, which wants h small, and by rounding, about
ε |s| / h, which wants it large. With float64's ε = 2·10⁻¹⁶ both are near 10⁻¹⁰ at h = 10⁻⁵. With float32's
ε = 10⁻⁷ there is no good h: a check in float32 cannot tell a wrong formula from rounding, so it is refused.

Chapter of the course: notebooks/02-trust-but-check.ipynb.
"""

import numpy as np

from tinyvit.tensor import Tensor, no_grad


def gradcheck(f, *inputs, h=1e-5, tolerance=1e-6, seed=0):
    """Compare the gradients of f(*inputs) with central differences along random directions.

    Args:
        f: a function of Tensors that returns a Tensor, or a module, whose parameters are then checked too. It must be
            deterministic, and smooth within h of the inputs (no ReLU at 0).
        inputs: float64 Tensors; those with requires_grad are checked. Anything else is passed on as it is.
        h: step of the central difference.
        tolerance: largest accepted relative error.
        seed: of the directions.

    Returns a dict from the checked argument's or parameter's name to its relative error.

    What rounding may do to the difference is taken off the error first, so that a gradient of exactly 0 passes.

    Raises AssertionError that names the argument, an entry and both derivatives where they disagree; TypeError for
    float32; ValueError where there is nothing to check, f is not deterministic, or rounding hides the gradient.
    """
    checked = {f"argument {i}": x for i, x in enumerate(inputs) if isinstance(x, Tensor) and x.requires_grad}
    if hasattr(f, "named_parameters"):
        checked |= {name: p for name, p in f.named_parameters() if p.requires_grad}
    _refuse(checked, [x for x in inputs if isinstance(x, Tensor)])

    rng = np.random.default_rng(seed)
    y = f(*inputs)
    c = rng.standard_normal(y.shape)
    s = _objective(f, inputs, c)
    if not np.array_equal(s(), s(), equal_nan=True):
        raise ValueError("gradcheck needs a deterministic function; two calls gave different values. Is dropout on?")
    # What rounding may do to the difference: a few last digits of the summands of s, divided by h.
    rounding = 10 * np.finfo(np.float64).eps * np.abs(c * y.data).sum() / h
    gradients = _gradients(y, c, checked)

    errors = {}
    for name, x in checked.items():
        v = rng.standard_normal(x.shape)
        v /= np.linalg.norm(v) or 1.0
        analytic, numeric = np.sum(gradients[name] * v), _difference(s, x, v, h)
        # A direction nearly orthogonal to the gradient gives a tiny, badly rounded number: compare with what
        # is typical.
        typical = np.linalg.norm(gradients[name]) / np.sqrt(max(x.size, 1))
        scale = max(abs(analytic), abs(numeric), typical)
        if rounding > 0.01 * max(abs(analytic), typical) > 1e-6:
            raise ValueError(
                f"the outputs of f are so large that rounding hides the gradient of {name}; subtract what is constant"
            )
        excess = np.maximum(0.0, abs(analytic - numeric) - rounding)  # np.maximum, since it keeps a NaN
        errors[name] = 0.0 if scale < 1e-12 else float(excess / scale)
        if not errors[name] <= tolerance:
            raise AssertionError(_complaint(s, name, x, gradients[name], errors[name], tolerance, h))
    return errors


def jacobian(f, x, h=1e-5):
    """Both Jacobians of f at the float64 Tensor x: (by backward, by differences), each of shape y.shape + x.shape.

    The first needs a backward pass per entry of y, the second two forward passes per entry of x: for small examples.
    """
    _refuse({"x": x}, [x])
    y = f(x)
    numeric = np.empty(y.shape + x.shape)
    for index in np.ndindex(x.shape):
        v = np.zeros(x.shape)
        v[index] = 1.0
        numeric[(..., *index)] = _difference(lambda: _values(f, (x,)), x, v, h)
    analytic = np.empty(y.shape + x.shape)
    for index in np.ndindex(y.shape):
        seed = np.zeros(y.shape)
        seed[index] = 1.0
        analytic[index] = _gradients(f(x), seed, {"x": x})["x"]
    return analytic, numeric


def _refuse(checked, tensors):
    if not checked:
        raise ValueError("gradcheck has nothing to check: no input has requires_grad=True and f has no parameters")
    for name, x in [*checked.items(), *(("a constant input", x) for x in tensors if not x.requires_grad)]:
        if x.dtype != np.float64:
            raise TypeError(
                f"gradcheck needs float64, got a {x.dtype} tensor of shape {x.shape} ({name}): in float32, rounding "
                "hides wrong gradients. Convert with Tensor(..., dtype=np.float64) or module.astype(np.float64)"
            )


def _values(f, inputs):
    with no_grad():
        return f(*inputs).numpy()


def _objective(f, inputs, c):
    return lambda: np.sum(c * _values(f, inputs))


def _gradients(y, seed, checked):
    """The gradients of Σ seed · y; the tensors' own `.grad` are left as they were."""
    before = {name: x.grad for name, x in checked.items()}
    for x in checked.values():
        x.grad = None
    try:
        y.backward(seed)
        return {name: np.zeros(x.shape) if x.grad is None else x.grad for name, x in checked.items()}
    finally:
        for name, x in checked.items():
            x.grad = before[name]


def _difference(s, x, v, h):
    """(s(x + h v) - s(x - h v)) / 2h, with x's values restored to the bit."""
    before = x._array.copy()
    try:
        x._array[...] = before + h * v
        ahead = s()
        x._array[...] = before - h * v
        return (ahead - s()) / (2 * h)
    finally:
        x._array[...] = before


def _complaint(s, name, x, gradient, error, tolerance, h):
    """Find an entry that is wrong by bisection: of a set of entries, keep the half along which the two differ more."""

    def both(entries):
        v = np.zeros(x.size)
        v[entries] = 1.0
        return np.sum(gradient.reshape(-1)[entries]), _difference(s, x, v.reshape(x.shape), h)

    def gap(entries):
        analytic, numeric = both(entries)
        return np.inf if np.isnan(analytic - numeric) else abs(analytic - numeric)

    entries = np.arange(x.size)
    while len(entries) > 1:
        entries = max(np.array_split(entries, 2), key=gap)
    analytic, numeric = both(entries)
    index = [int(i) for i in np.unravel_index(entries[0], x.shape)]
    return (
        f"gradient of {name} {x.shape}: relative error {error:.1e}, allowed {tolerance:.0e}. For instance at {index}: "
        f"backward gives {analytic:.9g}, the central difference {numeric:.9g}"
        + (f", ratio {analytic / numeric:.6g}" if numeric else "")
    )
