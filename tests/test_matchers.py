"""Does a matcher judge a video by what it shows alone, does it learn, and do pipelines go by its judgement?"""

import json
import shutil
from dataclasses import asdict

import pytest
import torch
from test_candidates import all_candidates
from test_generators import tokens_of
from test_pipelines import each_family, latents_of, sample, seed
from tiny_models import clip, pipeline
from tiny_models import tokenizer as tiny_tokenizer

import vidgen
from vidgen.cli import main
from vidgen.data.shapes import HELD_OUT_PAIRS, ShapesWorld, near_miss, parse_caption, sample_scene
from vidgen.eval.detector import compare, detect
from vidgen.eval.matching import KINDS, evaluate_matching
from vidgen.matchers import MATCHERS, Matcher
from vidgen.matchers.presets import MATCHER_PRESETS
from vidgen.nn.random import seeded
from vidgen.pipelines import VideoPipeline
from vidgen.tokenizers.presets import TOKENIZER_PRESETS
from vidgen.training import DataConfig, MatcherRun, OptimiserConfig, train_matcher
from vidgen.training.checkpoint import CheckpointFolder
from vidgen.training.matcher_step import MatcherStep, cut, offered, with_moved_tokens

TEXTS = ["a small red circle moving left on a gray background", "a large blue star spinning on a black background"]


def tiny_matcher(name: str = "shapes-matcher") -> Matcher:
    torch.manual_seed(0)
    return MATCHER_PRESETS[name].tiny().build().eval()


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
    world = ShapesWorld(seed=3, hold_out=HELD_OUT_PAIRS, near_misses=8)
    for index in range(40):
        for caption in world[index]["near_misses"]:
            assert not {(item.colour, item.shape) for item in parse_caption(caption).objects} & HELD_OUT_PAIRS


def test_near_misses_change_nothing_else_of_an_item():
    plain, with_others = ShapesWorld(seed=4)[7], ShapesWorld(seed=4, near_misses=3)[7]
    assert torch.equal(plain["video"], with_others["video"]) and len(with_others.pop("near_misses")) == 3
    assert plain.keys() == with_others.keys() and plain["caption"] == with_others["caption"]


# the network


@pytest.mark.parametrize("name", MATCHER_PRESETS)
@pytest.mark.parametrize("size", [(1, 16, 16), (5, 18, 23), (17, 64, 64)])
@torch.no_grad()
def test_a_score_belongs_to_a_video_and_its_text_alone(name, size):
    matcher, videos = tiny_matcher(name), clip(*size, batch=2)
    together = matcher.score(videos, TEXTS)
    assert together.shape == (2,) and together.dtype == torch.float32
    alone = torch.cat([matcher.score(videos[i : i + 1], [TEXTS[i]]) for i in range(2)])  # texts of other lengths
    assert (together - alone).abs().max() < 1e-5
    assert (together - matcher.score(videos, TEXTS[::-1])).abs().min() > 1e-4
    assert matcher.score(videos, ["", TEXTS[0]]).isfinite().all()


def test_many_texts_for_a_video_are_scored_as_one_by_one():
    matcher, videos = tiny_matcher(), clip(batch=2)
    with torch.no_grad():
        table = matcher.scores(videos, [TEXTS, TEXTS[::-1]])  # pyright: ignore[reportAttributeAccessIssue]
        for row, texts in enumerate((TEXTS, TEXTS[::-1])):
            for column, text in enumerate(texts):
                one = matcher.score(videos[row : row + 1], [text])
                assert (table[row, column] - one).abs() < 1e-5


def test_each_video_needs_a_prompt():
    with pytest.raises(ValueError, match="expected a prompt for each of 2 videos, got 1"):
        tiny_matcher().score(clip(batch=2), ["a red circle"])


def test_a_saved_matcher_comes_back_bit_equal(tmp_path):
    matcher = tiny_matcher()
    matcher.save_pretrained(tmp_path)
    loaded = vidgen.load(tmp_path)
    assert isinstance(loaded, MATCHERS)
    with torch.no_grad():
        assert torch.equal(loaded.score(clip(), TEXTS[:1]), matcher.score(clip(), TEXTS[:1]))


def test_presets_are_built_and_listed(capsys):
    assert isinstance(vidgen.build("shapes-matcher"), Matcher)
    assert main(["models", "--presets"]) == 0
    assert "base-matcher" in capsys.readouterr().out
    with torch.device("meta"):
        parameters = sum(weight.numel() for weight in MATCHER_PRESETS["base-matcher"].build().parameters())
    assert 70e6 < parameters < 80e6


class ReadingMatcher:
    """Reads a video and compares it with the text: what no network that is tested could be better than."""

    device = torch.device("cpu")

    def score(self, video, prompts):
        found = detect(video[0])
        return torch.tensor([2.0 * compare(found, parse_caption(text)).all_right - 1 for text in prompts])


def test_a_matcher_that_reads_videos_ranks_captions_above_all_kinds_of_near_misses():
    result = evaluate_matching(ReadingMatcher(), num_prompts=8, seed=5, near_misses=6)
    assert set(result["by_kind"]) == set(KINDS)
    assert result["ranked"]["share"] > 0.98 and result["accepted"]["share"] > 0.98 and result["refused"]["share"] == 1


def test_a_matcher_that_knows_nothing_is_found_out():
    result = evaluate_matching(tiny_matcher(), num_prompts=8, seed=5, near_misses=6)
    assert 0.3 < result["ranked"]["share"] < 0.7


# training


def tiny_run(folder, **changes) -> MatcherRun:
    about = {"preset": "shapes-matcher", "output_dir": folder, "tiny": True, "device": "cpu", "sample_every": 0}
    sizes = {"steps": 4, "batch_size": 4, "checkpoint_every": 2, "validate_every": 2, "log_every": 100}
    data = DataConfig(num_frames=9, height=16, width=16, validation_clips=8, objects=(1,))
    return MatcherRun(**{**about, **sizes, "data": data, "broken": 0.0, "shortest": 5, **changes})


def test_a_matcher_learns_which_caption_fits(tmp_path):
    """Backgrounds are what it finds first: on clips of one background it is worth more than a guess by far."""
    optimiser = OptimiserConfig(learning_rate=1e-2, warmup_steps=5)
    data = DataConfig(num_frames=5, height=16, width=16, validation_clips=32, objects=(1,))
    run = tiny_run(tmp_path, steps=60, batch_size=8, ema_decay=0.8, optimiser=optimiser, data=data, near_misses=0)
    matcher = vidgen.load(train_matcher(run))
    header = CheckpointFolder(tmp_path / "checkpoints", keep=9).header(60)
    assert header["validation"] < 0.55  # two halves of a cross-entropy of ln 2 before the first step
    assert json.loads((tmp_path / "run.json").read_text())["preset"] == "shapes-matcher"
    assert "gray" in matcher.text_encoder.config.vocabulary  # pyright: ignore[reportAttributeAccessIssue]


def test_a_resumed_training_goes_on_as_if_nothing_had_happened(tmp_path):
    whole = vidgen.load(train_matcher(tiny_run(tmp_path / "whole")))
    train_matcher(tiny_run(tmp_path / "parts"))
    shutil.rmtree(CheckpointFolder(tmp_path / "parts" / "checkpoints", keep=9).path(4))
    parts = vidgen.load(train_matcher(tiny_run(tmp_path / "parts", resume=True)))
    for one, two in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.equal(one, two)


def step_of(**changes) -> MatcherStep:
    options = {"tokenizers": [tiny_tokenizer("fsq"), tiny_tokenizer("kl")], "broken": 0.5, "shortest": 3, "others": 1}
    return MatcherStep(tiny_matcher(), **{**options, **changes})  # pyright: ignore[reportArgumentType]


def test_no_text_fits_a_broken_clip_and_whole_clips_pass_through_one_tokenizer_or_none():
    count = 24
    videos, generators = clip(9, 24, 24, batch=count), seeded([100 + number for number in range(count)])
    step = step_of()
    shown, broken = step.seen(videos, generators)
    restored = [tokenizer.decode(tokenizer.encode(videos)) for tokenizer in step.tokenizers]
    kinds = set()
    for index in range(count):
        equal = [int((shown[index] - one[index]).abs().max() < 1e-4) for one in (videos, *restored)]
        assert sum(equal) == (0 if broken[index] else 1)
        kinds.add(None if broken[index] else equal.index(1))
    assert kinds == {None, 0, 1, 2}
    assert not step_of(broken=0.0).seen(videos, seeded(list(range(count))))[1].any()


@pytest.mark.parametrize("bottleneck", ["fsq", "kl"])
def test_moved_tokens_are_tokens_of_the_same_clip(bottleneck):
    latents = tiny_tokenizer(bottleneck).encode(clip(9, 32, 32, batch=3))
    moved = with_moved_tokens(latents, [2, 0], seeded([1, 2]))
    for row, source in enumerate((2, 0)):
        of_clip = {tuple(token.tolist()) for token in latents.tokens[source]}
        assert {tuple(token.tolist()) for token in moved.tokens[row]} <= of_clip
        assert not torch.equal(moved.tokens[row], latents.tokens[source])
        if latents.ids is not None:
            again = tiny_tokenizer(bottleneck).reals_from_ids(moved.ids[row : row + 1])
            assert (again - moved.tokens[row]).abs().max() < 1e-5


def test_texts_are_the_caption_its_near_misses_and_those_of_the_next_clips():
    assert offered(["a", "b", "c"], [["x"], ["y"], ["z"]], others=2) == [
        ["a", "x", "b", "c"],
        ["b", "y", "c", "a"],
        ["c", "z", "a", "b"],
    ]
    assert offered(["a", "b"], None, others=1) == [["a", "b"], ["b", "a"]]


def test_a_cut_clip_is_a_part_in_time_of_at_least_so_many_frames():
    videos, lengths = clip(17, 8, 8), set()
    for number in range(40):
        part = cut(videos, seeded([number]), shortest=8)
        lengths.add(part.shape[2])
        assert any(torch.equal(part, videos[:, :, i : i + part.shape[2]]) for i in range(17))
    assert min(lengths) >= 8 and 17 in lengths and len(lengths) > 4
    assert cut(clip(5, 8, 8), seeded([0]), shortest=8).shape[2] == 5


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"broken": 0.5}, "name --tokenizers, or set --broken 0"),
        ({"broken": 1.5, "tokenizers": ("shapes-fsq",)}, "broken is a share between 0 and 1"),
        ({"others": 4}, "need a micro-batch of 5 clips or more, got 4"),
        ({"others": 0, "near_misses": 0}, "no texts are left that do not fit"),
        ({"shortest": 0}, "shortest must be above 0"),
    ],
)
def test_runs_that_cannot_work_are_refused(changes, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        tiny_run(tmp_path, **changes)


def test_tokenizers_without_one_grid_are_refused(tmp_path):
    folder = tmp_path / "larp"
    TOKENIZER_PRESETS["larp"].tiny().build().save_pretrained(folder)
    with pytest.raises(ValueError, match="expected a video tokenizer with one grid of tokens"):
        train_matcher(tiny_run(tmp_path / "run", tokenizers=(str(folder),), broken=0.2))


# pipelines


def matched_pipeline(family: str) -> VideoPipeline:
    pipe = pipeline(family)
    pipe.register_modules(matcher=tiny_matcher())
    return pipe


@each_family
@torch.no_grad()
def test_the_candidate_that_the_matcher_likes_best_comes_back(family):
    pipe, source = matched_pipeline(family), seed(3)
    chosen = tokens_of(latents_of(pipe, prompt=TEXTS, generator=seed(3), num_candidates=4))
    places = []
    for number, prompt in enumerate(TEXTS):
        candidates = all_candidates(pipe, prompt, source, 4)
        scores = pipe.matcher.score(pipe.pixels(candidates).clamp(-1, 1), [prompt] * 4)
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
    video = clip(5, 16, 16, batch=3)
    expected = sum(
        torch.nn.functional.logsigmoid(pipe.matcher.score(part, [text] * 3))
        for part, text in ((video[:, :, :2], TEXTS[0]), (video[:, :, 2:], TEXTS[1]))
    )
    assert (pipe.log_match(video, timeline) - expected).abs().max() < 1e-6
    assert sample(pipe, prompt=timeline, num_candidates=2).shape[0] == 1


@each_family
@torch.no_grad()
def test_known_frames_are_judged_as_they_come_back(family):
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
