"""Is every class trained as a run says: tokens that stay in a second stage, frames that are hidden or a refusal?"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_autoencoders import SMALL, small_autoencoder
from torch import Tensor, nn

import vidgen
from vidgen.nn.random import seeded
from vidgen.tokenizers import TOKENIZERS, DiffusersAutoencoderTokenizer, Tokenizer
from vidgen.tokenizers.presets import TOKENIZER_PRESETS
from vidgen.training import DataConfig, OptimiserConfig, TokenizerRun, train_tokenizer
from vidgen.training.critic import FaithfulTerms, ReconstructionCritic
from vidgen.training.recipes import with_recipe
from vidgen.training.resuming import check_resumable
from vidgen.training.step import starts_with
from vidgen.training.tokenizer_step import TokenizerStep
from vidgen.training.tokenizer_training import frozen_parts

# The first preset of every class, codebooks that move by themselves, and diffusers' own.
OF_CLASS = {preset.model: name for name, preset in reversed(TOKENIZER_PRESETS.items())}
DIFFUSERS = [
    pytest.param(f"diffusers:{name}", marks=() if name in ("wan", "ltx") else pytest.mark.slow) for name in SMALL
]
each = pytest.mark.parametrize("case", [*OF_CLASS.values(), "base-adacode", *DIFFUSERS])


def tiny(case: str) -> Tokenizer:
    torch.manual_seed(0)
    if case.startswith("diffusers:"):
        return DiffusersAutoencoderTokenizer.around(small_autoencoder(case.removeprefix("diffusers:")))
    return TOKENIZER_PRESETS[case].tiny().build()


def clip(*, batch: int = 1, side: int = 16) -> Tensor:
    return torch.rand(batch, 3, 9, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def video_of(tokenizer: Tokenizer) -> Tensor:
    return clip(batch=2, side=32 if isinstance(tokenizer, DiffusersAutoencoderTokenizer) else 16)


@torch.no_grad()
def shake(weights: list[nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(1)
    for weight in weights:
        weight.add_(0.1 * torch.randn(weight.shape, generator=generator))


def second_stage(folder: Path) -> TokenizerRun:
    return with_recipe(
        TokenizerRun(
            preset="base-vq", output_dir=folder, recipe="vidtok-decoder", recipe_without=("perceptual_weight",)
        )
    )


def test_every_class_is_tried():
    assert {*OF_CLASS, DiffusersAutoencoderTokenizer} == set(TOKENIZERS)


@each
def test_tokens_stay_and_the_decoder_moves_in_a_step_of_the_second_stage(case: str, tmp_path: Path):
    tokenizer = tiny(case)
    step = TokenizerStep(tokenizer, critic=None, statistics=None)
    step.freeze(f"tokenizer.{name}" for name in frozen_parts(second_stage(tmp_path), tokenizer))
    video = video_of(tokenizer)
    before = tokenizer.encode(video)
    decoded = tokenizer.decode(before)
    weights = {name: weight.detach().clone() for name, weight in tokenizer.named_parameters()}

    learning = [weight for weight in step.train().parameters() if weight.requires_grad]
    optimiser = torch.optim.SGD(learning, lr=0.1)
    losses = step({"video": video, "step": 0}, seeded([0, 1]))
    sum(losses.values(), torch.zeros(())).backward()
    optimiser.step()

    after = tokenizer.encode(video)
    assert torch.equal(after.tokens, before.tokens)
    if before.ids is not None and after.ids is not None:
        assert torch.equal(after.ids, before.ids)
    assert not torch.equal(tokenizer.decode(before), decoded)
    for name, weight in tokenizer.named_parameters():
        frozen = any(starts_with(name, part) for part in tokenizer.token_parts)
        assert weight.requires_grad != frozen
        assert not frozen or torch.equal(weight, weights[name])


@each
def test_no_other_weight_makes_tokens_and_those_that_do_make_no_pixels(case: str):
    tokenizer = tiny(case).eval()
    video = video_of(tokenizer)
    apart = [part for part in tokenizer.token_parts if "bottleneck" not in part]  # which makes vectors of ids, too
    weights = dict(tokenizer.named_parameters())
    makers = [weights[name] for name in weights if any(starts_with(name, part) for part in apart)]
    others = [weights[name] for name in weights if not any(starts_with(name, part) for part in tokenizer.token_parts)]
    latents = tokenizer.encode(video)
    shake(others)
    assert torch.equal(tokenizer.encode(video).tokens, latents.tokens)
    decoded = tokenizer.decode(latents)
    shake(makers)
    assert torch.equal(tokenizer.decode(latents), decoded)
    assert torch.equal(tokenizer.encode(video).tokens, latents.tokens) == (not makers)


@pytest.mark.parametrize("preset", ["bsq-vit", "larp"])
def test_a_run_of_the_second_stage_exports_a_tokenizer_with_the_tokens_of_the_first(preset: str, tmp_path: Path):
    first = tiny(preset).eval()
    first.fit_statistics([clip()])
    first.save_pretrained(tmp_path / "first")
    run = TokenizerRun(
        preset=preset,
        tiny=True,
        output_dir=tmp_path / "second",
        init_from=str(tmp_path / "first"),
        recipe="vidtok-decoder",
        recipe_without=("perceptual_weight", "adversarial_weight", "lecam_weight"),
        data=DataConfig(num_frames=5, height=16, width=16),
        optimiser=OptimiserConfig(learning_rate=1e-2, warmup_steps=0),
        steps=2,
        batch_size=2,
        validate_every=0,
        sample_every=0,
        device="cpu",
    )
    second = vidgen.load(train_tokenizer(run))
    assert isinstance(second, Tokenizer)
    latents = first.encode(clip())
    assert torch.equal(second.encode(clip()).tokens, latents.tokens)
    assert not torch.equal(second.decode(latents), first.decode(latents))


def test_tokens_do_not_stay_when_their_statistics_are_measured_anew(tmp_path: Path):
    run = replace(second_stage(tmp_path), fit_statistics=True)
    with pytest.raises(ValueError, match="to freeze tokens keep them too \\(--no-fit-statistics\\)"):
        frozen_parts(run, tiny("bsq-vit"))


def test_a_tokenizer_that_does_not_say_what_makes_its_tokens_is_frozen_by_names(tmp_path: Path):
    tokenizer = tiny("bsq-vit")
    tokenizer.token_parts = ()
    with pytest.raises(ValueError, match="FrameCausalViTTokenizer does not say which of its parts make tokens"):
        frozen_parts(second_stage(tmp_path), tokenizer)
    by_name = replace(second_stage(tmp_path), freeze=("encoder", "bottleneck"))
    assert frozen_parts(by_name, tokenizer) == ("encoder", "bottleneck")


def test_a_second_stage_from_before_goes_on_with_the_names_of_its_run_file(tmp_path: Path):
    """The recipe froze modules by name then."""
    now = second_stage(tmp_path)
    before = replace(now, freeze=("encoder", "bottleneck"))
    with pytest.raises(ValueError, match=r"freeze was \('encoder', 'bottleneck'\) .* give it as before"):
        check_resumable(before, now)
    told = TokenizerRun(
        preset="base-vq",
        output_dir=tmp_path,
        recipe="vidtok-decoder",
        recipe_without=("perceptual_weight",),
        freeze=("encoder", "bottleneck"),
    )
    check_resumable(before, with_recipe(told))


@pytest.mark.parametrize("case", OF_CLASS.values())
def test_a_tokenizer_trains_on_hidden_frames_or_refuses_before_the_first_step(case: str):
    tokenizer, video = tiny(case), clip(batch=2)
    critic = ReconstructionCritic(FaithfulTerms(pixels="l1"))
    if not tokenizer.learns_hidden_frames:
        with pytest.raises(ValueError, match="never on hidden frames; set frame_masking to 0"):
            TokenizerStep(tokenizer, critic=critic, statistics=None, frame_masking=0.5)
        return
    step = TokenizerStep(tokenizer, critic=critic, statistics=None, frame_masking=0.5)
    assert step({"video": video, "step": 0}, seeded([0, 1]))["l1"].isfinite()
