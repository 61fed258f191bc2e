"""From folders of videos to distances: caches, sharing among processes, intervals, commands, and videos gone wrong."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vidgen.cli import main
from vidgen.data import write_video
from vidgen.eval.compare import read_result, why_incomparable
from vidgen.eval.distance import measure_distance
from vidgen.eval.extractors import SqueezeNetMotion, TinyNetwork, TokenizerFeatures
from vidgen.eval.feature_extraction import examine, extract_features, extraction_conditions, read_clips
from vidgen.eval.features import FeatureSet, joined
from vidgen.eval.frechet import frechet_distance
from vidgen.eval.mean_discrepancy import JEDI, kernel_distance
from vidgen.eval.preprocess import preprocess
from vidgen.eval.protocol import ClipRule, FeatureProtocol, Preprocess
from vidgen.eval.protocols import get_protocol
from vidgen.eval.video_survey import check_alike, survey
from vidgen.tokenizers.causal_conv import CausalConvTokenizer

TINY = get_protocol("fd.tiny", FeatureProtocol)


def pixels(frames: int, *, seed: int, side: int = 32) -> np.ndarray:
    """Blocks that move: uint8 `t h w 3`."""
    generator = np.random.default_rng(seed)
    picture = np.kron(generator.integers(256, size=(4, 8, 3)), np.ones((side // 4, side // 4, 1))).astype(np.uint8)
    step = generator.integers(1, 4)
    return np.stack([np.roll(picture, step * frame, axis=1)[:, :side] for frame in range(frames)])


def folder(path: Path, count: int, *, frames: int = 6, first: int = 0, fps: float = 8) -> Path:
    """A folder of lossless clips, each a folder of PNGs."""
    for number in range(first, first + count):
        write_video(path / f"clip{number:03d}", list(pixels(frames, seed=number)), fps=fps)
    return path


def extract(root: Path, protocol: FeatureProtocol = TINY, *, count=None, cache=None, **options) -> FeatureSet:
    videos = survey(root, allow_missing=options.get("allow_missing", False))
    return extract_features(videos, TinyNetwork(), protocol, count=count, cache=cache, **options)


class Counting(TinyNetwork):
    """Counts the clips it sees."""

    seen = 0

    def features(self, video):
        self.seen += len(video)
        return super().features(video)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    return folder(tmp_path_factory.mktemp("videos") / "real", 12)


@pytest.fixture(scope="module")
def fakes(tmp_path_factory) -> Path:
    return folder(tmp_path_factory.mktemp("videos") / "fake", 10, first=100)


def test_features_of_a_folder_are_those_of_its_clips_one_by_one(clips):
    found = extract(clips)
    assert found.videos == tuple(f"clip{number:03d}" for number in range(12))
    for row, number in ((0, 0), (7, 7)):
        video = torch.from_numpy(pixels(6, seed=number)[: TINY.clip.frames]).permute(3, 0, 1, 2)[None]
        expected = TinyNetwork()(preprocess(video, TINY.preprocess))[0, 0]
        torch.testing.assert_close(found.features[row], expected, rtol=1e-4, atol=1e-6)


def test_a_second_run_reads_the_cache_and_another_condition_does_not(clips, tmp_path):
    videos, network = survey(clips), Counting()
    first = extract_features(videos, network, TINY, count=None, cache=tmp_path)
    assert network.seen == 12
    again = extract_features(videos, network, TINY, count=None, cache=tmp_path)
    assert network.seen == 12 and torch.equal(again.features, first.features) and again.videos == first.videos
    shorter = replace(TINY, clip=ClipRule(frames=3))
    extract_features(videos, network, shorter, count=None, cache=tmp_path)
    assert network.seen == 24


def test_a_run_cut_short_loses_nothing(clips, tmp_path):
    class Failing(Counting):
        def features(self, video):
            if self.seen >= 8:
                raise RuntimeError("the power is gone")
            return super().features(video)

    with pytest.raises(RuntimeError):
        extract_features(survey(clips), Failing(), TINY, count=None, cache=tmp_path)
    network = Counting()
    found = extract_features(survey(clips), network, TINY, count=None, cache=tmp_path)
    assert network.seen <= 5, "the last clip of a finished batch may have to be read again"
    assert torch.allclose(found.features, extract(clips).features, rtol=1e-5, atol=1e-6)


def test_a_changed_video_is_not_taken_from_the_cache(tmp_path):
    root = folder(tmp_path / "videos", 2)
    before = extract(root, cache=tmp_path / "cache")
    write_video(tmp_path / "other" / "clip000", list(pixels(6, seed=77)), fps=8)
    for image in (tmp_path / "other" / "clip000").iterdir():
        (root / "clip000" / image.name).write_bytes(image.read_bytes())
    after = extract(root, cache=tmp_path / "cache")
    assert not torch.equal(after.features[0], before.features[0])
    assert torch.equal(after.features[1], before.features[1])


def test_random_clips_follow_the_seed_and_not_the_name(tmp_path):
    protocol = replace(TINY, clip=ClipRule(frames=4, offset="random"))
    one, other = folder(tmp_path / "one", 3, frames=30), folder(tmp_path / "other", 3, frames=30)
    (other / "clip000").rename(other / "renamed")
    found = extract(one, protocol, seed=5)
    assert torch.equal(
        found.of_videos(["clip000"]).features, extract(other, protocol, seed=5).of_videos(["renamed"]).features
    )
    assert not torch.equal(found.features, extract(one, protocol, seed=6).features)


def test_a_number_of_videos_is_drawn_by_seed(clips):
    some = extract(clips, count=5)
    assert some.num_videos == 5 and some.inputs["n_videos"] == 5
    assert some.videos == extract(clips, count=5).videos != extract(clips, count=5, seed=1).videos


def test_too_short_videos_are_dropped_with_a_reason_or_an_error(tmp_path):
    root = folder(folder(tmp_path, 3, frames=6), 2, frames=3, first=50)
    dropping = extract(root)
    assert dropping.num_videos == 3
    assert dropping.inputs["excluded"] == dict.fromkeys(("clip050", "clip051"), "too short for a clip")
    assert extract(root, count=3).num_videos == 3, "others take the place of those that are too short"
    with pytest.raises(ValueError, match=r"needs 4 videos, and .* has 3 that can be used \(2 are left out"):
        extract(root, count=4)
    with pytest.raises(ValueError, match="is shorter; remove it"):
        extract(root, replace(TINY, clip=ClipRule(frames=4, short="error")))
    assert extract(root, replace(TINY, clip=ClipRule(frames=4, short="repeat-last"))).num_videos == 5


def test_clips_are_read_as_the_rule_says(tmp_path):
    frames = pixels(20, seed=0)
    path = write_video(tmp_path / "clip", list(frames), fps=10)

    def read(**rule) -> list[np.ndarray]:
        generator = torch.Generator().manual_seed(0)
        read = read_clips(path, ClipRule(**rule), Preprocess(), generator=generator, piece=rule.get("frames") and None)
        return [clip.permute(1, 2, 3, 0).byte().numpy() for clip in read]

    assert np.array_equal(read(frames=4, stride=3)[0], frames[:12:3])
    assert np.array_equal(read(frames=6, offset="centre")[0], frames[7:13])
    assert [len(clip) for clip in read(frames=5, clips_per_video=3)] == [5, 5, 5]
    assert np.array_equal(read(max_frames=7)[0], frames[:7]) and np.array_equal(read()[0], frames)
    repeated = read(frames=22, short="repeat-last")[0]
    assert np.array_equal(repeated[:20], frames) and np.array_equal(repeated[21], frames[19])
    pieces = read_clips(path, ClipRule(), Preprocess(), generator=torch.Generator(), piece=8)
    assert [piece.shape[1] for piece in pieces] == [8, 8, 4]


class PerFrame(TinyNetwork):
    """An image network."""

    name, per_frame = "per-frame", True

    def features(self, video):
        frames = [video[:, :, [t]].expand(-1, -1, 2, -1, -1) for t in range(video.shape[2])]
        return torch.cat([super(PerFrame, self).features(frame) for frame in frames], dim=1)


def test_image_networks_give_a_row_for_every_frame(clips, monkeypatch):
    whole = replace(TINY, clip=ClipRule())
    found = extract_features(survey(clips), PerFrame(), whole, count=None, cache=None)
    assert len(found.features) == 12 * 6 and found.num_videos == 12
    monkeypatch.setattr("vidgen.eval.feature_extraction.PIECE_FRAMES", 4)
    in_pieces = extract_features(survey(clips), PerFrame(), whole, count=None, cache=None)
    torch.testing.assert_close(in_pieces.features, found.features, rtol=1e-4, atol=1e-6)


def shuffled_parts(whole: FeatureSet) -> list[FeatureSet]:
    names = list(dict.fromkeys(whole.videos))
    return [whole.of_videos(names[6:]), whole.of_videos(names[:4]), whole.of_videos(names[3:8][::-1])]


def test_joined_parts_are_the_whole_whatever_their_order_and_overlap(clips):
    whole = extract(clips)
    parts = shuffled_parts(whole)
    for order in ((0, 1, 2), (2, 0, 1)):
        again = joined([parts[place] for place in order])
        assert torch.equal(again.features, whole.features) and again.videos == whole.videos


def test_sets_that_do_not_belong_together_are_not_joined(clips):
    whole = extract(clips)
    other = replace(whole, conditions={**whole.conditions, "seed": 3})
    with pytest.raises(ValueError, match="seed: None, 3"):
        joined([whole, other])
    with pytest.raises(ValueError, match="different features for clip000"):
        joined([whole, replace(whole, features=whole.features + 1)])


def test_a_feature_file_gives_back_everything(clips, tmp_path):
    whole = extract(clips)
    whole.save(tmp_path / "features.safetensors")
    again = FeatureSet.load(tmp_path / "features.safetensors")
    assert torch.equal(again.features, whole.features)
    assert (again.videos, again.conditions, again.inputs) == (whole.videos, whole.conditions, whole.inputs)
    assert load_file(tmp_path / "features.safetensors")["features"].dtype == torch.float32


@pytest.mark.parametrize("content", [b"", b"not a feature file", None])
def test_other_files_are_no_feature_files(content, tmp_path):
    path = tmp_path / "file.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="expected a feature file"):
        FeatureSet.load(path)


def random_set(count: int, *, seed: int, name: str = "tiny", **options) -> FeatureSet:
    generator = torch.Generator().manual_seed(seed)
    names = {"f": options.get("f", f"fd.{name}"), "k": options.get("k", f"kd.{name}")}
    conditions = extraction_conditions(TinyNetwork(), TINY, seed=0) | {"names": names}
    rows = torch.randn(count, 32, generator=generator) + options.get("shift", 0.0)
    return FeatureSet(rows, tuple(f"{seed}-{row:03d}" for row in range(count)), conditions, {"root": "r"})


def test_a_report_holds_value_interval_bias_and_conditions():
    real, fake = random_set(60, seed=0), random_set(50, seed=1, shift=0.5)
    report = measure_distance(real, fake, metrics=("fvd", "fvd_inf", "kvd", "jedi"), protocol=TINY, repeats=6)
    result = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert result["schema"] == "vidgen.eval/1" and result["metric"] == "fd.tiny"
    assert result["value"] == frechet_distance(real.features, fake.features)
    assert result["uncertainty"]["ci95"][0] < result["value"] < result["uncertainty"]["ci95"][1]
    assert [one["metric"] for one in result["results"]] == ["fd.tiny", "fd.tiny_inf", "kd.tiny", "jedi.tiny"]
    assert result["results"][1]["value"] < result["value"]
    jedi = kernel_distance(real.features, fake.features, kernel=JEDI, biased=True)
    assert result["results"][3]["value"] == pytest.approx(100 * jedi, rel=1e-12), "JEDi is printed times 100"
    assert result["bias"]["rank_ok"] and result["bias"]["real_vs_real_split_half"] > 0
    assert result["protocol"]["sha256"] == TINY.sha256 and result["extractor"]["name"] == "tiny"


def test_few_samples_are_refused_under_a_published_name():
    names = {"f": "fvd", "k": "kvd"}
    real, fake = random_set(30, seed=0, **names), random_set(30, seed=1, **names)
    with pytest.raises(ValueError, match=r"at least 33 samples .* fvd_biased with --allow-small-n"):
        measure_distance(real, fake, metrics=("fvd",))
    report = measure_distance(real, fake, metrics=("fvd", "kvd"), allow_small_n=True, repeats=4)
    assert [result["metric"] for result in report.results] == ["fvd_biased", "kvd"] and not report.bias["rank_ok"]
    few_by_rule = replace(TINY, small_n=True, num_real=30, num_fake=30)
    named = measure_distance(real, fake, metrics=("fvd",), protocol=few_by_rule, repeats=4)
    assert named.results[0]["metric"] == "fvd" and not named.bias["rank_ok"]
    assert measure_distance(real, fake, metrics=("kvd",), repeats=4).results[0]["metric"] == "kvd"


def test_limits_of_few_samples_are_refused_under_a_published_name_too():
    real, fake = (random_set(30, seed=seed, f="fvd", k="kvd") for seed in (0, 1))
    with pytest.raises(ValueError, match="at least 33 samples"):
        measure_distance(real, fake, metrics=("fvd_inf",))
    assert measure_distance(real, fake, metrics=("fvd_inf",), allow_small_n=True, repeats=2).results


@pytest.mark.parametrize(
    ("metrics", "changes"),
    [
        (("fvd", "kvd"), {"metric": "kvd", "estimator": "polynomial-mmd-unbiased"}),
        (("kvd",), {"metric": "fvd"}),
        (("jedi",), {"metric": "kvd", "estimator": "polynomial-mmd-unbiased"}),
    ],
)
def test_a_protocol_is_not_taken_for_another_kind_of_distance(metrics, changes):
    real, fake = (random_set(40, seed=seed) for seed in (0, 1))
    with pytest.raises(ValueError, match=r"fd\.tiny is about .* of the kind"):
        measure_distance(real, fake, metrics=metrics, protocol=replace(TINY, **changes))
    assert measure_distance(real, fake, metrics=("kvd",), protocol=TINY, repeats=2).results, "surrogates serve for all"


def test_a_protocol_that_names_weights_takes_no_others(clips):
    weights = TinyNetwork().weights.sha256
    real, fake = (random_set(40, seed=seed) for seed in (0, 1))
    right, wrong = (replace(TINY, weights_sha256=digest) for digest in (weights, "0" * 64))
    assert extract(clips, right).num_videos == 12
    assert measure_distance(real, fake, metrics=("fvd",), protocol=right, repeats=2).results
    with pytest.raises(ValueError, match=f"with weights of sha256 0+, got {weights}"):
        extract(clips, wrong)
    with pytest.raises(ValueError, match=f"with weights of sha256 0+, got {weights}"):
        measure_distance(real, fake, metrics=("fvd",), protocol=wrong)


def test_features_of_a_tokenizer_are_told_from_those_of_another_with_the_same_weights(clips, tmp_path):
    def features(levels: list[int]) -> FeatureSet:
        torch.manual_seed(0)
        options = {"levels": levels}
        tokenizer = CausalConvTokenizer(
            bottleneck_options=options, stride=(1, 4, 4), patch=2, widths=(8, 8), depth=1, decoder_depth=1
        )
        network = TokenizerFeatures(tokenizer, name="it")
        found.append(network)
        return extract_features(survey(clips), network, TINY, count=2, cache=tmp_path)

    found: list[TokenizerFeatures] = []
    one, other = features([3, 3]), features([9, 9])
    assert found[0].weights.sha256 == found[1].weights.sha256
    assert not torch.equal(one.features, other.features) and one.conditions != other.conditions
    assert torch.equal(features([3, 3]).features, one.features)


@pytest.mark.parametrize(
    "change,words",
    [
        ({"num_real": 256}, "fd.tiny takes 256 real videos, got 40"),
        ({"num_fake": 30}, "fd.tiny takes 30 fake videos, got 40"),
        ({"num_fake": 20, "repeats": 3}, "fd.tiny takes 60 fake videos, got 40"),
        ({"clip": ClipRule(frames=16)}, r"not those of fd.tiny: clip.frames: 16, 4"),
        ({"extractor": "i3d-kinetics400"}, "extractor: 'i3d-kinetics400', 'tiny'"),
    ],
)
def test_features_that_a_protocol_did_not_make_do_not_get_its_name(change, words):
    real, fake = random_set(40, seed=0, f="fvd"), random_set(40, seed=1, f="fvd")
    with pytest.raises(ValueError, match=words):
        measure_distance(real, fake, metrics=("fvd",), protocol=replace(TINY, **change), allow_small_n=True)
    with pytest.raises(ValueError, match=r"not those of fvd\.videogpt\.256"):
        measure_distance(real, fake, metrics=("fvd",), protocol=get_protocol("fvd.videogpt.256", FeatureProtocol))


def test_sets_that_make_no_distance_are_refused():
    with pytest.raises(ValueError, match="at least 8 real videos, got 1"):
        measure_distance(random_set(1, seed=0), random_set(20, seed=1), metrics=("fvd",))
    with pytest.raises(ValueError, match="no metric"):
        measure_distance(random_set(20, seed=0), random_set(20, seed=1), metrics=("fdv",))
    with pytest.raises(ValueError, match=r"different conditions.*names"):
        measure_distance(random_set(20, seed=0), random_set(20, seed=1, name="other"), metrics=("fvd",))


def test_repeated_draws_of_the_fake_set_are_averaged():
    real, fake = random_set(40, seed=0), random_set(120, seed=1)
    report = measure_distance(real, fake, metrics=("fvd",), protocol=replace(TINY, num_fake=40, repeats=3))
    values = [frechet_distance(real.features, fake.features[first::3]) for first in range(3)]
    assert report.results[0]["value"] == pytest.approx(np.mean(values))
    assert report.results[0]["uncertainty"]["sd"] == pytest.approx(np.std(values, ddof=1))


def test_damaged_doubled_and_foreign_files_are_errors_before_work_or_recorded(clips, tmp_path):
    root = folder(tmp_path / "videos", 3)
    folder(root / "copy", 1)
    (root / "text.mp4").write_text("this is no video")
    with pytest.raises(ValueError, match=r"2 of 5 videos in .*--allow-missing"):
        survey(root)
    found = survey(root, allow_missing=True)
    assert found.excluded.keys() == {"copy/clip000", "text.mp4"}
    assert found.excluded["copy/clip000"] == "the same bytes as clip000"
    with pytest.raises(ValueError, match="does not exist"):
        survey(tmp_path / "nowhere")


def test_a_damaged_tail_is_an_error_or_a_recorded_exclusion(tmp_path, monkeypatch):
    root = tmp_path / "videos"
    content = write_video(root / "whole.webm", list(pixels(60, seed=0, side=64)), fps=8).read_bytes()
    (root / "cut.webm").write_bytes(content[: int(len(content) * 0.6)])
    protocol = replace(TINY, clip=ClipRule())
    with pytest.raises(ValueError, match="damaged after"):
        extract(root, protocol)
    found = extract(root, protocol, allow_missing=True)
    assert found.videos == ("whole.webm",) and "damaged after" in found.inputs["excluded"]["cut.webm"]
    monkeypatch.setattr("vidgen.eval.feature_extraction.PIECE_FRAMES", 4)
    cache = tmp_path / "cache"
    for _ in range(2):  # frames from before the damage must not come back from the cache as if they were all
        frames = extract_features(survey(root), PerFrame(), protocol, count=None, cache=cache, allow_missing=True)
        assert set(frames.videos) == {"whole.webm"} and len(frames.videos) == 60


def test_folders_of_another_rate_or_size_are_refused(clips, tmp_path):
    faster = folder(tmp_path / "faster", 2, fps=24)
    with pytest.raises(ValueError, match=r"frame rate is 8 frames/s .* 24 frames/s .*--allow-mismatch"):
        check_alike(survey(clips), survey(faster), resampled=False)
    check_alike(survey(clips), survey(faster), resampled=True)
    write_video(tmp_path / "larger" / "clip", list(pixels(6, seed=1, side=64)), fps=8)
    with pytest.raises(ValueError, match=r"frame size is 32x32 .* 64x64"):
        check_alike(survey(clips), survey(tmp_path / "larger"), resampled=True)


@pytest.fixture
def vidgen(capsys):
    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err.strip()

    return call


def test_commands_go_from_folders_to_a_result_and_from_files_to_the_same(vidgen, clips, fakes, tmp_path):
    cache = ("--cache", tmp_path / "cache")
    options = ("--protocol", "fd.tiny", "--repeats", 4, *cache)
    code, output, _ = vidgen("eval", "fvd", "--real", clips, "--fake", fakes, *options, "-o", tmp_path / "a.json")
    assert code == 0 and "fd.tiny" in output and "halves of the real set" in output
    result = read_result(tmp_path / "a.json")
    assert result["inputs"]["real"]["n_videos"] == 12 and not result["inputs"]["real"]["decoded_lossy"]
    assert str(tmp_path) not in json.dumps(result["inputs"])
    for name, root in (("real", clips), ("fake", fakes)):
        file = tmp_path / f"{name}.safetensors"
        assert vidgen("eval", "features", "--videos", root, "--protocol", "fd.tiny", *cache, "-o", file)[0] == 0
    files = (tmp_path / "real.safetensors", tmp_path / "fake.safetensors")
    code, output, _ = vidgen("eval", "distance", *files, "--metric", "fd,kd", "--repeats", 4, "-o", tmp_path / "b.json")
    assert code == 0 and "kd.tiny" in output
    again = read_result(tmp_path / "b.json")
    assert again["value"] == pytest.approx(result["value"], rel=1e-12)
    assert not why_incomparable(again, again) and why_incomparable(result, again)
    kernel = ("eval", "kvd", "--real", clips, "--fake", fakes, *options, "-o", tmp_path / "c.json")
    assert vidgen(*kernel)[0] == 0 and read_result(tmp_path / "c.json")["metric"] == "kd.tiny"


def test_a_tokenizer_can_be_the_feature_network(vidgen, clips, fakes, tmp_path):
    code, _, error = vidgen(
        "eval", "kvd", "--real", clips, "--fake", fakes, "--protocol", "fd.tiny", "--extractor", "tokenizer:shapes-kl",
        "--repeats", 3, "--no-cache", "-o", tmp_path / "result.json",
    )  # fmt: skip
    assert code == 0, error
    result = read_result(tmp_path / "result.json")
    assert result["metric"] == "kd.tokenizer-shapes-kl"
    assert result["protocol"]["overrides"]["extractor"] == "tokenizer-shapes-kl"
    assert result["protocol"]["sha256"] != TINY.sha256


@pytest.mark.parametrize(
    "arguments,words",
    [
        (("fvd",), "i3d_torchscript.pt"),
        (("fvd", "--protocol", "fd.tine"), "did you mean fd.tiny"),
        (("fid", "--inception", "nowhere.pth"), "pt_inception-2015-12-05-6726825d.pth"),
        (("fvd", "--protocol", "fd.tiny", "--device", "cuda:9"), "needs a CUDA device"),
    ],
)
def test_mistakes_end_in_one_line(vidgen, clips, fakes, arguments, words):
    if "cuda" in str(arguments) and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    code, _, error = vidgen("eval", *arguments, "--real", clips, "--fake", fakes, "--no-cache")
    assert code == 2 and words in error and len(error.splitlines()) == 1


def test_too_few_videos_for_the_protocol_are_an_error_before_any_network_runs(vidgen, clips, fakes, monkeypatch):
    preset = replace(TINY, name="fd.tiny.many", num_real=20, num_fake=20)
    monkeypatch.setattr("vidgen.eval.protocols.PROTOCOLS", {preset.name: preset})
    folders = ("--real", clips, "--fake", fakes, "--protocol", preset.name, "--no-cache", "--repeats", 3)
    code, _, error = vidgen("eval", "fvd", *folders)
    assert code == 2 and "needs 20 real videos, and real has 12" in error
    code, output, _ = vidgen("eval", "fvd", *folders, "--allow-small-n")
    assert code == 0 and "(changed)" in output


class Forbidden(TinyNetwork):
    """Must not run."""

    def features(self, video):
        raise AssertionError("the network ran")


@pytest.fixture
def forbidden(monkeypatch):
    monkeypatch.setattr("vidgen.eval.extractors.TinyNetwork", Forbidden)


def cut_short(path: Path, *, frames: int = 60) -> None:
    """A file that loses frames at its end."""
    content = write_video(path, list(pixels(frames, seed=0, side=64)), fps=8).read_bytes()
    path.write_bytes(content[: int(len(content) * 0.6)])


@pytest.mark.parametrize("rule", [ClipRule(frames=55), ClipRule(), ClipRule(frames=4, offset="random")])
def test_a_damaged_tail_is_found_before_any_network_runs_where_its_frames_are_used(
    vidgen, clips, tmp_path, monkeypatch, forbidden, rule
):
    root = folder(tmp_path / "fake", 8, frames=6)
    cut_short(root / "cut.webm")
    preset = replace(TINY, name="fd.tiny.rule", clip=replace(rule, short="drop"))
    monkeypatch.setattr("vidgen.eval.protocols.PROTOCOLS", {preset.name: preset})
    arguments = ("--protocol", preset.name, "--no-cache", "--allow-mismatch")
    code, _, error = vidgen("eval", "fvd", "--real", clips, "--fake", root, *arguments)
    assert code == 2 and "cut.webm: " in error and "damaged after" in error and "--allow-missing" in error
    found = survey(root)
    examined = examine(found, TinyNetwork(), preset, count=None, cache=None, allow_missing=True)
    assert "damaged after" in examined.survey.excluded["cut.webm"]
    unused = replace(TINY, clip=ClipRule(frames=4))
    assert examine(found, TinyNetwork(), unused, count=None, cache=None).num_videos == 9


def test_too_few_videos_are_found_before_any_network_runs(vidgen, clips, tmp_path, monkeypatch, forbidden):
    few = folder(tmp_path / "few", 5, first=50)
    folder(few, 6, first=60, frames=2)  # too short for the protocol, which drops them
    options = ("--protocol", "fd.tiny", "--no-cache")
    code, _, error = vidgen("eval", "fvd", "--real", clips, "--fake", few, *options)
    assert code == 2 and "at least 8 fake videos, got 5" in error
    code, _, error = vidgen("eval", "features", "--videos", few, "--num-videos", 6, "-o", tmp_path / "f", *options)
    assert code == 2 and "needs 6 videos, and few has 5 that can be used (6 are left out" in error
    preset = replace(TINY, name="fvd.small", small_n=False)
    monkeypatch.setattr("vidgen.eval.protocols.PROTOCOLS", {preset.name: preset})
    monkeypatch.setattr(Forbidden, "distance", "vd")
    folders = ("--real", clips, "--fake", clips, "--protocol", preset.name, "--no-cache")
    code, _, error = vidgen("eval", "fvd", *folders)
    assert code == 2 and "FVD of 12 samples in 32 dimensions is mostly bias" in error


def test_a_second_run_decodes_nothing(clips, tmp_path, monkeypatch):
    first = extract(clips, cache=tmp_path)

    def decode(*_, **__):
        raise AssertionError("a frame was decoded")

    monkeypatch.setattr("vidgen.eval.feature_extraction.iter_frames", decode)
    examined = examine(survey(clips), TinyNetwork(), TINY, count=None, cache=tmp_path)
    assert (examined.num_videos, examined.num_rows) == (12, 12)
    assert torch.equal(extract(clips, cache=tmp_path).features, first.features)


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True])
def test_two_processes_give_the_statistics_of_one(vidgen, clips, fakes, tmp_path, cached):
    """From the same features come the same statistics; features themselves depend, by rounding, on their batches."""
    arguments = ["eval", "fvd", "--real", clips, "--fake", fakes, "--protocol", "fd.tiny", "--repeats", 3]
    arguments += ["--cache", tmp_path / "cache"] if cached else ["--no-cache"]
    assert vidgen(*arguments, "-o", tmp_path / "one.json")[0] == 0
    launcher = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
    launcher += ("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")
    module = ("-m", "vidgen.cli", *arguments, "--device", "cpu", "-o", tmp_path / "two.json")
    done = subprocess.run(
        [sys.executable, *launcher, *(str(argument) for argument in module)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (read_result(tmp_path / f"{name}.json") for name in ("one", "two"))
    assert two["value"] == pytest.approx(one["value"], rel=1e-9 if cached else 1e-5)
    assert two["uncertainty"]["ci95"] == pytest.approx(one["uncertainty"]["ci95"], rel=1e-9 if cached else 1e-5)
    assert (
        two["bias"]["n_real"] == 12
        and two["inputs"]["real"]["manifest_sha256"] == one["inputs"]["real"]["manifest_sha256"]
    )


@pytest.mark.gpu
def test_features_from_the_gpu_are_those_of_the_cpu(clips):
    on_cpu, on_gpu = extract(clips), extract(clips, device="cuda")
    torch.testing.assert_close(on_gpu.features, on_cpu.features, rtol=1e-4, atol=1e-5)


def test_merged_statistics_of_two_shares_equal_those_of_one_pass(clips, fakes):
    """What two processes exchange are features: the distance from them is the same to rounding."""
    real, fake = extract(clips), extract(fakes)
    names = list(real.videos)
    merged = joined([real.of_videos(names[1::2]), real.of_videos(names[0::2])])
    value = frechet_distance(real.features, fake.features)
    assert frechet_distance(merged.features, fake.features) == pytest.approx(value, rel=1e-9)


def spoiled(video: torch.Tensor, kind: str, strength: float) -> torch.Tensor:
    """`1 3 t h w` in [-1, 1], a little or very much worse."""
    generator = torch.Generator().manual_seed(0)
    frames = video.shape[2]
    if kind == "noise":
        return (video + strength * torch.randn(video.shape, generator=generator)).clamp(-1, 1)
    if kind == "blur":
        small = [frames, *(max(2, round(side / (1 + 10 * strength))) for side in video.shape[3:])]
        return torch.nn.functional.interpolate(
            torch.nn.functional.interpolate(video, small, mode="trilinear"), video.shape[2:], mode="trilinear"
        )
    if kind == "frozen":
        kept = max(1, round(frames * (1 - strength)))
        return video[:, :, [min(frame, kept - 1) for frame in range(frames)]]
    order = torch.arange(frames)
    moved = torch.randperm(frames, generator=generator)[: max(2, round(frames * strength))]
    order[moved] = moved.roll(1)
    return video[:, :, order]


@pytest.fixture(scope="module")
def real_videos(shared) -> list[torch.Tensor]:
    """The first 16 frames of the smaller clips, `1 3 16 48 48`."""
    protocol = get_protocol("fd.squeezenet", FeatureProtocol)
    small = replace(protocol.preprocess.resizes[0], height=48, width=48)
    steps, found = replace(protocol.preprocess, resizes=(small,)), []
    for video in survey(shared / "clips", allow_missing=True).videos:
        if video.info.height * video.info.width <= 640 * 480 and video.info.codec == "h264":
            found += read_clips(video.path, protocol.clip, steps, generator=torch.Generator().manual_seed(0))
    return [clip[None] for clip in found]


@pytest.mark.slow
@torch.no_grad()
def test_real_clips_move_away_steadily_as_they_are_spoiled(real_videos, shared):
    assert len(real_videos) >= 12
    network = SqueezeNetMotion.from_file(shared / "weights" / "squeezenet1_0_imagenet.pt")

    def features(kind: str, strength: float) -> torch.Tensor:
        return torch.cat([network(spoiled(video, kind, strength))[0] for video in real_videos])

    clean = torch.cat([network(video)[0] for video in real_videos])
    for kind in ("noise", "blur", "frozen", "shuffled"):
        distances = [frechet_distance(clean, features(kind, strength)) for strength in (0.1, 0.3, 0.9)]
        assert 1e-9 < distances[0] < distances[1] < distances[2], kind
