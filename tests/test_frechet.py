"""Are distances between sets of features right: known values, few samples, merging, intervals, bad input?"""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from vidgen.eval.frechet import frechet_distance
from vidgen.eval.frechet_uncertainty import delete_d_jackknife, extrapolate, limit_with_spread, split_half_floor
from vidgen.eval.mean_discrepancy import JEDI, KID, PolynomialKernel, kernel_distance


def draw(count: int, width: int, *, seed: int, spread: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    """Correlated features with variances over four orders of magnitude."""
    mixing = torch.Generator().manual_seed(1000 + width)
    turn = torch.linalg.qr(torch.randn(width, width, generator=mixing, dtype=torch.float64)).Q
    scales = torch.logspace(0, -2, width, dtype=torch.float64)
    noise = torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return spread * (noise * scales) @ turn.T + shift


def whitened(count: int, width: int, *, seed: int) -> torch.Tensor:
    """Samples whose mean is exactly 0 and whose covariance (ddof 1) is exactly the identity."""
    noise = torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    noise -= noise.mean(dim=0)
    return torch.linalg.qr(noise).Q * math.sqrt(count - 1)


def trace(features: torch.Tensor) -> float:
    return float(torch.cov(features.T.double()).trace())


def by_sqrtm(real: torch.Tensor, fake: torch.Tensor) -> float:
    """The textbook formula."""
    a, b = real.double().numpy(), fake.double().numpy()
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(first @ second).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root))


@pytest.mark.parametrize("count", [40, 200])
def test_gaussians_with_commuting_covariances_give_the_closed_form(count):
    width = 32
    turn = torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    first = torch.linspace(0.1, 2, width, dtype=torch.float64)
    second = torch.linspace(1.5, 0.01, width, dtype=torch.float64)
    mean = torch.linspace(-1, 1, width, dtype=torch.float64)
    real = (whitened(count, width, seed=1) * first) @ turn.T
    fake = (whitened(count + 7, width, seed=2) * second) @ turn.T + mean
    expected = float(mean.square().sum() + (first - second).square().sum())
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-12)


def test_the_distance_is_the_textbook_one_where_there_are_enough_samples():
    real, fake = draw(300, 24, seed=1), draw(260, 24, seed=2, spread=1.3, shift=0.1)
    expected = by_sqrtm(real, fake)
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-9)
    of_torchmetrics = _compute_fid(real.mean(0), torch.cov(real.T), fake.mean(0), torch.cov(fake.T))
    assert frechet_distance(real, fake) == pytest.approx(float(of_torchmetrics), rel=1e-6)


def test_eight_samples_of_four_hundred_features_give_the_true_value():
    """SciPy 1.12's matrix root said -19,922,936 in this place, where 49.53 was right."""
    real, fake = draw(8, 400, seed=1).float(), draw(8, 400, seed=2).float()
    # In the space that both sets span nothing is lost, and there the two covariances are small and plain.
    both = torch.cat([real, fake]).double()
    inside = torch.linalg.qr(both.T).Q
    a, b = ((one.double() - one.double().mean(0)) @ inside for one in (real, fake))
    first, second = a.T @ a / 7, b.T @ b / 7
    roots = torch.linalg.eigvals(first @ second).real.clamp(min=0).sqrt().sum()
    mean = (real.double().mean(0) - fake.double().mean(0)).square().sum()
    expected = float(mean + first.trace() + second.trace() - 2 * roots)
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-6)
    assert 0 < expected < 2 * (trace(real) + trace(fake))


@pytest.mark.parametrize("count,rank", [(8, 64), (64, 64), (300, 64), (300, 10), (9, 3)])
def test_a_set_is_at_no_distance_from_itself(count, rank):
    features = draw(count, rank, seed=3) @ draw(rank, 64, seed=4) if rank < 64 else draw(count, 64, seed=3)
    # another tensor in another order: nothing to recognise as the same
    again = features.flip(0).clone()
    assert abs(frechet_distance(features, again)) <= 1e-10 * trace(features)
    assert abs(frechet_distance(features, features.float())) <= 1e-6 * trace(features)


def test_the_distance_is_symmetric_and_does_not_know_the_order():
    real, fake = draw(50, 64, seed=1), draw(90, 64, seed=2, shift=0.2)
    value = frechet_distance(real, fake)
    mixed = real[torch.randperm(50, generator=torch.Generator().manual_seed(0))]
    assert frechet_distance(fake, real) == pytest.approx(value, rel=1e-12)
    assert frechet_distance(mixed, fake) == pytest.approx(value, rel=1e-12)


def test_ddof_divides_the_scatter():
    real, fake = draw(10, 5, seed=1), draw(10, 5, seed=2)
    mean = float((real.mean(0) - fake.mean(0)).square().sum())
    spread = frechet_distance(real, fake) - mean
    assert frechet_distance(real, fake, ddof=0) == pytest.approx(mean + 0.9 * spread, rel=1e-12)


def test_the_kernel_distance_is_the_unbiased_estimate_of_torchmetrics():
    real, fake = draw(60, 16, seed=1), draw(60, 16, seed=2, shift=0.3)
    gamma = 1 / 16
    kernels = [(a @ b.T * gamma + 1) ** 3 for a, b in ((real, real), (real, fake), (fake, fake))]
    within = [(one.sum() - one.trace()) / (60 * 59) for one in (kernels[0], kernels[2])]
    expected = float(sum(within) - 2 * kernels[1].mean())
    assert kernel_distance(real, fake) == pytest.approx(expected, rel=1e-10)
    assert kernel_distance(real, fake) == pytest.approx(float(poly_mmd(real, fake)), rel=1e-10)


def test_the_kernel_distance_does_not_depend_on_blocks(monkeypatch):
    real, fake = draw(37, 8, seed=1), draw(23, 8, seed=2)
    at_once = kernel_distance(real, fake)
    monkeypatch.setattr("vidgen.eval.mean_discrepancy.BLOCK", 5)
    assert kernel_distance(real, fake) == pytest.approx(at_once, rel=1e-12)


def test_the_biased_estimate_keeps_the_diagonal():
    real, fake = draw(20, 8, seed=1), draw(30, 8, seed=2)
    kernel = PolynomialKernel(degree=2, constant=0.0)
    assert kernel == JEDI != KID
    expected = float(kernel(real, real).mean() + kernel(fake, fake).mean() - 2 * kernel(real, fake).mean())
    assert kernel_distance(real, fake, kernel=kernel, biased=True) == pytest.approx(expected, rel=1e-10)
    assert kernel_distance(real, real.clone(), kernel=kernel, biased=True) == pytest.approx(0, abs=1e-12)
    assert kernel_distance(real, fake, kernel=kernel) < expected


def test_the_jackknife_finds_the_spread_of_fresh_draws():
    def distance(seed: int) -> float:
        return frechet_distance(draw(200, 20, seed=2 * seed), draw(200, 20, seed=2 * seed + 1, shift=0.05))

    true_spread = float(torch.tensor([distance(seed) for seed in range(100, 160)]).std())
    real, fake = draw(200, 20, seed=0), draw(200, 20, seed=1, shift=0.05)
    spread = delete_d_jackknife(frechet_distance, real, fake, generator=torch.Generator().manual_seed(0), repeats=60)
    assert spread.value == frechet_distance(real, fake)
    assert 0.6 * true_spread < spread.deviation < 1.7 * true_spread
    assert spread.interval[0] < spread.value < spread.interval[1]


def test_a_bootstrap_would_exclude_the_value_it_is_for():
    """Why there is none here."""
    generator = torch.Generator().manual_seed(0)
    real, fake = draw(150, 30, seed=0), draw(150, 30, seed=1)
    values = [
        frechet_distance(
            real[torch.randint(150, (150,), generator=generator)], fake[torch.randint(150, (150,), generator=generator)]
        )
        for _ in range(40)
    ]
    assert min(values) > frechet_distance(real, fake)


def test_the_limit_of_many_samples_is_nearer_to_the_truth_than_the_measured_value():
    width, shift = 50, 0.1
    real, fake = draw(400, width, seed=0), draw(300, width, seed=1, shift=shift)
    truth = width * shift**2
    limit = extrapolate(frechet_distance, real, fake, generator=torch.Generator().manual_seed(0))
    measured = frechet_distance(real, fake)
    assert abs(limit.value - truth) < 0.25 * (measured - truth)
    assert limit.slope > 0


def test_the_interval_of_the_limit_covers_the_truth_and_is_not_much_wider_than_it_need_be():
    """The truth is known: Gaussians of one covariance up to a factor."""
    width, shift, spread = 6, 0.5, 1.2
    truth = width * (shift**2 + (spread - 1) ** 2)
    generator = torch.Generator().manual_seed(0)
    values, deviations, covered = [], [], 0
    for _ in range(40):
        real, fake = (torch.randn(60, width, generator=generator, dtype=torch.float64) for _ in range(2))
        limit, found = limit_with_spread(frechet_distance, real, spread * fake + shift, generator=generator, repeats=10)
        assert found.value == limit.value
        low, high = found.interval
        covered += low < truth < high
        values.append(limit.value)
        deviations.append(found.deviation)
    assert covered >= 35, "90 % less one standard deviation of 40 draws"
    assert 0.8 < np.mean(deviations) / np.std(values) < 1.6


def test_halves_of_one_set_are_about_as_far_apart_as_two_fresh_sets_of_that_size():
    floor = split_half_floor(frechet_distance, draw(200, 20, seed=0), generator=torch.Generator().manual_seed(0))
    fresh = frechet_distance(draw(100, 20, seed=1), draw(100, 20, seed=2))
    assert floor == pytest.approx(fresh, rel=0.5)


def test_rows_of_one_video_are_left_out_together():
    """Frames of a video are alike: leaving out frames alone would find next to no spread."""
    centres = draw(24, 6, seed=0)
    real = (centres[:, None] + 1e-3 * draw(24 * 8, 6, seed=1).view(24, 8, 6)).flatten(0, 1)
    fake = (draw(24, 6, seed=2)[:, None] + 1e-3 * draw(24 * 8, 6, seed=3).view(24, 8, 6)).flatten(0, 1)
    videos = tuple(str(row // 8) for row in range(24 * 8))
    deviations = [
        delete_d_jackknife(
            frechet_distance, real, fake, generator=torch.Generator().manual_seed(0), groups=groups, repeats=30
        ).deviation
        for groups in (None, (videos, videos))
    ]
    assert deviations[1] > 1.5 * deviations[0]


@pytest.mark.parametrize(
    "real,fake,words",
    [
        (torch.zeros(4, 3), torch.zeros(4, 2), "3 of each real and 2 of each fake"),
        (torch.zeros(1, 3), torch.zeros(4, 3), "at least 2 real"),
        (torch.zeros(4, 3, 2), torch.zeros(4, 3), "`n d`"),
        (torch.zeros(4, 3, dtype=torch.int64), torch.zeros(4, 3), "int64"),
        (torch.tensor([[1.0, 2.0], [math.nan, 0.0], [1.0, 1.0]]), torch.zeros(4, 2), "1 of 3 real samples"),
        (torch.zeros(4, 2), torch.tensor([[1.0, math.inf], [0.0, 0.0]]), "1 of 2 fake samples"),
    ],
)
def test_features_that_make_no_distance_are_refused(real, fake, words):
    for distance in (frechet_distance, kernel_distance):
        with pytest.raises(ValueError, match=words):
            distance(real, fake)
