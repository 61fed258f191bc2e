"""Does a matcher judge a video by what it shows alone, does it learn, and do pipelines go by its judgement?"""

import json
import shutil
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from test_candidates import all_candidates, plausibility
from test_generators import tokens_of
from test_pipelines import each_family, latents_of, sample, seed
from tiny_models import SPECS, clip, pipeline, random_latents, shake
from tiny_models import tokenizer as tiny_tokenizer

import vidgen
from vidgen.cli import main
from vidgen.data.shapes import HELD_OUT_PAIRS, near_miss, parse_caption, sample_scene
from vidgen.eval.detector import compare, detect
from vidgen.eval.matching import KINDS, evaluate_matching
from vidgen.latents import Latents
from vidgen.matchers import MATCHERS, CrossAttentionMatcher, Matcher
from vidgen.matchers.presets import MATCHER_PRESETS
from vidgen.nn.random import seeded
from vidgen.training import DataConfig, MatcherRun, OptimiserConfig, train_matcher
from vidgen.training.checkpoint import CheckpointFolder
from vidgen.training.matcher_step import MatcherStep, part_in_time, scattered

TEXTS = ["a small red circle moving left on a gray background", "a large blue star spinning on a black background"]


def tiny_matcher(bottleneck: str = "fsq", name: str = "shapes-matcher") -> Any:
    torch.manual_seed(0)
    return MATCHER_PRESETS[name].tiny().build(tiny_tokenizer(bottleneck)).eval()


def latents_of_clips(*size: int, batch: int = 1, bottleneck: str = "fsq") -> Latents:
    return tiny_tokenizer(bottleneck).encode(clip(*size, batch=batch))


# near misses


def test_near_misses_mean_something_else_and_differ_in_one_thing():
    generator = torch.Generator().manual_seed(0)
    kinds = set()
    for _ in range(300):
        scene = sample_scene(generator=generator)
        other = near_miss(scene, generator=generator)
        assert set(other.objects) != set(scene.objects) or other.background != scene.background
        if len(other.objects) != len(scene.objects):
            kept, whole = sorted((set(scene.objects), set(other.objects)), key=len)
            assert kept < whole and other.background == scene.background
            kinds.add("number")
            continue
        pairs = list(zip(scene.objects, other.objects, strict=True))
        words = {word for one, two in pairs for word, value in asdict(one).items() if asdict(two)[word] != value}
        words |= {"background"} - ({"background"} if other.background == scene.background else set())
        assert len(words) == 1
        changed = sum(one != two for one, two in pairs)
        kinds |= {"exchange"} if changed == 2 else words
    assert kinds == {"number", "exchange", "background", "size", "colour", "shape", "motion"}


def test_near_misses_never_name_a_pair_that_is_held_out():
    generator = torch.Generator().manual_seed(1)
    for _ in range(200):
        scene = sample_scene(generator=generator, hold_out=HELD_OUT_PAIRS)
        other = near_miss(scene, generator=generator, hold_out=HELD_OUT_PAIRS)
        assert not {(item.colour, item.shape) for item in other.objects} & HELD_OUT_PAIRS


# the network


@pytest.mark.parametrize("bottleneck", ["fsq", "kl"])
@pytest.mark.parametrize("size", [(1, 16, 16), (5, 18, 23), (17, 32, 32)])
@torch.no_grad()
def test_a_score_belongs_to_a_video_and_its_text_alone(bottleneck, size):
    matcher, latents = tiny_matcher(bottleneck), latents_of_clips(*size, batch=2, bottleneck=bottleneck)
    together = matcher.score(latents, TEXTS)
    assert together.shape == (2,) and together.dtype == torch.float32
    alone = torch.cat([matcher.score(latents[i : i + 1], [TEXTS[i]]) for i in range(2)])  # texts of other lengths
    assert (together - alone).abs().max() < 1e-5
    assert (together - matcher.score(latents, TEXTS[::-1])).abs().min() > 1e-4
    assert matcher.score(latents, ["", TEXTS[0]]).isfinite().all()


@pytest.mark.parametrize("kind", SPECS)
@torch.no_grad()
def test_tokens_of_any_spec_are_read(kind):
    spec = SPECS[kind]
    matcher = CrossAttentionMatcher(spec.to_json(), width=32, heads=2, video_layers=1, fusion_layers=1, buckets=64)
    shake(matcher)
    latents = random_latents(spec, batch=2)
    scores = matcher.score(latents, TEXTS)
    assert scores.isfinite().all() and (scores - matcher.score(latents, TEXTS[::-1])).abs().max() > 1e-4


def test_many_texts_for_a_video_are_scored_as_one_by_one():
    matcher, latents = tiny_matcher(), latents_of_clips(batch=2)
    with torch.no_grad():
        table = matcher.scores(latents, [TEXTS, TEXTS[::-1]])
        for row, texts in enumerate((TEXTS, TEXTS[::-1])):
            for column, text in enumerate(texts):
                assert (table[row, column] - matcher.score(latents[row : row + 1], [text])).abs() < 1e-5


@torch.no_grad()
def test_frames_that_are_not_asked_for_do_not_count():
    matcher, latents = tiny_matcher(), latents_of_clips(17, 16, 16)
    late = latents.spec.coordinates(latents.size)[:, 2] >= 9
    changed = replace(latents, tokens=torch.where(late[:, None], -latents.tokens, latents.tokens))
    for frames, equal in (((0, 9), True), ((0, 17), False), ((9, 17), False)):
        scores = [matcher.score(one, TEXTS[:1], frames=frames) for one in (latents, changed)]
        assert torch.equal(*scores) == equal
    assert torch.equal(matcher.score(latents, TEXTS[:1], frames=(0, 17)), matcher.score(latents, TEXTS[:1]))


def test_what_cannot_be_judged_is_refused():
    matcher, latents = tiny_matcher(), latents_of_clips(batch=2)
    with pytest.raises(ValueError, match="expected a prompt for each of 2 videos, got 1"):
        matcher.score(latents, TEXTS[:1])
    with pytest.raises(ValueError, match="the frames 90 up to 99 have no token"):
        matcher.score(latents, TEXTS, frames=(90, 99))
    with pytest.raises(ValueError, match="this matcher was built for tokens"):
        matcher.score(latents_of_clips(batch=2, bottleneck="kl"), TEXTS)
    pipe = pipeline("masked", "kl")
    with pytest.raises(ValueError, match="this matcher was built for tokens"):
        type(pipe)(**{**pipe.components, "matcher": matcher})


def test_a_saved_matcher_comes_back_bit_equal(tmp_path):
    matcher, latents = tiny_matcher(), latents_of_clips()
    matcher.save_pretrained(tmp_path)
    loaded: Any = vidgen.load(tmp_path)
    assert isinstance(loaded, MATCHERS)
    with torch.no_grad():
        assert torch.equal(loaded.score(latents, TEXTS[:1]), matcher.score(latents, TEXTS[:1]))


def test_presets_are_built_and_listed(capsys):
    assert isinstance(vidgen.build("shapes-matcher"), Matcher)
    assert main(["models", "--presets"]) == 0
    assert "base-matcher" in capsys.readouterr().out
    with torch.device("meta"):
        parameters = sum(weight.numel() for weight in MATCHER_PRESETS["base-matcher"].build().parameters())
    assert 70e6 < parameters < 80e6


class ReadingMatcher:
    """Reads the decoded video and compares it with the text: what no network that is tested could be better than."""

    device = torch.device("cpu")

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def score(self, latents, prompts):
        found = detect(self.tokenizer.decode(latents[:1])[0].clamp(-1, 1))
        return torch.tensor([2.0 * compare(found, parse_caption(text)).all_right - 1 for text in prompts])


def test_a_matcher_that_reads_videos_ranks_captions_above_all_kinds_of_near_misses():
    tokenizer: Any = vidgen.load("shapes-fsq")
    result = evaluate_matching(ReadingMatcher(tokenizer), tokenizer, num_prompts=8, seed=5, near_misses=6)
    assert set(result["by_kind"]) == set(KINDS)
    assert result["ranked"]["share"] > 0.9 and result["accepted"]["share"] > 0.9 and result["refused"]["share"] == 1


def test_a_matcher_that_knows_nothing_is_found_out():
    result = evaluate_matching(tiny_matcher(), tiny_tokenizer(), num_prompts=8, seed=5, near_misses=6)
    assert 0.3 < result["ranked"]["share"] < 0.7


# training


def tiny_run(folder, **changes) -> MatcherRun:
    about = {"preset": "shapes-matcher", "output_dir": folder, "tiny": True, "device": "cpu", "sample_every": 0}
    sizes = {"steps": 4, "batch_size": 4, "checkpoint_every": 2, "validate_every": 2, "log_every": 100}
    data = DataConfig(num_frames=5, height=16, width=16, validation_clips=8, objects=(1,))
    return MatcherRun(**{**about, **sizes, "data": data, "tokenizer": "real-fsq", **changes})


def test_a_matcher_learns_which_caption_fits(tmp_path):
    data = DataConfig(num_frames=1, height=16, width=16, validation_clips=32, objects=(1,))
    optimiser = OptimiserConfig(learning_rate=5e-3, warmup_steps=5)
    run = tiny_run(
        tmp_path, steps=100, batch_size=8, ema_decay=0.8, optimiser=optimiser, data=data, near_misses=0, others=4
    )
    assert isinstance(vidgen.load(train_matcher(run)), CrossAttentionMatcher)
    header = CheckpointFolder(tmp_path / "checkpoints", keep=9).header(100)
    assert header["validation"] < 0.5  # ln 2 = 0.69 for a network that knows nothing: it has found backgrounds
    assert json.loads((tmp_path / "run.json").read_text())["preset"] == "shapes-matcher"


def test_a_resumed_training_goes_on_as_if_nothing_had_happened(tmp_path):
    whole = vidgen.load(train_matcher(tiny_run(tmp_path / "whole")))
    train_matcher(tiny_run(tmp_path / "parts"))
    shutil.rmtree(CheckpointFolder(tmp_path / "parts" / "checkpoints", keep=9).path(4))
    parts = vidgen.load(train_matcher(tiny_run(tmp_path / "parts", resume=True)))
    for one, two in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(one, two)


def step_of(bottleneck: str = "fsq", **changes) -> MatcherStep:
    options = {"near_miss": None, "near_misses": 0, "others": 1, "broken": 0.5, "shortest": 3}
    return MatcherStep(tiny_matcher(bottleneck), tiny_tokenizer(bottleneck), **{**options, **changes})


@pytest.mark.parametrize("bottleneck", ["fsq", "kl"])
def test_broken_clips_have_their_own_tokens_in_other_places_and_no_text_fits_them(bottleneck):
    videos, generators = clip(9, 24, 24, batch=16), seeded(list(range(16)))
    batch = {"video": videos, "caption": ["a"] * 16}
    step = step_of(bottleneck)
    latents, broken = step.seen(batch, generators)
    whole = tiny_tokenizer(bottleneck).encode(videos)
    assert 0 < broken.sum() < 16
    for index in range(16):
        assert torch.equal(latents.tokens[index], whole.tokens[index]) != broken[index]
        of_clip = {tuple(token.tolist()) for token in whole.tokens[index]}
        assert {tuple(token.tolist()) for token in latents.tokens[index]} <= of_clip
        if latents.ids is not None:
            again = tiny_tokenizer(bottleneck).reals_from_ids(latents.ids[index : index + 1])
            assert (again - latents.tokens[index]).abs().max() < 1e-5
    assert not step_of(bottleneck, broken=0.0).seen(batch, generators)[1].any()
    losses = step_of(bottleneck, broken=1.0)({**batch, "caption": list("abcdefghijklmnop")}, seeded(list(range(16))))
    assert losses["others"] > 0


def test_clips_on_which_nothing_would_show_are_not_called_broken():
    plain = torch.zeros(4, 3, 9, 24, 24)
    tokenizer = tiny_tokenizer()
    step = step_of(broken=1.0)
    same = tokenizer.encode(plain)
    same = replace(same, tokens=same.tokens[:, :1].expand_as(same.tokens), ids=same.ids[:, :1].expand_as(same.ids))
    step.encode = lambda batch: same
    assert not step.seen({"video": plain}, seeded([0, 1, 2, 3]))[1].any()


@pytest.mark.parametrize("kind", SPECS)
def test_tokens_stay_within_their_part_when_they_are_moved(kind):
    latents = random_latents(SPECS[kind], batch=3)
    source = scattered(latents, seeded([1, 2, 3]))
    assert source.shape == latents.tokens.shape[:2]
    for place in latents.spec.slices(latents.size):
        assert (source[:, place] >= place.start).all() and (source[:, place] < place.stop).all()


def test_texts_are_the_caption_its_near_misses_and_those_of_the_next_clips():
    step = step_of(near_miss=lambda caption, generator: caption.upper(), near_misses=2, others=1)
    assert step.offered(["a", "b", "c"], seeded([0, 1, 2])) == [
        ["a", "A", "A", "b"],
        ["b", "B", "B", "c"],
        ["c", "C", "C", "a"],
    ]


def test_a_part_in_time_has_at_least_so_many_frames():
    parts = [part_in_time(17, seeded([number]), shortest=8) for number in range(60)]
    cut = [part for part in parts if part is not None]
    assert 15 < len(cut) < 45 and min(end - first for first, end in cut) >= 8
    assert min(first for first, _ in cut) >= 0 and max(end for _, end in cut) <= 17 and len(set(cut)) > 8
    assert part_in_time(5, seeded([0]), shortest=8) is None


def test_encoded_clips_train_as_fresh_ones_do(tmp_path):
    """The same clips in the same order, but for the order in which a folder of clips is gone through."""
    fresh = train_matcher(tiny_run(tmp_path / "fresh", near_misses=2))
    cached = train_matcher(tiny_run(tmp_path / "cached", near_misses=2, cached_clips=16))
    assert {path.name for path in fresh.iterdir()} == {path.name for path in cached.iterdir()}
    assert any((tmp_path / "cached" / "cache").iterdir())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"broken": 1.5}, "broken is a share between 0 and 1"),
        ({"others": 4}, "need a micro-batch of 5 clips or more, got 4"),
        ({"others": 0, "near_misses": 0}, "no texts are left that do not fit"),
        ({"shortest": 0}, "shortest must be above 0"),
        ({"cached_clips": -1}, "cached_clips must be 0 or more"),
    ],
)
def test_runs_that_cannot_work_are_refused(changes, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        tiny_run(tmp_path, **changes)


def test_a_matcher_of_pairs_that_were_seen_is_no_beginning_for_held_out_ones(tmp_path):
    data = DataConfig(num_frames=5, height=16, width=16, validation_clips=0, objects=(1,), hold_out=True)
    with pytest.raises(ValueError, match="--hold-out promises"):
        train_matcher(tiny_run(tmp_path, data=data, tokenizer="shapes-fsq"))


# pipelines


def matched_pipeline(family: str) -> Any:
    pipe: Any = pipeline(family)
    pipe.register_modules(matcher=tiny_matcher())
    return pipe


@each_family
@torch.no_grad()
def test_the_candidate_that_matcher_and_network_like_best_together_comes_back(family):
    pipe, source = matched_pipeline(family), seed(4)
    chosen = tokens_of(latents_of(pipe, prompt=TEXTS, generator=seed(4), num_candidates=4))
    places = []
    for number, prompt in enumerate(TEXTS):
        candidates = all_candidates(pipe, prompt, source, 4)
        fits, likely = pipe.matcher.score(candidates, [prompt] * 4), plausibility(pipe, candidates, prompt)
        scores = (fits - fits.mean()) / fits.std() + (likely - likely.mean()) / likely.std()
        places.append(scores.argmax().item())
        assert (chosen[number] - tokens_of(candidates)[places[-1]]).abs().max() <= 1e-4
    assert any(places), "the first candidate is what a call without a choice gives: choose another seed for this test"


@each_family
@torch.no_grad()
def test_without_words_the_network_itself_chooses(family):
    pipe, plain = matched_pipeline(family), pipeline(family)
    states, mask, _, _ = plain.encode_prompt(TEXTS[0])
    for call in ({"prompt": ""}, {"prompt": None, "prompt_embeds": states, "prompt_attention_mask": mask}):
        with_matcher = tokens_of(latents_of(pipe, generator=seed(5), num_candidates=4, **call))
        assert torch.equal(with_matcher, tokens_of(latents_of(plain, generator=seed(5), num_candidates=4, **call)))


@each_family
@torch.no_grad()
def test_each_prompt_of_a_timeline_is_matched_with_its_frames(family):
    pipe = matched_pipeline(family)
    timeline = [(0, TEXTS[0]), (2, TEXTS[1])]
    latents = latents_of(pipe, prompt=TEXTS[0], num_videos_per_prompt=3)
    expected = sum(
        torch.nn.functional.logsigmoid(pipe.matcher.score(latents, [text] * 3, frames=frames))
        for frames, text in (((0, 2), TEXTS[0]), ((2, 5), TEXTS[1]))
    )
    assert (pipe.matched(latents, [timeline]) - expected).abs().max() < 1e-6
    assert sample(pipe, prompt=timeline, num_candidates=2).shape[0] == 1


@each_family
@torch.no_grad()
def test_a_timeline_is_judged_to_the_last_token_and_where_a_prompt_has_none(family):
    pipe = matched_pipeline(family)
    for frames in (4, 6, 7):
        latents = latents_of(pipe, prompt=TEXTS[0], num_frames=frames, num_videos_per_prompt=2)
        times = latents.spec.coordinates(latents.size)[:, 2].unique().tolist()
        of_last_token = frames - 1
        score = pipe.matcher.score(latents, [TEXTS[1]] * 2, frames=(of_last_token, times[-1] + 1))
        before = pipe.matcher.score(latents, [TEXTS[0]] * 2, frames=(0, of_last_token))
        expected = sum(torch.nn.functional.logsigmoid(one) for one in (before, score))
        assert (pipe.matched(latents, [[(0, TEXTS[0]), (of_last_token, TEXTS[1])]]) - expected).abs().max() < 1e-6
        without = next(frame for frame in range(frames) if frame not in times)
        assert pipe.matched(latents, [[(0, TEXTS[0]), (without, ""), (without + 1, TEXTS[1])]]).isfinite().all()
        sample(pipe, prompt=[(0, TEXTS[0]), (of_last_token, TEXTS[1])], num_frames=frames, num_candidates=2)


@each_family
@torch.no_grad()
def test_known_frames_stay_whatever_is_chosen(family):
    pipe, given = matched_pipeline(family), clip(frames=1)
    frames = sample(pipe, prompt=TEXTS[0], video=given, num_candidates=3)
    assert torch.equal(frames[:, 0], (given / 2 + 0.5)[:, :, 0])
    longer = torch.cat([*pipe.extend_stream(TEXTS[0], num_frames=9, generator=seed(), num_candidates=2)], dim=2)
    assert longer.shape[2] == 9


@each_family
def test_a_pipeline_is_saved_and_made_into_another_with_its_matcher_or_without(family, tmp_path):
    pipe = matched_pipeline(family)
    pipe.save_pretrained(tmp_path / "with")
    loaded = vidgen.load(tmp_path / "with")
    assert isinstance(loaded.matcher, Matcher)  # pyright: ignore[reportAttributeAccessIssue]
    call = {"prompt": TEXTS[0], "num_candidates": 3, "generator": seed(2)}
    expected = sample(pipe, **call)
    loaded.set_progress_bar_config(disable=True)  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.equal(sample(loaded, **{**call, "generator": seed(2)}), expected)
    assert type(pipe).from_pipe(pipe).matcher is pipe.matcher
    pipeline(family).save_pretrained(tmp_path / "without")
    assert vidgen.load(tmp_path / "without").matcher is None  # pyright: ignore[reportAttributeAccessIssue]
    given = vidgen.load(tmp_path / "without", matcher=pipe.matcher)
    assert given.matcher is pipe.matcher  # pyright: ignore[reportAttributeAccessIssue]
