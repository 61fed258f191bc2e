"""How much more rate one curve needs than another at equal quality: BD-rate by piecewise cubic interpolation.

Bjøntegaard 2001 (VCEG-M33) with the shape-preserving cubics (pchip; Fritsch and Butland 1984) that replaced his
polynomial in later practice: the logarithm of the rate as a function of quality, averaged over the qualities that both
curves reach. All arrays are ``n k``: n data sets (a bootstrap's, say) of k points a curve; a data set for which the
number does not exist gives NaN.
"""

import numpy as np


def bd_rate(
    rates: np.ndarray, qualities: np.ndarray, anchor_rates: np.ndarray, anchor_qualities: np.ndarray
) -> np.ndarray:
    """Mean difference in rate at equal quality to the anchor, in percent, ``n``; negative needs fewer bits.

    Args:
        rates: ``n k`` above 0, in any order; k of at least 2, and the anchor may have another.
        qualities: ``n k``, higher is better; they have to rise with the rate.

    Returns:
        NaN where a curve does not rise or no quality is reached by both.
    """
    ours, theirs = _Curve(rates, qualities), _Curve(anchor_rates, anchor_qualities)
    low = np.maximum(ours.quality[:, 0], theirs.quality[:, 0])
    high = np.minimum(ours.quality[:, -1], theirs.quality[:, -1])
    with np.errstate(divide="ignore", invalid="ignore"):
        difference = (ours.integral(low, high) - theirs.integral(low, high)) / (high - low)
        percent = (np.exp(difference) - 1) * 100
    return np.where(ours.rises & theirs.rises & (low < high), percent, np.nan)


def rate_excess(
    rate: np.ndarray, quality: np.ndarray, anchor_rates: np.ndarray, anchor_qualities: np.ndarray
) -> np.ndarray:
    """Difference in rate of single points ``n`` to the anchor's at the same quality, in percent, ``n``.

    NaN where the anchor does not reach that quality.
    """
    anchor = _Curve(anchor_rates, anchor_qualities)
    reached = (quality >= anchor.quality[:, 0]) & (quality <= anchor.quality[:, -1])
    with np.errstate(divide="ignore", invalid="ignore"):
        percent = (rate / np.exp(anchor.log_rate_at(quality)) - 1) * 100
    return np.where(anchor.rises & reached, percent, np.nan)


class _Curve:
    """Log rate over quality through the points of each row."""

    def __init__(self, rates: np.ndarray, qualities: np.ndarray) -> None:
        if rates.ndim != 2 or rates.shape != qualities.shape or rates.shape[1] < 2:
            raise ValueError(
                f"expected rates and qualities `n k` with k of at least 2, got {rates.shape} and {qualities.shape}"
            )
        order = np.argsort(qualities, axis=1)
        self.quality = np.take_along_axis(qualities, order, axis=1)
        self.log_rate = np.log(np.take_along_axis(rates, order, axis=1))
        self.widths = np.diff(self.quality)
        self.rises = ((self.widths > 0) & (np.diff(self.log_rate) > 0)).all(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            self.slopes = _slopes(self.widths, np.diff(self.log_rate) / self.widths)

    def integral(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Of the log rate from ``low`` to ``high``, ``n`` each."""
        return (self._antiderivative(self._within(high)) - self._antiderivative(self._within(low))).sum(axis=1)

    def log_rate_at(self, quality: np.ndarray) -> np.ndarray:
        segment = (quality[:, None] > self.quality[:, 1:-1]).sum(axis=1)[:, None]
        s = np.take_along_axis(self._within(quality), segment, axis=1)[:, 0]
        left, right, rise, fall = (np.take_along_axis(part, segment, axis=1)[:, 0] for part in self._parts())
        return (
            left * (2 * s**3 - 3 * s**2 + 1)
            + rise * (s**3 - 2 * s**2 + s)
            + right * (3 * s**2 - 2 * s**3)
            + fall * (s**3 - s**2)
        )

    def _within(self, quality: np.ndarray) -> np.ndarray:
        """Where a quality lies in each segment: 0 at or before its left end, 1 at or behind its right one."""
        return np.clip((quality[:, None] - self.quality[:, :-1]) / self.widths, 0, 1)

    def _parts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Values and scaled slopes at both ends of each segment: the coefficients of Hermite's basis."""
        return (
            self.log_rate[:, :-1],
            self.log_rate[:, 1:],
            self.widths * self.slopes[:, :-1],
            self.widths * self.slopes[:, 1:],
        )

    def _antiderivative(self, s: np.ndarray) -> np.ndarray:
        left, right, rise, fall = self._parts()
        return self.widths * (
            left * (s**4 / 2 - s**3 + s)
            + rise * (s**4 / 4 - 2 * s**3 / 3 + s**2 / 2)
            + right * (s**3 - s**4 / 2)
            + fall * (s**4 / 4 - s**3 / 3)
        )


def _slopes(widths: np.ndarray, secants: np.ndarray) -> np.ndarray:
    """Slopes at the points such that the curve overshoots nowhere: weighted harmonic means inside."""
    if secants.shape[1] == 1:
        return np.repeat(secants, 2, axis=1)
    first = 2 * widths[:, 1:] + widths[:, :-1]
    second = widths[:, 1:] + 2 * widths[:, :-1]
    inside = (first + second) / (first / secants[:, :-1] + second / secants[:, 1:])
    inside = np.where(secants[:, :-1] * secants[:, 1:] > 0, inside, 0.0)
    left = _end_slope(widths[:, 0], widths[:, 1], secants[:, 0], secants[:, 1])
    right = _end_slope(widths[:, -1], widths[:, -2], secants[:, -1], secants[:, -2])
    return np.column_stack([left, inside, right])


def _end_slope(width: np.ndarray, next_width: np.ndarray, secant: np.ndarray, next_secant: np.ndarray) -> np.ndarray:
    """Three-point estimate at an end, held back where it would overshoot."""
    slope = ((2 * width + next_width) * secant - width * next_secant) / (width + next_width)
    slope = np.where(slope * secant <= 0, 0.0, slope)
    return np.where((secant * next_secant <= 0) & (np.abs(slope) > 3 * np.abs(secant)), 3 * secant, slope)
