"""Do the names in a protocol mean what the published scripts do to frames and clips?"""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from vidgen.eval.clips import target_size
from vidgen.eval.preprocess import checked_levels, clip_starts, preprocess, resized, short_side_size
from vidgen.eval.protocol import ClipRule, FeatureProtocol, Preprocess, Resize
from vidgen.eval.protocols import get_protocol, list_protocols


def frames(height: int, width: int, *, seed: int = 0) -> torch.Tensor:
    """Levels `2 3 h w`."""
    return torch.randint(256, (2, 3, height, width), generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("old,new", [((13, 9), (30, 22)), ((64, 48), (30, 17)), ((20, 20), (20, 20))])
def test_tf1_bilinear_is_that_of_torch_fidelity_bit_for_bit(old, new):
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    theirs = interpolate_bilinear_2d_like_tensorflow1x(frames(*old), new, align_corners=False)
    ours = resized(frames(*old), Resize(height=new[0], width=new[1], fit="squash", kernel="tf1-bilinear"))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("size", [(20, 31), (31, 20), (24, 24), (7, 9), (100, 41)])
def test_cover_is_short_side_then_centre_crop_as_in_videogpt(size):
    """scale = target / short side; the long side is rounded up; the crop begins at half the rest, rounded down."""
    height, width = size
    scale, target = 24 / min(size), 24
    scaled = (target, math.ceil(width * scale)) if height < width else (math.ceil(height * scale), target)
    theirs = functional.interpolate(frames(*size), scaled, mode="bilinear", align_corners=False)
    top, left = (theirs.shape[2] - target) // 2, (theirs.shape[3] - target) // 2
    ours = resized(frames(*size), Resize(height=24, width=24, fit="cover", kernel="torch-bilinear"))
    torch.testing.assert_close(ours, theirs[:, :, top : top + target, left : left + target])


def test_pil_bicubic_is_pillow_on_float_channels():
    ours = resized(frames(40, 30), Resize(height=17, width=23, fit="squash", kernel="pil-bicubic"))
    channel = Image.fromarray(frames(40, 30)[1, 2].numpy()).resize((23, 17), Image.Resampling.BICUBIC)
    assert np.array_equal(ours[1, 2].numpy(), np.clip(np.asarray(channel), 0, 255))


def test_kernels_differ_where_the_research_says_so():
    """64 to 224: TF1 against half-pixel bilinear, and enlarging knows no antialiasing."""
    smooth = functional.interpolate(torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0)), (64, 64))
    results = {
        kernel: resized(smooth, Resize(height=224, width=224, fit="squash", kernel=kernel))
        for kernel in ("torch-bilinear", "torch-bilinear-antialias", "tf1-bilinear")
    }
    torch.testing.assert_close(results["torch-bilinear-antialias"], results["torch-bilinear"])
    assert float((results["tf1-bilinear"] - results["torch-bilinear"]).abs().max()) > 0.05


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [((36, 47), 8, (8, 10)), ((47, 36), 8, (10, 8)), ((9, 16), 9, (9, 16)), ((3, 5), 4, (4, 7))],
)
def test_the_short_side_is_one_size_for_files_and_for_tensors(size, side, expected):
    """The longer side to the nearest pixel: 47 · 8 / 36 is 10.4, 5 · 4 / 3 is 6.7."""
    steps = Preprocess(resizes=(Resize(height=side, width=side, fit="short-side", kernel="swscale"),))
    assert target_size(steps, *size) == short_side_size(*size, side=side) == expected
    resize = Resize(height=side, width=side, fit="short-side", kernel="torch-bilinear")
    assert resized(torch.rand(1, 3, *size), resize).shape[-2:] == expected


def test_no_protocol_scales_the_short_side_of_tensors():
    """So none of their numbers moved when both ways came to one size."""
    fits = {resize.fit for protocol in list_protocols(FeatureProtocol) for resize in protocol.preprocess.resizes}
    assert fits == {"squash", "cover"}


def test_levels_end_up_at_the_ends_of_the_value_range():
    video = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 1, 3, 1, 1).expand(1, 3, 3, 4, 4)
    plain = preprocess(video, Preprocess(value_range=(-1, 1)))
    assert plain[0, 0, :, 0, 0].tolist() == pytest.approx([-1, 2 * 128 / 255 - 1, 1], abs=1e-6)
    graph = preprocess(video, get_protocol("fid.torch-fidelity", FeatureProtocol).preprocess)
    assert graph[0, 0, :, 0, 0].tolist() == pytest.approx([-1, 0, 127 / 128], abs=1e-6)


@pytest.mark.parametrize("quantise,expected", [("round", 128.0), ("floor", 127.0), ("none", 127.6)])
def test_floats_become_levels_as_the_protocol_says(quantise, expected):
    assert float(checked_levels(torch.tensor([127.6 / 127.5 - 1]), quantise)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "video,words",
    [
        (torch.full((1, 3, 2, 4, 4), 200.0), "pass 8-bit levels as uint8"),
        (torch.full((1, 3, 2, 4, 4), 1.2), "clamp it"),
        (torch.full((1, 3, 2, 4, 4), math.nan), "NaN"),
        (torch.zeros(1, 3, 2, 4, 4, dtype=torch.int64), "int64"),
        (torch.zeros(1, 2, 3, 4, 4), "`b 3 t h w`"),
    ],
)
def test_confused_videos_are_refused(video, words):
    with pytest.raises(ValueError, match=words):
        preprocess(video, Preprocess())


def starts(total: int, *, seed: int = 0, **rule) -> list[int]:
    return clip_starts(total, ClipRule(**rule), torch.Generator().manual_seed(seed))


def test_clips_begin_where_the_rule_says():
    assert starts(40, frames=16) == [0]
    assert starts(40, frames=16, offset="centre") == [12]
    assert starts(15, frames=16) == []
    assert starts(31, frames=16, stride=2) == [0] and starts(30, frames=16, stride=2) == []
    assert starts(40, frames=10, clips_per_video=4) == [0, 10, 20, 30]
    assert starts(40) == [0] and starts(400, max_frames=300) == [0] and starts(4, max_frames=300) == [0]


def test_random_clips_reach_every_place_and_repeat_with_their_seed():
    drawn = {start for seed in range(60) for start in starts(20, frames=16, offset="random", seed=seed)}
    assert drawn == {0, 1, 2, 3, 4}
    assert starts(90, frames=16, offset="random", seed=3) == starts(90, frames=16, offset="random", seed=3)


def test_feature_presets_have_a_loadable_network_and_hashes_of_their_own():
    from vidgen.eval.extractors import EXTRACTORS, I3D, Inception, SqueezeNetMotion, TinyNetwork

    taps = {kind.name: kind.tap for kind in (I3D, Inception, SqueezeNetMotion, TinyNetwork)}
    presets = list_protocols(FeatureProtocol)
    assert len({preset.sha256 for preset in presets}) == len(presets) == len({preset.name for preset in presets})
    for preset in presets:
        assert preset.extractor in {*EXTRACTORS, TinyNetwork.name}, preset.name
        assert preset.source and preset.tap == taps[preset.extractor.removesuffix(".eps1e-05")]
        size = preset.preprocess.resizes[-1]
        wanted = {"i3d": 224, "inc": 299}.get(preset.extractor[:3])
        assert wanted in (None, size.height) and size.height == size.width


@pytest.mark.parametrize(
    "name,conditions",
    [
        ("fvd.google", {"ddof": 1, "extractor": "i3d-kinetics400", "num_real": None}),
        ("fvd.styleganv.2048x16", {"ddof": 0, "num_real": 2048, "num_fake": 2048}),
        ("fvd.tats", {"ddof": 1, "extractor": "i3d-kinetics400.eps1e-05", "num_fake": 2048}),
        ("fvd.videogpt.256", {"num_real": 256, "small_n": True}),
        ("fvd.tokenbench", {"ddof": 1}),
        ("fvd.magvit", {"ddof": 1}),
        ("fvd.k600.prediction.larp", {"conditioning_frames": 5, "num_fake": 50_000}),
        ("fvd.bair.prediction.magvit", {"conditioning_frames": 1, "num_fake": 25_600, "repeats": 4}),
        ("fvd.ucf101.class.larp", {"num_fake": 10_000}),
    ],
)
def test_published_presets_keep_their_conditions(name, conditions):
    preset = get_protocol(name, FeatureProtocol)
    assert {key: getattr(preset, key) for key in conditions} == conditions
    assert preset.preprocess.value_range == (-1.0, 1.0)


def test_a_changed_condition_changes_the_hash_and_a_remark_does_not():
    from dataclasses import replace

    preset = get_protocol("fvd.tats", FeatureProtocol)
    assert replace(preset, ddof=0).sha256 != preset.sha256 == replace(preset, note="read again").sha256
    assert preset.differences(replace(preset, ddof=0)) == ["ddof: 1, 0"]
