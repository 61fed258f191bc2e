"""Do the layouts, text paths and objectives of the diffusion transformer do what their papers say?"""

import json
import math

import pytest
import torch
from tiny_models import shake
from torch import Tensor

from vidgen.conditioning import Condition
from vidgen.eval.flops import count_flops
from vidgen.generators import DiffusionTransformer
from vidgen.generators.layouts import LAYOUTS, layout_named
from vidgen.kernels import AttentionSpec
from vidgen.latents import LatentPart, Latents, LatentSpec
from vidgen.nn.joint_transformer import joint_mask
from vidgen.nn.random import randn, seeded
from vidgen.schedulers.objectives import DenoisingObjective, FlowObjective, shifted

SPEC = LatentSpec((LatentPart("grid", "thw", (1, 4, 4), 3),), causal=True, streamable=True)
SIZE = (6, 12, 20)  # 6×3×5 tokens: ragged for every window and patch below
TEXT_WIDTH = 12
OPTIONS = {
    "windows": {"window": [2, 2, 3]},
    "linear": {"window": [2, 2, 3]},
    "frame-causal": {"group": 2},
    "sequential": {"temporal_first": True},
}
each_layout = pytest.mark.parametrize("attention", LAYOUTS)


def transformer(attention: str = "full", **changes) -> DiffusionTransformer:
    torch.manual_seed(0)
    arguments = {"width": 24, "layers": 2, "heads": 2, "attention_options": OPTIONS.get(attention), **changes}
    built = DiffusionTransformer(SPEC.to_json(), TEXT_WIDTH, attention=attention, **arguments)
    shake(built)
    return built.eval()


def latents(size: tuple[int, int, int] = SIZE, *, batch: int = 2, seed: int = 0) -> Latents:
    shape = (batch, SPEC.num_tokens(size), SPEC.channels)
    return Latents(randn(shape, seeded(range(seed, seed + batch))), None, size, SPEC)


def text(batch: int = 2, *, length: int = 3, seed: int = 0) -> Condition:
    states = torch.randn(batch, length, TEXT_WIDTH, generator=torch.Generator().manual_seed(seed))
    return Condition(states, torch.ones(batch, length, dtype=torch.bool))


@torch.no_grad()
def output(
    model: DiffusionTransformer, tokens: Latents, condition: Condition, *, level: float | Tensor = 400.0
) -> Tensor:
    coordinates = SPEC.coordinates(tokens.size)
    timestep = level if isinstance(level, Tensor) else torch.full((len(tokens),), level)
    return model(tokens.tokens, timestep, coordinates, **model.condition_inputs(condition, coordinates))


def differs(one: Tensor, other: Tensor) -> Tensor:
    """`n` bool: the tokens whose outputs differ."""
    return (one - other).abs().amax(dim=(0, 2)) > 1e-6


def influence(model: DiffusionTransformer) -> Tensor:
    """`n n` bool: whose output (row) depends on which token (column); in double precision, for faint dependences."""
    model, tokens, condition = model.double(), latents(batch=1).to(torch.float64), text(1)
    condition.states = condition.states.double()
    plain, count = output(model, tokens, condition), tokens.tokens.shape[1]
    columns = []
    for index in range(count):
        changed = tokens.tokens.clone()
        changed[:, index] += 1.0
        said = output(model, Latents(changed, None, SIZE, SPEC), condition)
        columns.append((said - plain).abs().amax(dim=(0, 2)) > 1e-13)
    return torch.stack(columns, dim=1)


# ---------------------------------------------------------------------------------------------------------- layouts


@each_layout
def test_every_layout_trains_on_ragged_grids_and_comes_back_from_disk(attention, tmp_path):
    model, tokens = transformer(attention, patch=(1, 2, 2)), latents()
    loss = model.losses(tokens, text(), generators=seeded([0, 1]))["flow"]
    loss.backward()
    assert loss.isfinite()
    assert all(weight.grad is not None for name, weight in model.named_parameters() if "transformer_blocks" in name)
    model.save_pretrained(tmp_path)
    assert "attention" in json.loads((tmp_path / "config.json").read_text())
    loaded = DiffusionTransformer.from_pretrained(tmp_path)
    assert torch.equal(output(loaded, tokens, text()), output(model, tokens, text()))


@each_layout
def test_a_sample_does_not_depend_on_the_batch_in_any_layout(attention):
    model, tokens, condition = transformer(attention), latents(), text()
    alone = output(
        model, Latents(tokens.tokens[1:], None, SIZE, SPEC), Condition(condition.states[1:], condition.mask[1:])
    )
    assert (output(model, tokens, condition)[1:] - alone).abs().max() <= 1e-5


@pytest.mark.parametrize("attention", ["full", "interleaved", "late-fusion", "windows", "frame-causal"])
def test_one_layer_sees_exactly_its_pattern(attention):
    pattern = layout_named(attention, OPTIONS.get(attention)).pattern((6, 3, 5), 0, 1)
    assert torch.equal(influence(transformer(attention, layers=1)), pattern.dense_mask())


def test_half_of_the_heads_see_the_frame_and_the_others_the_place():
    seen = (
        AttentionSpec.factorised_spatial((6, 3, 5)).dense_mask()
        | AttentionSpec.factorised_temporal((6, 3, 5)).dense_mask()
    )
    assert torch.equal(influence(transformer("parallel-heads", layers=1)), seen)


@pytest.mark.parametrize(
    ("attention", "layers"), [("sequential", 1), ("interleaved", 2), ("late-fusion", 2), ("linear", 1)]
)
def test_factorised_and_linear_layouts_reach_every_token(attention, layers):
    assert influence(transformer(attention, layers=layers)).all()


def test_shifted_windows_join_what_windows_separate():
    parted = influence(transformer("windows", layers=2, attention_options={"window": [2, 2, 3], "shifted": False}))
    joined = influence(transformer("windows", layers=2))
    assert joined.sum() > parted.sum()


def test_later_frames_never_reach_earlier_ones_through_any_number_of_layers():
    seen = influence(transformer("frame-causal", layers=3))
    frame = torch.arange(90) // 15 // 2  # groups of two frames
    assert torch.equal(seen, frame[:, None] >= frame[None])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention": "spiral"}, "attention must be one of full, interleaved"),
        ({"attention": "windows", "attention_options": {"size": 3}}, "takes .'window', 'shifted'., got .'size'."),
        ({"attention": "windows", "text_path": "joint"}, "joint text streams need attention 'full'"),
        ({"text_path": "sideways"}, "text_path must be one of cross, joint, modulation"),
        ({"objective": "x0"}, "objective must be flow, epsilon or v_prediction"),
        (
            {"attention": "frame-causal", "attention_options": {"group": 2, "past_frames": 3}},
            "multiple of the 2 frames",
        ),
        ({"attention": "frame-causal", "attention_options": {"sink_frames": 1}}, "give past_frames as well"),
    ],
)
def test_contradictory_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DiffusionTransformer(SPEC.to_json(), TEXT_WIDTH, width=24, layers=1, heads=2, **changes)


@pytest.mark.parametrize("changes", [{"attention": "windows"}, {"level_frames": 1}])
def test_grid_only_options_are_refused_for_holistic_tokens(changes):
    holistic = LatentSpec((LatentPart("query", "", (), 4, count=6),), causal=False, streamable=False)
    with pytest.raises(ValueError, match="needs tokens on one thw grid"):
        DiffusionTransformer(holistic.to_json(), TEXT_WIDTH, width=24, layers=1, heads=2, **changes)


def cost_exponent(attention: str, options: dict | None = None) -> float:
    """Slope of log FLOPs over log tokens of the mixing layers, from 1,024 to 8,192 tokens."""
    layout = layout_named(attention, options)
    counts = []
    for frames in (4, 32):
        grid, tokens = (frames, 16, 16), frames * 256
        mixer, turns = layout.mixer(32, 2), (torch.ones(tokens, 8), torch.zeros(tokens, 8))
        with torch.no_grad(), count_flops() as counter:
            mixer(torch.randn(1, tokens, 32), layout.pattern(grid, 0, 1), turns)
        counts.append((math.log(tokens), math.log(counter.get_total_flops())))
    (first, few), (last, many) = counts
    return (many - few) / (last - first)


def test_the_linear_layout_costs_linearly_where_full_attention_costs_squarely():
    assert cost_exponent("linear", {"window": (8, 4, 4)}) < 1.05
    assert cost_exponent("full") > 1.7


# ------------------------------------------------------------------------------------------------------- text paths


@pytest.mark.parametrize("text_path", ["cross", "joint", "modulation"])
def test_text_counts_on_every_path_and_padding_and_dropped_text_do_not(text_path):
    model, tokens, condition = transformer(text_path=text_path), latents(), text()
    plain = output(model, tokens, condition)
    assert differs(plain, output(model, tokens, text(seed=1))).all()
    assert not differs(
        output(model, tokens, text().without_text()), output(model, tokens, text(seed=1).without_text())
    ).any()
    states = torch.cat([condition.states, 9 * torch.ones(2, 2, TEXT_WIDTH)], dim=1)
    mask = torch.cat([condition.mask, torch.zeros(2, 2, dtype=torch.bool)], dim=1)
    assert (output(model, tokens, Condition(states, mask)) - plain).abs().max() <= 1e-5


@pytest.mark.parametrize("text_path", ["cross", "modulation"])
def test_a_timeline_parts_the_frames_of_two_prompts(text_path):
    """One layer within frames: a frame hears its own prompt alone."""
    model, tokens, condition = transformer("interleaved", layers=1, text_path=text_path), latents(), text(length=2)
    frames = torch.tensor([[[0, 3], [3, 6]]]).expand(2, -1, -1)
    second = condition.states.clone()
    second[:, 1] += 1.0
    one = output(model, tokens, Condition(condition.states, condition.mask, frames))
    other = output(model, tokens, Condition(second, condition.mask, frames))
    assert torch.equal(differs(one, other), torch.arange(90) >= 45)


@pytest.mark.parametrize("text_path", ["cross", "joint", "modulation"])
def test_a_bias_of_minus_infinity_is_a_mask_and_a_finite_one_shifts_attention(text_path):
    model, tokens, condition = transformer(text_path=text_path), latents(), text()
    mask = torch.tensor([True, False, True]).expand(2, 90, 3).clone()
    mask[:, 45:, 0] = False

    def said(attend: Tensor) -> Tensor:
        inputs = {"encoder_hidden_states": condition.states, "encoder_attention_mask": attend}
        with torch.no_grad():
            return model(tokens.tokens, torch.full((2,), 400.0), SPEC.coordinates(SIZE), **inputs)

    bias = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    assert (said(bias) - said(mask)).abs().max() <= 1e-6
    shift = bias.clone()
    shift[:, :, 2] += 1.0
    assert differs(said(shift), said(bias)).all()


def test_joint_states_hear_only_states_of_their_own_scene():
    mask = torch.zeros(1, 4, 3, dtype=torch.bool)
    mask[0, :2, 0] = mask[0, 2:, 1] = True  # the third state is padding
    seen = joint_mask(mask, 4)[0, 0]
    assert seen[:3, :3].tolist() == torch.eye(3, dtype=torch.bool).tolist()
    assert torch.equal(seen[:3, 3:], mask[0].T)
    assert seen[3:, 3:].all()
    assert torch.equal(seen[3:, :3], mask[0])


def test_the_class_only_model_has_no_cross_attention_and_adaln_zero_a_map_in_each_block():
    names = dict(transformer(text_path="modulation", shared_modulation=False).named_parameters())
    assert not any("cross" in name for name in names)
    assert names["transformer_blocks.1.to_modulation.weight"].shape == (6 * 24, 24)
    assert "to_modulation.weight" not in names


@pytest.mark.parametrize("changes", [{"text_path": "joint"}, {"shared_modulation": False}, {"attention": "linear"}])
def test_fresh_transformers_of_every_kind_of_block_say_nothing(changes):
    model = DiffusionTransformer(SPEC.to_json(), TEXT_WIDTH, width=24, layers=2, heads=2, **changes)
    assert not output(model, latents(), text()).any()


# ------------------------------------------------------------------------------------------------------- objectives


@pytest.mark.parametrize("objective", ["flow", "epsilon", "v_prediction"])
def test_the_target_is_of_the_noise_that_was_added(objective):
    """From noisy tokens and the target the clean tokens follow, at each token's own level."""
    model, clean = transformer(objective=objective), latents().tokens
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(5))
    aim = model.training_objective
    timestep = aim.timesteps(torch.randn(2, 90, generator=torch.Generator().manual_seed(6)), tokens=90)
    noisy, target = aim.noisy(clean, noise, timestep), aim.target(clean, noise, timestep)
    if isinstance(aim, FlowObjective):
        back = noisy - timestep.unsqueeze(-1) / 1000 * target
    else:
        assert isinstance(aim, DenoisingObjective)
        of_clean, of_noise = aim.amplitudes(timestep)
        back = of_clean * noisy - of_noise * target
        if objective == "epsilon":
            back = (noisy - of_noise * target) / of_clean
    visible = timestep < 800  # dividing by the clean share of nearly pure noise loses digits
    assert (back - clean)[visible].abs().max() < 1e-3


def test_levels_are_shifted_by_the_root_of_the_number_of_tokens():
    aim = FlowObjective(shift_base_tokens=256)
    assert aim.shift(1024) == 2.0
    draws = torch.tensor([-1.0, 0.0, 1.0])
    assert torch.allclose(aim.timesteps(draws, tokens=1024), 1000 * shifted(torch.sigmoid(draws), 2.0))
    assert shifted(torch.tensor([0.0, 0.5, 1.0]), 3.0).tolist() == [0.0, 0.75, 1.0]
    assert torch.equal(aim.timesteps(draws, tokens=256), FlowObjective().timesteps(draws, tokens=256))


def test_ddpm_times_are_uniform():
    aim = DenoisingObjective("epsilon", {})
    times = aim.timesteps(torch.randn(20_000, generator=torch.Generator().manual_seed(0)), tokens=1)
    assert times.min() >= 0
    assert times.max() <= 999
    assert (torch.histc(times.float(), 10, 0, 1000) / 2000 - 1).abs().max() < 0.1


def test_training_can_draw_a_noise_level_for_each_group_of_frames():
    levels = transformer(level_frames=2).random_timesteps(latents(), seeded([0, 1]))
    by_frame = levels.view(2, 6, 15)
    assert (by_frame == by_frame[:, :, :1]).all()
    assert torch.equal(by_frame[:, 0::2], by_frame[:, 1::2])
    assert by_frame[0, :, 0].unique().numel() == 3
    assert transformer().random_timesteps(latents(), seeded([0, 1])).shape == (2, 1)
