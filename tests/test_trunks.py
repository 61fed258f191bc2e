"""Does each kind of tokenizer learn, feed generators, and do what its paper says: windows, prefixes, planes, motion?"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from small_bottlenecks import OPTIONS
from torch import Tensor

from vidgen.bottlenecks import BOTTLENECKS, build_bottleneck
from vidgen.conditioning import Condition, WordTextEncoder
from vidgen.conditioning.known import last_frames
from vidgen.generators import AutoregressiveTransformer, DiffusionTransformer, MaskedTransformer
from vidgen.latents import Latents
from vidgen.nn.random import seeded
from vidgen.pipelines.presets import PIPELINE_PRESETS
from vidgen.tokenizers import (
    CoordinatePlanesTokenizer,
    FactorisedViTTokenizer,
    FrameCausalViTTokenizer,
    HolisticTokenizer,
    KeyframeMotionTokenizer,
    StructureDynamicsTokenizer,
    Tokenizer,
    TubeletViTTokenizer,
)
from vidgen.tokenizers.blockwise import BlockwiseTokenizer
from vidgen.tokenizers.coordinate_planes import FRAMES_AT_ONCE
from vidgen.tokenizers.holistic import prefix
from vidgen.tokenizers.keyframe_motion import block_motion, carried
from vidgen.tokenizers.presets import TOKENIZER_PRESETS
from vidgen.tokenizers.structure_dynamics import swap

# One small model of every trunk: the preset that it is of, and what is smaller than in the tiny twin.
TRUNKS: dict[str, dict[str, Any]] = {
    "omnitokenizer-vq": {"bottleneck_options": {"codes": 64, "channels": 4}},
    "bsq-vit": {"bottleneck_options": {"bits": 10}},
    "vitok-s-b": {},
    "vitok-s-l": {},
    "larp": {"bottleneck_options": {"codes": 64, "channels": 4}, "queries": 24},
    "one-d-piece": {"bottleneck_options": {"codes": 64, "channels": 4}, "queries": 24},
    "coordtok": {"sampled_patches": 64},
    "vidtwin": {"patch": 4, "queries": 4},
    "video-lavit": {"bottleneck_options": {"levels": [8, 5, 5, 5]}, "group": 4, "block": 8, "reach": 2, "width": 32},
}
BLOCKWISE = ["omnitokenizer-vq", "bsq-vit", "vitok-s-b", "vitok-s-l"]
# Other forms that a bottleneck stands in: bands in front, other blocks, patches by themselves, and around a tokenizer.
FORMS: dict[str, dict[str, Any]] = {
    "wf-vae": {},
    "motionaura-tokenizer": {},
    "ccvit-centroids": {"width": 16, "layers": 1, "decoder_layers": 1},
    "spae": {},
    "epsilon-vae": {},
    "put-tokenizer": {},
}
INSIDE = {"spae": "trunk_config", "epsilon-vae": "encoder_config", "put-tokenizer": "encoder_config"}
# What the pyramid cannot use: no ids, codes of one length, or weights that learn from the gradient of each code alone.
NO_SCALES = {"kl", "ae", "vq", "stochastic-vq", "gumbel", "adacode", "bsq", "product"}
each_trunk = pytest.mark.parametrize("trunk", TRUNKS)
each_form = pytest.mark.parametrize("trunk", [*TRUNKS, *FORMS])


def small(trunk: str, **changes: Any) -> Any:
    """A tokenizer of a few thousand weights."""
    torch.manual_seed(0)
    tiny = TOKENIZER_PRESETS[trunk].tiny()
    return replace(tiny, config={**tiny.config, **(TRUNKS | FORMS)[trunk], **changes}).build().eval()


def clip(frames: int, height: int = 16, width: int = 16, *, batch: int = 1, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, frames, height, width, generator=generator) * 2 - 1


def smooth(frames: int, *, batch: int = 2) -> Tensor:
    """A video of soft moving blobs, which a small tokenizer can learn."""
    return torch.nn.functional.interpolate(clip(3, 3, 3, batch=batch), size=(frames, 16, 16), mode="trilinear")


def train(tokenizer: Tokenizer, video: Tensor, *, steps: int) -> None:
    optimiser = torch.optim.Adam(tokenizer.train().parameters(), lr=5e-3)
    for step in range(steps):
        losses = tokenizer.training_losses(video, generators=seeded([step + 1000 * row for row in range(len(video))]))
        optimiser.zero_grad()
        sum(losses.values(), torch.zeros(())).backward()
        optimiser.step()
    tokenizer.eval()


def error(tokenizer: Tokenizer, video: Tensor, latents: Latents | None = None) -> float:
    return (tokenizer.decode(latents or tokenizer.encode(video)) - video).abs().mean().item()


# every trunk


@each_trunk
def test_training_lowers_the_error_of_what_comes_back(trunk: str):
    tokenizer, video = small(trunk), smooth(8)
    before = error(tokenizer, video)
    train(tokenizer, video, steps=40)
    assert error(tokenizer, video) < 0.75 * before


def ids_a_token(bottleneck: str) -> int:
    return len(build_bottleneck(bottleneck, OPTIONS[bottleneck]).codebooks)


def with_bottleneck(trunk: str, bottleneck: str) -> Any:
    """The small model of a trunk with another bottleneck; LARP's prior where there is one id a token to guess."""
    changes: dict[str, Any] = {"bottleneck_type": bottleneck, "bottleneck_options": OPTIONS[bottleneck]}
    if trunk in INSIDE:
        inside = INSIDE[trunk]
        return small(trunk, **{inside: {**TOKENIZER_PRESETS[trunk].tiny().config[inside], **changes}})
    if trunk == "vidtwin":
        changes["dynamics_options"] = OPTIONS[bottleneck]
    if trunk == "larp" and ids_a_token(bottleneck) != 1:
        changes["prior_weight"] = 0.0
    return small(trunk, **changes)


def refusal(trunk: str, bottleneck: str) -> str | None:
    """What a trunk says to a bottleneck that it cannot use; None to one that it can."""
    if trunk == "video-lavit" and ids_a_token(bottleneck) > 1:
        return "choose a bottleneck with one id a token"
    if trunk == "spae" and bottleneck in NO_SCALES:
        return "scales need a quantizer whose codes can stand for what is left over"
    return None


@pytest.mark.parametrize("trunk", ["video-lavit", "spae"])
@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
def test_a_trunk_that_cannot_use_a_bottleneck_says_which_it_can(trunk: str, bottleneck: str):
    message = refusal(trunk, bottleneck)
    if message is None:
        assert with_bottleneck(trunk, bottleneck).spec.discrete == bool(ids_a_token(bottleneck))
        return
    with pytest.raises(ValueError, match=message):
        with_bottleneck(trunk, bottleneck)


@each_form
@pytest.mark.parametrize("bottleneck", ["ae", "fsq", "product"])
def test_another_bottleneck_is_one_word(trunk: str, bottleneck: str):
    if refusal(trunk, bottleneck) is not None:
        pytest.skip("refused (test above)")
    tokenizer = with_bottleneck(trunk, bottleneck)
    latents = tokenizer.encode(clip(5))
    assert latents.spec.discrete == (bottleneck != "ae")
    assert tokenizer.decode(latents).shape == (1, 3, 5, 16, 16)
    losses = tokenizer.train().training_losses(clip(5), generators=seeded([0]))
    assert torch.stack(list(losses.values())).isfinite().all()


@pytest.mark.slow
@each_form
@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
def test_every_trunk_keeps_its_promises_with_every_bottleneck(trunk: str, bottleneck: str):
    """As many frames as went in, ids that carry the video, a past without a future, and streams that are one shot."""
    if refusal(trunk, bottleneck) is not None:
        pytest.skip("refused (test above)")
    tokenizer = with_bottleneck(trunk, bottleneck)
    for frames in (1, 2, 9):
        video = clip(frames, 12, 20)
        assert tokenizer.decode(tokenizer.encode(video)).shape == video.shape
    video, other = clip(25), clip(25)
    other[:, :, 10:] = clip(25, seed=1)[:, :, 10:]
    latents = tokenizer.encode(video)
    decoded = tokenizer.decode(latents)
    if latents.ids is not None:
        assert torch.equal(tokenizer.reals_from_ids(latents.ids, latents.size), latents.tokens)
    if tokenizer.spec.causal:
        earlier = last_frames(tokenizer.spec, latents.size) < 10
        assert torch.equal(tokenizer.encode(other).tokens[:, earlier], latents.tokens[:, earlier])
    if not tokenizer.spec.streamable:
        with pytest.raises(ValueError, match="sees the whole clip at once"):
            tokenizer.encode_stream([video])
        return
    for size in (1, 3, 8, 17):
        chunks = list(tokenizer.encode_stream(video.split(size, dim=2)))
        assert torch.equal(Latents.join(chunks).tokens, latents.tokens)
        assert torch.equal(torch.cat(list(tokenizer.decode_stream(latents.split(size))), dim=2), decoded)


@each_trunk
def test_every_trunk_feeds_the_plain_generators(trunk: str):
    tokenizer = small(trunk)
    latents = tokenizer.encode(clip(5, batch=2))
    condition = Condition(torch.randn(2, 3, 8), torch.ones(2, 3, dtype=torch.bool))
    options = {"latent_spec": tokenizer.spec.to_json(), "text_width": 8, "width": 24, "layers": 1, "heads": 2}
    for family in (MaskedTransformer, AutoregressiveTransformer, DiffusionTransformer):
        losses = family(**options).losses(latents, condition, generators=seeded([0, 1]))
        assert all(loss.isfinite() for loss in losses.values())
    patchified = {**options, "patch": (1, 2, 2)}
    if tokenizer.spec.is_grid:
        assert DiffusionTransformer(**patchified).losses(latents, condition, generators=seeded([0, 1]))
    else:
        with pytest.raises(ValueError, match="grid"):
            DiffusionTransformer(**patchified)


@each_trunk
def test_a_pipeline_makes_a_video_through_every_trunk(trunk: str):
    tokenizer = small(trunk)
    preset = PIPELINE_PRESETS["base-masked" if tokenizer.spec.discrete else "shapes-flow"].tiny()
    config = {name: value for name, value in preset.config.items() if name != "patch"}
    text = WordTextEncoder(width=16, layers=1, heads=2, buckets=64)
    pipe: Any = replace(preset, config=config).build(tokenizer, text)
    pipe.set_progress_bar_config(disable=True)
    call: Any = {"prompt": "a red circle", "num_frames": 6, "height": 12, "width": 20, "output_type": "pt"}
    frames = pipe(**call, generator=torch.Generator().manual_seed(0)).frames
    assert frames.shape == (1, 6, 3, 12, 20)
    assert frames.isfinite().all()


@each_trunk
def test_fitted_statistics_give_every_part_zero_mean_and_unit_variance(trunk: str):
    tokenizer = small(trunk)
    videos = [clip(9, batch=4, seed=seed) for seed in range(2)]
    before = tokenizer.decode(tokenizer.encode(videos[0]))
    tokenizer.fit_statistics(iter(videos))
    tokens = torch.cat([tokenizer.encode(video).tokens for video in videos])
    for part, place in zip(tokenizer.spec.parts, tokenizer.spec.slices((9, 16, 16)), strict=True):
        vectors = tokens[:, place, : part.channels].flatten(0, 1)
        assert torch.allclose(vectors.mean(dim=0), torch.zeros(part.channels), atol=1e-3)
        deviation = vectors.std(dim=0, correction=0)
        assert ((deviation - 1).abs() < 1e-2).logical_or(deviation < 1e-3).all()  # a code may be the same everywhere
        assert not tokens[:, place, part.channels :].any()
    assert torch.allclose(tokenizer.decode(tokenizer.encode(videos[0])), before, atol=1e-4)


@each_trunk
def test_bf16_weights_give_nearly_the_exact_pixels(trunk: str):
    tokenizer = small(trunk)
    latents = tokenizer.encode(clip(5))
    exact = tokenizer.decode(latents)
    low = tokenizer.to(torch.bfloat16)
    assert low.encode(clip(5)).tokens.shape == latents.tokens.shape
    decoded = low.decode(latents)
    assert decoded.dtype == torch.bfloat16
    assert torch.allclose(decoded.float(), exact, atol=0.05)


# grids: factorised, frame-causal, tubelets


@pytest.mark.parametrize("trunk", BLOCKWISE)
def test_whole_clip_training_computes_what_blocked_inference_computes(trunk: str):
    tokenizer = small(trunk, bottleneck_type="ae", bottleneck_options={"channels": 4})
    assert isinstance(tokenizer, BlockwiseTokenizer)
    video = clip(25 if tokenizer.lone_first else 24)
    latents = tokenizer.encode(video)
    with torch.no_grad():
        assert torch.allclose(tokenizer.features(video, None), latents.grid(), atol=1e-5)
        frames = tokenizer.pixels(latents.grid(), None).clamp(-1.0, 1.0)
    assert torch.allclose(tokenizer.decode(latents), frames, atol=1e-5)


@pytest.mark.parametrize(("trunk", "layers"), [("omnitokenizer-vq", 1), ("bsq-vit", 2)])
def test_a_row_of_tokens_sees_so_many_rows_before_it_a_layer_and_no_more(trunk: str, layers: int):
    """What bounds the memory of a stream: with a past of 3 rows, a layer carries a change 3 rows on."""
    tokenizer = small(trunk, past=3, bottleneck_type="ae", bottleneck_options={"channels": 4})
    other, video = clip(41), clip(41)
    other[:, :, 0] += 0.5
    difference = (tokenizer.encode(video).grid() - tokenizer.encode(other).grid()).abs().amax(dim=(0, 1, 3, 4))
    assert (difference[: 1 + 3 * layers] > 0).all()
    assert not difference[1 + 3 * layers :].any()


@pytest.mark.parametrize("trunk", ["omnitokenizer-vq", "bsq-vit"])
def test_an_image_is_a_video_of_one_frame_with_the_same_weights(trunk: str):
    tokenizer = small(trunk)
    video = clip(9)
    image, whole = tokenizer.encode(video[:, :, :1]), tokenizer.encode(video)
    count = image.tokens.shape[1]
    assert torch.allclose(image.tokens, whole.tokens[:, :count], atol=1e-5)
    assert torch.allclose(tokenizer.decode(image), tokenizer.decode(whole)[:, :, :1], atol=1e-5)


@pytest.mark.parametrize("trunk", ["omnitokenizer-vq", "bsq-vit"])
def test_a_still_video_has_the_tokens_of_its_second_row_ever_after(trunk: str):
    """Positions are relative: hours into a stream the same picture still has the same tokens."""
    tokenizer = small(trunk, bottleneck_type="ae", bottleneck_options={"channels": 4})
    grid = tokenizer.encode(clip(1).expand(-1, -1, 61, -1, -1)).grid()
    settled = grid[:, :, 8:]
    assert torch.allclose(settled, settled[:, :, :1].expand_as(settled), atol=1e-5)


def test_window_attention_keeps_far_places_apart():
    """With windows of 2 × 2 tokens a change stays in its window; with whole frames it reaches every token."""
    for windows, reach in (((2,), 2), ((0,), 4)):
        options: dict[str, Any] = {"bottleneck_type": "ae", "bottleneck_options": {"channels": 4}}
        tokenizer = small("omnitokenizer-vq", windows=windows, **options)
        video, other = clip(1, 32, 32), clip(1, 32, 32)
        other[..., 0, 0] += 0.5
        changed = (tokenizer.encode(video).grid() != tokenizer.encode(other).grid()).any(dim=1)[0, 0]
        expected = torch.zeros(4, 4, dtype=torch.bool)
        expected[:reach, :reach] = True
        assert torch.equal(changed, expected)


def test_chunked_tubelets_know_nothing_of_other_chunks():
    tokenizer = small("vitok-s-l", block_frames=8)
    video, other = clip(24), clip(24)
    other[:, :, 8:16] = clip(8, seed=1)
    changed = (tokenizer.encode(video).grid() != tokenizer.encode(other).grid()).flatten(3).any(dim=(0, 1, 3))
    assert changed.tolist() == [False, False, True, True, False, False]


# holistic tokens


@pytest.mark.parametrize("size", [(1, 8, 8), (17, 16, 16), (40, 24, 40)])
def test_holistic_tokens_are_as_many_whatever_the_clip(size: tuple[int, int, int]):
    tokenizer = small("larp")
    latents = tokenizer.encode(clip(*size))
    assert latents.tokens.shape[1] == 24
    assert tokenizer.decode(latents).shape == (1, 3, *size)


def test_places_of_larger_clips_are_squeezed_into_those_of_training():
    tokenizer = small("larp")  # trained on 2 × 2 × 2 patches
    device = torch.device("cpu")
    assert tokenizer._places((2, 1, 2), device=device).amax(dim=0).tolist() == [1.0, 0.0, 1.0]
    assert tokenizer._places((4, 8, 2), device=device).amax(dim=0).tolist() == [1.5, 1.75, 1.0]


def test_any_prefix_of_a_tail_drop_tokenizer_decodes_and_the_rest_does_not_matter():
    tokenizer = small("one-d-piece")
    latents = tokenizer.encode(clip(8, batch=2))
    assert latents.ids is not None
    for count in (1, 7, 24):
        kept = prefix(latents, count)
        other_ids = latents.ids.clone()
        other_ids[:, count:] = 3
        assert torch.equal(tokenizer.decode(kept), tokenizer.decode(replace(kept, ids=other_ids)))
    assert torch.equal(tokenizer.decode(prefix(latents, 24)), tokenizer.decode(latents))
    lengths = replace(latents, length=torch.tensor([3, 9]))
    for sample, count in ((0, 3), (1, 9)):
        alone = tokenizer.decode(prefix(latents, count))[sample]
        assert torch.allclose(tokenizer.decode(lengths)[sample], alone, atol=1e-5)


def test_more_tokens_of_a_trained_tail_drop_tokenizer_give_a_better_video():
    tokenizer = small("one-d-piece", bottleneck_type="ae", bottleneck_options={"channels": 4})
    video = smooth(8, batch=4)
    train(tokenizer, video, steps=300)
    latents = tokenizer.encode(video)
    errors = [error(tokenizer, video, prefix(latents, count)) for count in (1, 4, 24)]
    assert errors[0] > errors[1] > errors[2]


def test_causal_queries_never_see_later_ones_and_patches_never_see_queries():
    tokenizer = small("one-d-piece", causal_queries=True)
    video = clip(8)
    (before,) = tokenizer.features(video)
    with torch.no_grad():
        tokenizer.query[10] += 1.0
    (after,) = tokenizer.features(video)
    assert torch.equal(after[:, :10], before[:, :10])
    assert ((after - before)[:, 10:].abs().amax(dim=-1) > 1e-5).all()
    train(tokenizer, smooth(8), steps=40)
    assert error(tokenizer, smooth(8)) < 0.5


def test_a_prefix_is_refused_where_it_means_nothing():
    tokenizer = small("larp")
    latents = tokenizer.encode(clip(8))
    with pytest.raises(ValueError, match="only a tokenizer with tail_drop=True"):
        tokenizer.decode(prefix(latents, 3))
    for count in (0, 25):
        with pytest.raises(ValueError, match="a prefix of 1 to 24 tokens"):
            prefix(latents, count)


def test_the_prior_guesses_each_token_from_those_before_it_alone():
    prior = small("larp").prior
    vectors, other = torch.randn(2, 24, 4), torch.randn(2, 24, 4)
    other[:, :9] = vectors[:, :9]
    one, two = prior(vectors), prior(other)
    assert torch.equal(one[:, :10], two[:, :10])
    assert not torch.isclose(one[:, 10:], two[:, 10:]).all()


def test_the_loss_of_the_prior_reaches_the_encoder():
    tokenizer = small("larp").train()
    losses = tokenizer.training_losses(clip(8), generators=seeded([0]))
    losses["prior"].backward()
    assert tokenizer.to_patches.others.weight.grad.abs().sum() > 0
    assert tokenizer.to_pixels.others.weight.grad is None


def test_a_prior_needs_one_id_a_token():
    for bottleneck in ("kl", "product"):
        with pytest.raises(ValueError, match="the prior needs one id a token"):
            small("larp", bottleneck_type=bottleneck, bottleneck_options=OPTIONS[bottleneck])
    with pytest.raises(ValueError, match=r"codebooks \(262144,\)"):
        small("larp", bottleneck_type="bsq", bottleneck_options={"bits": 18})


# planes


def test_128_frames_of_128_pixels_a_side_are_1280_plane_tokens():
    spec = small("coordtok").spec
    assert spec.num_tokens((128, 128, 128)) == 1280
    assert [spec.grid((128, 128, 128), part) for part in range(3)] == [(16, 16), (32, 16), (32, 16)]


def test_any_patch_decodes_to_what_the_whole_video_shows_there():
    tokenizer = small("coordtok")
    latents = tokenizer.encode(clip(21, 24, 32, batch=2))
    video = tokenizer.decode(latents)
    places = torch.tensor([[0, 0, 0], [20, 16, 24], [7, 8, 0], [13, 0, 16]])
    patches = tokenizer.decode_patches(latents, places)
    for number, (frame, row, column) in enumerate(places.tolist()):
        seen = video[:, :, frame, row : row + 8, column : column + 8]
        assert torch.allclose(patches[:, number], seen, atol=1e-5)


def test_patches_decode_between_frames_and_pixels_too():
    tokenizer = small("coordtok")
    latents = tokenizer.encode(clip(9))
    places = torch.stack([torch.linspace(2.0, 3.0, 5), torch.full((5,), 3.5), torch.full((5,), 1.25)], dim=1)
    patches = tokenizer.decode_patches(latents, places)
    steps = (patches[0, 1:] - patches[0, :-1]).abs().amax(dim=(1, 2, 3))
    assert (steps > 0).all()
    assert steps.max() < 3 * steps.min()  # it moves evenly from one frame to the next


def test_decoding_planes_never_holds_more_patches_than_those_of_a_few_frames():
    tokenizer = small("coordtok")
    held = []
    tokenizer.patch_decoder.register_forward_pre_hook(lambda module, inputs: held.append(inputs[0].shape[1]))
    for frames in (5, 100):
        tokenizer.decode(tokenizer.encode(clip(frames)))
    assert max(held) == FRAMES_AT_ONCE * 4


def test_training_on_scattered_patches_compares_them_with_their_own_pixels():
    tokenizer = small("coordtok")
    video = clip(5, 20, 12, batch=2)
    places = tokenizer._scattered((5, 20, 12), seeded([0, 1]))
    target = tokenizer._target_patches(video, places)
    assert places[..., 1].max() == 16 and places[..., 2].max() == 8 and places[..., 0].max() == 4
    padded = torch.nn.functional.pad(video, (0, 4, 0, 4, 0, 0), mode="replicate")
    for sample, number in ((0, 0), (1, 17)):
        frame, row, column = places[sample, number].long().tolist()
        expected = padded[sample, :, frame, row : row + 8, column : column + 8]
        assert torch.equal(target[sample, number], expected)


def test_a_critic_of_planes_sees_whole_frames_of_the_clip():
    tokenizer = small("coordtok", sampled_patches=12)
    video = clip(9, batch=2)
    seen = {}

    def critic(real: Tensor, fake: Tensor, *, own: Any, last_layer: Tensor) -> dict[str, Tensor]:
        seen.update(real=real, fake=fake)
        return own(real, fake)

    tokenizer.training_losses(video, generators=seeded([0, 1]), critic=critic)
    assert seen["real"].shape == seen["fake"].shape == (2, 3, 3, 16, 16)
    for sample in range(2):
        windows = video[sample].unfold(1, 3, 1).unbind(dim=1)
        assert any(torch.equal(seen["real"][sample], window.permute(0, 3, 1, 2)) for window in windows)


# structure and dynamics


def test_structure_and_dynamics_take_at_most_0_21_percent_of_the_numbers():
    """The paper's 0.20 % is 0.2046 %: 16 · 7 · 7 · 4 + 16 · (7 + 7) · 8 of 16 · 224 · 224 · 3."""
    with torch.device("meta"):
        spec = TOKENIZER_PRESETS["vidtwin"].build().spec
    size = (16, 224, 224)
    numbers = sum(part.num_tokens(size) * part.channels for part in spec.parts)
    assert numbers == 16 * 7 * 7 * 4 + 16 * (7 + 7) * 8
    assert round(100 * numbers / (3 * 16 * 224 * 224), 2) == 0.20


def test_swapping_takes_structure_from_one_video_and_dynamics_from_another():
    tokenizer = small("vidtwin")
    one, two = (tokenizer.encode(clip(6, seed=seed)) for seed in (0, 1))
    assert torch.equal(swap(structure_of=one, dynamics_of=one).tokens, one.tokens)
    mixed = swap(structure_of=one, dynamics_of=two)
    count = one.spec.slices(one.size)[0].stop
    assert torch.equal(mixed.tokens[:, :count], one.tokens[:, :count])
    assert torch.equal(mixed.tokens[:, count:], two.tokens[:, count:])
    videos = [tokenizer.decode(latents) for latents in (one, two, mixed)]
    assert not torch.allclose(videos[2], videos[0]) and not torch.allclose(videos[2], videos[1])
    with pytest.raises(ValueError, match="one size and one tokenizer"):
        swap(structure_of=one, dynamics_of=tokenizer.encode(clip(7)))
    with pytest.raises(ValueError, match="have no structure"):
        swap(structure_of=small("vitok-s-b").encode(clip(4)), dynamics_of=small("vitok-s-b").encode(clip(4)))


def test_structure_does_not_grow_with_the_clip_and_dynamics_are_frame_by_frame():
    spec = small("vidtwin").spec
    short, long = spec.slices((4, 16, 16)), spec.slices((40, 16, 16))
    assert short[0] == long[0]
    assert spec.grid((40, 16, 16), 1) == (40, 2) and spec.grid((40, 16, 16), 2) == (40, 2)


# key frames and motion


@pytest.mark.parametrize("vector", [(0, 0), (3, -2), (-5, 5), (0, 4)])
def test_block_matching_finds_a_known_motion_and_carrying_undoes_it(vector: tuple[int, int]):
    dy, dx = vector
    picture = clip(1, 48, 48)[:, :, 0]
    key, frame = picture[..., 8:40, 8:40], picture[..., 8 + dy : 40 + dy, 8 + dx : 40 + dx]
    vectors = block_motion(key, frame, block=8, reach=5)
    inner = vectors[:, :, 1:-1, 1:-1]
    assert inner.shape == (1, 2, 2, 2)
    assert torch.equal(inner, torch.tensor([dy, dx])[None, :, None, None].expand_as(inner))
    moved = carried(key, vectors, block=8)
    assert torch.equal(moved[..., 8:-8, 8:-8], frame[..., 8:-8, 8:-8])


def test_a_block_without_texture_does_not_move():
    flat = torch.zeros(1, 3, 16, 16)
    assert not block_motion(flat, flat, block=8, reach=3).any()


def test_motion_moves_what_is_decoded():
    """The same key tokens with the vectors of a pan give a pan."""
    tokenizer = small("video-lavit")
    picture = clip(1, 16, 32)[:, :, 0]
    pan = torch.stack([picture[..., shift : shift + 16] for shift in range(3)], dim=2)
    latents = tokenizer.encode(torch.nn.functional.pad(pan, (0, 0, 0, 0, 0, 1), mode="replicate"))
    vectors = tokenizer.vectors(latents)[1].reshape(3, 2, 2, 2) * 2
    assert vectors[0, :, 0].tolist() == [[0.0, 1.0], [0.0, 1.0]] and vectors[1, :, 0].tolist() == [[0.0, 2.0]] * 2
    for weight in tokenizer.refiner.conv_out.parameters():
        torch.nn.init.zeros_(weight)  # leave the moved frames as they are
    video = tokenizer.decode(latents)
    assert torch.equal(video[:, :, 1, :, :8], video[:, :, 0, :, 1:9])
    assert torch.equal(video[:, :, 2, :, :8], video[:, :, 0, :, 2:10])


def test_motion_ids_are_whole_pixel_vectors():
    motion = small("video-lavit").bottleneck_at(1)
    ids = torch.arange(25).reshape(1, 25, 1)
    vectors = motion.lookup(ids) * 2
    assert vectors[0, 0].tolist() == [-2.0, -2.0] and vectors[0, 13].tolist() == [0.0, 1.0]
    assert torch.equal(motion.nearest(motion.lookup(ids)), ids)
    assert torch.equal(motion(motion.lookup(ids) + 0.1).ids, ids)


# mistakes


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (FactorisedViTTokenizer, {"width": 30, "heads": 4}, "even multiple of its heads"),
        (FactorisedViTTokenizer, {"windows": (-1,)}, "0 for a whole frame"),
        (FactorisedViTTokenizer, {"past": 0}, "past must be at least 1"),
        (FactorisedViTTokenizer, {"windows": (0.5, 2)}, "one a layer, must be a number of tokens"),
        (FactorisedViTTokenizer, {"windows": ()}, "one a layer"),
        (FactorisedViTTokenizer, {"stride": (4, 8)}, "three whole numbers"),
        (FactorisedViTTokenizer, {"stride": (4.0, 8, 8)}, "three whole numbers"),
        (FactorisedViTTokenizer, {"block_frames": None}, "a whole number of frames, got None"),
        (FactorisedViTTokenizer, {"squared_weight": -1.0}, "squared_weight is the weight of a loss term"),
        (FactorisedViTTokenizer, {"block_frames": 6}, "not a multiple of the temporal stride 4; use 8"),
        (FrameCausalViTTokenizer, {"past": 0}, "past must be at least 1"),
        (TubeletViTTokenizer, {"encoder": (16, 0, 2)}, "at least one layer"),
        (TubeletViTTokenizer, {"encoder": (16, 2)}, r"\(width, layers, heads\), for example \(768, 6, 12\)"),
        (TubeletViTTokenizer, {"encoder": (16.0, 1, 2)}, "got width 16.0"),
        (TubeletViTTokenizer, {"block_frames": 6}, "not a multiple of the temporal stride"),
        (HolisticTokenizer, {"queries": 0}, "at least 1 query"),
        (CoordinatePlanesTokenizer, {"patch": (8, 0, 8)}, "at least 1"),
        (CoordinatePlanesTokenizer, {"sampled_patches": 0}, "at least 1"),
        (StructureDynamicsTokenizer, {"queries": 0}, "at least 1"),
        (KeyframeMotionTokenizer, {"group": 1}, "a group of at least 2 frames"),
        (KeyframeMotionTokenizer, {"group": 8, "block_frames": 12}, "not a multiple"),
        (KeyframeMotionTokenizer, {"windows": ()}, "one a layer"),
        (KeyframeMotionTokenizer, {"squared_weight": float("nan")}, "at least 0, got nan"),
    ],
)
def test_contradictory_configurations_fail_with_the_way_out(model: type, changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        model(**changes)


def test_parts_need_the_size_of_their_video():
    tokenizer = small("video-lavit")
    ids = tokenizer.encode(clip(4)).ids
    with pytest.raises(ValueError, match=r"has parts \['key', 'motion'\]; give the size"):
        tokenizer.reals_from_ids(ids)
