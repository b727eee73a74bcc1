"""What may be said of times on a machine that others use too: medians, and ratios within a round.

A busy moment lengthens the times of all who take their turn in it, so the ratio of two times of one round is steadier
than either, and the median of the rounds' ratios is steadier than the ratio of medians. Ratios over several shapes are
averaged geometrically: twice as fast here and half as fast there is 1.
"""

from statistics import geometric_mean, median


def paired(numerators, denominators):
    """(median, lowest, highest) of the ratios of times from the same rounds."""
    ratios = [a / b for a, b in zip(numerators, denominators, strict=True)]
    return median(ratios), min(ratios), max(ratios)


def verdict(ratios):
    """The last line of a comparison."""
    return f"geometric mean {geometric_mean(ratios):.2f} (min {min(ratios):.2f})"
