"""Does a pipeline that makes several candidates give back the one that its network finds most plausible?"""

import csv

import pytest
import torch
from recipe_module import recipe_module
from test_generators import condition, each_kind, each_spec, generator, tokens_of, told
from test_pipelines import TEXT, each_family, each_pair, latents_of, sample, seed
from tiny_models import SPECS, clip, pipeline, random_latents
from torch import Tensor

from vidgen.conditioning import Condition, TokenState
from vidgen.latents import Latents
from vidgen.nn.random import draw_seed, seeded
from vidgen.pipelines import VideoPipeline
from vidgen.pipelines.request import candidate_seeds

PROMPTS = [TEXT, "a blue star"]


def all_candidates(pipe: VideoPipeline, prompt: str, source: torch.Generator, count: int) -> Latents:
    """The candidates of the next video whose seed `source` draws, each made by itself without a choice."""
    made = []
    for number in candidate_seeds(draw_seed(source), count):
        pipe.prepare_generators = lambda *_, number=number: seeded([number])
        made.append(latents_of(pipe, prompt=prompt, num_candidates=1))
    del pipe.prepare_generators
    ids = None if made[0].ids is None else torch.cat([one.ids for one in made])
    return Latents(torch.cat([one.tokens for one in made]), ids, made[0].size, made[0].spec)


def plausibility(pipe: VideoPipeline, latents: Latents, prompt: str) -> Tensor:
    states, mask, _, _ = pipe.encode_prompt([prompt] * len(latents))
    return pipe.transformer.plausibility(latents, Condition(states, mask), generators=seeded([0] * len(latents)))


@each_pair
@torch.no_grad()
def test_the_most_plausible_candidate_of_each_video_comes_back(family, bottleneck):
    pipe, source = pipeline(family, bottleneck), seed(10)
    chosen = tokens_of(latents_of(pipe, prompt=PROMPTS, generator=seed(10), num_candidates=4))
    places = []
    for number, prompt in enumerate(PROMPTS):
        candidates = all_candidates(pipe, prompt, source, 4)
        places.append(plausibility(pipe, candidates, prompt).argmax().item())
        assert (chosen[number] - tokens_of(candidates)[places[-1]]).abs().max() <= 1e-4
    assert len(chosen) == 2
    assert any(places), "the first candidate is what a call without a choice gives: choose another seed for this test"


@each_family
def test_one_candidate_is_no_choice_and_a_model_may_have_a_number_of_its_own(family):
    pipe = pipeline(family)
    plain = latents_of(pipe).tokens
    assert torch.equal(latents_of(pipe, num_candidates=1).tokens, plain)
    several = [latents_of(pipe, generator=seed(number), num_candidates=3).tokens for number in range(4)]
    pipe.register_to_config(defaults={**pipe.config.defaults, "num_candidates": 3})
    assert all(torch.equal(latents_of(pipe, generator=seed(n)).tokens, one) for n, one in enumerate(several))
    assert torch.equal(latents_of(pipe, num_candidates=1).tokens, plain)


@each_family
def test_videos_of_a_prompt_are_chosen_apart_from_each_other(family):
    pipe = pipeline(family, "kl")
    sources = [seed(number) for number in range(4)]
    together = latents_of(pipe, prompt=PROMPTS, num_videos_per_prompt=2, generator=sources, num_candidates=3).tokens
    for index in range(4):
        alone = latents_of(pipe, prompt=PROMPTS[index // 2], generator=seed(index), num_candidates=3).tokens
        assert (together[index] - alone[0]).abs().max() <= 1e-4


@each_family
def test_known_frames_stay_those_of_their_video_and_long_videos_are_chosen_window_by_window(family):
    pipe = pipeline(family)
    pair = clip(frames=1, batch=2)
    videos = sample(pipe, prompt=PROMPTS, video=pair, num_videos_per_prompt=2, num_candidates=3)
    assert torch.equal(videos[:, 0], (pair / 2 + 0.5)[:, :, 0][[0, 0, 1, 1]])
    longer = torch.cat([*pipe.extend_stream(TEXT, num_frames=9, generator=seed(), num_candidates=2)], dim=2)
    assert longer.shape == (1, 3, 9, 16, 16)


@each_family
def test_a_given_video_is_encoded_once_for_all_videos_that_are_made_of_it(family, monkeypatch):
    pipe, encoded = pipeline(family), []
    encode = pipe.video_tokenizer.encode
    monkeypatch.setattr(pipe.video_tokenizer, "encode", lambda video: encoded.append(len(video)) or encode(video))
    sample(pipe, prompt=PROMPTS, video=clip(frames=1, batch=2), num_videos_per_prompt=2, num_candidates=3)
    assert encoded
    assert max(encoded) == 2


@pytest.mark.parametrize("family", ["masked", "autoregressive"])
def test_given_tokens_begin_every_candidate(family):
    pipe = pipeline(family)
    given = latents_of(pipe, prompt=PROMPTS).ids.clone()
    if family == "masked":
        begun = given.clone()
        begun[:, 5:] = -1
    else:
        begun = given[:, :5]
    again = latents_of(pipe, prompt=PROMPTS, latents=begun, generator=seed(7), num_candidates=3).ids
    assert torch.equal(again[:, :5], given[:, :5])
    assert not torch.equal(again, given)


def test_candidates_from_one_noise_are_refused_and_a_models_own_number_gives_way_to_it():
    pipe = pipeline("diffusion", "kl")
    noise = torch.randn(1, 8, 4, generator=seed(9))
    plain = latents_of(pipe, latents=noise).tokens
    with pytest.raises(ValueError, match="would be the same video; leave out latents or num_candidates"):
        sample(pipe, latents=noise, num_candidates=2)
    pipe.register_to_config(defaults={**pipe.config.defaults, "num_candidates": 3})
    assert torch.equal(latents_of(pipe, latents=noise).tokens, plain)


@each_family
@pytest.mark.parametrize("wrong", [0, -1, 2.0, "4"])
def test_a_number_of_candidates_is_a_positive_int(family, wrong):
    with pytest.raises(ValueError, match="num_candidates must be an int of at least 1"):
        sample(pipeline(family), num_candidates=wrong)


@each_family
def test_an_interrupted_run_has_its_first_candidate(family):
    pipe = pipeline(family)

    def stop(pipe: VideoPipeline, *_) -> dict:
        pipe._interrupt = True
        return {}

    one, several = (tokens_of(latents_of(pipe, num_candidates=count, callback_on_step_end=stop)) for count in (1, 3))
    assert one.shape == several.shape
    assert torch.equal(one.nan_to_num(), several.nan_to_num())


# -------------------------------------------------------------------------------------------------- the plausibility


@each_kind
@each_spec
@torch.no_grad()
def test_every_kind_of_tokens_is_judged_sample_by_sample(kind, name):
    model, latents, text = generator(kind, name), random_latents(SPECS[name]), condition()
    both = model.plausibility(latents, text, generators=seeded([0, 0]))
    assert both.shape == (2,)
    assert both.isfinite().all()
    ids = None if latents.ids is None else latents.ids[:1]
    first = Latents(latents.tokens[:1], ids, latents.size, latents.spec)
    alone = model.plausibility(first, Condition(text.states[:1], text.mask[:1]), generators=seeded([0]))
    assert (alone[0] - both[0]).abs() <= 1e-4


@each_kind
@pytest.mark.parametrize("name", ["grid of ids", "grid of reals"])
def test_a_network_finds_plausible_what_it_was_trained_on_under_the_prompt_that_it_was_trained_with(kind, name):
    model, latents, text = generator(kind, name, token_weight=0.0), random_latents(SPECS[name]), condition()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(150):
        optimizer.zero_grad()
        sum(model.losses(latents, text, generators=seeded([2 * step, 2 * step + 1])).values()).backward()
        optimizer.step()
    swapped = Condition(text.states.flip(0), text.mask)
    with torch.no_grad():
        true = model.plausibility(latents, text, generators=seeded([0, 0]))
        foreign = model.plausibility(random_latents(SPECS[name], seed=50), text, generators=seeded([0, 0]))
        misplaced = model.plausibility(latents, swapped, generators=seeded([0, 0]))
    assert (true > foreign).all()
    assert (true > misplaced).all()


@each_kind
@torch.no_grad()
def test_known_tokens_are_not_judged(kind):
    model, latents, text = generator(kind), random_latents(SPECS["grid of ids"]), condition()
    everything = model.plausibility(latents, told(latents, TokenState.KNOWN, text), generators=seeded([0, 0]))
    assert torch.equal(everything, torch.zeros(2))


# ------------------------------------------------------------------------------------------------------ its worth


def test_the_table_counts_what_each_rule_chooses():
    right = torch.tensor([[True, False, False, True], [False, False, False, False]])
    scores = torch.tensor([[0.0, 1.0, 2.0, 3.0], [3.0, 2.0, 1.0, 0.0]])
    rows = recipe_module("eval/candidates.py").table(right, {"plausibility": scores, "any": right.float()})
    shares = {(row["rule"], row["candidates"]): row["share"] for row in rows}
    alone, pairs, fours = 0.25, 0.25, 0.5  # of the pairs it takes candidate 1, which is wrong, and 3, which is right
    assert [shares["plausibility", count] for count in (1, 2, 4)] == [alone, pairs, fours]
    assert [shares["any", count] for count in (1, 2, 4)] == [alone, 0.5, 0.5]
    assert all(row["low"] <= row["share"] <= row["high"] for row in rows)


@pytest.mark.slow
def test_one_call_measures_what_a_choice_is_worth(tmp_path, monkeypatch, capsys):
    place = tmp_path / "candidates.csv"
    call = ["candidates.py", "shapes-masked", "--prompts", "3", "--candidates", "2", "--objects", "1", "-o", str(place)]
    monkeypatch.setattr("sys.argv", call)
    recipe_module("eval/candidates.py").main()
    with place.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["rule"], row["candidates"]) for row in rows if row["rule"] != "difference"] == [
        (rule, count) for rule in ("both", "matcher", "plausibility", "any") for count in ("1", "2")
    ]
    assert "shapes-masked 1 plausibility 2" in capsys.readouterr().out
