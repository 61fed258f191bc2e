"""Do the intervals hold what they promise: the point inside, the right width, pairs cancelling what they share?"""

import numpy as np
import pytest

from vidgen.eval.bootstrap import Bootstrap, Estimate, differences, estimates
from vidgen.eval.psnr import PooledPsnr, Psnr

FAST = Bootstrap(resamples=400)


def clips_with(values: np.ndarray, frames: int = 4) -> list[dict[str, float]]:
    return [{"total": float(value) * frames, "count": float(frames)} for value in values]


def test_the_interval_of_a_mean_has_the_width_that_theory_says_and_covers_it():
    values = np.random.default_rng(0).normal(30, 2, size=200)
    (found,) = estimates(Psnr(), clips_with(values), Bootstrap(resamples=4000)).values()
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.05 * half)


def test_the_true_mean_lies_in_about_95_of_100_intervals():
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        (found,) = estimates(Psnr(), clips_with(generator.normal(30, 2, size=40)), FAST).values()
        covered += found.low <= 30 <= found.high
    assert 180 <= covered <= 198


def test_long_clips_weigh_by_their_frames():
    clips = [{"total": 30.0 * 1, "count": 1.0}, {"total": 40.0 * 9, "count": 9.0}]
    (found,) = estimates(Psnr(), clips, FAST).values()
    assert found.value == pytest.approx(39)
    assert (found.low, found.high) == (30, 40)


def test_a_pooled_score_is_resampled_from_its_sums():
    clips = [{"squared_error": 100.0 * k, "samples": 100.0} for k in (1, 2, 4)]
    (found,) = estimates(PooledPsnr(), clips, FAST).values()
    assert found.value == pytest.approx(10 * np.log10(255**2 * 300 / 700))
    assert 10 * np.log10(255**2 / 4) <= found.low < found.value < found.high <= 10 * np.log10(255**2)


def test_a_paired_difference_is_far_surer_than_its_two_sides():
    generator = np.random.default_rng(2)
    shared = generator.normal(30, 3, size=50)
    better = shared + 0.5 + generator.normal(0, 0.1, size=50)
    (alone,) = estimates(Psnr(), clips_with(better), FAST).values()
    (paired,) = differences(Psnr(), clips_with(better), clips_with(shared), FAST).values()
    assert paired.value == pytest.approx((better - shared).mean())
    assert paired.high - paired.low < 0.1 * (alone.high - alone.low)
    assert paired.low > 0
    (none,) = differences(Psnr(), clips_with(shared), clips_with(shared), FAST).values()
    assert (none.value, none.low, none.high) == (0, 0, 0)


def test_the_seed_alone_decides_the_draws():
    clips = clips_with(np.random.default_rng(3).normal(30, 2, size=20))
    assert estimates(Psnr(), clips, FAST) == estimates(Psnr(), clips, FAST)
    assert estimates(Psnr(), clips, FAST) != estimates(Psnr(), clips, Bootstrap(resamples=400, seed=1))


def test_one_clip_has_a_value_and_no_interval_and_none_has_nothing():
    (found,) = estimates(Psnr(), clips_with(np.array([31.0])), FAST).values()
    assert (found.value, found.low, found.high) == (31, None, None)
    assert estimates(Psnr(), [{"total": 0.0, "count": 0.0}], FAST) == {}


def test_clips_that_could_not_be_scored_do_not_count():
    clips = [*clips_with(np.array([30.0, 31.0, 32.0])), {"total": 0.0, "count": 0.0}]
    (found,) = estimates(Psnr(), clips, FAST).values()
    assert found.value == pytest.approx(31)
    assert 30 <= found.low <= found.high <= 32


def test_one_clip_that_could_be_scored_among_several_has_a_value_and_no_interval():
    nothing = {"total": 0.0, "count": 0.0}
    ours, theirs = ([*clips_with(np.array([value])), nothing, nothing] for value in (31.0, 30.0))
    (found,) = estimates(Psnr(), ours, FAST).values()
    assert (found.value, found.low, found.high) == (31, None, None)
    (difference,) = differences(Psnr(), ours, theirs, FAST).values()
    assert (difference.value, difference.low, difference.high) == (1, None, None)


def test_clips_that_could_not_be_scored_move_no_interval():
    clips = clips_with(np.random.default_rng(4).normal(30, 2, size=6))
    assert estimates(Psnr(), [{"total": 0.0, "count": 0.0}, *clips], FAST) == estimates(Psnr(), clips, FAST)


def test_unlike_sets_of_clips_have_no_paired_difference():
    clips = clips_with(np.array([30.0, 31.0]))
    with pytest.raises(ValueError, match="the same clips"):
        differences(Psnr(), clips, clips[:1], FAST)
    with pytest.raises(ValueError, match="one side only"):
        differences(Psnr(), clips, [clips[0], {"total": 0.0, "count": 0.0}], FAST)
    with pytest.raises(ValueError, match="100 resamples"):
        Bootstrap(resamples=3)


@pytest.mark.parametrize(
    ("estimate", "shown"),
    [
        (Estimate(31.4213, 31.37, 31.47), "31.421 [31.370, 31.470]"),
        (Estimate(31.4213, 30.1, 32.9), "31.4 [30.1, 32.9]"),
        (Estimate(31.4213, None, None), "31.42"),
        (Estimate(31.4213, 11.0, 51.0), "31 [11, 51]"),
    ],
)
def test_a_value_is_shown_as_finely_as_it_is_known(estimate, shown):
    assert str(estimate) == shown
