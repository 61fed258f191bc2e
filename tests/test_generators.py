"""Do the three generators serve every kind of tokens, hear their conditions and hide what must be hidden?"""

import pytest
import torch
from tiny_models import SIZE, SPECS, random_latents, shake
from torch import Tensor

from vidgen.conditioning import Condition, TokenState
from vidgen.generators import AutoregressiveTransformer, DiffusionTransformer, Generator, MaskedTransformer
from vidgen.generators.base import token_weights
from vidgen.generators.embedding import LARGEST_TABLE, Digits, sub_codebooks
from vidgen.generators.heads import CategoricalHead, FlowHead
from vidgen.latents import LatentPart, Latents, LatentSpec
from vidgen.nn.random import seeded
from vidgen.schedulers import SamplingRule

KINDS = {"masked": MaskedTransformer, "diffusion": DiffusionTransformer, "autoregressive": AutoregressiveTransformer}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_spec = pytest.mark.parametrize("name", SPECS)
TEXT_WIDTH = 12


def generator(kind: str, name: str = "grid of ids", **changes) -> Generator:
    torch.manual_seed(0)
    built = KINDS[kind](
        latent_spec=SPECS[name].to_json(), text_width=TEXT_WIDTH, width=24, layers=2, heads=2, **changes
    )
    shake(built)
    return built.eval()


def condition(batch: int = 2, *, length: int = 3, seed: int = 0) -> Condition:
    states = torch.randn(batch, length, TEXT_WIDTH, generator=torch.Generator().manual_seed(seed))
    return Condition(states, torch.ones(batch, length, dtype=torch.bool))


def told(latents: Latents, state: Tensor | TokenState, text: Condition) -> Condition:
    """The condition with known tokens."""
    if isinstance(state, TokenState):
        state = torch.full(latents.tokens.shape[:2], int(state))
    return Condition(text.states, text.mask, text.frames, latents, state)


def tokens_of(latents: Latents) -> Tensor:
    return latents.tokens if latents.ids is None else latents.ids


@torch.no_grad()
def output(model: Generator, latents: Latents, text: Condition, *, masked: Tensor | None = None) -> Tensor:
    """The network's output at every token: half of the tokens are masked, or the noise level is 0.4."""
    coordinates = latents.spec.coordinates(latents.size)
    inputs = model.condition_inputs(text, coordinates)
    if isinstance(model, MaskedTransformer):
        hidden = tokens_of(latents)
        masked = torch.arange(hidden.shape[1]) % 2 == 0 if masked is None else masked
        return model(hidden, masked.expand(hidden.shape[:2]), coordinates, **inputs)
    if isinstance(model, DiffusionTransformer):
        return model(latents.tokens, torch.full((len(latents),), 400.0), coordinates, **inputs)
    return model(tokens_of(latents)[:, :-1], coordinates, **inputs)


def differs(one: Tensor, other: Tensor) -> Tensor:
    """`n` bool: the tokens whose outputs differ."""
    return (one - other).abs().amax(dim=(0, 2)) > 1e-6


# ------------------------------------------------------------------------------------------------ every kind of spec


@each_kind
@each_spec
def test_every_kind_of_tokens_gets_an_output_a_loss_and_gradients(kind, name):
    model, latents = generator(kind, name), random_latents(SPECS[name])
    out = output(model, latents, condition())
    assert out.shape[:2] == latents.tokens.shape[:2]
    assert out.isfinite().all()
    losses = model.losses(latents, condition(), generators=seeded([0, 1]))
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert total.isfinite()
    assert any(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())


@each_kind
@each_spec
def test_a_sample_does_not_depend_on_the_batch(kind, name):
    model, latents, text = generator(kind, name), random_latents(SPECS[name], batch=3), condition(3)
    together = output(model, latents, text)
    alone = output(model, latents[1:2], Condition(text.states[1:2], text.mask[1:2]))
    assert (together[1:2] - alone).abs().max() <= 1e-5
    losses = model.losses(latents, text, generators=seeded([1, 2, 3]))
    again = model.losses(latents, text, generators=seeded([1, 2, 3]))
    assert all(torch.equal(losses[term], again[term]) for term in losses)


@each_spec
def test_heads_draw_tokens_that_exist_in_their_part(name):
    spec = SPECS[name]
    model = generator("masked", name)
    hidden = torch.randn(2, spec.num_tokens(SIZE), 24)
    drawn, confidence = model.proj_out.sample(
        hidden,
        hidden.flip(0),
        3.0,
        generators=seeded([0, 1]),
        rule=SamplingRule(flow_steps=2),
        limits=model.limits(spec.coordinates(SIZE)),
    )
    assert drawn.shape == tokens_of(random_latents(spec)).shape
    if not spec.discrete:
        assert confidence is None
        return
    assert (confidence <= 0).all()
    for part, where in zip(spec.parts, spec.slices(SIZE), strict=True):
        assert (drawn[:, where] >= 0).all()
        assert (drawn[:, where] < torch.tensor(part.codebooks)).all()


@each_spec
@torch.no_grad()
def test_heads_draw_at_some_places_what_they_draw_for_these_tokens_alone(name):
    spec = SPECS[name]
    model, latents = generator("masked", name), random_latents(spec, batch=3)
    count, tokens = spec.num_tokens(SIZE), tokens_of(latents)
    hidden = torch.randn(3, count, 24)
    limits, how = model.limits(spec.coordinates(SIZE)), {"rule": SamplingRule(flow_steps=2)}
    places = torch.zeros(3, count, dtype=torch.bool)
    places[0, 1] = places[1, -2:] = places[2, 0] = True  # one of the first row, two of the second, one of the third
    seeds = [4, 5, 6]
    drawn = model.proj_out.sample_at(
        places, tokens, hidden, hidden.flip(1), 2.0, generators=seeded(seeds), limits=limits, **how
    )
    assert drawn[~places].equal(tokens[~places])
    for row, (seed, at) in enumerate(zip(seeds, places, strict=True)):
        alone, _ = model.proj_out.sample(
            hidden[row, at][None],
            hidden.flip(1)[row, at][None],
            2.0,
            generators=seeded([seed]),
            limits=None if limits is None else limits[at],
            **how,
        )
        torch.testing.assert_close(drawn[row, at], alone[0].to(drawn.dtype), atol=1e-5, rtol=0)
    nowhere = torch.zeros_like(places)
    call = {"generators": seeded(seeds), "limits": limits, **how}
    assert model.proj_out.sample_at(nowhere, tokens, hidden, None, 1.0, **call).equal(tokens)


def test_grid_only_options_are_refused_for_other_tokens():
    with pytest.raises(ValueError, match="needs tokens on one thw grid"):
        generator("diffusion", "three planes", patch=(1, 2, 2))


@each_kind
def test_a_generator_refuses_tokens_that_it_was_not_built_for(kind):
    with pytest.raises(ValueError, match="use the tokenizer that it was trained with"):
        generator(kind).check_spec(SPECS["two codebooks"])
    generator(kind).check_spec(LatentSpec.from_json(SPECS["grid of ids"].to_json()))


# -------------------------------------------------------------------------------------------------- large codebooks


def test_large_codebooks_are_factorised_and_small_ones_are_not():
    assert sub_codebooks(LARGEST_TABLE) == (LARGEST_TABLE,)
    assert sub_codebooks(2**18) == (2**9, 2**9)
    assert sub_codebooks(64_000) == (250, 256)
    model = generator("masked", "2^18 codes")
    assert sum(weight.numel() for weight in model.parameters()) < 200_000
    with pytest.raises(ValueError, match="does not factor"):
        sub_codebooks(1_000_003)


@pytest.mark.parametrize("sizes", [(2**18,), (16, 8), (64_000, 5), (7,)])
def test_digits_split_and_join_ids(sizes):
    spec = LatentSpec((LatentPart("grid", "thw", (2, 4, 4), 4, sizes),), causal=False, streamable=False)
    digits = Digits(spec)
    ids = random_latents(spec, batch=3).ids
    split = digits.split(ids)
    assert all((digit < size).all() for digit, size in zip(split, digits.sizes, strict=True))
    assert torch.equal(digits.join(split), ids)


@pytest.mark.parametrize("limit", [1, 3, 250, 251, 60_001, 64_000])
def test_drawn_ids_stay_below_the_codebook_of_their_part_even_when_factorised(limit):
    spec = LatentSpec(
        (LatentPart("large", "", (), 2, (64_000,), count=1), LatentPart("small", "", (), 2, (limit + 1,), count=99)),
        causal=False,
        streamable=False,
    )
    head = CategoricalHead(spec, 8)
    with torch.no_grad():
        head.to_logits.weight.zero_()
    limits = torch.full((400, 1), limit)
    drawn, _ = head.sample(
        torch.zeros(1, 400, 8), None, 1.0, generators=seeded([0]), rule=SamplingRule(), limits=limits
    )
    assert drawn.max() < limit
    if limit == 3:
        assert drawn.unique().tolist() == [0, 1, 2]


# -------------------------------------------------------------------------------------------------------- the heads


def test_a_categorical_head_draws_what_it_was_trained_on():
    head, target = CategoricalHead(SPECS["two codebooks"], 8), torch.tensor([[[3, 5], [15, 0]]])
    hidden = torch.randn(1, 2, 8, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(head.parameters(), lr=0.5)
    for _ in range(40):
        optimizer.zero_grad()
        head.loss(hidden, target, generators=seeded([0])).sum().backward()
        optimizer.step()
    drawn, confidence = head.sample(hidden, None, 1.0, generators=seeded([1]), rule=SamplingRule())
    assert torch.equal(drawn, target)
    assert (confidence > -0.1).all()


def test_a_flow_head_draws_what_it_was_trained_on():
    torch.manual_seed(0)
    spec = SPECS["queries of reals"]
    head, hidden = FlowHead(spec, 32), torch.randn(1, 6, 32)
    target = torch.randn(1, 6, 4)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    generators = seeded([0])
    for _ in range(150):
        optimizer.zero_grad()
        head.loss(hidden, target, generators=generators).mean().backward()
        optimizer.step()
    with torch.no_grad():
        drawn, _ = head.sample(hidden, None, 1.0, generators=seeded([1]), rule=SamplingRule(flow_steps=32))
    assert (drawn - target).abs().mean() < 0.25 * target.abs().mean()


# ------------------------------------------------------------------------------------------------------- conditions


@each_kind
def test_text_counts_and_dropped_text_does_not(kind):
    model, latents = generator(kind), random_latents(SPECS["grid of ids"])
    one, other = condition(seed=1), condition(seed=2)
    assert differs(output(model, latents, one), output(model, latents, other)).all()
    assert not differs(output(model, latents, one.without_text()), output(model, latents, other.without_text())).any()


@each_kind
def test_padding_of_the_text_changes_nothing(kind):
    model, latents, text = generator(kind), random_latents(SPECS["grid of ids"]), condition()
    states = torch.cat([text.states, 9 * torch.ones(2, 2, TEXT_WIDTH)], dim=1)
    mask = torch.cat([text.mask, torch.zeros(2, 2, dtype=torch.bool)], dim=1)
    padded = output(model, latents, Condition(states, mask))
    assert (padded - output(model, latents, text)).abs().max() <= 1e-5


@each_kind
def test_a_timeline_changes_the_tokens_of_its_frames(kind):
    """The last block alone is told apart: with one layer, text reaches a token by its own cross-attention only."""
    torch.manual_seed(0)
    model = KINDS[kind](latent_spec=SPECS["grid of ids"].to_json(), text_width=TEXT_WIDTH, width=24, layers=1, heads=2)
    shake(model)
    latents, text = random_latents(SPECS["grid of ids"]), condition(length=2)
    frames = torch.tensor([[[0, 2], [2, 4]]]).expand(2, -1, -1)
    timeline = Condition(text.states, text.mask, frames)
    second = text.states.clone()
    second[:, 1] += 1.0
    changed = differs(output(model, latents, timeline), output(model, latents, Condition(second, text.mask, frames)))
    assert changed.tolist() == [False] * 4 + [True] * 4
    whole = Condition(text.states, text.mask, torch.tensor([[[0, 4], [0, 4]]]).expand(2, -1, -1))
    assert (output(model, latents, whole) - output(model, latents, text)).abs().max() <= 1e-6


def test_a_timeline_reaches_patches_of_tokens():
    model, latents = generator("diffusion", patch=(1, 2, 2)), random_latents(SPECS["grid of ids"])
    text = condition(length=2)
    frames = torch.tensor([[[0, 2], [2, 4]]]).expand(2, -1, -1)
    out = output(model, latents, Condition(text.states, text.mask, frames))
    assert differs(out, output(model, latents, text)).any()


@each_kind
@pytest.mark.parametrize("name", ["grid of ids", "grid of reals", "two parts of ids", "queries of ids"])
def test_known_tokens_count_where_they_are_known_or_partial(kind, name):
    model, latents, text = generator(kind, name), random_latents(SPECS[name]), condition()
    other = random_latents(SPECS[name], seed=50)
    plain = output(model, latents, text)
    for state in TokenState:
        one = output(model, latents, told(latents, state, text))
        two = output(model, latents, told(other, state, text))
        assert differs(one, two).any() == (state != TokenState.UNKNOWN)
        assert differs(one, plain).any() == (state != TokenState.UNKNOWN)


def test_all_unknown_is_no_condition_at_the_ragged_border_of_patches_too():
    model, text = generator("diffusion", "grid of reals", patch=(2, 2, 2)), condition()
    spec = SPECS["grid of reals"]
    size = (6, 12, 4)  # 3×3×1 tokens: every axis is ragged
    latents = Latents(torch.randn(2, spec.num_tokens(size), 3), None, size, spec)
    plain = output(model, latents, text)
    assert plain.shape == latents.tokens.shape
    assert not differs(output(model, latents, told(latents, TokenState.UNKNOWN, text)), plain).any()


def test_known_tokens_have_no_part_in_the_loss():
    latents, text = random_latents(SPECS["grid of ids"]), condition()
    for kind in KINDS:
        losses = generator(kind).losses(latents, told(latents, TokenState.KNOWN, text), generators=seeded([0, 1]))
        assert sum(losses.values()).item() == 0, kind


@each_kind
def test_a_sample_counts_as_much_as_another_however_much_of_it_is_known(kind):
    model, latents, text = generator(kind), random_latents(SPECS["grid of ids"]), condition()
    state = torch.full(latents.tokens.shape[:2], int(TokenState.UNKNOWN))
    state[0, 2:] = int(TokenState.KNOWN)
    together = sum(model.losses(latents, told(latents, state, text), generators=seeded([0, 1])).values())
    alone = []
    for i in range(2):
        one = told(latents[i : i + 1], state[i : i + 1], Condition(text.states[i : i + 1], text.mask[i : i + 1]))
        alone.append(sum(model.losses(latents[i : i + 1], one, generators=seeded([i])).values()))
    assert (together - sum(alone) / 2).abs() <= 1e-5 * together


def test_a_token_is_rare_in_its_own_part_and_strength_zero_weighs_all_alike():
    spec = SPECS["two parts of ids"]  # 4 tokens and 2
    latents = random_latents(spec)
    latents.ids[:] = 3
    weights = token_weights(latents, 1.0)
    assert torch.allclose(weights, torch.tensor([0.75] * 4 + [1.5] * 2).expand(2, -1))
    assert torch.equal(token_weights(random_latents(spec), 0.0), torch.ones(2, 6))


def test_an_autoregressive_transformer_is_fed_known_tokens_as_the_condition_has_them():
    latents, given = (random_latents(SPECS["grid of ids"], seed=number) for number in (0, 9))
    state = torch.tensor([[TokenState.KNOWN] * 3 + [TokenState.UNKNOWN] * 5] * 2)
    model = generator("autoregressive", token_weight=0.0)
    other = latents.ids.clone()
    other[:, :3] = (other[:, :3] + 1) % 32
    clips = (latents, Latents(latents.tokens, other, SIZE, latents.spec))
    one, two = (model.losses(clip, told(given, state, condition()), generators=seeded([0, 1])) for clip in clips)
    assert torch.equal(one["next_token"], two["next_token"]), "the clip's own tokens at known places play no part"
    changed = model.losses(latents, told(clips[1], state, condition()), generators=seeded([0, 1]))
    assert not torch.equal(one["next_token"], changed["next_token"])


# ----------------------------------------------------------------------------------------- each family's own promise


def test_a_masked_transformer_never_sees_masked_tokens_and_sees_the_others():
    model, latents, text = generator("masked"), random_latents(SPECS["grid of ids"]), condition()
    masked = torch.zeros(8, dtype=torch.bool)
    masked[3] = True
    plain = output(model, latents, text, masked=masked)
    hidden = latents.ids.clone()
    hidden[:, 3] = (hidden[:, 3] + 1) % 32
    changed = Latents(latents.tokens, hidden, SIZE, latents.spec)
    assert not differs(output(model, changed, text, masked=masked), plain).any()
    assert differs(output(model, changed, text, masked=torch.zeros(8, dtype=torch.bool)), plain).all()


@pytest.mark.parametrize("known", [0, 5, 7])
def test_a_random_mask_hides_between_one_and_all_of_the_unknown_tokens(known):
    model = generator("masked")
    state = torch.full((200, 8), int(TokenState.UNKNOWN))
    state[:, :known] = TokenState.KNOWN
    text = condition(200)
    latents = random_latents(SPECS["grid of ids"], batch=200)
    masked, asked = model.random_mask(told(latents, state, text), torch.arange(8), 200, seeded(range(200)))
    assert asked.equal(masked)
    counts = masked.sum(dim=1)
    assert not masked[:, :known].any()
    assert counts.min() >= 1
    assert set(counts.tolist()) == set(range(1, 9 - known))
    if known == 0:  # ⌈8 cos(π/2 · u)⌉ is on average 5.5
        assert 5.0 < counts.float().mean() < 6.0


def test_masks_in_the_order_of_time_hide_the_last_tokens_that_are_not_known():
    model = generator("masked")
    model.register_to_config(time_order_share=1.0)
    state = torch.full((200, 8), int(TokenState.UNKNOWN))
    state[:, 7] = TokenState.KNOWN  # the last frame may be given: interpolation
    latents, times = random_latents(SPECS["grid of ids"], batch=200), torch.tensor([0, 0, 1, 1, 1, 5, 5, 9])
    masked, asked = model.random_mask(told(latents, state, condition(200)), times, 200, seeded(range(200)))
    assert set(masked.sum(dim=1).tolist()) == set(range(1, 8)) and not masked[:, 7].any()
    for row in masked[:, :7]:
        seen_times, hidden_times = times[:7][~row], times[:7][row]
        assert not len(seen_times) or seen_times.max() <= hidden_times.min()
    assert masked[:, 5].float().mean() > masked[:, 0].float().mean()
    for hidden, next_ones in zip(masked, asked, strict=True):  # a sampler in the order of time draws these next
        assert next_ones.equal(hidden & (times == times[hidden].min()))


@pytest.mark.parametrize("name", ["grid of ids", "grid of reals", "two parts of ids", "three planes"])
@pytest.mark.parametrize("with_known", [False, True])
@torch.no_grad()
def test_cached_decoding_gives_the_states_of_one_pass(name, with_known):
    model, latents, text = generator("autoregressive", name), random_latents(SPECS[name]), condition()
    if with_known:
        text = told(latents, TokenState.PARTIAL, text)
    coordinates = latents.spec.coordinates(SIZE)
    inputs = model.condition_inputs(text, coordinates)
    tokens, count = tokens_of(latents), latents.tokens.shape[1]
    whole = model(tokens[:, :-1], coordinates, **inputs)
    caches, steps, start = model.empty_caches(2, count), [], 0
    for end in [3, 4, *range(5, count + 1)]:
        here = dict(inputs)
        if with_known:
            here["known_tokens"] = inputs["known_tokens"][:, start:end]
            here["token_state"] = inputs["token_state"][:, start:end]
        previous = tokens[:, : end - 1] if start == 0 else tokens[:, start - 1 : end - 1]
        steps.append(model(previous, coordinates[start:end], **here, caches=caches))
        start = end
    assert (torch.cat(steps, dim=1) - whole).abs().max() <= 1e-5


def test_an_autoregressive_transformer_never_sees_later_tokens():
    model, latents, text = generator("autoregressive"), random_latents(SPECS["grid of ids"]), condition()
    changed = latents.ids.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 32
    one, two = (output(model, Latents(latents.tokens, ids, SIZE, latents.spec), text) for ids in (latents.ids, changed))
    assert differs(one, two).tolist() == [False] * 5 + [True] * 3


@torch.no_grad()
def test_a_diffusion_transformer_takes_a_noise_level_for_each_token():
    model, latents, text = generator("diffusion"), random_latents(SPECS["grid of ids"]), condition()
    coordinates = latents.spec.coordinates(SIZE)
    inputs = model.condition_inputs(text, coordinates)
    levels = torch.full((2, 8), 400.0)
    one = model(latents.tokens, torch.full((2,), 400.0), coordinates, **inputs)
    assert (model(latents.tokens, levels, coordinates, **inputs) - one).abs().max() <= 1e-5
    levels[:, 3] = 900.0
    assert differs(model(latents.tokens, levels, coordinates, **inputs), one)[3]


@torch.no_grad()
def test_known_tokens_enter_a_diffusion_transformer_clean_and_at_noise_level_zero():
    model, latents, text = generator("diffusion"), random_latents(SPECS["grid of ids"]), condition()
    coordinates = latents.spec.coordinates(SIZE)
    state = torch.zeros(2, 8, dtype=torch.long)
    state[:, :4] = TokenState.KNOWN
    inputs = model.condition_inputs(told(latents, state, text), coordinates)
    noisy = torch.randn_like(latents.tokens)
    other = noisy.clone()
    other[:, :4] = 5.0
    one, two = (model(x, torch.full((2,), 700.0), coordinates, **inputs) for x in (noisy, other))
    assert torch.equal(one, two)
    levels = torch.full((2, 8), 700.0)
    levels[:, :4] = 0.0
    assert torch.equal(one, model(noisy, levels, coordinates, **inputs))


@torch.no_grad()
def test_a_fresh_diffusion_transformer_says_nothing():
    """adaLN-zero: the first step of training starts from the zero velocity."""
    model = DiffusionTransformer(
        latent_spec=SPECS["grid of reals"].to_json(), text_width=TEXT_WIDTH, width=24, heads=4, layers=2
    )
    assert not output(model, random_latents(SPECS["grid of reals"]), condition()).any()


@each_kind
def test_a_saved_generator_comes_back_bit_by_bit(kind, tmp_path):
    model, latents, text = generator(kind, "two codebooks"), random_latents(SPECS["two codebooks"]), condition()
    model.save_pretrained(tmp_path)
    loaded = KINDS[kind].from_pretrained(tmp_path)
    assert torch.equal(output(loaded, latents, text), output(model, latents, text))
    assert loaded.spec == model.spec
