"""Do the scores follow their definitions, and is merging them exact?"""

import math

import numpy as np
import pytest
import torch

from vidgen.eval import (
    CodebookUsage,
    LpipsDistance,
    PerceptualScore,
    PooledPsnr,
    Psnr,
    SqueezeNetDistance,
    SqueezeNetFeatures,
    Ssim,
    TemporalDifferencePsnr,
    merge_across_ranks,
    perceptual_distance,
    wilson_interval,
)
from vidgen.eval.metric import ExactSum
from vidgen.latents import LatentPart, Latents, LatentSpec


def pair(frames: int = 3, height: int = 20, width: int = 17, noise: float = 0.2, seed: int = 0):
    """A noisy and a clean video 2 3 t h w with smooth content."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.nn.functional.interpolate(
        torch.rand(2, 3, frames, 4, 4, generator=generator) * 2 - 1, size=(frames, height, width), mode="trilinear"
    )
    noisy = (clean + noise * torch.randn(clean.shape, generator=generator)).clamp(-1, 1)
    return noisy, clean


def levels(video: torch.Tensor) -> np.ndarray:
    return np.clip(np.rint((video.numpy() + np.float32(1)) * np.float32(127.5)), 0, 255).astype(np.float64)


def naive_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """One channel h w in 0..255, window by window, straight from the definition."""
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for y in range(a.shape[0] - 10):
        for x in range(a.shape[1] - 10):
            p, q = a[y : y + 11, x : x + 11], b[y : y + 11, x : x + 11]
            mean_p, mean_q = (window * p).sum(), (window * q).sum()
            var_p, var_q = (window * (p - mean_p) ** 2).sum(), (window * (q - mean_q) ** 2).sum()
            covariance = (window * (p - mean_p) * (q - mean_q)).sum()
            values.append(
                (2 * mean_p * mean_q + c1)
                * (2 * covariance + c2)
                / ((mean_p**2 + mean_q**2 + c1) * (var_p + var_q + c2))
            )
    return float(np.mean(values))


def test_ssim_equals_a_window_by_window_computation():
    noisy, clean = pair()
    metric = Ssim()
    metric.update(noisy, clean)
    per_frame = metric.frame_scores(noisy, clean)
    a, b = levels(noisy), levels(clean)
    for sample in range(2):
        for frame in range(3):
            expected = np.mean([naive_ssim(a[sample, c, frame], b[sample, c, frame]) for c in range(3)])
            assert float(per_frame[sample, frame]) == pytest.approx(expected, abs=1e-9)
    assert metric.compute()["ssim.rgb.gauss11.valid"] == pytest.approx(float(per_frame.mean()), abs=1e-12)


def test_ssim_is_one_for_equal_videos_and_refuses_frames_smaller_than_its_window():
    _, clean = pair()
    assert float(Ssim().frame_scores(clean, clean).min()) == pytest.approx(1, abs=1e-12)
    with pytest.raises(ValueError, match="at least 11 pixels"):
        Ssim().update(clean[..., :10], clean[..., :10])


def test_psnr_equals_numpy_per_frame_and_pooled():
    noisy, clean = pair()
    metric, pooled = Psnr(), PooledPsnr()
    metric.update(noisy, clean)
    pooled.update(noisy, clean)
    squared = (levels(noisy) - levels(clean)) ** 2
    frame_mean = np.mean(10 * np.log10(255**2 / squared.mean((1, 3, 4))))
    scores = metric.compute() | pooled.compute()
    assert scores["psnr.rgb.frame_mean.cap100"] == pytest.approx(frame_mean, abs=1e-9)
    assert scores["psnr.rgb.global.cap100"] == pytest.approx(10 * math.log10(255**2 / squared.mean()), abs=1e-9)


def test_psnr_of_one_level_everywhere_is_known_and_equal_videos_score_the_cap():
    dark = torch.full((1, 3, 2, 4, 4), -1.0)
    metric = Psnr()
    metric.update(dark + 2 / 255, dark)
    assert metric.compute()["psnr.rgb.frame_mean.cap100"] == pytest.approx(20 * math.log10(255))
    for equal in (Psnr(), PooledPsnr()):
        equal.update(dark, dark)
        assert equal.compute()[equal.key] == 100


def test_psnr_does_not_see_differences_below_half_a_level():
    dark = torch.full((1, 3, 2, 4, 4), -1.0)
    metric = Psnr()
    metric.update(dark + 0.9 / 255, dark)
    assert metric.compute()["psnr.rgb.frame_mean.cap100"] == 100


@pytest.mark.parametrize("kind", [Psnr, PooledPsnr, Ssim, TemporalDifferencePsnr])
def test_merging_shards_in_any_order_is_bit_equal_to_a_single_pass(kind):
    videos = [pair(frames=2 + seed % 4, noise=0.01 * 3**seed, seed=seed) for seed in range(5)]
    single = kind()
    for noisy, clean in videos:
        single.update(noisy, clean)
    shards = []
    for noisy, clean in videos:
        shard = kind()
        for sample in (1, 0):
            shard.update(noisy[sample : sample + 1], clean[sample : sample + 1])
        restored = shard.empty()
        restored.load_state_dict(shard.state_dict())
        shards.append(restored)
    for order in ([0, 1, 2, 3, 4], [3, 1, 4, 0, 2]):
        merged = kind()
        for index in order:
            merged.merge(shards[index])
        assert merged.compute() == single.compute()


def _psnr_of_two_ranks(rank: int, store: str, expected: dict[str, float]) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    metric = Psnr()
    noisy, clean = pair(seed=rank)
    metric.update(noisy, clean)
    assert merge_across_ranks(metric).compute() == expected
    torch.distributed.destroy_process_group()


@pytest.mark.slow  # starts two processes
def test_two_ranks_both_get_the_score_of_a_single_pass(tmp_path):
    single = Psnr()
    for seed in (1, 0):
        single.update(*pair(seed=seed))
    torch.multiprocessing.spawn(_psnr_of_two_ranks, (str(tmp_path / "store"), single.compute()), nprocs=2)


def test_an_exact_sum_keeps_what_floats_lose():
    total = ExactSum()
    for term in (1e16, 1.0, -1e16, 2.0**-30):
        total.add(term)
    assert total.value == 1 + 2.0**-30


def test_a_metric_that_saw_nothing_has_no_score():
    for metric in (Psnr(), Ssim(), CodebookUsage(spec((4,)))):
        with pytest.raises(ValueError, match="call update first"):
            metric.compute()


def test_videos_of_different_shapes_are_refused():
    noisy, clean = pair()
    with pytest.raises(ValueError, match="b 3 t h w"):
        Psnr().update(noisy, clean[:, :, :1])


def spec(codebooks: tuple[int, ...]) -> LatentSpec:
    part = LatentPart("grid", "t", (1,), 2, codebooks)
    return LatentSpec((part,), causal=True, streamable=True)


def latents(ids: torch.Tensor, of: LatentSpec, length: torch.Tensor | None = None) -> Latents:
    return Latents(torch.zeros(*ids.shape[:2], 2), ids, (ids.shape[1], 8, 8), of, length)


def test_codebook_scores_of_known_ids():
    of = spec((8, 3))
    usage = CodebookUsage(of)
    ids = torch.stack([torch.tensor([[0, 1, 2, 3]]), torch.tensor([[2, 2, 2, 2]])], dim=-1)
    usage.update(latents(ids, of))
    scores = usage.compute()
    assert scores["codebook.grid.0.usage"] == 0.5
    assert scores["codebook.grid.0.entropy_bits"] == pytest.approx(2)
    assert scores["codebook.grid.0.perplexity"] == pytest.approx(4)
    assert scores["codebook.grid.1.usage"] == pytest.approx(1 / 3)
    assert scores["codebook.grid.1.perplexity"] == 1
    assert scores["codebook.perplexity"] == pytest.approx(2.5)


def test_codes_behind_a_samples_valid_length_do_not_count():
    of = spec((8,))
    usage = CodebookUsage(of)
    ids = torch.arange(8).reshape(2, 4, 1)
    usage.update(latents(ids, of, torch.tensor([1, 2])))
    assert usage.counts["grid.0"].ids.tolist() == [0, 4, 5]


def test_codebook_usage_merges_to_a_single_pass_and_refuses_ids_outside_the_codebook():
    of = spec((50,))
    ids = torch.randint(50, (4, 9, 1), generator=torch.Generator().manual_seed(1))
    single, first, second = CodebookUsage(of), CodebookUsage(of), CodebookUsage(of)
    single.update(latents(ids, of))
    first.update(latents(ids[:3], of))
    second.update(latents(ids[3:], of))
    second.merge(first)
    assert second.compute() == single.compute()
    assert first.counts["grid.0"].total == 27
    with pytest.raises(ValueError, match="50 codes"):
        single.update(latents(ids + 1000, of))


def test_wilson_interval_of_published_values():
    # Newcombe (1998), table I, method 3.
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (right, trials), bounds in published.items():
        assert tuple(wilson_interval(right, trials)) == pytest.approx(bounds, abs=5e-5)
    with pytest.raises(ValueError, match="at least one trial"):
        wilson_interval(0, 0)


@pytest.fixture(scope="module")
def random_features() -> SqueezeNetFeatures:
    torch.manual_seed(0)
    return SqueezeNetFeatures().eval()


def test_perceptual_distance_is_zero_for_equal_frames_symmetric_and_differentiable(random_features):
    noisy, clean = (video[:, :, 0] for video in pair(height=40, width=40))
    noisy.requires_grad_()
    assert perceptual_distance(clean, clean, features=random_features).abs().max() == 0
    distance = perceptual_distance(noisy, clean, features=random_features)
    torch.testing.assert_close(distance, perceptual_distance(clean, noisy, features=random_features))
    distance.sum().backward()
    assert noisy.grad is not None and noisy.grad.abs().max() > 0
    assert all(not weight.requires_grad for weight in random_features.parameters())


def test_squeezenet_features_equal_torchvisions_network(random_features):
    from torchvision.models import squeezenet1_0

    theirs = squeezenet1_0(weights=None).eval()
    theirs.features.load_state_dict(random_features.features.state_dict())
    frames = torch.rand(1, 3, 33, 47, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = ((frames + 1) * 127.5).flip(1) - torch.tensor([104.0, 117.0, 123.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(random_features(frames)[-1], theirs.features(expected))


def test_squeezenet_weights_survive_the_file_and_other_networks_are_refused(random_features, tmp_path):
    torch.save({**random_features.state_dict(), "classifier.1.weight": torch.zeros(1)}, tmp_path / "right.pt")
    loaded = SqueezeNetDistance.from_file(tmp_path / "right.pt")
    noisy, clean = pair(height=30, width=30)
    assert loaded(noisy, clean).shape == (2, 3)
    torch.testing.assert_close(
        loaded(noisy, clean)[:, 1], perceptual_distance(noisy[:, :, 1], clean[:, :, 1], features=random_features)
    )
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="another network"):
        SqueezeNetDistance.from_file(tmp_path / "other.pt")
    with pytest.raises(ValueError, match="there is no file"):
        SqueezeNetDistance.from_file(tmp_path / "missing.pt")
    with pytest.raises(ValueError, match="at least 21 pixels"):
        loaded(noisy[..., :20], clean[..., :20])


def test_a_perceptual_score_averages_frames_and_merges_exactly(random_features):
    distance = SqueezeNetDistance(random_features)
    noisy, clean = pair(frames=5, height=24, width=24)
    single, shard = PerceptualScore(distance), PerceptualScore(distance)
    single.update(noisy, clean)
    per_frame = single.frame_scores(noisy, clean)
    assert single.compute()["squeezenet.features"] == pytest.approx(float(per_frame.double().mean()))
    merged = PerceptualScore(distance)
    shard.update(noisy, clean)
    merged.merge(shard)
    assert merged.compute() == single.compute()


def test_the_shared_squeezenet_puts_a_noisy_frame_farther_away_than_a_slightly_noisy_one(shared):
    distance = SqueezeNetDistance.from_file(shared / "weights" / "squeezenet1_0_imagenet.pt")
    slightly, clean = pair(height=64, width=64, noise=0.05)
    noisy, _ = pair(height=64, width=64, noise=0.3)
    assert 0 < distance(slightly, clean).mean() < distance(noisy, clean).mean()


@pytest.mark.slow  # builds torchvision networks
def test_lpips_from_a_file_equals_the_lpips_package(tmp_path):
    import lpips
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    trunk = squeezenet1_1(weights=None)
    torch.save(trunk.state_dict(), tmp_path / "squeezenet1_1.pth")
    ours = LpipsDistance.from_file(tmp_path / "squeezenet1_1.pth", net="squeeze")
    theirs = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    for key, value in theirs.net.state_dict().items():
        value.copy_(trunk.state_dict()[f"features.{key.split('.', 1)[1]}"])
    noisy, clean = pair(frames=2, height=32, width=32)
    assert ours.key == "lpips.squeeze.v0.1"
    torch.testing.assert_close(ours(noisy, clean)[:, 0], theirs(noisy[:, :, 0], clean[:, :, 0]).flatten())
    with pytest.raises(ValueError, match="alexnet"):
        LpipsDistance.from_file(tmp_path / "squeezenet1_1.pth", net="alex")
