"""Do scores of generated videos see what they name, and does sampling go on where it stopped and never mix models?"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from tiny_models import pipeline
from torchmetrics.image.inception import InceptionScore as TorchmetricsInceptionScore

from vidgen.cli import main
from vidgen.cli.eval_generation import Command, wanted_samples
from vidgen.data import parse_caption, read_video, render, to_tensor, write_video
from vidgen.eval import SqueezeNetDistance, SqueezeNetFeatures
from vidgen.eval.bootstrap import Bootstrap, Estimate
from vidgen.eval.clip_similarity import ClipSimilarity
from vidgen.eval.compare import compare, why_incomparable
from vidgen.eval.diversity import RMS_KEY, Diversity
from vidgen.eval.extractors.inception import Inception
from vidgen.eval.extractors.weights import Weights
from vidgen.eval.generation import GenerationReport, score_folder
from vidgen.eval.inception_score import InceptionScore, inception_score
from vidgen.eval.interval import wilson_interval
from vidgen.eval.motion import CHANGE_KEY, FAST_KEY, Motion
from vidgen.eval.prompt_score import Obedience, OfPrompt
from vidgen.eval.samples import conditions_file, read_prompts, sample_path, sample_videos, samples_in

CAPTIONS = (
    "a large red circle moving left on a navy background",
    "a small green square staying still on a black background",
)
SMALL = {"num_frames": 5, "height": 16, "width": 16, "num_inference_steps": 2}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shape(caption: str, seed: int = 0, *, side: int = 64) -> torch.Tensor:
    return render(parse_caption(caption), num_frames=17, height=side, width=side, generator=seeded(seed))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two captions of the shapes world, rendered twice each: the second is obeyed by its first sample only."""
    folder = tmp_path_factory.mktemp("samples") / "rendered"
    for caption in CAPTIONS:
        for index in range(2):
            shown = CAPTIONS[0] if (caption, index) == (CAPTIONS[1], 1) else caption
            write_video(sample_path(folder, caption, index, suffix=""), shape(shown, index), fps=8)
    return folder


def test_obedience_is_the_share_of_videos_that_show_their_caption(folder):
    result = score_folder(folder, [Obedience()], name="rendered")
    obeyed = result.estimates["obeyed.all_right"]
    assert obeyed.value == 0.75 and obeyed.low is not None and obeyed.high is not None
    assert obeyed.low < 0.75 < obeyed.high < 1
    assert [round(row["obeyed.all_right"], 2) for row in result.rows()] == [1.0, 0.5]


def test_a_share_counts_every_prompt_the_same_and_its_interval_lies_around_it():
    found = [OfPrompt(1.0, 8), OfPrompt(0.0, 2)]
    estimate = Obedience().estimate(found, Bootstrap(resamples=100))
    assert estimate.value == 0.5 and estimate.low is not None and estimate.high is not None
    assert estimate.low == pytest.approx(1 - estimate.high)
    single = [OfPrompt(1.0, 1)] * 7 + [OfPrompt(0.0, 1)] * 3
    assert Obedience().estimate(single, Bootstrap()) == Estimate(0.7, *wilson_interval(7, 10))
    low, high = (Obedience().estimate(single, Bootstrap(level=level)) for level in (0.8, 0.95))
    assert low.low is not None and high.low is not None and low.low > high.low


def test_every_score_says_how_its_interval_was_made(tmp_path, folder):
    result = score_folder(folder, [Obedience(), Motion()], name="rendered")
    report = GenerationReport([result], {}, Bootstrap())
    scores = report.to_json()["subjects"][0]["scores"]
    assert scores["obeyed.all_right"]["interval"].startswith("Wilson over videos")
    assert scores[CHANGE_KEY]["interval"].startswith("bootstrap over prompts")
    assert any(note.startswith("obeyed.all_right: Wilson over videos") for note in report.notes())


def test_a_perfect_share_still_has_an_interval():
    estimate = Obedience().estimate([OfPrompt(1.0, 2)] * 5, Bootstrap(resamples=100))
    assert estimate.value == 1 and estimate.high == pytest.approx(1) and estimate.low == pytest.approx(0.7225, abs=1e-4)


def test_prompts_of_other_worlds_are_not_judged_and_the_report_says_so(tmp_path, folder):
    noise = torch.rand(3, 3, 16, 16, generator=seeded(0)) * 2 - 1
    write_video(sample_path(tmp_path / "cats", "A cat. It runs, far", 0, suffix=".mp4"), noise, fps=8)
    result = score_folder(tmp_path / "cats", [Obedience(), Motion(), Diversity()], name="cats")
    assert set(result.estimates) == {FAST_KEY, CHANGE_KEY}
    assert [reason.split(":")[0] for reason in result.missing] == [Obedience.missing, Diversity.missing]
    both = GenerationReport([score_folder(folder, [Obedience()], name="r"), result], {"x": "absent"}, Bootstrap())
    assert any("absent" in note for note in both.notes()) and both.table().row_count == 6


def written(path: Path, folder: Path, scores: list, **changes: Any) -> dict[str, Any]:
    """The JSON of a report on `folder`."""
    result = score_folder(folder, scores, name="one", **changes)
    return json.loads(GenerationReport([result], {}, Bootstrap()).write(path)[0].read_text())


def random_squeezenet(seed: int) -> SqueezeNetDistance:
    torch.manual_seed(seed)
    return SqueezeNetDistance(SqueezeNetFeatures())


def test_results_of_equal_conditions_are_compared_by_prompt_and_others_name_what_differs(tmp_path, folder):
    scores = [Obedience(), Motion()]
    same = written(tmp_path / "a.json", folder, scores)
    table = compare(same, written(tmp_path / "b.json", folder, scores), settings=Bootstrap())
    rows = dict(zip(table.columns[0].cells, table.columns[3].cells, strict=True))
    assert rows["obeyed.all_right"] == "0" and rows[CHANGE_KEY] == "0"
    shorter = tmp_path / "shorter"
    for prompt, paths in samples_in(folder).items():
        for index, path in enumerate(paths):
            video = to_tensor(read_video(path).frames)[:, :9]
            write_video(sample_path(shorter, prompt, index, suffix=""), video, fps=8)
    assert why_incomparable(same, written(tmp_path / "c.json", shorter, scores)) == [
        "protocol sizes: ['17x64x64'], ['9x64x64']"
    ]
    for path in samples_in(folder)[CAPTIONS[0]]:
        shutil.copytree(path, tmp_path / "half" / path.name)
    found = why_incomparable(same, written(tmp_path / "d.json", tmp_path / "half", scores))
    assert [one.split(":")[0] for one in found] == ["protocol prompts", "protocol prompts_sha256"]


def test_results_of_other_sampling_or_other_networks_are_not_compared(tmp_path, folder):
    for name, steps in (("a", 4), ("b", 8)):
        shutil.copytree(folder, tmp_path / name)
        conditions_file(tmp_path / name).write_text(json.dumps({"seed": 0, "settings": {"num_inference_steps": steps}}))
    a, b = (written(tmp_path / f"{name}.json", tmp_path / name, [Motion()]) for name in ("a", "b"))
    assert why_incomparable(a, b) == ["protocol sampling.settings.num_inference_steps: 4, 8"]
    with pytest.raises(ValueError, match="num_inference_steps: 4, 8"):
        compare(a, b, settings=Bootstrap())
    one, other = (
        written(tmp_path / f"{seed}.json", tmp_path / "a", [Diversity([random_squeezenet(seed)])]) for seed in (0, 1)
    )
    (difference,) = why_incomparable(one, other)
    assert difference.startswith("weights.diversity.squeezenet.features: ") and not why_incomparable(one, a)


class Interrupted(Motion):
    """Fails at its second prompt."""

    seen = 0

    def of_prompt(self, prompt, videos):
        self.seen += 1
        if self.seen == 2:
            raise RuntimeError("the power is gone")
        return super().of_prompt(prompt, videos)


def test_a_crash_while_scoring_loses_no_finished_prompt(tmp_path, folder):
    with pytest.raises(RuntimeError):
        score_folder(folder, [Interrupted()], name="one", records=tmp_path)
    again = Interrupted()
    result = score_folder(folder, [again], name="one", records=tmp_path)
    assert again.seen == 1, "the first prompt was kept"
    assert result.rows() == score_folder(folder, [Motion()], name="one").rows()
    third = Interrupted()
    score_folder(folder, [third], name="one", records=tmp_path)
    assert third.seen == 0


def test_records_of_prompts_of_other_code_or_versions_are_not_taken_up(tmp_path, folder, monkeypatch):
    score_folder(folder, [Motion()], name="one", records=tmp_path)
    for changed in ("code_digest", "version"):
        monkeypatch.setattr(f"vidgen.eval.report.{changed}", lambda *_, made=changed: f"another {made}")
        with pytest.raises(RuntimeError):  # at the second prompt, since the kept scores are not taken up
            score_folder(folder, [Interrupted()], name="one", records=tmp_path)


@pytest.mark.parametrize(("dy", "dx"), [(0, 0), (0, 3), (2, -5), (-7, 7)])
def test_motion_of_a_texture_is_its_displacement_in_percent_of_the_shorter_side(dy, dx):
    texture = torch.rand(3, 80, 80, generator=seeded(0)) * 2 - 1
    video = torch.stack([texture.roll((dy * t, dx * t), (1, 2))[:, 8:72, 8:72] for t in range(4)], dim=1)
    scores = Motion().of_prompt("", [video])
    assert scores[FAST_KEY].value == pytest.approx((dy**2 + dx**2) ** 0.5 / 64 * 100, rel=1e-5)
    assert (scores[CHANGE_KEY].value == 0) == (dy == dx == 0)


def test_motion_is_small_for_still_shapes_and_larger_for_moving_ones_at_every_size():
    for side in (64, 160):
        moving, still = (Motion().of_prompt("", [shape(caption, side=side)])[FAST_KEY].value for caption in CAPTIONS)
        assert still == 0 and 1 < moving < 8


def test_diversity_is_the_mean_distance_of_pairs():
    levels = [torch.full((3, 2, 8, 8), value) for value in (0.0, 10.0, 40.0)]
    videos = [one / 127.5 - 1 for one in levels]
    assert Diversity().of_prompt("", videos)[RMS_KEY].value == pytest.approx((10 + 30 + 40) / 3)
    assert Diversity().of_prompt("", videos[:1]) == {}
    with pytest.raises(ValueError, match="one length and size"):
        Diversity().of_prompt("", [videos[0], videos[1][:, :1]])


def test_inception_score_has_the_known_extremes():
    certain = 100 * torch.eye(7).repeat(20, 1)
    assert inception_score(certain, splits=1).mean == pytest.approx(7)
    assert inception_score(torch.zeros(40, 7)).mean == pytest.approx(1)
    assert inception_score(certain[:1].repeat(40, 1)).mean == pytest.approx(1), "certain, and always the same class"
    with pytest.raises(ValueError, match="as many frames, got 3"):
        inception_score(torch.zeros(3, 7))


def test_inception_score_equals_torchmetrics():
    logits = torch.randn(60, 12, generator=seeded(3)) * 3
    theirs = TorchmetricsInceptionScore(feature=torch.nn.Identity(), splits=1)
    theirs.update(logits)
    assert inception_score(logits, splits=1).mean == pytest.approx(float(theirs.compute()[0]), rel=1e-5)


@pytest.mark.slow
def test_inception_score_takes_the_logits_without_bias_of_every_frame():
    network = Inception(weights=Weights(None, "", "state-dict", None)).eval()
    score = InceptionScore(network)
    score.update(torch.rand(3, 12, 32, 32, generator=seeded(0)) * 2 - 1)
    assert score.logits[0].shape == (12, 1008)
    before = score.compute()
    network.fc.bias.data += 100 * torch.rand(1008, generator=seeded(1))
    again = InceptionScore(network)
    again.update(torch.rand(3, 12, 32, 32, generator=seeded(0)) * 2 - 1)
    assert again.compute() == before and before.mean >= 1


def test_inception_score_never_sees_tf32():
    seen: list[bool] = []

    class Watched(torch.nn.Module):
        """Two classes, by brightness."""

        fc = torch.nn.Linear(2, 2)

        def forward(self, video):
            seen.append(torch.backends.cudnn.allow_tf32)
            bright = video.mean(dim=(1, 3, 4))
            return torch.stack([bright, -bright], dim=-1)

        def unbiased_logits(self, features):
            return features

    network: Any = Watched()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        InceptionScore(network).update(torch.zeros(3, 2, 8, 8))
    assert seen == [False]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> Path:
    """A tiny random CLIP with its processor, saved as transformers saves it."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("clip") / "tiny-clip"
    folder.mkdir()
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    side = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config=side | {"vocab_size": len(words), "max_position_embeddings": 12, "eos_token_id": len(words) - 1},
        vision_config=side | {"image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    transformers.CLIPModel(config).save_pretrained(folder)
    size = {"shortest_edge": 32}
    images = transformers.CLIPImageProcessor(size=size, crop_size={"height": 32, "width": 32})
    words_to_ids = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    transformers.CLIPProcessor(images, words_to_ids).save_pretrained(folder)
    return folder


def test_clipsim_is_the_mean_cosine_of_prompt_and_frames_for_any_clip_folder(clip_folder):
    score = ClipSimilarity(clip_folder)
    video = torch.rand(3, 18, 20, 24, generator=seeded(0)) * 2 - 1
    cosines = score.cosines("a cat", video)
    assert cosines.shape == (18,) and bool((cosines.abs() <= 1).all())
    assert torch.allclose(cosines[3:5], score.cosines("a cat", video[:, 3:5]), atol=1e-6), "frames do not mix"
    assert not torch.allclose(cosines, score.cosines("dog", video), atol=1e-4)
    long = score.of_prompt("a very long prompt " * 20, [video, video])
    assert long["clipsim.tiny-clip"].videos == 2
    with pytest.raises(ValueError, match=r"has no config\.json"):
        ClipSimilarity(clip_folder.parent)


def test_videos_are_found_by_prompt_whatever_dashes_and_dots_it_has(tmp_path):
    video = torch.zeros(3, 2, 16, 16)
    prompts = ["a T-shirt - red", "cats. dogs", "take-2"]
    for prompt in prompts:
        for index in (10, 2):
            write_video(sample_path(tmp_path, prompt, index, suffix=".mp4"), video, fps=8)
    write_video(tmp_path / "unnumbered.mp4", video, fps=8)
    found = samples_in(tmp_path)
    assert list(found) == sorted([*prompts, "unnumbered"])
    assert [path.name for path in found["take-2"]] == ["take-2-2.mp4", "take-2-10.mp4"]


def test_prompts_that_cannot_be_names_are_refused():
    for prompt in ("a/b", "", ".hidden", "x" * 300):
        with pytest.raises(ValueError, match="named by their prompts"):
            sample_path(Path("folder"), prompt, 0, suffix=".mp4")


def test_every_prompt_of_vbench_is_laid_out_under_a_name_of_its_own(shared):
    listed = shared / "prompts" / "vbench_all_dimension.txt"
    prompts = read_prompts(listed)
    assert len(prompts) == 944, "946 lines, two of them twice"
    names = {sample_path(Path("folder"), prompt, 4, suffix=".mp4").name.casefold() for prompt in prompts}
    assert len(names) > 930 and "A tranquil tableau of alley-4.mp4".casefold() in names


def made(folder: Path, **changes) -> dict[str, np.ndarray]:
    """The videos of two prompts by the tiny pipeline."""
    settings: dict[str, Any] = {
        "samples": 2,
        "suffix": "",
        "fps": 8,
        "seed": 0,
        "identity": {"name": "tiny"},
        "batch_size": 3,
    } | SMALL
    prompts = changes.pop("prompts", CAPTIONS)
    tiny: Any = pipeline()
    sample_videos(tiny, prompts, folder, **(settings | changes))
    return {path.name: read_video(path).frames for paths in samples_in(folder).values() for path in paths}


def test_samples_depend_on_prompt_index_and_seed_and_neither_on_batches_nor_on_order_nor_on_interruptions(tmp_path):
    whole = made(tmp_path / "whole")
    assert len(whole) == 4
    singly = made(tmp_path / "singly", prompts=CAPTIONS[::-1], batch_size=1)
    assert whole.keys() == singly.keys()
    assert all(np.abs(whole[name].astype(int) - singly[name]).max() <= 1 for name in whole)
    made(tmp_path / "cut", prompts=CAPTIONS[:1], samples=1)
    said = []
    cut = made(tmp_path / "cut", say=said.append)
    assert "1 of 4 videos are there" in said[0]
    assert all(np.abs(whole[name].astype(int) - cut[name]).max() <= 1 for name in whole)
    other = made(tmp_path / "other", seed=1)
    assert any(not np.array_equal(whole[name], other[name]) for name in whole)


def test_a_folder_of_another_model_or_of_other_settings_is_never_filled_up(tmp_path):
    made(tmp_path / "kept", samples=1)
    for change in ({"identity": {"name": "other"}}, {"seed": 5}, {"num_inference_steps": 1}):
        with pytest.raises(ValueError, match="made under other conditions"):
            made(tmp_path / "kept", **change)


def test_vbench_prompts_get_five_videos_each_and_others_two_unless_said_otherwise():
    def samples(*arguments: str) -> int:
        return wanted_samples(tyro.cli(Command, args=["--models", "x", "-o", "out", *arguments]))

    assert samples("--vbench-prompts", "list.txt") == 5
    assert samples("--prompts", "list.txt") == samples() == 2
    assert samples("--vbench-prompts", "list.txt", "--samples", "3") == 3


def test_the_command_samples_scores_and_goes_on(tmp_path, capsys, folder, clip_folder):
    pipeline().save_pretrained(tmp_path / "tiny")
    (tmp_path / "prompts.txt").write_text("a cat\n\na cat\na dog, running\n")
    arguments = ["eval", "generation", "--models", tmp_path / "tiny", "--videos", folder, "--device", "cpu"]
    arguments += ["--vbench-prompts", tmp_path / "prompts.txt", "--num-frames", 5, "--height", 16, "--width", 16]
    arguments += ["--steps", 1, "--samples", 2, "--clip", clip_folder, "-o", tmp_path / "out.json"]
    assert main([str(word) for word in arguments]) == 0
    output = capsys.readouterr().out
    assert "clipsim.tiny-clip" in output and "inception_score.frames: not computed: wanted is pt_inception" in output
    names = sorted(path.name for path in (tmp_path / "out.videos" / "tiny").iterdir())
    assert names == ["a cat-0.mp4", "a cat-1.mp4", "a dog, running-0.mp4", "a dog, running-1.mp4"]
    result = json.loads((tmp_path / "out.json").read_text())
    assert (result["schema"], result["kind"], len(result["subjects"])) == ("vidgen.eval/1", "generation", 2)
    assert result["subjects"][1]["scores"]["obeyed.all_right"]["value"] == 0.75
    cost = result["subjects"][0]["cost"]
    assert cost["parameters"] > 1000 and cost["seconds_per_video"] > 0 and cost["videos"] == 4
    assert cost["peak_memory_megabytes"] > 0 and result["subjects"][1]["cost"] == {}
    assert "seconds/video" in output and result["weights"].keys() == {"clipsim.tiny-clip"}
    assert result["subjects"][0]["conditions"]["sampling"]["settings"]["num_inference_steps"] == 1
    assert main([str(word) for word in arguments]) == 0
    assert "4 of 4 videos are there" in capsys.readouterr().out
    assert json.loads((tmp_path / "out.json").read_text())["subjects"] == result["subjects"]
    assert main(["eval", "compare", str(tmp_path / "out.json"), str(tmp_path / "out.json")]) == 0
    assert "clipsim.tiny-clip" in capsys.readouterr().out
    (tmp_path / "prompts.txt").write_text("a bird\n")
    arguments[arguments.index("--samples") + 1] = 1
    assert main([str(word) for word in arguments]) == 0
    (asked, whole) = json.loads((tmp_path / "out.json").read_text())["subjects"]
    assert (asked["videos"], asked["of_prompts"][0]["prompt"]) == (1, "a bird"), "others lie in the same folder"
    assert whole["videos"] == 4
    alike = ["--models", "a/run/model", "b/run/best", "-o", str(tmp_path / "two.json")]
    mistakes = ([], "nothing to score"), (["--models", "x"], "need a place"), (alike, "one name in ['run', 'run']")
    for wrong, words in mistakes:
        assert main(["eval", "generation", *wrong]) == 2
        assert words in capsys.readouterr().err
