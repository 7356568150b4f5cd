"""Student's t: its quantiles without SciPy."""

from __future__ import annotations

from statistics import NormalDist


def t_quantile(p: float, degrees: float) -> float:
    """Quantile of Student's t for at least 5 degrees of freedom: within 1 % up to p = 0.999.

    The expansion around the normal quantile: Abramowitz and Stegun 26.7.5.
    """
    z = NormalDist().inv_cdf(p)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, 1))
