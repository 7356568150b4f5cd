"""Student's t quantile: one series for every interval and every early stop.

The Cornish-Fisher expansion around the normal quantile (Abramowitz and Stegun 26.7.5) needs neither SciPy nor a table, so
that the process that measures imports nothing more. It is within 1 % up to p = 0.975 from 3 degrees of freedom, and up to
p = 0.999 from 5.
"""

from __future__ import annotations

from statistics import NormalDist


def t_quantile(p: float, degrees: float) -> float:
    """Quantile of Student's t at probability `p` (0.975 for a two-sided 95 % interval); `degrees` of freedom may be a
    fraction."""
    z = NormalDist().inv_cdf(p)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return float(sum(term / degrees**power for power, term in enumerate(terms)))
