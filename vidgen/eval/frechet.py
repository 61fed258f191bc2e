"""Fréchet distance between two sets of features, exact for any number of samples: FVD, FID and their relatives.

Between Gaussians fitted to the sets, FD = |mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr sqrt(S1^(1/2) S2 S1^(1/2)) (Dowson and
Landau 1982). With any factors S1 = A^T A and S2 = B^T B the last trace is the nuclear norm of A B^T, and the centred
samples themselves are such factors. No matrix is squared and no root is taken of a small eigenvalue, so nothing
cancels: fewer samples than features, and features that depend on each other, are no special cases.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Number, mean and scatter of samples that came in parts; adding moments is exact up to float64 rounding."""

    count: int
    mean: Tensor  # d float64
    scatter: Tensor  # d d float64: sum of the outer products of the centred samples

    @classmethod
    def of(cls, features: Tensor) -> Self:
        """Of ``n d`` features, n of at least 1."""
        features = checked_features(features, name="features", least=1)
        mean = features.mean(dim=0)
        centred = features - mean
        return cls(len(features), mean, centred.T @ centred)

    def __add__(self, other: "Moments") -> "Moments":
        """Moments of both sets together (Chan, Golub and LeVeque 1979)."""
        check_same_network(self.mean, other.mean)
        count = self.count + other.count
        step = other.mean - self.mean
        between = torch.outer(step, step) * (self.count * other.count / count)
        return Moments(count, self.mean + step * (other.count / count), self.scatter + other.scatter + between)

    def covariance(self, *, ddof: int = 1) -> Tensor:
        """``d d``, scatter over count - ddof."""
        return self.scatter / _degrees(self.count, ddof)

    def factor(self, *, ddof: int) -> Tensor:
        """A with A^T A = covariance, from its eigenvectors; directions without variance get zero rows."""
        values, vectors = torch.linalg.eigh(self.covariance(ddof=ddof))
        return values.clamp(min=0).sqrt()[:, None] * vectors.T


def frechet_distance(real: Tensor, fake: Tensor, *, ddof: int = 1) -> float:
    """Fréchet distance of two sets of features, in float64.

    Args:
        real, fake: ``n d``, any float type; n may differ, and may be smaller than d.
        ddof: 1 divides the scatter by n - 1 (np.cov, pytorch-fid), 0 by n (StyleGAN-V).

    Raises:
        ValueError: other shapes, different d, NaN or infinite features, a set of one sample.
    """
    real, fake = checked_features(real, name="real", least=2), checked_features(fake, name="fake", least=2)
    check_same_network(real, fake)
    return _distance(
        real.mean(dim=0), _sample_factor(real, ddof=ddof), fake.mean(dim=0), _sample_factor(fake, ddof=ddof)
    )


def frechet_distance_of_moments(real: Moments, fake: Moments, *, ddof: int = 1) -> float:
    """The same from moments, where the features were not kept. ValueError as `frechet_distance`.

    A covariance holds small variances at half the digits of the samples: expect 1e-8 of the trace, not 1e-14.
    """
    check_same_network(real.mean, fake.mean)
    return _distance(real.mean, real.factor(ddof=ddof), fake.mean, fake.factor(ddof=ddof))


def _distance(real_mean: Tensor, real_factor: Tensor, fake_mean: Tensor, fake_factor: Tensor) -> float:
    overlap = torch.linalg.svdvals(real_factor @ fake_factor.T).sum()
    spread = real_factor.square().sum() + fake_factor.square().sum()
    return float((real_mean - fake_mean).square().sum() + spread - 2 * overlap)


def _sample_factor(features: Tensor, *, ddof: int) -> Tensor:
    """``n d`` -> ``min(n, d) d``: the centred samples over sqrt(n - ddof), or the triangle of their QR factors."""
    centred = (features - features.mean(dim=0)) / math.sqrt(_degrees(len(features), ddof))
    return centred if len(features) <= features.shape[1] else torch.linalg.qr(centred, mode="r").R


def _degrees(count: int, ddof: int) -> int:
    if count <= ddof:
        raise ValueError(f"a covariance with ddof {ddof} needs at least {ddof + 1} samples, got {count}")
    return count - ddof


def check_same_network(real: Tensor, fake: Tensor) -> None:
    """ValueError unless the two sets (``n d``, or ``d`` means) have equally many features."""
    if real.shape[-1] != fake.shape[-1]:
        raise ValueError(
            f"expected features of one network, got {real.shape[-1]} of each real and {fake.shape[-1]} of each fake "
            "sample; extract both with the same network"
        )


def checked_features(features: Tensor, *, name: str, least: int) -> Tensor:
    """``n d`` in float64, or a ValueError that says what is wrong with it."""
    if features.ndim != 2 or not features.is_floating_point():
        raise ValueError(f"expected {name} to be floats `n d`, got {features.dtype} {tuple(features.shape)}")
    if len(features) < least:
        raise ValueError(
            f"expected at least {least} {name} samples, got {len(features)}; a spread needs several videos"
        )
    bad = (~features.isfinite()).any(dim=1).nonzero().flatten().tolist()
    if bad:
        raise ValueError(
            f"{len(bad)} of {len(features)} {name} samples have NaN or infinite features (rows {bad[:5]}…); "
            "look at those videos"
        )
    return features.double()
