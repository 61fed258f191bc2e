"""Do the losses of tokenizers compute what their papers say, and does a run take every option of its recipe?"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vidgen.bottlenecks import VQ, Bottlenecked
from vidgen.bottlenecks.record import recorded_bottlenecks
from vidgen.latents import LatentPart
from vidgen.nn.random import seeded
from vidgen.tokenizers import CausalConvTokenizer, DiffusionDecoderTokenizer
from vidgen.tokenizers.base import reconstruction_losses
from vidgen.tokenizers.discriminator import DiscriminatorPanel, PatchDiscriminator, TransformerDiscriminator
from vidgen.tokenizers.keyframe_motion import MotionVectors
from vidgen.tokenizers.losses import (
    GAMES,
    PIXEL_ERRORS,
    LearnedVariance,
    LeCam,
    charbonnier_error,
    distillation,
    feature_matching,
    gradient_penalty,
)
from vidgen.tokenizers.presets import TOKENIZER_PRESETS
from vidgen.training import DataConfig, OptimiserConfig, TokenizerRun, train_tokenizer
from vidgen.training.checkpoint import CheckpointFolder
from vidgen.training.config import AdversarialLoss
from vidgen.training.critic import Adversary, DiscriminatorStep, FaithfulTerms, ReconstructionCritic
from vidgen.training.curriculum import Curriculum, scaled, without_frames
from vidgen.training.distillation import Distillation, pooled_to
from vidgen.training.ema import MovingAverage
from vidgen.training.monitor import CodebookCounter, TrainingMonitor, codebook_collapsed
from vidgen.training.opponent import Opponent
from vidgen.training.processes import build_accelerator
from vidgen.training.recipes import RECIPES, with_recipe
from vidgen.training.tokenizer_step import TokenizerStep
from vidgen.training.tokenizer_training import build_critic


def clip(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape or (2, 3, 3, 24, 24), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def tiny_tokenizer(bottleneck: str = "fsq", **options: object) -> CausalConvTokenizer:
    torch.manual_seed(0)
    return CausalConvTokenizer(bottleneck, options, stride=(2, 4, 4), widths=(8, 8), depth=1, decoder_depth=1)


def tiny_run(folder: Path, **changes: object) -> TokenizerRun:
    run = TokenizerRun(
        preset="tiny",
        output_dir=folder,
        data=DataConfig(num_frames=3, height=24, width=24, validation_clips=2),
        optimiser=OptimiserConfig(learning_rate=3e-3, warmup_steps=2),
        steps=4,
        batch_size=2,
        checkpoint_every=2,
        validate_every=4,
        sample_every=0,
        log_every=1,
        statistics_clips=1,
        device="cpu",
    )
    judged = {"discriminator_width": 4, "discriminator_start": 1} if "adversarial_weight" in changes else {}
    return replace(run, **{**judged, **changes})


def own(real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    return {"l1": (fake - real).abs().mean()}


# pixels


def test_charbonnier_is_absolute_for_large_errors_and_smooth_at_zero():
    real = torch.zeros(100)
    assert charbonnier_error(real + 0.5, real) == pytest.approx(0.5, abs=2e-3)
    at_zero = torch.zeros(100, requires_grad=True)
    charbonnier_error(at_zero, real).backward()
    assert at_zero.grad is not None and not at_zero.grad.any()


@pytest.mark.parametrize("name", PIXEL_ERRORS)
def test_a_pixel_error_is_zero_for_equal_clips_and_grows_with_the_difference(name: str):
    error, video = PIXEL_ERRORS[name], clip()
    assert error(video, video) == pytest.approx(0, abs=1e-6)
    assert 0 < error(video + 0.1, video) < error(video + 0.2, video)


def test_a_learned_variance_settles_where_it_equals_the_error():
    variance = LearnedVariance()
    optimiser = torch.optim.Adam(variance.parameters(), lr=0.1)
    for _ in range(200):
        optimiser.zero_grad()
        sum(variance({"l1": torch.tensor(0.2), "perceptual": torch.tensor(0.1)}).values(), torch.zeros(())).backward()
        optimiser.step()
    assert variance.log_variance.exp().item() == pytest.approx(0.3, rel=0.01)


# adversaries


@pytest.mark.parametrize("name", GAMES)
def test_both_sides_of_a_game_want_opposite_verdicts_on_fakes(name: str):
    game = GAMES[name]
    real, low, high = torch.full((4,), 2.0), torch.full((4,), -2.0), torch.full((4,), 2.0)
    assert game.discriminator(real, low) < game.discriminator(real, high)
    assert game.generator(low) > game.generator(high)
    assert game.discriminator(real, low) < 0.2


def test_the_hinge_and_the_non_saturating_loss_at_known_logits():
    zero = torch.zeros(3)
    assert GAMES["hinge"].discriminator(zero, zero) == 1
    assert GAMES["non-saturating"].discriminator(zero, zero) == pytest.approx(0.693147, abs=1e-5)
    assert GAMES["non-saturating"].generator(zero) == pytest.approx(0.693147, abs=1e-5)


def test_a_smoothed_game_punishes_sure_verdicts_and_ends_near_zero():
    torch.manual_seed(0)
    lost = {
        sureness: GAMES["non-saturating-smooth"]
        .discriminator(torch.full((5000,), sureness), torch.full((5000,), -sureness))
        .item()
        for sureness in (0.0, 2.0, 10.0)
    }
    assert 0 < lost[2.0] < 0.05 < 0.3 < lost[0.0] < lost[10.0]


@pytest.mark.parametrize("size", [(1, 16, 16), (6, 13, 20)])
def test_a_transformer_gives_one_verdict_for_a_clip_of_any_size(size: tuple[int, int, int]):
    torch.manual_seed(0)
    judge = TransformerDiscriminator(width=16, layers=2)
    video = clip(2, 3, *size)
    *_, logits = judge.features(video)
    assert logits.shape == (2, 1)
    assert torch.allclose(judge(video[1:]), logits[1:], atol=1e-5)
    video[0, :, -1, -1, -1] = -video[0, :, -1, -1, -1]
    changed = judge(video)
    assert changed[0] != logits[0]
    assert changed[1] == logits[1]


def test_the_transformer_learns_to_tell_real_from_fake():
    torch.manual_seed(0)
    step = DiscriminatorStep(
        DiscriminatorPanel(TransformerDiscriminator(width=16, layers=1)), loss="non-saturating-smooth"
    )
    optimiser = torch.optim.Adam(step.parameters(), lr=5e-3)
    lost = []
    for seed in range(60):
        real = clip(4, 3, 4, 16, 16, seed=seed)
        loss = step(real, real.abs())["discriminator"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        lost.append(loss.item())
    assert lost[-1] < 0.5 * lost[0]


def test_r1_is_half_the_squared_slope_and_trains_the_discriminator():
    weight = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    real = torch.randn(5, 3, requires_grad=True)
    penalty = gradient_penalty(real @ weight, real)
    assert penalty.item() == pytest.approx(0.5 * 14)
    penalty.backward()
    assert weight.grad is not None and torch.allclose(weight.grad, weight.detach())


def test_lecam_holds_verdicts_to_the_other_sides_average():
    lecam = LeCam(decay=0.5)
    assert lecam(torch.full((4,), 3.0), torch.full((4,), -2.0)).item() == pytest.approx(9 + 4)
    assert (lecam.real.item(), lecam.fake.item()) == (1.5, -1.0)
    assert lecam(torch.full((4,), -1.5), torch.full((4,), 2.0)).item() == 0.0


LECAM = """
import sys, torch
from vidgen.tokenizers.losses import LeCam
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
lecam = LeCam(decay=0.5)
lecam(torch.full((2,), 1.0 + 2 * rank), torch.full((2,), -1.0))
assert (lecam.real.item(), lecam.fake.item()) == (1.0, -0.5), (lecam.real, lecam.fake)
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_lecam_averages_the_verdicts_of_all_processes(tmp_path: Path):
    processes = [subprocess.Popen([sys.executable, "-c", LECAM, str(rank), str(tmp_path)]) for rank in range(2)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]


def test_feature_matching_pulls_fakes_to_real_features_alone():
    real, fake = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    assert feature_matching([real], [real]) == 0
    assert feature_matching([real, real], [real + 1, real - 2]).item() == pytest.approx(3.0)  # layers are summed
    feature_matching([real], [fake]).backward()
    assert real.grad is None
    assert fake.grad is not None


@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_frames_that_are_too_small_to_be_judged_are_refused_and_no_others(layers: int):
    judge = PatchDiscriminator(width=4, layers=layers)
    side = judge.smallest_side
    assert judge(clip(1, 3, 3, side, side)).isfinite().all()
    with pytest.raises(ValueError, match=f"at least {side} pixels a side, got {side - 1}"):
        judge(clip(1, 3, 3, side - 1, 2 * side))


def test_a_run_whose_frames_cannot_be_judged_fails_before_it_begins(tmp_path: Path):
    run = tiny_run(tmp_path / "run", adversarial_weight=0.1, discriminator_start=3, discriminator_layers=4)
    with pytest.raises(ValueError, match="the discriminator needs frames of at least 48 pixels a side"):
        train_tokenizer(run, tokenizer=tiny_tokenizer())
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_an_adversary_that_would_be_weighed_against_nothing_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="weighed against the pixel and perceptual terms, and there are none"):
        tiny_run(tmp_path, pixel_loss="l1", pixel_weight=0.0, adversarial_weight=0.1)


def test_a_panel_gives_every_judges_features_with_the_logits_last():
    torch.manual_seed(0)
    panel = DiscriminatorPanel(PatchDiscriminator(width=4, axes="frames"), PatchDiscriminator(width=4, axes="video"))
    for judge, features in zip(panel.judges, panel(clip())):
        assert len(features) == 5
        assert torch.equal(features[-1], judge(clip()))


@pytest.mark.parametrize("loss", GAMES)
def test_every_regulariser_is_a_term_of_the_discriminators_step(loss: AdversarialLoss):
    torch.manual_seed(0)
    step = DiscriminatorStep(
        DiscriminatorPanel(PatchDiscriminator(width=4)), loss=loss, r1_weight=1.0, r1_every=3, lecam_weight=0.1
    )
    kept = [set(step(clip(), clip(seed=1))) for _ in range(4)]
    always = {"discriminator", "discriminator_lecam"}
    assert kept == [always | {"discriminator_r1"}, always, always, always | {"discriminator_r1"}]
    sum(step(clip(), clip(seed=1)).values(), torch.zeros(())).backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in step.parameters())


def test_each_of_several_judges_has_a_term_of_its_own():
    torch.manual_seed(0)
    judges = [PatchDiscriminator(width=4, axes="frames"), PatchDiscriminator(width=4, axes="video")]
    real, fake = clip(), clip(seed=1)
    together = DiscriminatorStep(DiscriminatorPanel(*judges), names=("frames", "video"))(real, fake)
    for name, judge in zip(("frames", "video"), judges, strict=True):
        alone = DiscriminatorStep(DiscriminatorPanel(judge))(real, fake)
        assert torch.equal(together[f"discriminator.{name}"], alone["discriminator"])
    assert set(together) == {"discriminator.frames", "discriminator.video"}
    assert set(DiscriminatorStep(DiscriminatorPanel(*judges))(real, fake)) == {"discriminator.0", "discriminator.1"}


def adversary(**changes: object) -> Adversary:
    torch.manual_seed(0)
    return Adversary(DiscriminatorPanel(PatchDiscriminator(width=4)), **{"weight": 0.5, **changes})


def test_the_adversary_begins_at_its_start_and_warms_up():
    strengths = [adversary(start=3, warmup=4).strength(step) for step in range(8)]
    assert strengths == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1]
    assert [adversary(start=1).strength(step) for step in range(3)] == [0, 1, 1]


def test_without_balance_the_adversarial_term_is_the_weighted_game():
    judge = adversary(adaptive=False, loss="non-saturating", feature_weight=2.0)
    layer = nn.Conv3d(3, 3, 1)
    real = clip()
    terms = judge(real, layer(real), strength=0.5, faithful=torch.zeros(()), last_layer=layer.weight)
    of_fake, of_real = judge.panel(layer(real))[0], judge.panel(real)[0]
    assert torch.allclose(terms["adversarial"], 0.25 * GAMES["non-saturating"].generator(of_fake[-1]))
    assert torch.allclose(terms["feature_matching"], feature_matching(of_real[:-1], of_fake[:-1]))
    sum(terms.values(), torch.zeros(())).backward()
    assert layer.weight.grad is not None
    assert all(weight.grad is None for weight in judge.panel.parameters())


@pytest.mark.parametrize("preset", ["base-kl", "omnitokenizer-kl", "bsq-vit"])
@pytest.mark.parametrize("frames", [1, 5])
def test_the_balance_is_measured_where_a_clip_goes_through(preset: str, frames: int):
    """Trunks that make a lone first frame by a layer of its own balance images by that layer."""
    torch.manual_seed(0)
    tokenizer = TOKENIZER_PRESETS[preset].tiny().build().train()
    critic = ReconstructionCritic(FaithfulTerms(), adversary=adversary())
    video = torch.rand(1, 3, frames, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1
    terms = tokenizer.training_losses(video, generators=seeded([0]), critic=critic.at(0))
    assert terms["adversarial"].abs() > 1e-4


def test_validation_sees_no_adversary_and_hidden_frames_are_judged_by_the_original():
    critic = ReconstructionCritic(FaithfulTerms(pixels="l2", pixel_weight=3.0), adversary=adversary())
    real, fake, layer = clip(), clip(seed=1), nn.Conv3d(3, 3, 1)
    assert set(critic.at(None)(real, fake, own=own, last_layer=layer.weight)) == {"l2"}
    terms = critic.at(None, original=fake)(real, fake, own=own, last_layer=layer.weight)
    assert terms["l2"] == 0
    with pytest.raises(ValueError, match="set frame_masking to 0"):
        critic.at(None, original=fake[:, :, :2])(real, fake, own=own, last_layer=layer.weight)


def test_without_a_critic_a_tokenizer_takes_its_own_pixel_errors():
    real, fake, layer = clip(), clip(seed=1), nn.Conv3d(3, 3, 1)
    losses = reconstruction_losses(real, fake, squared_weight=2.0, critic=None, last_layer=layer.weight)
    assert losses["l1"] == (fake - real).abs().mean()
    assert torch.allclose(losses["l2"], 2 * (fake - real).square().mean())


# teachers


def colours(video: Tensor) -> Tensor:
    """A teacher that sees the mean colour of 4×4 pixels: `b 3 t h/4 w/4`."""
    return nn.functional.avg_pool3d(video, (1, 4, 4))


def test_distillation_is_zero_for_parallel_features():
    features = torch.randn(2, 5, 8)
    assert distillation(3 * features, features) == pytest.approx(0, abs=1e-6)
    assert distillation(-features, features) == pytest.approx(2, abs=1e-6)


@pytest.mark.parametrize("teacher", [colours, lambda video: colours(video).mean(dim=(2, 3, 4))], ids=["grid", "clip"])
def test_tokens_learn_to_tell_a_teachers_features(teacher):
    tokenizer = tiny_tokenizer("ae", channels=6)
    part = Distillation(tokenizer, teacher, features=3, weight=2.0, channels=4, width=16)
    step = TokenizerStep(tokenizer, critic=None, statistics=None, distillation=part)
    optimiser = torch.optim.Adam(step.parameters(), lr=1e-2)
    batch = {"video": clip(2, 3, 5, 16, 16).cumsum(dim=2) / 3, "step": 0}
    terms = []
    for _ in range(25):
        losses = step(batch, seeded([0, 1]))
        terms.append(losses["distillation"].item())
        optimiser.zero_grad()
        losses["distillation"].backward()
        optimiser.step()
    assert terms[-1] < 0.4 * terms[0]
    assert any(weight.grad.any() for weight in tokenizer.encoder.parameters() if weight.grad is not None)


def test_a_teacher_of_frames_is_pooled_over_the_frames_that_a_token_stands_for():
    """Causal tokens cannot tell frames that come after theirs: a lone first frame is pooled by itself."""
    causal = LatentPart("grid", "thw", (4, 8, 8), 1, first_frame_alone=True)
    times = torch.arange(17.0).view(1, 1, 17, 1, 1).expand(-1, -1, -1, 2, 2)
    assert pooled_to(causal, times, (17, 16, 16))[0, 0, :, 0, 0].tolist() == [0, 2.5, 6.5, 10.5, 14.5]
    assert pooled_to(causal, times[:, :, :1], (1, 16, 16)).shape == (1, 1, 1, 2, 2)
    chunks = LatentPart("grid", "thw", (4, 8, 8), 1)
    assert pooled_to(chunks, times[:, :, :16], (16, 16, 16))[0, 0, :, 0, 0].tolist() == [1.5, 5.5, 9.5, 13.5]


def test_a_teacher_of_a_frozen_tokenizer_is_refused():
    wrapped = DiffusionDecoderTokenizer.around(tiny_tokenizer(), width=8, depth=1, freeze_encoder=True)
    with pytest.raises(ValueError, match="freeze_encoder keeps it as it is"):
        Distillation(wrapped, colours, features=3, weight=1.0)


def test_a_teacher_and_its_weight_go_together(tmp_path: Path):
    with pytest.raises(ValueError, match="a teacher and a weight for it go together"):
        train_tokenizer(tiny_run(tmp_path / "a"), tokenizer=tiny_tokenizer(), teacher=colours)
    with pytest.raises(ValueError, match="a teacher and a weight for it go together"):
        train_tokenizer(tiny_run(tmp_path / "b", distillation_weight=1.0), tokenizer=tiny_tokenizer())
    with pytest.raises(ValueError, match="expected 1 to 4 channels"):
        Distillation(tiny_tokenizer(), colours, features=3, weight=1.0, channels=5)


# what clips look like


def test_the_shape_of_a_steps_clips_is_a_function_of_seed_and_step():
    curriculum = Curriculum(seed=0, image_share=0.5, images_until=3, sides=(8, 16))
    video = clip(2, 3, 5, 16, 32)
    shapes = [curriculum.shaped(video, step=step, generators=seeded([0, 1])).shape for step in range(60)]
    assert shapes == [curriculum.shaped(video, step=step, generators=seeded([0, 1])).shape for step in range(60)]
    assert all(shape[2] == 1 for shape in shapes[:3])
    assert {tuple(shape[2:]) for shape in shapes} == {(1, 8, 16), (1, 16, 32), (5, 8, 16), (5, 16, 32)}
    assert 15 < sum(shape[2] == 1 for shape in shapes) < 45


def test_several_resolutions_may_begin_later_than_video():
    curriculum = Curriculum(seed=0, sides=(8, 16), images_until=2, sides_from=6)
    shapes = [curriculum.shaped(clip(1, 3, 5, 16, 16), step=step, generators=seeded([0])).shape for step in range(40)]
    assert [shape[2:] for shape in shapes[:6]] == [(1, 8, 8)] * 2 + [(5, 8, 8)] * 4
    assert {shape[2:] for shape in shapes[6:]} == {(5, 8, 8), (5, 16, 16)}


def test_an_image_is_a_frame_of_its_clip_and_belongs_to_its_sample():
    curriculum = Curriculum(seed=0, image_share=1.0)
    video = clip(4, 3, 5, 8, 8)
    images = curriculum.shaped(video, step=0, generators=seeded(range(4)))
    for image, frames in zip(images, video):
        assert any(torch.equal(image[:, 0], frames[:, index]) for index in range(5))
    assert torch.equal(curriculum.shaped(video[2:3], step=0, generators=seeded([2])), images[2:3])


def test_a_curriculum_without_wishes_leaves_clips_alone():
    video = clip()
    assert Curriculum(seed=0).shaped(video, step=3, generators=seeded([0, 1])) is video
    assert scaled(video, side=24) is video


@pytest.mark.parametrize(("frames", "share", "hidden"), [(5, 0.4, 2), (5, 1.0, 4), (5, 0.02, 1), (1, 0.5, 0)])
def test_hidden_frames_are_grey_and_at_least_one_stays(frames: int, share: float, hidden: int):
    video = clip(3, 3, frames, 8, 8)
    seen = without_frames(video, share=share, generators=seeded([0, 1, 2]))
    grey = (seen == 0).flatten(3).all(dim=3).all(dim=1)
    assert (grey.sum(dim=1) == hidden).all()
    kept = ~grey[:, None, :, None, None].expand_as(video)
    assert torch.equal(seen[kept], video[kept])
    assert torch.equal(without_frames(video[1:2], share=share, generators=seeded([1])), seen[1:2])


def test_switch_ema_goes_on_from_the_averages():
    layer = nn.Linear(2, 2)
    average = MovingAverage(layer, decay=0.5)
    with torch.no_grad():
        layer.weight.add_(1.0)
    average.update()
    wanted = average.averages["weight"].clone()
    average.switch()
    assert torch.equal(layer.weight, wanted)


# the monitor


def test_the_counter_reads_the_worst_codebook_of_what_went_through_in_training():
    tokenizer = tiny_tokenizer("product", inner="vq", options={"codes": 8, "channels": 2}, count=2)
    counter = CodebookCounter()
    with recorded_bottlenecks(tokenizer) as passages:
        tokenizer.train().training_losses(clip(2, 3, 3, 16, 16), generators=seeded([0, 1]))
    assert len(passages) == 1
    assert not tokenizer.bottleneck._forward_hooks
    counter.add(passages)
    measured = counter.read()
    assert passages[0][1].ids is not None
    used = [len(ids.unique()) for ids in passages[0][1].ids.flatten(0, 1).T]
    assert measured["codes_used"] in used
    assert measured["codes_possible"] == 8
    assert 1 <= measured["perplexity"] <= measured["codes_used"]
    assert counter.read() == {}


def test_the_counter_leaves_out_codes_that_do_not_learn():
    """Motion vectors of a still clip are one vector, and AdaCode's weights have few steps."""
    for inner, learned in (("adacode", 32), ("vq", 8)):
        options = {"codes": learned, "channels": 4}
        tokenizer = tiny_tokenizer(inner, **options)
        counter = CodebookCounter()
        with recorded_bottlenecks(tokenizer) as passages:
            tokenizer.train().training_losses(clip(2, 3, 3, 16, 16), generators=seeded([0, 1]))
        counter.add(passages)
        assert counter.read()["codes_possible"] == min(learned, 2 * 2 * 4 * 4)
    motion = MotionVectors(reach=2, discrete=True)
    counter.add([(motion, motion(torch.zeros(2, 9, 2)))])
    assert counter.read() == {}


@pytest.mark.parametrize(
    ("codes", "dead", "living"),
    [(3, 1.2, 2.9), (8, 1.5, 3.0), (64, 1.5, 3.0), (1024, 15.0, 30.0), (2**18, 90.0, 110.0)],
)
def test_few_codes_in_use_are_a_collapse_whatever_the_size_of_the_codebook(codes: int, dead: float, living: float):
    used = {"codes_used": 3.0, "codes_possible": float(codes)}
    assert codebook_collapsed({**used, "perplexity": dead}) is not None
    assert codebook_collapsed({**used, "perplexity": living}) is None


def test_the_counter_keeps_bottlenecks_apart_and_reads_the_worst_for_its_size():
    small, large, other = (VQ(codes=codes, channels=2) for codes in (8, 1024, 1024))
    counter = CodebookCounter()
    few, many = torch.arange(4).repeat(256), torch.arange(1024)
    for bottleneck, ids in ((small, few), (large, few), (other, many)):
        counter.add([(bottleneck, Bottlenecked(torch.zeros(1, 1024, 2), ids[None, :, None]))])
    measured = counter.read()  # 4 of 8 codes are more than 4 of 1024, which do not hide among the others' 1024
    assert measured == {"codes_used": 4.0, "codes_possible": 1024.0, "perplexity": pytest.approx(4.0)}
    assert codebook_collapsed(measured) is not None


def collapsed(perplexity: float = 2.0) -> dict[str, float]:
    return {"codes_used": 3.0, "codes_possible": 1000.0, "perplexity": perplexity}


def test_the_monitor_says_what_stays_wrong_once_and_again_after_it_was_well():
    monitor = TrainingMonitor(first_step=10, patience=3)
    assert all(monitor.observe(step, collapsed()) == [] for step in range(12))
    (warning,) = monitor.observe(12, collapsed())
    assert warning.startswith("warning at step 12: the codebook has collapsed: 3 of 1000 codes in use")
    assert monitor.observe(13, collapsed()) == []
    assert monitor.observe(14, collapsed(500.0)) == []
    warnings = [monitor.observe(step, collapsed()) for step in range(15, 19)]
    assert [len(some) for some in warnings] == [0, 0, 1, 0]


def test_the_monitor_notices_a_discriminator_that_has_won():
    monitor = TrainingMonitor(first_step=0, patience=1)
    assert monitor.observe(0, {"discriminator": 0.6}) == []
    (warning,) = monitor.observe(1, {"discriminator": 0.01})
    assert "the discriminator has won" in warning
    assert "--r1-weight" in warning


def test_one_judge_that_has_won_is_noticed_beside_another_that_has_not():
    monitor = TrainingMonitor(first_step=0, patience=1)
    (warning,) = monitor.observe(1, {"discriminator.frames": 0.9, "discriminator.video": 0.01, "discriminator_r1": 0.0})
    assert "the discriminator of video has won (its loss is 0.010)" in warning
    assert monitor.observe(2, {"discriminator.frames": 0.9, "discriminator.video": 0.4, "discriminator_r1": 0.0}) == []


def test_a_run_that_ends_early_is_told_at_its_end_what_was_wrong_all_the_time():
    short = TrainingMonitor()
    assert [short.observe(step, collapsed(), last=step == 60) == [] for step in (20, 40, 60)] == [True, True, False]
    longer = TrainingMonitor()
    entries = [collapsed(500.0), *[collapsed()] * 5]
    said = [longer.observe(20 * place, entry, last=place == 5) for place, entry in enumerate(entries)]
    assert [len(some) for some in said] == [0, 0, 0, 0, 0, 1]
    well = TrainingMonitor()
    entries = [collapsed(), collapsed(500.0), collapsed()]
    assert all(well.observe(place, entry, last=place == 2) == [] for place, entry in enumerate(entries))
    told = TrainingMonitor(first_step=0, patience=2)
    assert [len(told.observe(step, collapsed(), last=step == 3)) for step in range(4)] == [0, 1, 0, 0]


def test_a_collapse_in_a_short_run_is_a_line_of_its_log(tmp_path: Path, capsys: pytest.CaptureFixture):
    train_tokenizer(tiny_run(tmp_path, optimiser=STILL, steps=3, validate_every=0), tokenizer=one_code())
    said = capsys.readouterr().err
    assert said.count("the codebook has collapsed") == 1
    assert "warning at step 3" in said


STILL = OptimiserConfig(learning_rate=1e-9)


def one_code() -> CausalConvTokenizer:
    """A tokenizer that has one code for everything."""
    tokenizer = tiny_tokenizer("fsq", levels=[9, 9, 9])
    with torch.no_grad():
        for weight in tokenizer.encoder.conv_out.parameters():
            weight.zero_()
    return tokenizer


def test_a_collapse_is_a_line_of_the_runs_log(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch):
    monkeypatch.setattr(TrainingMonitor, "first_step", 0)
    monkeypatch.setattr("vidgen.training.trainer.TrainingMonitor", lambda: TrainingMonitor(first_step=0, patience=2))
    train_tokenizer(tiny_run(tmp_path, optimiser=STILL, steps=3, validate_every=0), tokenizer=one_code())
    said = capsys.readouterr().err
    assert said.count("the codebook has collapsed") == 1
    assert "warning at step 2" in said


# whole runs

EVERYTHING = {
    "pixel_loss": "charbonnier",
    "learned_variance": True,
    "adversarial_weight": 0.1,
    "adversarial_loss": "non-saturating",
    "adversarial_warmup": 2,
    "feature_weight": 0.5,
    "r1_weight": 1.0,
    "lecam_weight": 0.01,
    "discriminator_axes": "both",
    "frame_masking": 0.4,
    "image_share": 0.4,
    "distillation_weight": 0.5,
    "switch_ema_every": 2,
}


LARP = {name: value for name, value in RECIPES["larp"].values.items() if name != "perceptual_weight"}


def test_a_run_with_every_option_resumes_bit_by_bit(tmp_path: Path):
    """Learned variance, discriminators with all regularisers, hidden frames, images, teacher, Switch EMA, VQ."""
    states = []
    for name, stops in (("whole", [4]), ("resumed", [2, 4])):
        for number, stop in enumerate(stops):
            run = tiny_run(tmp_path / name, **EVERYTHING, steps=stop, resume=number > 0)
            run = replace(run, optimiser=replace(run.optimiser, final_rate=1.0))  # a rate that knows no last step
            tokenizer = tiny_tokenizer("vq", codes=16, channels=4)
            train_tokenizer(run, tokenizer=tokenizer, teacher=colours)
        states.append(CheckpointFolder(tmp_path / name / "checkpoints", keep=9).load(4))
    one, other = states
    assert {"variance.log_variance", "distillation_head.0.weight", "tokenizer.bottleneck.codebook.sums"} <= set(
        one.weights
    )
    assert all(torch.equal(value, other.weights[name]) for name, value in one.weights.items())
    discriminators = one.training["discriminator"]
    assert {"lecam.1.real", "updates", "panel.judges.1.stages.0.weight"} <= set(discriminators)
    assert all(torch.equal(value, other.training["discriminator"][name]) for name, value in discriminators.items())
    exported = CausalConvTokenizer.from_pretrained(tmp_path / "whole" / "model")
    assert set(exported.state_dict()) == set(tiny_tokenizer("vq", codes=16, channels=4).state_dict())


def test_a_loss_scaler_changes_neither_the_tokenizers_nor_the_discriminators_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The scaler of fp16, without fp16: on a CPU everything else stays the same."""
    weights, discriminators = [], []
    for scale in (None, 2.0**24):

        def accelerator(run, *, scale: float | None = scale, **options):
            built = build_accelerator(run, **options)
            if scale is not None:
                built.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
                built.state._mixed_precision, built.native_amp = "fp16", True
                monkeypatch.setattr("accelerate.accelerator.get_mixed_precision_context_manager", no_autocast)
            return built

        monkeypatch.setattr(sys.modules[build_critic.__module__], "build_accelerator", accelerator)
        run = tiny_run(tmp_path / str(scale), adversarial_weight=0.5, discriminator_start=0, validate_every=0, steps=3)
        run = replace(run, batch_size=4, accumulation=2)
        train_tokenizer(run, tokenizer=tiny_tokenizer("ae", channels=4))
        saved = CheckpointFolder(tmp_path / str(scale) / "checkpoints", keep=9).load(3)
        weights.append(saved.weights)
        discriminators.append(saved.training["discriminator"])
    for one, other in (weights, discriminators):
        assert all(torch.allclose(value, other[name], rtol=1e-4, atol=1e-6) for name, value in one.items())


def no_autocast(*_args: object, **_options: object) -> torch.autocast:
    return torch.autocast("cpu", enabled=False)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"discriminator_width": 32, "discriminator_start": 2000, "adversarial_weight": 0.1}),
        ({"adversarial_weight": 0.1}, {"adversarial_weight": 0.1, "lecam_weight": 0.01}),
        ({"adversarial_weight": 0.1}, {"adversarial_weight": 0.1, "discriminator_width": 8}),
        ({"pixel_loss": "l1"}, {"pixel_loss": "l1", "learned_variance": True}),
        ({}, {"optimiser": OptimiserConfig(learning_rate=3e-3, warmup_steps=2, weight_decay=0.3)}),
    ],
)
def test_a_resumed_run_has_the_parts_that_its_checkpoint_has(before: dict, after: dict, tmp_path: Path):
    def run(changes: dict, **more: object) -> TokenizerRun:
        at_once = {"discriminator_start": 0} if "adversarial_weight" in changes else {}
        return tiny_run(tmp_path, **{**at_once, **changes}, **more, validate_every=0)

    train_tokenizer(run(before, steps=1), tokenizer=tiny_tokenizer())
    with pytest.raises(ValueError, match=f"cannot resume .*: {list(after)[-1]} was"):
        train_tokenizer(run(after, steps=2, resume=True), tokenizer=tiny_tokenizer())


def trained_opponents(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps at which the discriminator learns in runs after this call."""
    steps, take = [], Opponent.take_judged

    def recorded(opponent: Opponent, step: int) -> tuple[Tensor, Tensor] | None:
        judged = take(opponent, step)
        steps.extend([] if judged is None else [step])
        return judged

    monkeypatch.setattr(Opponent, "take_judged", recorded)
    return steps


def test_a_transformer_that_learns_every_third_step_is_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    steps = trained_opponents(monkeypatch)
    options = {**LARP, "discriminator_width": 16, "discriminator_layers": 1, "discriminator_every": 3}
    train_tokenizer(tiny_run(tmp_path, **options, steps=7, validate_every=0), tokenizer=tiny_tokenizer())
    assert steps == [2, 5]


def test_a_discriminator_that_has_won_is_a_line_of_the_runs_log(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("vidgen.training.trainer.TrainingMonitor", lambda: TrainingMonitor(first_step=0, patience=2))
    fast, still = OptimiserConfig(learning_rate=1e-2, warmup_steps=0), OptimiserConfig(learning_rate=1e-9)
    run = tiny_run(tmp_path, adversarial_weight=0.1, optimiser=still, discriminator_optimiser=fast, steps=100)
    run = replace(run, discriminator_width=8, discriminator_start=0, validate_every=0, checkpoint_every=100)
    train_tokenizer(run, tokenizer=dull())
    assert "the discriminator has won" in capsys.readouterr().err


def dull() -> CausalConvTokenizer:
    """A tokenizer that shows the same grey whatever it is given, which a discriminator soon knows."""
    tokenizer = tiny_tokenizer()
    with torch.no_grad():
        for weight in tokenizer.decoder.conv_out.parameters():
            weight.zero_()
    return tokenizer


def test_a_decoder_alone_trains_and_leaves_encoder_and_codebook_as_they_are(tmp_path: Path):
    tokenizer = tiny_tokenizer("vq", codes=16, channels=4)
    before = {name: value.clone() for name, value in tokenizer.state_dict().items()}
    run = tiny_run(tmp_path, freeze=("encoder", "bottleneck"), fit_statistics=False, ema_decay=0.0)
    train_tokenizer(run, tokenizer=tokenizer)
    changed = {name.split(".")[0] for name, value in tokenizer.state_dict().items() if not value.equal(before[name])}
    assert changed == {"decoder"}


# recipes


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_run_that_saves_loads_and_builds_its_critic(name: str, tmp_path: Path):
    data = DataConfig(height=320, width=320)  # large enough for all sides
    run = TokenizerRun(preset="base-vq", output_dir=tmp_path, data=data, recipe=name, perceptual_weights=tmp_path)
    resolved = with_recipe(run)
    for field, value in RECIPES[name].values.items():
        assert getattr(resolved, field) == value
    for field, value in RECIPES[name].data.items():
        assert getattr(resolved.data, field) == (320 if field in ("height", "width") else value)
    assert with_recipe(resolved) == resolved
    resolved.save(tmp_path / "run.json")
    assert TokenizerRun.load(tmp_path / "run.json") == resolved
    assert json.loads((tmp_path / "run.json").read_text())["recipe"] == name
    critic = build_critic(replace(resolved, perceptual_weight=0.0, perceptual_weights=None))
    assert critic is not None
    assert critic.faithful.pixels == "l1"
    assert (critic.adversary is not None) == (resolved.adversarial_weight > 0)


def test_stages_and_frame_rates_are_lines_of_recipes(tmp_path: Path):
    """Small frames with the whole model, then larger ones with the decoder alone; images, video, resolutions."""
    runs = {
        name: with_recipe(
            TokenizerRun(
                preset="base-vq",
                output_dir=tmp_path,
                recipe=name,
                data=DataConfig(height=320, width=320) if name.startswith("omni") else DataConfig(),
                recipe_without=("perceptual_weight",),
            )
        )
        for name in ("vidtok", "vidtok-decoder", "omnitokenizer-progressive", "larp")
    }
    first, second = runs["vidtok"], runs["vidtok-decoder"]
    assert (first.data.height, first.data.fps, first.freeze) == (128, 3.0, ())
    assert (second.data.height, second.data.fps, second.freeze) == (256, 3.0, ("tokens",))
    progressive = runs["omnitokenizer-progressive"]
    assert 0 < progressive.images_until < progressive.sides_from < progressive.steps
    assert 0 < progressive.image_share < 1
    assert (runs["larp"].data.num_frames, runs["larp"].data.height) == (16, 128)


def test_what_the_user_says_wins_over_the_recipe(tmp_path: Path):
    run = TokenizerRun(
        preset="base-vq", output_dir=tmp_path, recipe="vidtok", adversarial_weight=0.7,
        recipe_without=("perceptual_weight", "lecam_weight", "fps"), data=DataConfig(num_frames=9),
    )  # fmt: skip
    resolved = with_recipe(run)
    assert (resolved.adversarial_weight, resolved.perceptual_weight, resolved.lecam_weight) == (0.7, 0.0, 0.0)
    assert resolved.learned_variance
    assert (resolved.data.num_frames, resolved.data.height, resolved.data.fps) == (9, 128, 8.0)


def test_one_option_of_an_optimiser_leaves_the_rest_of_it_to_the_recipe(tmp_path: Path):
    run = TokenizerRun(preset="base-vq", output_dir=tmp_path, recipe="vidtok", recipe_without=("perceptual_weight",))
    theirs = with_recipe(run)
    changed = replace(
        run,
        optimiser=replace(run.optimiser, warmup_steps=500),
        discriminator_optimiser=replace(run.discriminator_optimiser, learning_rate=2e-5),
    )
    resolved = with_recipe(changed)
    assert resolved.optimiser == replace(theirs.optimiser, warmup_steps=500)
    assert resolved.optimiser.learning_rate == 1e-5
    assert resolved.discriminator_optimiser == replace(theirs.discriminator_optimiser, learning_rate=2e-5)
    assert with_recipe(resolved) == resolved
    alone = with_recipe(replace(changed, recipe_without=("perceptual_weight", "optimiser")))
    assert alone.optimiser == changed.optimiser


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "vidtock"}, "there is no recipe 'vidtock'; there are: vidtok"),
        ({"recipe": "vidtok"}, "--recipe-without perceptual_weight"),
        ({"recipe": "omnitokenizer", "recipe_without": ("perceptual_weight",)}, "clips are only scaled down"),
        ({"recipe": "larp", "recipe_without": ("perceptual-weight",)}, "no 'perceptual-weight' to leave out; it has: "),
    ],
)
def test_a_recipe_that_cannot_be_taken_says_what_to_do(options: dict, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        with_recipe(TokenizerRun(preset="base-vq", output_dir=tmp_path, **options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r1_weight": 1.0}, "set --adversarial-weight above 0"),
        ({"feature_weight": 1.0}, "set --adversarial-weight above 0"),
        ({"frame_masking": 1.5}, "a share between 0 and 1"),
        ({"sides": (64, 128)}, "raise --height and --width"),
        ({"sides_from": 5}, "there are none: give --sides"),
        ({"discriminator_kind": "transformer", "discriminator_axes": "both"}, "a transformer judges whole clips"),
        ({"discriminator_kind": "transformer", "adversarial_weight": 1.0, "r1_weight": 1.0}, "second derivative"),
        ({"discriminator_every": 0}, "above 0"),
        ({"switch_ema_every": 5, "ema_decay": 0.0}, "set --ema-decay"),
        ({"distillation_weight": -1.0}, "0 or more"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        TokenizerRun(preset="base-vq", output_dir=tmp_path, **options)
