"""Do samplers, guidance, chunks with a cache of clean frames, and diffusers' step caches work on our transformer?"""

import math
from typing import Any

import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance, ClassifierFreeZeroStarGuidance
from diffusers.hooks import (
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler
from tiny_models import clip, shake, tokenizer
from torch import Tensor

from vidgen.conditioning import TokenState, WordTextEncoder
from vidgen.generators import DiffusionTransformer
from vidgen.latents import Latents
from vidgen.nn.random import randn, seeded
from vidgen.pipelines import DiffusionVideoPipeline
from vidgen.schedulers.guidance import Cosine, Guidance, Oscillating, best_fit, rescaled

TEXT = "a red circle"
FRAMES = 13  # four latent frames
CHUNKED = {"num_frames": FRAMES, "chunk_frames": 1}


def pipeline(scheduler: Any = None, *, bottleneck: str = "kl", **changes) -> DiffusionVideoPipeline:
    """Small, with every weight awake."""
    video_tokenizer = tokenizer(bottleneck)
    torch.manual_seed(0)
    text = WordTextEncoder(width=16, layers=1, heads=2, buckets=64).eval()
    arguments = {"width": 32, "layers": 3, "heads": 2, "patch": (1, 2, 1), **changes}
    network = DiffusionTransformer(video_tokenizer.spec.to_json(), 16, **arguments)
    shake(network)
    built = DiffusionVideoPipeline(
        video_tokenizer,
        text,
        network.eval(),
        scheduler or FlowMatchEulerDiscreteScheduler(),
        {"num_frames": 5, "height": 16, "width": 24, "num_inference_steps": 4, "guidance_scale": 3.0},
    )
    built.set_progress_bar_config(disable=True)
    return built


def sample(pipe: DiffusionVideoPipeline, **changes) -> Latents:
    call = {"prompt": TEXT, "generator": torch.Generator().manual_seed(0), "output_type": "latent", **changes}
    output: Any = pipe(**call)
    return output.frames


def tokens(pipe: DiffusionVideoPipeline, **changes) -> Tensor:
    return sample(pipe, **changes).tokens


# ------------------------------------------------------------------------------------------------------- schedulers

SAMPLERS = {
    "flow-euler": (lambda: FlowMatchEulerDiscreteScheduler(shift=3.0), "flow"),
    "flow-dpm++": (
        lambda: DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        "flow",
    ),
    "flow-unipc": (lambda: UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True), "flow"),
    "ddpm": (lambda: DDPMScheduler(), "epsilon"),
    "ddim": (lambda: DDIMScheduler(prediction_type="v_prediction"), "v_prediction"),
    "dpm++": (lambda: DPMSolverMultistepScheduler(), "epsilon"),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_of_diffusers_make_videos_whose_noise_belongs_to_the_sample(name):
    scheduler, objective = SAMPLERS[name]
    pipe = pipeline(scheduler(), objective=objective)
    alone = tokens(pipe)
    both = tokens(pipe, prompt=[TEXT, "a blue star"])
    assert alone.isfinite().all()
    assert (both[:1] - alone).abs().max() <= 1e-3 * alone.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_network_that_knows_the_answer_is_followed_to_it(name):
    """The one video that all noise leads to: the sampler and the objective mean the same numbers."""
    scheduler, objective = SAMPLERS[name]
    pipe = pipeline(scheduler(), objective=objective)
    aim = pipe.transformer.training_objective
    clean = randn((1, pipe.video_tokenizer.spec.num_tokens((5, 16, 24)), 4), seeded([9])).clamp(-1, 1)

    def answer(hidden_states: Tensor, timestep: Tensor, *rest: Any, **named: Any) -> Tensor:
        timestep = timestep[:, None].float()
        without_noise = aim.noisy(clean, torch.zeros_like(clean), timestep)
        loudness = aim.noisy(torch.zeros_like(clean), torch.ones_like(clean), timestep)
        noise = (hidden_states - without_noise) / loudness.clamp(min=1e-3)
        return aim.target(clean, noise, timestep)

    pipe.transformer.forward = answer
    assert (tokens(pipe, num_inference_steps=20, guidance_scale=1.0) - clean).abs().max() < 0.05


def test_a_sampler_for_another_prediction_is_refused():
    with pytest.raises(ValueError, match=r"the transformer predicts epsilon, but .* expects flow_prediction"):
        pipeline(objective="epsilon")
    with pytest.raises(ValueError, match="predicts flow_prediction, but DDIMScheduler expects epsilon"):
        pipeline(DDIMScheduler())


def test_a_resolution_shift_of_training_moves_the_steps_of_sampling():
    pipe = pipeline(shift_base_tokens=3)
    seen = []
    sample(pipe, callback_on_step_end=lambda pipe, i, t, tensors: seen.append(float(t)) or tensors)
    levels = [1.0, 0.75, 0.5, 0.25]
    assert pipe.resolution_shift(12) == 2.0
    assert seen == pytest.approx([1000 * 2 * level / (1 + level) for level in levels])


# --------------------------------------------------------------------------------------------------------- guidance


def test_guidance_combines_branches_as_published():
    full, known, nothing = (randn((2, 6, 3), seeded([index, index + 10])) for index in range(3))
    both = {"full": full, "known": known}
    plain = known + 4.0 * (full - known)
    assert torch.equal(Guidance(scale=4.0).combine(both, 0.5, 0), plain)
    assert torch.equal(Guidance(scale=4.0, joint=True).combine({"full": full, "nothing": known}, 0.5, 0), plain)
    three = Guidance(scale=4.0, known_scale=2.0).combine({**both, "nothing": nothing}, 0.5, 0)
    assert torch.equal(three, nothing + 2.0 * (known - nothing) + 4.0 * (full - known))
    fit = best_fit(full, known)
    assert torch.allclose(((full - fit * known) * known).sum(dim=(1, 2)), torch.zeros(2), atol=1e-4)
    star = Guidance(scale=4.0, zero_star=True).combine(both, 0.5, 0)
    assert torch.allclose(star, fit * known + 4.0 * (full - fit * known))
    assert not Guidance(scale=4.0, zero_star=True, zero_steps=1).combine(both, 0.5, 0).any()
    assert torch.equal(Guidance(scale=4.0, zero_steps=1).combine(both, 0.5, 1), plain)
    back = Guidance(scale=4.0, rescale=1.0).combine(both, 0.5, 0)
    assert torch.allclose(back.std(dim=(1, 2)), full.std(dim=(1, 2)))
    assert torch.allclose(rescaled(plain, full, 0.7), 0.7 * back + 0.3 * plain)


@pytest.mark.parametrize("variant", [{"rescale": 0.7}, {"zero_star": True}])
def test_guidance_measures_the_tokens_that_are_made_alone(variant):
    full, known = (randn((2, 6, 3), seeded([index, index + 10])) for index in range(2))
    made = torch.tensor([[False, False, True, True, True, True]] * 2)
    guided = Guidance(scale=4.0, **variant).combine({"full": full, "known": known}, 0.5, 0, made=made)
    alone = Guidance(scale=4.0, **variant).combine({"full": full[:, 2:], "known": known[:, 2:]}, 0.5, 0)
    assert torch.allclose(guided[:, 2:], alone, atol=1e-6)


@pytest.mark.parametrize("variant", [{"rescale": 0.7}, {"zero_star": True}])
def test_what_is_predicted_at_known_tokens_has_no_part_in_guidance(variant):
    pipe, call = pipeline(), {"video": clip(1, 16, 24, seed=3), "guidance": Guidance(scale=3.0, **variant)}
    expected, forward = tokens(pipe, **call), pipe.transformer.forward

    def wrong_at_known(*arguments: Any, **named: Any) -> Tensor:
        says = forward(*arguments, **named)
        return torch.where((named["token_state"] == TokenState.KNOWN)[..., None], says + 5.0, says)

    pipe.transformer.forward = wrong_at_known
    assert torch.allclose(tokens(pipe, **call), expected, atol=1e-5)


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_plain_and_zero_star_guidance_are_those_of_diffusers(rescale):
    full, known = (randn((2, 6, 3), seeded([index, index + 10])) for index in range(2))
    theirs: dict[bool, Any] = {
        False: ClassifierFreeGuidance(guidance_scale=4.0, guidance_rescale=rescale),
        True: ClassifierFreeZeroStarGuidance(guidance_scale=4.0, zero_init_steps=0, guidance_rescale=rescale),
    }
    for zero_star, guider in theirs.items():
        guider.set_state(step=3, num_inference_steps=10, timestep=torch.tensor(500))
        ours = Guidance(scale=4.0, rescale=rescale, zero_star=zero_star).combine({"full": full, "known": known}, 0.5, 3)
        assert torch.allclose(guider.forward(full, known).pred, ours, atol=1e-5)


def test_guidance_asks_only_for_the_branches_that_a_step_needs():
    assert Guidance(scale=1.0).branches(0.5, 0) == ("full",)
    inside = Guidance(scale=3.0, interval=(0.2, 0.8))
    assert [inside.branches(level, 0) for level in (0.1, 0.5, 0.9)] == [("full",), ("full", "known"), ("full",)]
    assert Guidance(scale=3.0, joint=True).branches(0.5, 0) == ("full", "nothing")
    assert Guidance(scale=1.0, known_scale=2.0).branches(0.5, 0) == ("full", "known", "nothing")
    swings = Guidance(scale=Oscillating(7.5, after=2))
    assert [len(swings.branches(0.5, step)) for step in range(6)] == [2, 2, 2, 1, 2, 1]
    fades = Guidance(scale=Cosine(6.0, 2.0))
    assert [fades.scale_at(level, 0) for level in (1.0, 0.5, 0.0)] == pytest.approx([6.0, 4.0, 2.0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"interval": (0.5, 0.5)}, "two noise levels"),
        ({"rescale": 2.0}, "share between 0 and 1"),
        ({"joint": True, "known_scale": 2.0}, "give no known_scale"),
        ({"zero_star": True, "known_scale": 2.0}, "known_scale makes two; give one of them"),
        ({"zero_steps": -1}, "0 or more"),
    ],
)
def test_contradictory_guidance_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Guidance(**changes)


def test_steps_that_stand_still_are_for_flows_alone():
    pipe = pipeline(DDPMScheduler(), objective="epsilon")
    with pytest.raises(ValueError, match="zero_steps are for networks that predict a flow"):
        sample(pipe, guidance=Guidance(scale=3.0, zero_steps=1))


def test_the_pipeline_takes_guidance_in_place_of_a_scale():
    pipe = pipeline()
    assert torch.equal(tokens(pipe, guidance=Guidance(scale=3.0)), tokens(pipe))
    assert torch.equal(
        tokens(pipe, guidance=Guidance(scale=3.0, interval=(0.0, 0.1))), tokens(pipe, guidance_scale=1.0)
    )
    assert not torch.equal(tokens(pipe, guidance=Guidance(scale=3.0, zero_star=True)), tokens(pipe))
    with pytest.raises(ValueError, match="not both"):
        sample(pipe, guidance=Guidance(), guidance_scale=3.0)


@pytest.mark.parametrize("guidance", [Guidance(joint=True), Guidance(known_scale=1.5)])
def test_joint_and_separate_guidance_hear_the_known_frames_and_keep_them(guidance):
    pipe, video = pipeline(), clip(1, 16, 24)
    guided = sample(pipe, video=video, guidance=guidance)
    plain = sample(pipe, video=video)
    given = pipe.video_tokenizer.encode(video).tokens
    first = given.shape[1]
    assert torch.allclose(guided.tokens[:, :first], given, atol=1e-6)
    assert not torch.allclose(guided.tokens[:, first:], plain.tokens[:, first:])


def test_in_joint_guidance_the_unguided_branch_sees_known_tokens_as_noisy_as_the_others():
    pipe, video, seen = pipeline(), clip(1, 16, 24), []
    forward = pipe.transformer.forward

    def watched(hidden_states: Tensor, timestep: Tensor, *rest: Any, **named: Any) -> Tensor:
        if named["known_tokens"] is None:
            seen.append((hidden_states.clone(), float(timestep[0]) / 1000))
        return forward(hidden_states, timestep, *rest, **named)

    pipe.transformer.forward = watched
    noise = randn((1, 12, 4), seeded([4]))
    sample(pipe, video=video, guidance=Guidance(joint=True), latents=noise)
    given = pipe.video_tokenizer.encode(video).tokens
    first = given.shape[1]
    assert len(seen) == 4
    for noisy, level in seen:
        assert torch.allclose(noisy[:, :first], (1 - level) * given + level * noise[:, :first], atol=1e-5)


# ---------------------------------------------------------------------------------- chunks with clean frames cached


@torch.no_grad()
def recomputed(
    pipe: DiffusionVideoPipeline, noise: Tensor, *, frames: int, chunk: int, scale: float, steps: int
) -> Tensor:
    """The rollout without a cache: every step runs all frames so far, the clean ones at noise level 0."""
    text = pipe.text_encoder.encode([TEXT])
    spec, size = pipe.video_tokenizer.spec, (frames, 16, 24)
    coordinates, step = spec.coordinates(size), noise.shape[1] // spec.grid(size)[0] * chunk
    clean = noise[:, :0]
    for start in range(0, noise.shape[1], step):
        current = noise[:, start : start + step]
        pipe.scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
        for t in pipe.scheduler.timesteps:
            x = torch.cat([clean, current], dim=1)
            timestep = torch.full(x.shape[:2], float(t))
            timestep[:, :start] = 0
            said = [
                pipe.transformer(
                    x, timestep, coordinates[: x.shape[1]], text.states, mask, grid=(x.shape[1] // 6, 2, 3)
                )[:, start:]
                for mask in (text.mask, torch.zeros_like(text.mask))
            ]
            current = pipe.scheduler.step(said[1] + scale * (said[0] - said[1]), t, current, return_dict=False)[0]
        clean = torch.cat([clean, current], dim=1)
    return clean


@pytest.mark.parametrize(
    ("options", "chunk"),
    [
        ({}, 1),
        ({"group": 2}, 2),
        ({"group": 1}, 3),
        ({"past_frames": 1}, 1),
        ({"group": 2, "past_frames": 2, "sink_frames": 2}, 2),
    ],
)
def test_cached_chunks_are_the_recomputed_ones(options, chunk):
    frames = 29  # eight latent frames
    pipe = pipeline(attention="frame-causal", attention_options=options)
    noise = randn((1, pipe.video_tokenizer.spec.num_tokens((frames, 16, 24)), 4), seeded([3]))
    cached = tokens(pipe, num_frames=frames, chunk_frames=chunk, latents=noise)
    again = recomputed(pipe, noise, frames=frames, chunk=chunk, scale=3.0, steps=4)
    assert (cached - again).abs().max() <= 1e-4
    other = tokens(pipe, num_frames=frames, chunk_frames=chunk, latents=noise, guidance_scale=1.5)
    assert (other - again).abs().max() > 1e-3, "the test must be able to fail"


@torch.no_grad()
def test_memory_of_a_window_is_constant_however_long_the_video():
    options = {"group": 1, "past_frames": 2, "sink_frames": 1}
    pipe = pipeline(attention="frame-causal", attention_options=options)
    size = (41, 16, 24)
    cache = pipe.transformer.empty_cache(size)
    coordinates, text = pipe.video_tokenizer.spec.coordinates(size), pipe.text_encoder.encode([TEXT])
    held = []
    for start in range(0, len(coordinates), 6):
        inputs = {"encoder_hidden_states": text.states, "encoder_attention_mask": text.mask, "grid": (1, 2, 3)}
        pipe.remember(cache, torch.zeros(1, 6, 4), coordinates[start : start + 6], inputs)
        held.append(cache.frames)
    assert held == [1, 2, 3] + [3] * 8
    assert cache.layers[0].keys.shape[2] == 3 * cache.tokens_per_frame


def test_chunks_are_exact_where_patches_join_frames_too():
    pipe = pipeline(attention="frame-causal", patch=(2, 2, 1))
    noise = randn((1, pipe.video_tokenizer.spec.num_tokens((29, 16, 24)), 4), seeded([3]))
    cached = tokens(pipe, num_frames=29, chunk_frames=2, latents=noise)
    assert (cached - recomputed(pipe, noise, frames=29, chunk=2, scale=3.0, steps=4)).abs().max() <= 1e-4
    with pytest.raises(ValueError, match="multiple of the 2 frames"):
        sample(pipe, num_frames=29, chunk_frames=1)


def test_chunks_continue_a_known_clip_without_making_it_again():
    pipe = pipeline(attention="frame-causal")
    video, calls = clip(5, 16, 24), []
    forward = pipe.transformer.forward
    pipe.transformer.forward = lambda *a, **k: calls.append(k["cache"].storing) or forward(*a, **k)
    made = sample(pipe, video=video, guidance_scale=1.0, **CHUNKED)
    given = pipe.video_tokenizer.encode(video).tokens
    assert torch.allclose(made.tokens[:, : given.shape[1]], given, atol=1e-6)
    assert calls == [True, True] + [False] * 4 + [True] + [False] * 4


def test_chunks_need_causal_attention_and_whole_groups():
    with pytest.raises(ValueError, match="frame-causal"):
        sample(pipeline(), **CHUNKED)
    grouped = pipeline(attention="frame-causal", attention_options={"group": 2})
    with pytest.raises(ValueError, match="multiple of the 2 frames"):
        sample(grouped, **CHUNKED)


# ------------------------------------------------------------------------------------------------------ step caches

CACHES = {
    "first block": lambda pipe: FirstBlockCacheConfig(threshold=0.5),
    "attention broadcast": lambda pipe: PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        cross_attention_block_skip_range=3,
        spatial_attention_timestep_skip_range=(-1, 1001),
        cross_attention_timestep_skip_range=(-1, 1001),
        current_timestep_callback=lambda: pipe.current_timestep,
    ),
    "taylor": lambda pipe: TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=2),
    "magnitude": lambda pipe: MagCacheConfig(
        threshold=0.5, num_inference_steps=8, retention_ratio=0.1, mag_ratios=torch.ones(8)
    ),
}


@pytest.mark.parametrize("name", CACHES)
@pytest.mark.parametrize("changes", [{}, {"text_path": "joint"}, {"attention": "sequential"}])
def test_step_caches_skip_work_and_stay_near_the_full_result(name, changes):
    pipe, ran = pipeline(**changes), []
    last = pipe.transformer.transformer_blocks[-1]
    attention = last.attn.first if changes.get("attention") == "sequential" else last.attn
    attention.to_qkv.register_forward_hook(lambda *_: ran.append(1))
    full = tokens(pipe, num_inference_steps=8)
    whole, ran[:] = len(ran), []
    pipe.transformer.enable_cache(CACHES[name](pipe))
    cached = tokens(pipe, num_inference_steps=8)
    skipping, ran[:] = len(ran), []
    assert whole == 16
    assert skipping < whole
    assert 0 < (cached - full).abs().mean() < 0.5 * full.abs().mean()
    assert torch.equal(tokens(pipe, num_inference_steps=8), cached), "no state is left over from the last call"
    pipe.transformer.disable_cache()
    assert torch.equal(tokens(pipe, num_inference_steps=8), full)


@pytest.mark.parametrize("name", CACHES)
def test_candidates_are_judged_without_step_caches(name):
    pipe, seen = pipeline(), []
    judged = pipe.judged

    def remembered(latents: Latents, condition: Any) -> Tensor:
        seen.append((latents, condition, judged(latents, condition)))
        return seen[-1][2]

    pipe.judged = remembered
    pipe.transformer.enable_cache(CACHES[name](pipe))
    tokens(pipe, num_inference_steps=8, num_candidates=2)
    pipe.transformer.disable_cache()
    [(latents, condition, result)] = seen
    with torch.no_grad():
        assert torch.equal(judged(latents, condition), result)


def test_a_cache_of_clean_frames_is_never_filled_with_skipped_blocks():
    """With a threshold below all changes, the step cache skips nothing, and chunks are those without it."""
    pipe = pipeline(attention="frame-causal")
    plain = tokens(pipe, **CHUNKED)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    assert torch.equal(tokens(pipe, **CHUNKED), plain)
    pipe.transformer.disable_cache()
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=math.inf))
    assert tokens(pipe, **CHUNKED).isfinite().all()


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"text_path": "joint", "single_layers": 1},
        {"shared_modulation": False, "sandwich_norm": True},
        {"attention": "windows"},
        {"attention": "frame-causal"},
    ],
)
def test_repeated_blocks_compile_without_graph_breaks(changes):
    torch._dynamo.reset()
    pipe = pipeline(**changes)
    full = tokens(pipe, num_inference_steps=2)
    pipe.transformer.compile_repeated_blocks(fullgraph=True, dynamic=False, backend="aot_eager")
    assert (tokens(pipe, num_inference_steps=2) - full).abs().max() <= 1e-4
