"""What users get wrong: does every generator and pipeline that can be told wrong say so early, with the way out?"""

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_pipelines import each_family, sample
from tiny_models import SPECS, clip, pipeline, random_latents, tokenizer
from torch import Tensor

from vidgen.conditioning import ClassEncoder, Condition
from vidgen.generators import (
    AutoregressiveTransformer,
    DiffusionTransformer,
    EfficientMaskedTransformer,
    FrameMaskedTransformer,
    LlamaTransformer,
    MaskedTransformer,
    PrefixMaskedTransformer,
)
from vidgen.latents import LatentPart, LatentSpec
from vidgen.nn.random import seeded
from vidgen.schedulers.guidance import Guidance

NETWORKS: Any = (
    MaskedTransformer,
    PrefixMaskedTransformer,
    EfficientMaskedTransformer,
    FrameMaskedTransformer,
    DiffusionTransformer,
    AutoregressiveTransformer,
    LlamaTransformer,
)


def left_half() -> Tensor:
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[:, :8] = True
    return mask


# -------------------------------------------------------------------------------------------- tokens of another kind


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_codebook_larger_than_the_head_is_refused_in_training(kind):
    spec = SPECS["grid of ids"]
    network = kind(spec.to_json(), text_width=8, width=24, layers=1, heads=2)
    larger = LatentSpec((replace(spec.parts[0], codebooks=(64,)),), causal=False, streamable=False)
    nothing = Condition(torch.zeros(2, 0, 8), torch.zeros(2, 0, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"codebooks of part 'grid' \(\(32,\), not \(64,\)\)"):
        network.losses(random_latents(larger), nothing, generators=seeded([0, 1]))


@each_family
def test_a_tokenizer_that_came_later_is_refused_with_both_specs(family):
    pipe, other = pipeline(family, "fsq"), tokenizer("vq")
    pipe.video_tokenizer = other
    with pytest.raises(ValueError, match="use the tokenizer that it was trained with") as mistake:
        sample(pipe)
    assert str(pipe.transformer.spec) in str(mistake.value)
    assert str(other.spec) in str(mistake.value)
    with pytest.raises(ValueError, match=r"they differ in .*codebooks of part '.*' \(\(200,\), not \(64,\)\)"):
        type(pipe)(other, pipe.text_encoder, pipe.transformer, pipe.scheduler)


@pytest.mark.parametrize("spec", ["queries of ids", "three planes", "two parts of ids"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (MaskedTransformer, {"windows": [(1, 0, 0)]}),
        (PrefixMaskedTransformer, {"windows": [(1, 0, 0)]}),
        (MaskedTransformer, {"spectral_attention": True}),
        (FrameMaskedTransformer, {}),
        (DiffusionTransformer, {"patch": (1, 2, 2)}),
        (DiffusionTransformer, {"level_frames": 1}),
        *((DiffusionTransformer, {"attention": name}) for name in ("interleaved", "windows", "frame-causal", "linear")),
    ],
)
def test_what_needs_a_grid_refuses_tokens_without_one(kind: Any, options: dict[str, Any], spec: str):
    with pytest.raises(ValueError, match="on one thw grid"):
        kind(SPECS[spec].to_json(), text_width=8, width=24, layers=1, heads=2, **options)


@pytest.mark.parametrize("group", ["row", "frame", "regions"])
def test_groups_of_a_grid_refuse_tokens_without_one(group):
    network = LlamaTransformer(
        SPECS["queries of ids"].to_json(), text_width=8, width=24, layers=1, heads=2, group=group
    )
    nothing = Condition(torch.zeros(2, 0, 8), torch.zeros(2, 0, dtype=torch.bool))
    with pytest.raises(ValueError, match="give a number of tokens"):
        network.losses(random_latents(SPECS["queries of ids"]), nothing, generators=seeded([0, 1]))


# ------------------------------------------------------------------------------------------------------- the prompts


@each_family
def test_a_prompt_that_is_too_long_is_refused_with_the_words_to_leave_out(family):
    with pytest.raises(ValueError, match=r"has 66 words; .* at most 64; shorten it by 'much too'"):
        sample(pipeline(family), prompt="very " * 64 + "much too")


@each_family
@pytest.mark.parametrize(
    ("timeline", "message"),
    [
        ([(0, "a"), (4, "b"), (2, "c")], r"must rise .* got \[0, 4, 2\]; sort"),
        ([(0, "a"), (2, "b"), (2, "c")], "must rise"),
        ([(1, "a"), (2, "b")], "starts at frame 0, got frame 1"),
        ([(0, "a"), (5, "b")], "starts at frame 5 of a video of 5 frames"),
        ([("a", 0), ("b", 2)], r"an entry of a timeline is \(first frame, prompt\)"),
    ],
)
def test_a_timeline_out_of_order_or_out_of_the_video_is_refused(family, timeline, message):
    with pytest.raises(ValueError, match=message):
        sample(pipeline(family), prompt=timeline)


@each_family
def test_a_class_without_a_class_encoder_or_out_of_range_is_refused(family):
    pipe = pipeline(family)
    with pytest.raises(ValueError, match="class_label needs a ClassEncoder, this pipeline has WordTextEncoder"):
        sample(pipe, prompt=None, class_label=1)
    pipe.text_encoder = ClassEncoder(["circle", "star"], width=16)
    with pytest.raises(ValueError, match="class_label 2 is none of the 2 classes"):
        sample(pipe, prompt=None, class_label=2)
    with pytest.raises(ValueError, match="no class 'stars'; nearest: star"):
        sample(pipe, prompt="stars")


# -------------------------------------------------------------------------------------------------------- the guidance


@each_family
def test_guidance_without_a_branch_to_guide_away_from_is_refused(family):
    """A network that never saw a sample without text says so; by default it is then sampled without guidance."""
    pipe = pipeline(family, "kl")
    plain = sample(pipe, guidance_scale=1.0)
    assert not torch.equal(sample(pipe), plain), "the test must be able to fail"
    pipe.transformer.register_to_config(text_dropped=0.0)
    assert torch.equal(sample(pipe), plain)
    for negative in (None, "", " ", [""]):
        with pytest.raises(
            ValueError, match=r"use guidance_scale=1, give a negative_prompt, or train with --drop-text"
        ):
            sample(pipe, guidance_scale=2.0, negative_prompt=negative)
    assert not torch.equal(sample(pipe, guidance_scale=2.0, negative_prompt="a blue star"), plain)
    pipe.transformer.register_to_config(text_dropped=0.1)
    assert not torch.equal(sample(pipe), plain)


def test_other_guidance_is_refused_as_well():
    pipe = pipeline("diffusion", "kl")
    pipe.transformer.register_to_config(text_dropped=0.0)
    with pytest.raises(ValueError, match="trained with text alone"):
        sample(pipe, guidance=Guidance(scale=3.0))


@each_family
def test_the_share_without_text_is_part_of_a_saved_network(family, tmp_path):
    network = pipeline(family).transformer
    network.register_to_config(text_dropped=0.25)
    network.save_pretrained(tmp_path)
    assert type(network).from_pretrained(tmp_path).config.text_dropped == 0.25


# ------------------------------------------------------------------------------------------------------------ the mask

MASKS = {
    "another size": (torch.ones(5, 8, 8), r"must be \(1, 1, 5, 16, 16\), or 1 along an axis, got \(1, 1, 5, 8, 8\)"),
    "three channels": (torch.ones(1, 3, 5, 16, 16), r"got \(1, 3, 5, 16, 16\)"),
    "frames last": (torch.ones(16, 16, 5), r"got \(1, 1, 16, 16, 5\)"),
    "gray levels": (255 * left_half().byte(), "has values from 0 to 255"),
    "shares": (torch.full((16, 16), 0.5), "has values from 0.5 to 0.5"),
    "nothing": (torch.zeros(16, 16), "no pixel is known, and the video would be ignored: true or 1 means known"),
    "everything": (torch.ones(16, 16), "all pixels are known, and nothing is left to make"),
}


@each_family
@pytest.mark.parametrize("name", MASKS)
def test_a_mask_of_the_wrong_shape_or_polarity_is_refused(family, name):
    mask, message = MASKS[name]
    with pytest.raises(ValueError, match=message):
        sample(pipeline(family), video=clip(), mask=mask)


@each_family
def test_known_pixels_that_are_blank_beside_others_are_warned_about(family):
    pipe, video = pipeline(family), clip()
    video[..., :8] = -1.0  # blacked out, as for tools whose masks mark what to make
    with pytest.warns(UserWarning, match=r"all known pixels are -1 .* is the mask inverted\?"):
        sample(pipe, video=video, mask=left_half())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(pipe, video=video, mask=~left_half())


def test_a_shorter_video_may_be_known_whole_by_a_mask():
    assert sample(pipeline(), video=clip(frames=1), mask=torch.ones(16, 16)).isfinite().all()


def test_parts_of_specs_that_differ_in_number_are_named():
    network = MaskedTransformer(SPECS["grid of ids"].to_json(), text_width=8, width=24, layers=1, heads=2)
    with pytest.raises(ValueError, match=r"the number of parts \(1, not 2\)"):
        network.check_spec(SPECS["two parts of ids"])
    stranger = LatentSpec((LatentPart("grid", "thw", (2, 4, 4), 3, (32,)),), causal=True, streamable=True)
    with pytest.raises(ValueError, match=r"causal \(False, not True\), streamable \(False, not True\)"):
        network.check_spec(stranger)
