"""Derive the polynomials of tinyvit/kernels/elementary.py and print them with their errors.

The best polynomial of degree n is the one whose error touches its largest value n + 2 times with alternating
sign (Chebyshev). The Remez exchange finds it: guess those n + 2 points, solve for the polynomial whose error
is +E, -E, +E … there, move each point to where the error has its nearest peak, repeat. A weight turns
absolute into relative error. mpmath does the arithmetic with 40 digits, so that only the approximation is
left to look at.
"""

import mpmath as mp
import numpy as np

mp.mp.dps = 40


def remez(f, weight, degree, lo, hi, rounds=12, grid=3000):
    """Coefficients c, lowest first, that minimise max |weight(x) (Σ cᵢ xⁱ - f(x))| on [lo, hi], and the function of c
    that gives this weighted error at the grid's points."""
    # Chebyshev's points crowd at the ends, as the peaks of the error do.
    xs = [(lo + hi) / 2 - (hi - lo) / 2 * mp.cos(mp.pi * i / (grid - 1)) for i in range(grid)]
    fs, ws = [f(x) for x in xs], [weight(x) for x in xs]

    def errors(c):
        return np.array([float(w * (mp.polyval(c[::-1], x) - y)) for x, y, w in zip(xs, fs, ws, strict=True)])

    peaks = [round(i * (grid - 1) / (degree + 1)) for i in range(degree + 2)]
    for _ in range(rounds):
        # Σ cᵢ xⁱ - (-1)ᵏ E / w = f: degree + 2 equations for degree + 1 coefficients and E
        rows = [[xs[k] ** i for i in range(degree + 1)] + [-((-1) ** n) / ws[k]] for n, k in enumerate(peaks)]
        *c, _ = mp.lu_solve(mp.matrix(rows), mp.matrix([fs[k] for k in peaks]))
        error = errors(c)
        cuts = np.flatnonzero(np.sign(error[1:]) != np.sign(error[:-1])) + 1  # a peak between each two
        runs = np.split(np.arange(grid), cuts)
        peaks = [int(run[np.abs(error[run]).argmax()]) for run in runs]
        if len(peaks) != degree + 2:
            raise RuntimeError(f"found {len(peaks)} alternating peaks, not {degree + 2}: try another degree")
    return c, errors


def report(name, c, errors):
    rounded = [mp.mpf(float(np.float32(v))) for v in c]
    exact, stored = np.abs(errors(c)).max(), np.abs(errors(rounded)).max()
    print(f"{name}: {len(c)} coefficients, lowest first")
    print(f"    largest relative error {exact:.2e}, with coefficients rounded to float32 {stored:.2e}")
    print("    " + ", ".join(f"{float(v):.9e}" for v in c))


def main():
    # eʳ = 1 + r + r² q(r) for |r| ≤ ln 2 / 2. Its two exact leading terms cost no rounding.
    half_ln2 = mp.log(2) / 2

    def tail(r):  # (eʳ - 1 - r) / r², with its limit at 0
        return mp.mpf(1) / 2 if abs(r) < mp.mpf(10) ** -12 else (mp.exp(r) - 1 - r) / r**2

    report("exp", *remez(tail, lambda r: max(r**2, mp.mpf(10) ** -12) / mp.exp(r), 4, -half_ln2, half_ln2))

    # Φ(-t) = e^(-t²/2) s(t): what is left is s, smooth and slow. u = k / (k + t) squeezes all t ≥ 0 into (0,
    # 1]; at t = 14.5 the factor e^(-t²/2) is below the smallest float32, so the fit ends there.
    k = mp.mpf("3.5")

    def scaled_tail(u):
        t = k / u - k
        return mp.exp(t * t / 2) * mp.ncdf(-t)

    report(
        f"tail, u = {float(k)} / ({float(k)} + t)",
        *remez(scaled_tail, lambda u: 1 / scaled_tail(u), 8, k / (k + mp.mpf("14.5")), mp.mpf(1)),
    )


if __name__ == "__main__":
    main()
