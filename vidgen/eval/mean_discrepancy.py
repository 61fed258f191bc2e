"""Squared maximum mean discrepancy with a polynomial kernel: KVD, KID, and the distance of JEDi.

Its unbiased estimate does not depend on the number of samples, which makes it the distance to use for small sets, where
a Fréchet distance is mostly bias. It can be below zero.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vidgen.eval.frechet import check_same_network, checked_features

BLOCK = 2048  # rows of the kernel matrix held at a time


@dataclass(frozen=True)
class PolynomialKernel:
    """k(x, y) = (x . y / d + constant) ^ degree, for features of d numbers."""

    degree: int
    constant: float

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """``n d``, ``m d`` -> ``n m``."""
        return (x @ y.T / x.shape[1] + self.constant) ** self.degree


KID = PolynomialKernel(degree=3, constant=1.0)  # Binkowski et al. 2018, equation 4
JEDI = PolynomialKernel(degree=2, constant=0.0)  # Luo et al. 2024, whose tables multiply the result by 100


def kernel_distance(real: Tensor, fake: Tensor, *, kernel: PolynomialKernel = KID, biased: bool = False) -> float:
    """Squared MMD of two sets of features ``n d`` (Gretton et al. 2012, equations 3 and 5), in float64.

    Args:
        biased: keep each sample's similarity to itself, as JEDi's published script does; with few samples the result
            is then mostly that.

    Raises:
        ValueError: as `frechet_distance`.
    """
    real, fake = checked_features(real, name="real", least=2), checked_features(fake, name="fake", least=2)
    check_same_network(real, fake)
    within = sum(_mean_within(features, kernel, biased=biased) for features in (real, fake))
    across = sum(float(kernel(rows, fake).sum()) for rows in real.split(BLOCK)) / (len(real) * len(fake))
    return within - 2 * across


def _mean_within(features: Tensor, kernel: PolynomialKernel, *, biased: bool) -> float:
    count, total = len(features), 0.0
    for first in range(0, count, BLOCK):
        rows = features[first : first + BLOCK]
        similarity = kernel(rows, features)
        total += float(similarity.sum())
        if not biased:
            total -= float(torch.diagonal(similarity, offset=first).sum())
    return total / (count * count if biased else count * (count - 1))
