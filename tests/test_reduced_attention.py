"""Is attention on fewer tokens the full one where it leaves out none, and near it where it does?"""

import pytest
import torch
from test_diffusion_sampling import pipeline, tokens
from tiny_models import clip
from torch import Tensor, nn

from vidgen.generators import DiffusionTransformer
from vidgen.latents import LatentPart, LatentSpec
from vidgen.nn import reduced_attention
from vidgen.nn.reduced_attention import ReductionRun, TokenReduction

SIZE = {"num_frames": 13, "height": 16, "width": 24}  # 4x1x3 tokens of the transformer
JOINT = {"text_path": "joint"}
HALF = TokenReduction(query=0.5, key=0.5, every=2)


@pytest.fixture
def matched(monkeypatch) -> list[int]:
    """How many tokens each matching saw."""
    seen = []
    whole = reduced_attention.match

    def watched(x: Tensor, *rest, **named):
        seen.append(x.shape[2])
        return whole(x, *rest, **named)

    monkeypatch.setattr(reduced_attention, "match", watched)
    return seen


@pytest.mark.parametrize("changes", [{}, JOINT, {"shared_modulation": False}])
def test_ratio_zero_is_the_full_computation_bit_for_bit(changes, matched):
    pipe = pipeline(**changes)
    full = tokens(pipe, **SIZE)
    assert torch.equal(tokens(pipe, **SIZE, token_reduction=TokenReduction()), full)
    elsewhere = TokenReduction(query=0.5, key=0.5, blocks=())
    assert torch.equal(tokens(pipe, **SIZE, token_reduction=elsewhere), full)
    assert not matched
    assert not torch.equal(tokens(pipe, **SIZE, token_reduction=HALF), full)
    assert torch.equal(tokens(pipe, **SIZE), full), "no state is left over"


@pytest.mark.parametrize("changes", [{}, JOINT])
def test_more_tokens_left_out_are_further_from_the_full_result(changes):
    pipe = pipeline(**changes)
    full = tokens(pipe, **SIZE)
    errors = []
    for ratio in (0.1, 0.5):
        made = tokens(pipe, **SIZE, token_reduction=TokenReduction(query=ratio, key=ratio))
        assert made.isfinite().all()
        errors.append((made - full).square().mean())
    assert 0 < errors[0] < errors[1] < full.square().mean()


@pytest.mark.parametrize("changes", [{}, JOINT])
def test_a_samples_noise_and_result_do_not_depend_on_its_batch(changes):
    pipe = pipeline(**changes)
    alone = tokens(pipe, **SIZE, token_reduction=HALF)
    both = tokens(pipe, prompt=["a red circle", "a blue star"], **SIZE, token_reduction=HALF)
    assert (both[:1] - alone).abs().max() <= 1e-3 * alone.abs().max()


def test_queries_and_keys_have_ratios_of_their_own_for_each_block_and_step():
    pipe, widths = pipeline(), []
    attend = nn.functional.scaled_dot_product_attention

    def watched(q: Tensor, k: Tensor, v: Tensor, attn_mask=None) -> Tensor:
        widths.append((q.shape[2], k.shape[2]))
        return attend(q, k, v, attn_mask=attn_mask)

    reduction = TokenReduction(
        query=lambda block, level: 0.25 if level > 0.6 else 0.5, key=lambda block, level: 0.25 * block, blocks=(0, 1)
    )
    # one call of the patched function is one reduced attention: cross-attention has another reference to it
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reduced_attention, "F", type("Watched", (), {"scaled_dot_product_attention": watched}))
        tokens(pipe, **SIZE, guidance_scale=1.0, token_reduction=reduction)
    assert widths == [(9, 12), (9, 9)] * 2 + [(6, 12), (6, 9)] * 2  # noise levels 1, 0.75, 0.5, 0.25


def test_a_matching_serves_several_steps_and_each_branch_of_guidance_has_its_own(matched):
    pipe = pipeline()
    tokens(pipe, **SIZE, num_inference_steps=6, token_reduction=TokenReduction(query=0.5, key=0.5, every=3))
    blocks, sides, branches, matchings = 3, 2, 2, 2
    assert len(matched) == blocks * sides * branches * matchings
    matched.clear()
    tokens(pipe, **SIZE, token_reduction=TokenReduction(query=0.5, levels=(0.9, 1.0)), guidance_scale=1.0)
    assert len(matched) == blocks


def test_text_states_of_a_joint_attention_always_stay(matched):
    pipe = pipeline(**JOINT)
    timeline = [(0, "a red circle"), (8, "a blue star")]  # which tokens see which states differs
    made = tokens(pipe, prompt=timeline, **SIZE, token_reduction=HALF)
    assert made.isfinite().all()
    assert min(matched) > 12, "text and video tokens are matched in one sequence"
    q = torch.randn(2, 2, 3 + 12, 8)
    mask = torch.ones(2, 1, 15, 15, dtype=torch.bool)
    mask[0, :, :, 0] = False  # the first state of the first sample is seen by none
    run = ReductionRun(TokenReduction(query=0.5, key=0.5, cell=(2, 1, 3)))
    attention = run.in_block(0, (4, 1, 3))
    assert attention is not None
    hidden = torch.zeros(2, 2, 15, 8)
    hidden[0, :, 0] = 1e4
    assert attention.attend(q, q, hidden, mask)[0].abs().max() == 0
    assert attention.attend(q, q, hidden)[0].abs().min() > 0


def test_repeated_frames_lose_nothing():
    """Keys that are twins of a kept one weigh the same for every query, and queries that are twins ask the same."""
    frame = torch.randn(1, 2, 1, 9, 8)
    x = frame.expand(-1, -1, 4, -1, -1).flatten(2, 3)
    run = ReductionRun(TokenReduction(query=0.75, key=0.75, cell=(4, 1, 1)))
    attention = run.in_block(0, (4, 3, 3))
    assert attention is not None
    assert torch.allclose(attention.attend(x, x, x), nn.functional.scaled_dot_product_attention(x, x, x), atol=1e-5)


def test_known_frames_are_kept_beside_a_reduction():
    pipe, video = pipeline(), clip(1, 16, 24)
    made = tokens(pipe, video=video, **SIZE, token_reduction=HALF)
    given = pipe.video_tokenizer.encode(video).tokens
    assert torch.allclose(made[:, : given.shape[1]], given, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": 1.0}, "share of tokens to leave out"),
        ({"key": -0.1}, "share of tokens to leave out"),
        ({"every": 0}, "at least 1"),
        ({"levels": (0.5, 0.5)}, "two noise levels"),
        ({"cell": (2, 0, 2)}, "at least 1 token along each axis"),
    ],
)
def test_impossible_reductions_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TokenReduction(**changes)


def test_a_ratio_that_the_cells_do_not_allow_says_what_they_do():
    with pytest.raises(ValueError, match="would drop 11 of 12 tokens"):
        tokens(pipeline(), **SIZE, token_reduction=TokenReduction(query=0.95))


@pytest.mark.parametrize("attention", ["windows", "interleaved", "frame-causal", "linear"])
def test_layouts_that_do_not_see_everything_cannot_leave_tokens_out(attention):
    with pytest.raises(ValueError, match=f"needs attention 'full' .* has attention '{attention}'"):
        tokens(pipeline(attention=attention), token_reduction=HALF)


def test_tokens_without_a_grid_cannot_be_left_out():
    spec = LatentSpec((LatentPart("query", "", (), 4, count=6),), causal=False, streamable=False)
    network = DiffusionTransformer(spec.to_json(), 16, width=32, layers=1, heads=2)
    coordinates = spec.coordinates((4, 8, 8))
    told = (torch.zeros(1, 1, 16), torch.ones(1, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match="tokens on one thw grid"):
        network(torch.zeros(1, 6, 4), torch.zeros(1), coordinates, *told, reduction=ReductionRun(HALF))
