"""Fréchet distance between two sets of features, exact for any number of samples: FVD, FID and their relatives.

Between Gaussians fitted to the sets, FD = |mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr sqrt(S1^(1/2) S2 S1^(1/2)) (Dowson and
Landau 1982). With any factors S1 = A^T A and S2 = B^T B the last trace is the nuclear norm of A B^T, and the centred
samples themselves are such factors. No matrix is squared and no root is taken of a small eigenvalue, so nothing
cancels: fewer samples than features, and features that depend on each other, are no special cases.
"""

import math

import torch
from torch import Tensor


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
