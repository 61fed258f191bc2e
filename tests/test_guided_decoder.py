"""Do known pixels guide a decoder around any tokenizer, come back unchanged, and help where they are not?"""

from typing import Any

import pytest
import torch
from small_bottlenecks import OPTIONS
from torch import Tensor

import vidgen
from vidgen.bottlenecks import BOTTLENECKS
from vidgen.conditioning import WordTextEncoder
from vidgen.nn.random import seeded
from vidgen.pipelines.presets import PIPELINE_PRESETS
from vidgen.tokenizers import GuidedDecoderTokenizer, PatchwiseTokenizer
from vidgen.tokenizers.guided_decoder import drawn_known
from vidgen.tokenizers.presets import TOKENIZER_PRESETS

ENCODERS = ["shapes-kl", "shapes-fsq", "omnitokenizer-kl", "larp", "coordtok", "vidtwin", "video-lavit"]


def small(name: str = "shapes-kl", **options: Any) -> GuidedDecoderTokenizer:
    torch.manual_seed(0)
    encoder = TOKENIZER_PRESETS[name].tiny().build().eval()
    sizes = {"patch": 4, "width": 16, "depth": 1, "heads": 2, "freeze_encoder": encoder.trains_on_pieces}
    return GuidedDecoderTokenizer.around(encoder, **{**sizes, **options})


def louder(tokenizer: GuidedDecoderTokenizer) -> GuidedDecoderTokenizer:
    """Make a fresh guide, which begins close to the coarse video, matter."""
    with torch.no_grad():
        tokenizer.guide.conv_out.conv.weight.mul_(30)
    return tokenizer


def clip(frames: int, height: int = 16, width: int = 16, *, batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


def ends(video: Tensor) -> Tensor:
    where = torch.zeros_like(video[:, :1], dtype=torch.bool)
    where[:, :, [0, -1]] = True
    return where


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("size", [(1, 16, 16), (6, 13, 18)])
def test_any_tokenizer_decodes_beside_known_pixels_that_come_back_unchanged(name: str, size: tuple[int, int, int]):
    tokenizer, video = louder(small(name)), clip(*size, batch=2)
    latents, where = tokenizer.encode(video), ends(video)
    where[..., :5, 3:] = True
    made = tokenizer.decode_known(latents, video, where)
    assert made.shape == video.shape and made.abs().max() <= 1
    assert torch.equal(made[where.expand_as(video)], video[where.expand_as(video)])
    assert torch.equal(tokenizer.decode(latents), tokenizer.encoder.decode(latents))


def test_what_is_unknown_does_not_matter_and_what_is_known_does_in_every_frame():
    tokenizer, video = louder(small()), clip(9)
    latents, where = tokenizer.encode(video), ends(video)
    made = tokenizer.decode_known(latents, video, where)
    hidden = torch.where(where, video, torch.full_like(video, torch.nan))
    assert torch.equal(tokenizer.decode_known(latents, hidden, where), made)
    other = tokenizer.decode_known(latents, torch.where(where, -video, video), where)
    change = (other - made).abs().amax(dim=(0, 1, 3, 4))
    assert (change > 1e-5).all()


def test_a_clip_of_which_nothing_is_known_is_decoded_from_its_tokens_whatever_its_neighbours():
    tokenizer, video = louder(small()), clip(5, batch=2)
    latents, where = tokenizer.encode(video), ends(video)
    alone = tokenizer.decode_known(latents[:1], video[:1], where[:1])
    where[1] = False
    both = tokenizer.decode_known(latents, video, where)
    torch.testing.assert_close(both[:1], alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(both[1:], tokenizer.decode(latents[1:]), rtol=0, atol=1e-5)


def test_pixels_and_masks_of_another_shape_are_refused_by_every_tokenizer():
    for tokenizer in (small(), small().encoder):
        latents = tokenizer.encode(clip(5))
        with pytest.raises(ValueError, match=r"expected known pixels of shape \(1, 3, 5, 16, 16\) and a bool mask"):
            tokenizer.decode_known(latents, clip(4), ends(clip(4)))
        with pytest.raises(ValueError, match=r"got \(1, 3, 5, 16, 16\) and torch.float32"):
            tokenizer.decode_known(latents, clip(5), ends(clip(5)).float())


def test_a_tokenizer_without_guidance_puts_known_pixels_back():
    tokenizer, video = small().encoder, clip(5)
    latents, where = tokenizer.encode(video), ends(video)
    assert torch.equal(
        tokenizer.decode_known(latents, video, where), torch.where(where, video, tokenizer.decode(latents))
    )


def test_half_of_the_training_clips_show_their_ends_and_half_all_but_a_box():
    where = drawn_known((6, 40, 60), seeded(range(200)), device=torch.device("cpu"))
    assert where.shape == (200, 1, 6, 40, 60) and where.dtype == torch.bool
    frames = where.flatten(3)
    shows_ends = (frames.all(dim=-1) == torch.tensor([1, 0, 0, 0, 0, 1], dtype=torch.bool)).all(dim=-1)[:, 0]
    assert 70 < shows_ends.sum() < 130
    boxes = ~where[~shows_ends]
    assert (boxes == boxes[:, :, :1]).all()
    heights, widths = boxes[:, 0, 0].any(dim=2).sum(dim=1), boxes[:, 0, 0].any(dim=1).sum(dim=1)
    assert 9 <= heights.min() < 14 and 26 < heights.max() <= 31 and widths.min() >= 14 and widths.max() <= 46
    assert torch.equal(boxes.flatten(1).sum(dim=1), 6 * heights * widths)
    again = drawn_known((6, 40, 60), seeded([7]), device=torch.device("cpu"))
    assert torch.equal(again, where[7:8])


@pytest.mark.parametrize("freeze", [False, True])
def test_training_teaches_to_use_what_is_known(freeze: bool):
    """Blobs that move across: an untrained encoder's tokens say little, the frames at both ends much."""
    tokenizer = small(freeze_encoder=freeze)
    video = torch.nn.functional.interpolate(clip(2, 3, 3, batch=4), size=(5, 16, 16), mode="trilinear")
    weights = {name: weight.clone() for name, weight in tokenizer.encoder.named_parameters()}
    optimiser = torch.optim.Adam([weight for weight in tokenizer.train().parameters() if weight.requires_grad], lr=5e-3)
    for step in range(150):
        losses = tokenizer.training_losses(video, generators=seeded(range(step, step + 4)))
        assert losses.keys() >= ({"l1", "l2"} if freeze else {"l1", "l2", "kl", "guided_l1", "guided_l2"})
        optimiser.zero_grad()
        sum(losses.values(), torch.zeros(())).backward()
        optimiser.step()
    tokenizer.eval()
    latents, where = tokenizer.encode(video), ends(video)
    guided = (tokenizer.decode_known(latents, video, where) - video)[:, :, 1:-1].abs().mean()
    alone = (tokenizer.decode(latents) - video)[:, :, 1:-1].abs().mean()
    assert guided < (0.6 if freeze else 1.0) * alone  # what learns is soon good at these itself
    unchanged = [torch.equal(weight, weights[name]) for name, weight in tokenizer.encoder.named_parameters()]
    assert all(unchanged) if freeze else not any(unchanged)


def test_the_critic_judges_tokens_while_the_encoder_learns_and_the_guided_video_when_it_is_frozen():
    judged = []

    def critic(real: Tensor, fake: Tensor, *, own: Any, last_layer: Tensor) -> dict[str, Tensor]:
        judged.append(last_layer)
        return {"mine": (real - fake).square().mean()}

    for freeze in (False, True):
        tokenizer = small(freeze_encoder=freeze).train()
        losses = tokenizer.training_losses(clip(5), generators=seeded([0]), critic=critic)
        assert ("guided_l1" in losses) == (not freeze) and "mine" in losses
        assert (judged.pop() is tokenizer.guide.conv_out.conv.weight) == freeze


def test_streams_and_saves_as_the_wrapped_tokenizer(tmp_path):
    tokenizer, video = louder(small()), clip(9)
    latents = tokenizer.encode(video)
    assert torch.equal(torch.cat(list(tokenizer.decode_stream(latents.split(1))), dim=2), tokenizer.decode(latents))
    tokenizer.save_pretrained(tmp_path)
    loaded: Any = vidgen.load(tmp_path)
    where = ends(video)
    assert torch.equal(loaded.decode_known(latents, video, where), tokenizer.decode_known(latents, video, where))


def test_a_pipeline_shows_the_decoder_the_frames_that_it_was_given():
    preset = PIPELINE_PRESETS["shapes-flow"].tiny()
    tokenizer = louder(small("shapes-kl"))
    pipe = preset.build(tokenizer, WordTextEncoder(width=16))
    video = clip(1)

    def made() -> Tensor:
        result = pipe(
            "red", video=video, num_frames=5, height=16, width=16, num_inference_steps=2, generator=seeded([0])[0],
            output_type="pt",
        )  # fmt: skip
        return result.frames

    guided = made()
    pipe.register_modules(video_tokenizer=tokenizer.encoder)
    alone = made()
    assert torch.equal(guided[:, 0], alone[:, 0])
    torch.testing.assert_close(guided[:, 0], (video[:, :, 0] + 1) / 2)
    assert not torch.allclose(guided[:, 1:], alone[:, 1:], atol=1e-3)


# patches by themselves


def test_no_patch_reaches_the_token_of_another():
    tokenizer = TOKENIZER_PRESETS["put-tokenizer"].tiny().build().eval()
    video = clip(5)
    other = video.clone()
    other[:, :, 2, 8:, :8] = 0.0
    changed = (tokenizer.encode(video).tokens != tokenizer.encode(other).tokens).any(dim=-1)
    assert set(changed[0].nonzero().flatten().tolist()) <= {2 * 4 + 2}


def test_pixel_centroids_give_back_the_nearest_patch_that_was_seen():
    options = {"codes": 16, "channels": 48, "cosine": False, "commitment": 0.0, "kmeans_steps": 10}
    tokenizer = PatchwiseTokenizer("vq", options, stride=(1, 4, 4), layers=0, decoder_layers=0).train()
    torch.manual_seed(0)
    patches = torch.rand(4, 3, 4, 4) * 2 - 1
    which = torch.randint(4, (2, 3, 4, 4))
    video = patches[which].permute(0, 4, 1, 2, 5, 3, 6).reshape(2, 3, 3, 16, 16)
    losses = tokenizer.training_losses(video, generators=seeded([0, 1]))
    assert losses["commitment"] == 0
    tokenizer.eval()
    torch.testing.assert_close(tokenizer.decode(tokenizer.encode(video)), video, rtol=0, atol=1e-4)
    tokenizer.train().training_losses(video, generators=seeded([0, 1]))["l1"].backward()


@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
@pytest.mark.parametrize("stride", [(1, 4, 4), (2, 4, 4)])
def test_patches_take_any_bottleneck_and_any_stride_and_stream(bottleneck: str, stride: tuple[int, int, int]):
    torch.manual_seed(0)
    options = {"width": 16, "layers": 1, "decoder_layers": 1, "block_frames": 4}
    tokenizer = PatchwiseTokenizer(bottleneck, OPTIONS[bottleneck], stride=stride, **options).eval()
    video = clip(10, 13, 18)
    latents = tokenizer.encode(video)
    made = tokenizer.decode(latents)
    assert made.shape == video.shape
    chunks = list(tokenizer.encode_stream(video.split(3, dim=2)))
    assert torch.equal(latents.join(chunks).tokens, latents.tokens)
    assert torch.equal(torch.cat(list(tokenizer.decode_stream(latents.split(1))), dim=2), made)
    losses = tokenizer.train().training_losses(video, generators=seeded([0]))
    assert torch.stack(list(losses.values())).isfinite().all()


def test_patches_refuse_bottlenecks_of_another_length_and_oblong_patches():
    with pytest.raises(ValueError, match="its 192 numbers, and bottleneck 'ae' takes 8 channels"):
        PatchwiseTokenizer("ae", {"channels": 8}, layers=0)
    with pytest.raises(ValueError, match="patches are square in space"):
        PatchwiseTokenizer("ae", {"channels": 8}, stride=(1, 8, 4))
