"""Do the parts that some published networks have and others lack do what they are there for?"""

from typing import Any

import pytest
import torch
from test_pipelines import TEXT, distance, latents_of
from tiny_models import SIZE, SPECS, random_latents, shake, tokenizer

from vidgen.conditioning import Condition, WordTextEncoder, edges
from vidgen.generators import DiffusionTransformer, MaskedTransformer
from vidgen.kernels import AttentionSpec
from vidgen.latents import LatentPart, LatentSpec
from vidgen.nn.joint_transformer import SingleStreamBlock, joint_mask
from vidgen.nn.mixers import LinearCostMixer, ScanAndWindow, review_tokens
from vidgen.nn.positions import rotary
from vidgen.nn.random import seeded
from vidgen.nn.transformer import ModulatedBlock
from vidgen.pipelines.masked_presets import MASKED_PRESETS


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def turns(tokens: int, channels: int) -> Any:
    return rotary(torch.arange(tokens * 3).view(tokens, 3).float(), channels)


# ------------------------------------------------------------------------------------------------- sandwich norm (STIV)


@torch.no_grad()
@pytest.mark.parametrize("sandwich", [True, False])
def test_a_sandwich_norm_alone_does_not_hear_how_loud_a_layer_is(sandwich):
    torch.manual_seed(0)
    block = ModulatedBlock(24, 2, sandwich=sandwich, cross=False).eval()
    shake(block)
    told = (noise(2, 3, 24), torch.ones(2, 3, dtype=torch.bool), noise(2, 1, 6, 24, seed=1))
    before = block(noise(2, 5, 24), *told, AttentionSpec.sequence(5), turns(5, 12))
    for layer in (block.attn.to_out, block.ff.to_out):
        layer.weight.mul_(8.0)
        layer.bias.mul_(8.0)
    after = block(noise(2, 5, 24), *told, AttentionSpec.sequence(5), turns(5, 12))
    assert (distance(after, before) <= 1e-3) == sandwich


# ---------------------------------------------------------------------------------- one stream after two (Flux's class)


def stream(seed: int = 0) -> SingleStreamBlock:
    torch.manual_seed(seed)
    return SingleStreamBlock(24, 2).eval()


@torch.no_grad()
def test_a_fresh_single_stream_block_changes_nothing_and_a_shaken_one_lets_both_sides_hear_each_other():
    block, x, text, level = stream(), noise(1, 5, 24), noise(1, 3, 24, seed=1), noise(1, 1, 24, seed=2)
    mask = joint_mask(torch.tensor([[True, True, False]]), 5)
    video, states = block(x, text, mask, level, level, turns(5, 12))
    assert torch.equal(video, x)
    assert torch.equal(states, text)
    shake(block)
    video, states = block(x, text, mask, level, level, turns(5, 12))
    louder, other = text.clone(), x.clone()
    louder[:, 1] = noise(24, seed=5)
    other[:, 4] = noise(24, seed=6)
    assert distance(block(x, louder, mask, level, level, turns(5, 12))[0], video) > 1e-4
    assert distance(block(other, text, mask, level, level, turns(5, 12))[1], states) > 1e-4
    unseen = text.clone()
    unseen[:, 2] = noise(24, seed=5)
    assert distance(block(x, unseen, mask, level, level, turns(5, 12))[0], video) <= 1e-6


@torch.no_grad()
def test_in_one_stream_too_a_token_hears_the_text_of_its_own_scene_alone():
    block, x, text, level = stream(), noise(1, 4, 24), noise(1, 2, 24, seed=1), noise(1, 1, 24, seed=2)
    shake(block)
    scenes = torch.tensor([[[True, False], [True, False], [False, True], [False, True]]])
    told = (joint_mask(scenes, 4), level, level, turns(4, 12))
    before, louder = block(x, text, *told)[0], text.clone()
    louder[:, 1] = noise(24, seed=5)
    changed = (block(x, louder, *told)[0] - before).abs().amax(dim=(0, 2)) > 1e-6
    assert changed.tolist() == [False, False, True, True]


def test_single_stream_blocks_and_sandwich_norms_have_their_place():
    spec = SPECS["grid of reals"].to_json()
    with pytest.raises(ValueError, match="single_layers follow joint text streams; use text_path 'joint'"):
        DiffusionTransformer(spec, width=24, layers=1, heads=2, single_layers=1)
    with pytest.raises(ValueError, match="sandwich_norm belongs to blocks of one stream"):
        DiffusionTransformer(spec, width=24, layers=1, heads=2, text_path="joint", sandwich_norm=True)


# ---------------------------------------------------------------------------------------------- review tokens (LinGen)


def test_review_tokens_are_means_of_coarse_cells_and_never_more_than_there_are_tokens():
    x = noise(2, 4 * 4 * 6, 8)
    whole = review_tokens(x, (4, 4, 6), (1, 1, 1))
    assert torch.allclose(whole, x.mean(dim=1, keepdim=True), atol=1e-6)
    halves = review_tokens(x, (4, 4, 6), (2, 1, 1))
    assert torch.allclose(halves[:, 0], x[:, :48].mean(dim=1), atol=1e-6)
    assert torch.equal(review_tokens(x, (4, 4, 6), (9, 9, 9)), x)
    assert review_tokens(x[:, :30], (1, 5, 6), (4, 2, 4)).shape == (2, 8, 8)


def test_a_scan_that_has_seen_everything_first_gives_each_token_its_place_again():
    torch.manual_seed(0)
    mixer, grid = LinearCostMixer(24, 2), (3, 2, 3)
    x = noise(1, 18, 24).requires_grad_()
    windows = AttentionSpec.swin3d(grid, (1, 1, 1))
    outputs = [mixer(x, ScanAndWindow(grid, layer, windows, (1, 1, 1)), turns(18, 12)) for layer in range(4)]
    for output in outputs:  # the scan forgets what is far, so a token weighs most in its own place
        reach = torch.stack(
            [torch.autograd.grad(output[0, i].sum(), x, retain_graph=True)[0][0].norm(dim=-1) for i in (0, 7)]
        )
        assert reach.argmax(dim=1).tolist() == [0, 7]
    plain = mixer(x, ScanAndWindow(grid, 0, windows), turns(18, 12))
    assert distance(outputs[0], plain) > 1e-6


# ----------------------------------------------------------------------------------------------- actions (MaskViT)


def acting(spec: LatentSpec, **config: Any) -> MaskedTransformer:
    torch.manual_seed(0)
    network = MaskedTransformer(spec.to_json(), text_width=8, width=24, layers=1, heads=2, action_channels=3, **config)
    return network


LONE_FIRST = LatentSpec(
    (LatentPart("grid", "thw", (2, 4, 4), 3, (32,), first_frame_alone=True),), causal=True, streamable=True
)


@torch.no_grad()
@pytest.mark.parametrize(
    ("spec", "frame", "row"),
    [
        *((SPECS["grid of ids"], frame, row) for frame, row in ((0, 0), (1, 0), (2, 1), (3, 1))),
        *((LONE_FIRST, frame, row) for frame, row in ((0, 0), (1, 1), (2, 1), (3, 2))),
    ],
)
def test_an_action_is_told_to_the_tokens_of_its_frame(spec, frame, row):
    network, latents = acting(spec), random_latents(spec, batch=1)
    shake(network)
    nothing = Condition(torch.zeros(1, 0, 8), torch.zeros(1, 0, dtype=torch.bool))
    coordinates, masked = spec.coordinates(SIZE), torch.zeros(latents.ids.shape[:2], dtype=torch.bool)
    rows = []
    for amount in (0.0, 1.0):
        actions = noise(1, 4, 3)
        actions[:, frame] += amount
        inputs = network.condition_inputs(network.with_actions(nothing, actions), coordinates)
        rows.append(network(latents.ids, masked, coordinates, **inputs))
    changed = (rows[1] - rows[0]).abs().amax(dim=(0, 2)) > 1e-6
    assert changed.view(-1, 4).all(dim=1).nonzero().flatten().tolist() == [row]
    assert changed.sum() == 4


def test_actions_need_parts_that_count_time_alike():
    grid, lone = SPECS["grid of ids"].parts[0], LONE_FIRST.parts[0]
    with pytest.raises(ValueError, match="actions need parts of one stride in time"):
        acting(LatentSpec((grid, lone), causal=False, streamable=False))
    still = LatentPart("still", "hw", (4, 4), 3, (32,))
    network = acting(LatentSpec((still, lone), causal=False, streamable=False))
    assert (network.action_embedding.stride, network.action_embedding.first_alone) == (2, True)


def test_what_actions_do_is_learned():
    network = acting(SPECS["grid of ids"])
    actions = noise(8, 4, 3).sign()
    latents = random_latents(SPECS["grid of ids"], batch=8)
    latents.ids[:] = (actions[:, ::2, 0] > 0).long().repeat_interleave(4, dim=1).unsqueeze(-1)
    text = Condition(torch.zeros(8, 1, 8), torch.zeros(8, 1, dtype=torch.bool))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)

    def loss(told: torch.Tensor) -> torch.Tensor:
        losses = network.losses(latents, network.with_actions(text, told), generators=seeded(range(8)))
        return torch.stack(list(losses.values())).sum()

    for _ in range(40):
        optimizer.zero_grad()
        loss(actions).backward()
        optimizer.step()
    with torch.no_grad():
        assert loss(actions) < 0.5 * loss(-actions)


def masked_preset(name: str) -> Any:
    torch.manual_seed(0)
    text_encoder = WordTextEncoder(width=16, layers=1, heads=2, buckets=64)
    pipe = MASKED_PRESETS[name].tiny().build(tokenizer("kl"), text_encoder)
    shake(pipe.transformer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_call_takes_actions_and_refuses_those_that_do_not_fit():
    pipe = masked_preset("maskvit")
    still, moved = (latents_of(pipe, actions=torch.full((1, 5, 4), amount)).tokens for amount in (0.0, 2.0))
    assert distance(still, moved) > 1e-4
    timeline = [(0, TEXT), (3, "a blue star")]
    assert latents_of(pipe, prompt=timeline, actions=torch.zeros(1, 5, 4)).tokens.isfinite().all()
    with pytest.raises(ValueError, match=r"actions must be `1 5 a`, got \(1, 4, 4\)"):
        latents_of(pipe, actions=torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match=r"actions must be `b t 4`, got \(1, 5, 3\)"):
        latents_of(pipe, actions=torch.zeros(1, 5, 3))
    with pytest.raises(ValueError, match="takes no actions; build it with action_channels"):
        latents_of(masked_preset("phenaki"), actions=torch.zeros(1, 5, 4))


# --------------------------------------------------------------------------------------------------- edges (MaskINT)


def test_a_preset_between_key_frames_follows_edges():
    pipe, video = masked_preset("maskint"), noise(1, 3, 5, 16, 16).clamp(-1, 1)
    assert distance(latents_of(pipe, control_video=edges(video)).tokens, latents_of(pipe).tokens) > 1e-4
