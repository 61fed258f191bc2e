"""Do Llama-style generators see what they may, decode as they train, and make groups of tokens at once?"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import SIZE, SPECS, clip, shake, tokenizer
from tiny_models import random_latents as random_latents_of

import vidgen
from vidgen.conditioning import Condition, TokenState, WordTextEncoder
from vidgen.generators import AutoregressiveTransformer, LlamaTransformer
from vidgen.generators.depth_head import DepthHead
from vidgen.generators.mixture_head import MixtureHead
from vidgen.generators.sequence import at_positions, with_negatives
from vidgen.generators.token_order import token_order
from vidgen.latents import LatentPart, LatentSpec
from vidgen.nn.llama import line_rotary
from vidgen.nn.random import seeded
from vidgen.pipelines.autoregressive_presets import AUTOREGRESSIVE_PRESETS
from vidgen.pipelines.presets import PIPELINE_PRESETS
from vidgen.schedulers import SamplingRule

WIDTH = 12
GROUPED = [("grid of ids", group) for group in (1, 2, "row", "frame", "regions")] + [("queries of ids", 3)]
GROUPED += [("two parts of ids", 1)]
HEADS = [("two codebooks", "depth"), ("2^18 codes", "depth"), ("grid of reals", "mixture"), ("grid of reals", "auto")]


def random_latents(spec: LatentSpec) -> Any:
    return random_latents_of(spec)


def model(name: str = "grid of ids", **changes) -> LlamaTransformer:
    torch.manual_seed(0)
    built = LlamaTransformer(SPECS[name].to_json(), text_width=WIDTH, width=24, layers=2, heads=2, **changes)
    shake(built)
    return built.eval()


def condition(batch: int = 2, *, known=None, mask=None) -> Condition:
    states = torch.randn(batch, 3, WIDTH, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(batch, 3, dtype=torch.bool) if mask is None else mask
    if known is None:
        return Condition(states, mask)
    state = torch.full(known.tokens.shape[:2], int(TokenState.PARTIAL))
    return Condition(states, mask, known=known, token_state=state)


def hidden(llama, latents: Any, text) -> torch.Tensor:
    coordinates = latents.spec.coordinates(latents.size)
    order = llama.order(coordinates)
    target = (latents.tokens if latents.ids is None else latents.ids)[:, order.tokens]
    return llama(target[:, order.fed], **llama.sequence_inputs(text, coordinates, order))


# ----------------------------------------------------------------------------------------------------- what is seen


@torch.no_grad()
@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("with_known", [False, True])
@pytest.mark.parametrize(("name", "group"), GROUPED)
def test_cached_equals_uncached(name, group, with_known, axes):
    llama, latents = model(name, group=group, rotary_axes=axes), random_latents(SPECS[name])
    text = condition(known=latents if with_known else None, mask=torch.tensor([[True] * 3, [True, False, False]]))
    coordinates = latents.spec.coordinates(SIZE)
    order = llama.order(coordinates)
    inputs, target = llama.sequence_inputs(text, coordinates, order), latents.ids[:, order.tokens]
    caches, steps = llama.empty_caches(2, len(coordinates), states=3), []
    for start, size in zip(order.starts, order.sizes, strict=True):
        previous = None if start == 0 else target[:, start - size : start]
        here = at_positions(inputs, slice(start, start + size))
        steps.append(llama(previous, **here, caches=caches))
    assert (torch.cat(steps, dim=1) - hidden(llama, latents, text)).abs().max() <= 1e-5


def test_places_along_the_sequence_go_on_from_part_to_part():
    llama, spec = model("two parts of ids", rotary_axes=1), SPECS["two parts of ids"]
    coordinates = spec.coordinates(SIZE)
    inputs = llama.sequence_inputs(condition(), coordinates, llama.order(coordinates))
    turns, expected = llama.turns(coordinates, inputs["ordinals"]), line_rotary(torch.arange(len(coordinates)), 12)
    assert all(torch.equal(one, other) for one, other in zip(turns, expected, strict=True))


@torch.no_grad()
@pytest.mark.parametrize(("name", "group"), GROUPED)
def test_a_group_sees_the_groups_before_it_and_never_itself_or_later_ones(name, group):
    llama, latents = model(name, group=group), random_latents(SPECS[name])
    order = llama.order(latents.spec.coordinates(SIZE))
    before = hidden(llama, latents, condition())
    for position in range(len(order.tokens)):
        ids = latents.ids.clone()
        ids[:, order.tokens[position]] = (ids[:, order.tokens[position]] + 1) % 32
        changed = (hidden(llama, replace(latents, ids=ids), condition()) - before).abs().amax(dim=(0, 2)) > 1e-6
        later = order.groups > order.groups[position]
        assert not changed[~later].any()
        assert changed[later].all() or group == "regions", "PAR's first tokens are fed with a delay"


@torch.no_grad()
def test_states_that_were_not_said_and_other_samples_change_nothing():
    llama, latents = model(), random_latents(SPECS["grid of ids"])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    text = condition(mask=mask)
    louder = replace(text, states=torch.where(mask[..., None], text.states, 100.0))
    assert (hidden(llama, latents, text) - hidden(llama, latents, louder)).abs().max() <= 1e-5
    alone = Condition(text.states[1:, :1], mask[1:, :1])
    assert (hidden(llama, latents, text)[1:] - hidden(llama, latents[1:], alone)).abs().max() <= 1e-5
    heard = replace(text, states=text.states + mask[..., None])
    assert (hidden(llama, latents, text) - hidden(llama, latents, heard)).abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("said", [1, 5], ids=["shorter", "longer"])
@pytest.mark.parametrize("kind", ["llama", "cross-attention", "cross-attention under a timeline"])
def test_both_branches_of_guidance_in_one_batch_are_what_they_are_alone(kind, said):
    spec, latents = SPECS["grid of ids"], random_latents(SPECS["grid of ids"])
    network: Any = model()
    if kind != "llama":
        network = AutoregressiveTransformer(spec.to_json(), text_width=WIDTH, width=24, layers=2, heads=2).eval()
        shake(network)
    text = condition(known=latents)
    if "timeline" in kind:
        text = replace(text, frames=torch.tensor([[[0, 2], [2, 4], [0, 4]]]).expand(2, -1, -1))
    coordinates = latents.spec.coordinates(SIZE)
    order = network.order(coordinates)
    inputs, fed = network.sequence_inputs(text, coordinates, order), latents.ids[:, order.fed]
    states, mask = torch.randn(2, said, WIDTH), torch.ones(2, said, dtype=torch.bool)
    other = {**inputs, "encoder_hidden_states": states, "encoder_attention_mask": mask}
    alone = torch.cat([network(fed, **inputs), network(fed, **other)])
    assert (network(fed.repeat(2, 1, 1), **with_negatives(inputs, states, mask)) - alone).abs().max() <= 1e-5
    assert (alone[:2] - alone[2:]).abs().max() > 1e-3


@torch.no_grad()
def test_decoding_compiles_into_one_graph_that_serves_every_position():
    llama, latents, text = model(), random_latents(SPECS["grid of ids"]), condition()
    coordinates = latents.spec.coordinates(SIZE)
    order = llama.order(coordinates)
    inputs, expected = llama.sequence_inputs(text, coordinates, order), hidden(llama, latents, text)
    caches, graphs = llama.empty_caches(2, len(coordinates), states=3), []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    step = torch.compile(llama, backend=count, fullgraph=True, dynamic=False)
    llama(None, **at_positions(inputs, slice(0, 1)), caches=caches)
    for position in range(1, 8):
        here = at_positions(inputs, slice(position, position + 1))
        # offsets into a storage are guarded on: the pipeline's slices are copied as a serving loop would
        here = {name: None if value is None else value.clone() for name, value in here.items()}
        out = step(latents.ids[:, position - 1 : position].clone(), **here, caches=caches)
        assert (out[:, 0] - expected[:, position]).abs().max() <= 1e-5
    assert len(graphs) == 1


# ------------------------------------------------------------------------------------------------------- the orders


def grid(t: int, h: int, w: int) -> torch.Tensor:
    spec = LatentSpec((LatentPart("grid", "thw", (1, 1, 1), 2, (8,)),), causal=False, streamable=False)
    return spec.coordinates((t, h, w))


def test_regions_start_one_by_one_and_go_on_side_by_side():
    order = token_order(grid(1, 4, 4), "regions")
    assert order.sizes == (1, 1, 1, 1, 4, 4, 4)
    assert order.tokens.tolist() == [0, 2, 8, 10, 1, 3, 9, 11, 4, 6, 12, 14, 5, 7, 13, 15]
    assert order.fed.tolist() == list(range(3)) + list(range(12))
    assert torch.equal(order.tokens[order.positions], torch.arange(16))


def test_rows_and_frames_are_groups_of_the_grid():
    assert token_order(grid(2, 3, 5), "row").sizes == (5,) * 6
    assert token_order(grid(2, 3, 5), "frame").sizes == (15,) * 2
    assert token_order(grid(2, 3, 5), 6).sizes == (6,) * 5


@pytest.mark.parametrize(
    ("coordinates", "group", "message"),
    [
        (grid(2, 3, 5), 4, "do not divide into groups of 4"),
        (grid(1, 3, 4), "regions", "even token grid, got 3×4"),
        (SPECS["queries of ids"].coordinates(SIZE), "frame", "these have none: give a number"),
        (SPECS["two parts of ids"].coordinates(SIZE), "row", "these have none"),
    ],
)
def test_tokens_that_do_not_divide_into_groups_are_refused(coordinates, group, message):
    with pytest.raises(ValueError, match=message):
        token_order(coordinates, group)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group": "column"}, "number of tokens or one of row, frame, regions"),
        ({"group": 0}, "number of tokens"),
        ({"rotary_axes": 2}, "rotary_axes must be 1"),
        ({"head_type": "mixture"}, "tokens that are ids take a head_type of auto, depth"),
    ],
)
def test_wrong_options_say_what_to_choose(changes, message):
    with pytest.raises(ValueError, match=message):
        model(**changes)


def test_a_prefix_refuses_a_timeline():
    llama, latents = model(), random_latents(SPECS["grid of ids"])
    text = replace(condition(), frames=torch.tensor([[[0, 2], [2, 4], [0, 4]]]).expand(2, -1, -1))
    with pytest.raises(ValueError, match="timeline of prompts"):
        hidden(llama, latents, text)


# -------------------------------------------------------------------------------------------------------- the heads


@pytest.mark.parametrize(("name", "head_type"), HEADS)
def test_heads_learn_and_draw_their_tokens(name, head_type):
    torch.manual_seed(0)
    llama, latents = model(name, head_type=head_type), random_latents(SPECS[name])
    drawn, confidence = llama.proj_out.sample(
        torch.randn(2, 8, 24), torch.randn(2, 8, 24), 2.0, generators=seeded([0, 1]), rule=SamplingRule(flow_steps=2)
    )
    target = latents.tokens if latents.ids is None else latents.ids
    assert drawn.shape == target.shape
    assert (confidence is None) == (latents.ids is None)
    if latents.ids is not None:
        assert (drawn < torch.tensor(latents.spec.parts[0].codebooks)).all()
    optimizer, history = torch.optim.Adam(llama.parameters(), lr=3e-3), []
    for _ in range(15):
        loss = llama.losses(latents, condition(), generators=seeded([0, 1]))["next_token"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < history[0] - 0.1


@pytest.mark.parametrize("inner_width", [None, 8])
def test_a_depth_head_knows_that_its_digits_belong_together(inner_width):
    """Two equal fair coins: independent digits lose log 2 nats, a head in depth none."""
    torch.manual_seed(0)
    spec = LatentSpec((LatentPart("query", "", (), 2, (2, 2), count=64),), causal=False, streamable=False)
    head = DepthHead(spec, 16, layers=1, inner_width=inner_width)
    coins = torch.randint(2, (1, 64, 1)).expand(-1, -1, 2)
    hidden = torch.zeros(1, 64, 16)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(60):
        loss = head.loss(hidden, coins, generators=seeded([0])).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.75
    drawn, _ = head.sample(hidden, None, 1.0, generators=seeded([1]), rule=SamplingRule())
    assert torch.equal(drawn[..., 0], drawn[..., 1])
    assert 0.2 < drawn[..., 0].float().mean() < 0.8


@torch.no_grad()
def test_digits_drawn_one_after_the_other_follow_from_the_states_of_all_before():
    torch.manual_seed(0)
    head, hidden = DepthHead(SPECS["two codebooks"], 16, inner_width=8), torch.randn(3, 5, 16)
    cache, x = head.empty_cache(head.enter(hidden)), head.enter(hidden)
    first = head.next_state(x, cache)
    digits = [torch.randint(head.digits.sizes[0], (3, 5))]
    second = head.next_state(x + head.tables[0](digits[0]), cache)
    assert torch.allclose(torch.stack([first, second], dim=2), head.states(hidden, digits), atol=1e-6)


def test_a_mixture_head_gives_the_density_of_its_mixture_and_draws_from_it():
    torch.manual_seed(0)
    spec = LatentSpec((LatentPart("query", "", (), 2, count=1),), causal=False, streamable=False)
    head = MixtureHead(spec, 4, components=3)
    hidden, target = torch.randn(1, 2000, 4), torch.randn(1, 2000, 2)
    logits, means, deviations = head.parameters_of(hidden)
    expected = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=logits),
        torch.distributions.Independent(torch.distributions.Normal(means, deviations.exp()), 1),
    ).log_prob(target)
    assert (head.loss(hidden, target, generators=seeded([0])) + expected / 2).abs().max() <= 1e-4
    same = hidden[:, :1].expand(-1, 2000, -1)
    drawn, _ = head.sample(same, None, 1.0, generators=seeded([0]), rule=SamplingRule())
    weights = logits[0, 0].softmax(dim=-1)
    assert (drawn[0].mean(dim=0) - weights @ means[0, 0]).abs().max() < 0.15
    cold, _ = head.sample(same, None, 1.0, generators=seeded([0]), rule=SamplingRule(temperature=0.0))
    assert torch.equal(cold[0, 0], means[0, 0, logits[0, 0].argmax()])


# ------------------------------------------------------------------------------------------------------- the presets

OTHER_TOKENS = {"divot": "kl"}


@pytest.mark.parametrize("on_its_own", [True, False])
@pytest.mark.parametrize("name", AUTOREGRESSIVE_PRESETS)
def test_the_tiny_twin_of_a_preset_trains_and_samples_on_two_tokenizers(name, on_its_own):
    torch.manual_seed(0)
    preset: Any = PIPELINE_PRESETS[name].tiny()
    other = None if on_its_own else tokenizer(OTHER_TOKENS.get(name, "fsq"))
    pipe = preset.build(other, WordTextEncoder(width=16, layers=1, heads=2, buckets=64))
    pipe.set_progress_bar_config(disable=True)
    latents = pipe.video_tokenizer.encode(clip(batch=2))
    optimizer, history = torch.optim.Adam(pipe.transformer.parameters(), lr=3e-3), []
    for _ in range(5):
        text = pipe.text_encoder.encode(["a red circle", "a blue star"])
        losses = pipe.transformer.losses(latents, Condition(text.states, text.mask), generators=seeded([0, 1]))
        optimizer.zero_grad()
        losses["next_token"].backward()
        optimizer.step()
        history.append(losses["next_token"].item())
    assert history[-1] < history[0]
    if latents.tokens.shape[1] > 64:  # a holistic clip has over a thousand tokens: the first frames' cost says enough
        return
    pipe.transformer.eval()
    first = clip(frames=1)
    call = {"video": first, "output_type": "pt", "num_candidates": 2}
    video = pipe(["a red circle", ""], generator=seeded([0])[0], **call).frames
    assert video.shape == (2, 5, 3, 16, 16)
    assert torch.equal(video[0, 0], first[0, :, 0] / 2 + 0.5)
    alone = pipe("a red circle", generator=seeded([0])[0], **call).frames
    assert (video[:1] - alone).abs().max() <= 1e-4


@pytest.mark.parametrize(("name", "codes", "millions"), [("llamagen-b", 16384, 111), ("llamagen-l", 16384, 343)])
def test_llamagen_has_the_published_number_of_parameters(name, codes, millions):
    spec = LatentSpec((LatentPart("grid", "thw", (4, 8, 8), 8, (codes,)),), causal=True, streamable=True)
    with torch.device("meta"):
        built = LlamaTransformer(spec.to_json(), text_width=1000, **PIPELINE_PRESETS[name].config)
    assert round(sum(weight.numel() for weight in built.parameters()) / 1e6) == millions


def test_larp_ar_has_the_published_number_of_parameters():
    spec = LatentSpec((LatentPart("query", "", (), 16, (8192,), count=1024),), causal=False, streamable=False)
    with torch.device("meta"):
        built = LlamaTransformer(spec.to_json(), text_width=101, **PIPELINE_PRESETS["larp-ar"].config)
    assert abs(sum(weight.numel() for weight in built.parameters()) / 632e6 - 1) < 0.005


def test_a_llama_pipeline_saves_and_loads(tmp_path):
    torch.manual_seed(0)
    preset: Any = PIPELINE_PRESETS["par"].tiny()
    pipe = preset.build(tokenizer(), WordTextEncoder(width=16, layers=1, heads=2, buckets=64))
    pipe.save_pretrained(tmp_path)
    again: Any = vidgen.load(tmp_path)
    for one in (pipe, again):
        one.set_progress_bar_config(disable=True)
    frames = [one("a", generator=seeded([0])[0], output_type="pt").frames for one in (pipe, again)]
    assert torch.equal(*frames)
    assert again.num_timesteps == 5, "4 tokens one by one, then 4 at once"
