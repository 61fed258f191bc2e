"""Do the reconstruction scores equal independent implementations, in every convention and however a clip is cut?"""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from vidgen.data import read_video, to_tensor
from vidgen.eval.metric import ClipMean
from vidgen.eval.psnr import PhaseMean, PooledPsnr, Psnr, WorstFrames
from vidgen.eval.reconstruction import METRICS, PerceptualScore
from vidgen.eval.ssim import MsSsim, Ssim
from vidgen.eval.temporal import Flicker, TemporalDifferencePsnr
from vidgen.eval.vmaf import Vmaf, why_vmaf_is_missing
from vidgen.eval.warping import WarpingError

EPSILON = float(np.finfo(np.float32).eps)
WITHOUT_VMAF = [key for key in METRICS if key != Vmaf.key]


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def smooth(frames: int, height: int, width: int, *, seed: int = 0) -> torch.Tensor:
    """A video 1 3 t h w in [-1, 1] without sharp edges."""
    coarse = torch.rand(1, 3, 2, 5, 5, generator=torch.Generator().manual_seed(seed)) * 1.8 - 0.9
    return functional.interpolate(coarse, size=(frames, height, width), mode="trilinear")


def pair(frames: int = 4, height: int = 32, width: int = 27, *, strength: float = 0.1):
    """A noisy video and its original as uint8 levels, 1 3 t h w."""
    clean = smooth(frames, height, width)
    noisy = clean + strength * noise(*clean.shape)
    return as_levels(noisy), as_levels(clean)


def as_levels(video: torch.Tensor) -> torch.Tensor:
    return ((video + 1) * 127.5).round().clamp(0, 255).byte()


def score(metric, video: torch.Tensor, reference: torch.Tensor) -> float:
    metric = metric.empty()
    metric.update(video, reference)
    return metric.compute()[metric.key]


def frames_of(video: torch.Tensor) -> np.ndarray:
    """t h w 3 in float64."""
    return video[0].permute(1, 2, 3, 0).numpy().astype(np.float64)


# known values and independent implementations


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("psnr.rgb.frame_mean.cap100", 20 * math.log10(255 / 5)),
        ("psnr.rgb.frame_mean.cap100.float", 20 * math.log10(255 / 5)),
        ("psnr.rgb.frame_mean.eps1e-8.float", -10 * math.log10((5 / 255) ** 2 + 1e-8)),
        ("psnr.rgb.global.cap100", 20 * math.log10(255 / 5)),
        ("psnr.rgb.clip_global.eps1.2e-7", 20 * math.log10(255 / (5 + EPSILON))),
        ("psnr.grey.frame_mean.cap100", 20 * math.log10(255 / 5)),
        ("psnr.y601.frame_mean.cap100", 20 * math.log10(255 / (5 * 219 / 255))),
    ],
)
def test_five_levels_off_everywhere_has_a_known_psnr_in_every_convention(key, expected):
    dark = torch.full((1, 3, 2, 4, 4), 40, dtype=torch.uint8)
    assert score(METRICS[key], dark + 5, dark) == pytest.approx(expected, abs=1e-9)


def test_equal_videos_score_what_their_convention_allows_at_most():
    video, _ = pair()
    assert score(METRICS["psnr.rgb.frame_mean.cap100"], video, video) == 100
    assert score(METRICS["psnr.rgb.frame_mean.eps1e-8.float"], video, video) == pytest.approx(80)


def test_the_wrapped_psnr_is_what_numpy_gives_for_bytes_and_lies_above_the_true_one():
    video, original = pair(strength=0.4)
    a, b = frames_of(video).astype(np.uint8), frames_of(original).astype(np.uint8)
    error = ((a - b) ** 2).mean()
    expected = 20 * np.log10(255 / (np.sqrt(error) + EPSILON))
    wrapped = score(METRICS["psnr.rgb.clip_global.eps1.2e-7.wrapped"], video, original)
    assert wrapped == pytest.approx(expected, abs=1e-9)
    assert wrapped > score(METRICS["psnr.rgb.clip_global.eps1.2e-7"], video, original) + 3


def test_one_bad_frame_costs_more_pooled_than_frame_by_frame():
    _, original = pair(frames=16)
    video = original.clone()
    video[:, :, 3] = 255 - video[:, :, 3]
    assert score(PooledPsnr(), video, original) < score(Psnr(), video, original) - 20


def test_ssim_equals_scikit_image_in_both_windows():
    from skimage.metrics import structural_similarity

    video, original = pair()
    a, b = frames_of(video), frames_of(original)
    gaussian = [
        structural_similarity(
            p, q, data_range=255, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for p, q in zip(a, b, strict=True)
    ]
    uniform = [structural_similarity(p, q, data_range=255, channel_axis=-1) for p, q in zip(a, b, strict=True)]
    assert score(METRICS["ssim.rgb.uniform7.sample"], video, original) == pytest.approx(np.mean(uniform), abs=1e-9)
    # its Gaussian window is cut off at 3.5 sigma, which gives the same 11 weights
    assert score(Ssim(), video, original) == pytest.approx(np.mean(gaussian), abs=1e-9)


def test_ssim_and_ms_ssim_equal_pytorch_msssim():
    import pytorch_msssim

    video, original = pair(frames=2, height=163, width=170, strength=0.2)
    a, b = (x[0].transpose(0, 1).double() for x in (video, original))  # t 3 h w
    assert score(Ssim(), video, original) == pytest.approx(float(pytorch_msssim.ssim(a, b)), abs=1e-5)
    expected = float(pytorch_msssim.ms_ssim(a, b, data_range=255))
    assert score(MsSsim(), video, original) == pytest.approx(expected, abs=1e-5)  # its window is float32


def test_ssim_of_grey_equals_scikit_image_on_grey():
    from skimage.metrics import structural_similarity

    video, original = pair(frames=1)
    a, b = (frames_of(x)[0] @ np.array([0.299, 0.587, 0.114]) for x in (video, original))
    expected = structural_similarity(
        a, b, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert score(METRICS["ssim.grey.gauss11.valid"], video, original) == pytest.approx(expected, abs=1e-9)


def test_pooled_ssim_halves_frames_of_512_pixels_and_leaves_small_ones_alone():
    pooled = METRICS["ssim.rgb.gauss11.valid.pool256.float"]
    video, original = pair(frames=1, height=400, width=390)
    halved = [functional.avg_pool2d(x[0].transpose(0, 1).double() / 127.5 - 1, 2) for x in (video, original)]
    halved = [x.transpose(0, 1)[None] for x in halved]
    expected = score(METRICS["ssim.rgb.gauss11.valid.float"], *halved)
    assert score(pooled, video, original) == pytest.approx(expected, abs=1e-6)
    small = pair(frames=1)
    assert score(pooled, *small) == score(METRICS["ssim.rgb.gauss11.valid.float"], *small)


@pytest.mark.slow  # torchmetrics imports for long
def test_psnr_equals_torchmetrics_which_pools_all_frames():
    from torchmetrics.image import PeakSignalNoiseRatio

    video, original = pair()
    theirs = PeakSignalNoiseRatio(data_range=255.0)(video.double(), original.double())
    assert score(PooledPsnr(), video, original) == pytest.approx(float(theirs), abs=1e-5)


@pytest.mark.slow  # builds networks of torchvision
@pytest.mark.filterwarnings("ignore")  # lpips builds its trunk through arguments that torchvision calls old
@pytest.mark.parametrize(("net", "spatial"), [("alex", False), ("alex", True), ("vgg", False), ("vgg", True)])
def test_lpips_in_both_forms_equals_the_package_with_the_same_random_trunk(tmp_path, net, spatial):
    import lpips

    from vidgen.eval import LpipsDistance

    torch.manual_seed(0)
    theirs = lpips.LPIPS(net=net, pnet_rand=True, spatial=spatial, verbose=False)
    trunk = {f"features.{key.split('.', 1)[1]}": value for key, value in theirs.net.state_dict().items()}
    torch.save(trunk, tmp_path / "trunk.pth")
    torch.manual_seed(1)  # the trunk that ours is built with before the file is read is another one
    ours = LpipsDistance.from_file(tmp_path / "trunk.pth", net=net, spatial=spatial)
    video, original = (x.float() / 127.5 - 1 for x in pair(frames=2, height=40, width=40))
    expected = [float(theirs(video[:, :, t], original[:, :, t]).mean()) for t in range(2)]
    assert ours.key == (f"lpips.{net}.spatial.v0.1" if spatial else f"lpips.{net}.v0.1")
    assert score(PerceptualScore(ours), video, original) == pytest.approx(np.mean(expected), rel=1e-5)


# temporal scores


def test_a_constant_error_costs_no_temporal_difference_and_a_changing_one_does():
    _, original = pair(frames=6)
    original = original.clamp(10, 245)
    brighter = original + 6
    blinking = original.clone()
    blinking[:, :, ::2] += 6
    assert score(TemporalDifferencePsnr(), brighter, original) == 100
    assert score(TemporalDifferencePsnr(), blinking, original) == pytest.approx(20 * math.log10(255 / 6))


def test_flicker_counts_only_pixels_that_stand_still_in_the_original():
    original = torch.full((1, 3, 5, 8, 8), 100, dtype=torch.uint8)
    original[..., 4:] += torch.arange(5, dtype=torch.uint8).view(5, 1, 1) * 20  # the right half moves
    video = original.clone()
    video[:, :, 1::2] += 7
    assert score(Flicker(), video, original) == pytest.approx(7)
    assert score(Flicker(), original, original) == 0
    moving = original[..., 4:]
    with pytest.raises(ValueError, match="no frame that counts"):
        score(Flicker(), moving, moving)


def moving_texture(frames: int, *, dy: int, dx: int) -> torch.Tensor:
    """Levels 1 3 t 48 64 of a texture that moves by whole pixels."""
    size = (60 + frames * abs(dy), 80 + frames * abs(dx))
    texture = functional.avg_pool2d(torch.rand(3, *size, generator=torch.Generator().manual_seed(0)) * 255, 3, 1)
    return torch.stack([texture[:, t * dy :, t * dx :][:, :48, :64] for t in range(frames)], dim=1)[None].byte()


def test_warping_error_follows_whole_pixel_motion_and_sees_noise_on_it():
    original = moving_texture(4, dy=2, dx=3)
    metric = WarpingError()
    metric.update(original, original)
    exact = metric.compute()
    # what moves in at the border has no source; everything else is found
    assert exact[metric.key] == exact[f"{metric.key}.original"] < 0.5
    assert exact[f"{metric.key}.coverage"] > 0.7
    noisy = (original + 8 * noise(*original.shape)).clamp(0, 255).byte()
    assert 7 < score(metric, noisy, original) < 12


def test_warping_error_of_a_frozen_video_shows_that_it_does_not_move_along():
    original = moving_texture(4, dy=0, dx=4)
    frozen = original[:, :, :1].expand_as(original)
    assert score(WarpingError(), frozen, original) > 10 * score(WarpingError(), original, original) + 1


# pieces, batches, merging


@pytest.mark.parametrize("key", WITHOUT_VMAF)
def test_the_pieces_in_which_a_clip_comes_do_not_change_its_score(key):
    side = 161 if key.startswith("msssim") else 24
    frames = 3 if key.startswith("msssim") else 7
    _, original = pair(frames, side, side + 2)
    original = torch.stack([original[:, :, t // 2] for t in range(frames)], dim=2)  # some frames stand still
    video = (original + 9 * noise(*original.shape)).clamp(0, 255).byte()
    whole, pieces = METRICS[key].empty(), METRICS[key].empty()
    whole.update(video, original)
    start = 0
    for end in (1, frames - 1, frames):
        pieces.update(video[:, :, start:end], original[:, :, start:end], start=start)
        start = end
    assert pieces.compute() == pytest.approx(whole.compute(), abs=1e-9)


@pytest.mark.parametrize(
    "key", ["psnr.rgb.clip_global.cap100", "flicker.rgb.static2", "warping_error.rgb.mestimate8r7"]
)
def test_clips_merge_in_any_order_to_the_bits_of_a_single_pass_and_through_a_state(key):
    clips = []
    for seed in range(3):
        original = as_levels(smooth(2 + seed, 24, 24, seed=seed))
        clips.append(((original + 9 * noise(*original.shape, seed=seed)).clamp(0, 255).byte(), original))
    single = METRICS[key].empty()
    parts = []
    for video, original in clips:
        single.update(video, original)
        part, restored = METRICS[key].empty(), METRICS[key].empty()
        part.update(video, original)
        restored.load_state_dict(part.state_dict())
        parts.append(restored)
    for order in ([0, 1, 2], [2, 0, 1]):
        merged = METRICS[key].empty()
        for place in order:
            merged.merge(parts[place])
        assert merged.compute() == single.compute()


def test_a_mean_over_clips_weighs_a_long_clip_like_a_short_one():
    short, long = pair(frames=2, strength=0.05), pair(frames=20, strength=0.4)
    by_clip, by_frame = ClipMean(Ssim()), Ssim()
    for video, original in (short, long):
        by_clip.update(video, original)
        by_frame.update(video, original)
    expected = (score(Ssim(), *short) + score(Ssim(), *long)) / 2
    assert by_clip.compute()["ssim.rgb.gauss11.valid"] == pytest.approx(expected, abs=1e-12)
    assert by_frame.compute()["ssim.rgb.gauss11.valid"] < expected - 0.05


def test_levels_and_the_same_floats_score_alike():
    video, original = pair()
    floats = [to_tensor(frames_of(x).astype(np.uint8))[None] for x in (video, original)]
    for key in WITHOUT_VMAF:
        if not key.startswith("msssim") and not key.endswith(".floor"):
            assert score(METRICS[key], *floats) == pytest.approx(score(METRICS[key], video, original), rel=1e-5), key


def test_cutting_off_loses_half_a_level_of_the_video_and_none_of_the_original():
    original = to_tensor(np.arange(100, 148, dtype=np.uint8).reshape(1, 4, 4, 3))[None]
    video = original + 1.9 / 127.5  # not quite two levels up
    assert score(METRICS["psnr.rgb.frame_mean.cap100.floor"], video, original) == pytest.approx(20 * math.log10(255))
    assert score(Psnr(), video, original) == pytest.approx(20 * math.log10(255 / 2))


def test_seams_show_as_bad_phases_and_the_first_frame_stands_alone():
    scores = torch.tensor([[50.0, 30, 31, 32, 33, 30, 31, 32, 33]])
    phases, rest = PhaseMean(4), PhaseMean(4)
    phases.update(scores[:, :3], start=0)
    rest.update(scores[:, 3:], start=3)
    phases.merge(PhaseMean.from_json(rest.to_json()))
    assert phases.compute() == {"first": 50, "0": 30, "1": 31, "2": 32, "3": 33}


def test_the_worst_frames_of_all_clips_are_kept_in_order():
    one, other = WorstFrames(2), WorstFrames(2)
    one.update(torch.tensor([30.0, 20.0]), clip="a", start=0)
    other.update(torch.tensor([25.0, 10.0, 40.0]), clip="b", start=16)
    one.merge(other)
    assert one.frames == [(10.0, "b", 17), (20.0, "a", 1)]


# what degrades a real clip scores worse


def degraded(video: torch.Tensor, kind: str, strength: int) -> torch.Tensor:
    if kind == "blur":
        side = 2 * strength + 1
        return functional.avg_pool2d(video[0], side, 1, side // 2, count_include_pad=False)[None]
    if kind == "noise":
        return (video + 0.05 * strength * noise(*video.shape)).clamp(-1, 1)
    if kind == "frozen":  # ever more frames show the one before
        frames = [0 if t <= 3 * strength else t for t in range(video.shape[2])]
        return video[:, :, frames]
    order = list(range(video.shape[2]))
    for place in range(strength):  # ever more neighbours three apart change places
        order[2 * place], order[2 * place + 3] = order[2 * place + 3], order[2 * place]
    return video[:, :, order]


@pytest.mark.parametrize("name", ["sam2_05_default_juggle.mp4", "media_sample.avi", "asl_bird.mkv"])
@pytest.mark.parametrize("kind", ["blur", "noise", "frozen", "shuffled"])
def test_scores_fall_the_more_a_real_clip_is_degraded(shared, kind, name):
    frames = read_video(shared / "clips" / name, start=0.5, max_frames=12, size=(72, 96)).frames
    video = to_tensor(frames)[None]
    keys = ["psnr.rgb.frame_mean.cap100", "psnr.y601.frame_mean.cap100", "ssim.rgb.gauss11.valid",
            "ssim.rgb.uniform7.sample", "tdiff_psnr.rgb.frame_mean.cap100"]  # fmt: skip
    if kind == "noise":
        keys.append("warping_error.rgb.mestimate8r7")
    for key in keys:
        scores = [score(METRICS[key], degraded(video, kind, strength), video) for strength in (1, 2, 3)]
        falling = scores if METRICS[key].higher_is_better else [-value for value in scores]
        assert falling[0] > falling[1] > falling[2], (key, scores)


# mistakes


def test_what_cannot_be_scored_is_refused_with_the_reason():
    video, original = pair()
    floats = smooth(2, 24, 24)
    with_nan = floats.clone()
    with_nan[0, 1, 1, 3, 3] = math.nan
    for metric in (Psnr(), PooledPsnr(), Ssim(), Flicker()):
        with pytest.raises(ValueError, match="same size and length"):
            metric.empty().update(video, original[:, :, :-1])
        with pytest.raises(ValueError, match="same size and length"):
            metric.empty().update(video, original[..., :-1])
        with pytest.raises(ValueError, match="NaN"):
            metric.empty().update(with_nan, floats)
        with pytest.raises(ValueError, match="pass uint8"):
            metric.empty().update(floats * 127.5 + 127.5, floats)
        with pytest.raises(ValueError, match="original ranges"):
            metric.empty().update(floats, floats * 3)
        with pytest.raises(ValueError, match="uint8 levels"):
            metric.empty().update(video.int(), original)
    with pytest.raises(ValueError, match="at least 161 pixels"):
        MsSsim().update(video, original)


def test_temporal_scores_refuse_pieces_out_of_order():
    video, original = pair()
    metric = TemporalDifferencePsnr()
    metric.update(video[:, :, :2], original[:, :, :2])
    with pytest.raises(ValueError, match="expects frame 2 next"):
        metric.update(video[:, :, 3:], original[:, :, 3:], start=3)


def test_vmaf_says_what_it_needs_or_ranks_noise():
    video, original = pair(frames=3, height=64, width=64, strength=0.3)
    if (reason := why_vmaf_is_missing()) is not None:
        with pytest.raises(ValueError, match="av>=19"):
            Vmaf().update(video, original)
        assert "PyAV" in reason
    else:
        assert score(Vmaf(), video, original) < score(Vmaf(), original, original) <= 100


@pytest.mark.gpu
@pytest.mark.parametrize("key", WITHOUT_VMAF)
def test_scores_on_a_gpu_equal_those_on_the_cpu(key):
    side = 161 if key.startswith("msssim") else 24
    original = as_levels(smooth(3, side, side))
    video = (original + 9 * noise(*original.shape)).clamp(0, 255).byte()
    original[:, :, 1] = original[:, :, 0]  # something stands still
    for form in (lambda levels: levels, lambda levels: levels.float() / 127.5 - 1):
        expected = score(METRICS[key], form(video), form(original))
        assert score(METRICS[key], form(video).cuda(), form(original).cuda()) == pytest.approx(expected, abs=1e-6)
