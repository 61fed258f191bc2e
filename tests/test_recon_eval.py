"""Do the suites count what they say: reconstruction of clips by real tokenizers, obedience of pipelines?"""

import csv
import io
import json
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from vidgen.data.shapes import ShapesWorld, parse_caption, render
from vidgen.eval import Psnr, SqueezeNetDistance, Ssim
from vidgen.eval.obedience import draw_prompts, evaluate_obedience, split_of, write_obedience
from vidgen.eval.recon_suite import Clip, clips_from_dataset, clips_from_files, evaluate_reconstruction
from vidgen.tokenizers.causal_conv import CausalConvTokenizer


def tiny(bottleneck: str) -> CausalConvTokenizer:
    torch.manual_seed(0)
    options = {"fsq": {"levels": [5, 5]}, "kl": {"channels": 4}}[bottleneck]
    return CausalConvTokenizer(
        bottleneck_type=bottleneck, bottleneck_options=options, stride=(2, 4, 4), patch=2, widths=(8, 8),
        depth=1, decoder_depth=1, block_frames=4,
    ).eval()  # fmt: skip


def clip(name: str, frames: int, *, height: int = 24, width: int = 20, chunks: tuple[int, ...] | None = None) -> Clip:
    generator = torch.Generator().manual_seed(frames)
    video = torch.rand(3, frames, height, width, generator=generator) * 2 - 1
    return Clip(name, lambda: iter(video.split(list(chunks or (frames,)), dim=1)))


def test_every_clip_and_the_total_carry_scores_that_follow_from_the_decoded_frames():
    tokenizer = tiny("fsq")
    clips = [clip("first", 5), clip("second", 6)]
    report = evaluate_reconstruction(tokenizer, clips, name="tiny")
    psnr, ssim, tokens = Psnr(), Ssim(), 0
    for one, row in zip(clips, report.rows, strict=True):
        (video,) = one.chunks()
        latents = tokenizer.encode(video[None])
        fake = tokenizer.decode(latents)
        per_frame = psnr.update(fake, video[None])
        ssim.update(fake, video[None])
        tokens += latents.tokens.shape[1]
        assert row["psnr.rgb.frame_mean.cap100"] == pytest.approx(float(per_frame.mean()), abs=1e-6)
        assert (row["frames"], row["height"], row["width"]) == (video.shape[1], 24, 20)
        assert row["bits"] == pytest.approx(tokenizer.spec.bits((video.shape[1], 24, 20)))
        assert row["compression_ratio"] == pytest.approx(24 / row["bits_per_pixel"])
    total = report.total
    assert total["psnr.rgb.frame_mean.cap100"] == pytest.approx(psnr.compute()["psnr.rgb.frame_mean.cap100"], abs=1e-6)
    assert total["ssim.rgb.gauss11.valid"] == pytest.approx(ssim.compute()["ssim.rgb.gauss11.valid"], abs=1e-6)
    assert total["tokens"] == tokens
    assert total["frames"] == 11
    assert 0 < total["codebook.usage"] <= 1 <= total["codebook.perplexity"] <= 25
    assert total["encode_frames_per_second"] > 0 and total["peak_memory_megabytes"] > 0


def test_the_chunks_in_which_a_clip_is_read_do_not_change_its_scores():
    tokenizer = tiny("fsq")
    whole = evaluate_reconstruction(tokenizer, [clip("clip", 11)], name="tiny").rows[0]
    pieces = evaluate_reconstruction(tokenizer, [clip("clip", 11, chunks=(1, 3, 5, 2))], name="tiny").rows[0]
    varying = {"encode_frames_per_second", "decode_frames_per_second", "peak_memory_megabytes"}
    assert {k: v for k, v in whole.items() if k not in varying} == {k: v for k, v in pieces.items() if k not in varying}


def test_what_is_missing_has_a_reason_instead_of_a_number():
    report = evaluate_reconstruction(tiny("kl"), [clip("clip", 3, height=10, width=12)], name="tiny", lpips_net="vgg")
    assert report.total["lpips.vgg.v0.1"] is None and "vgg16" in report.missing["lpips.vgg.v0.1"]
    assert "--lpips-weights" in report.missing["lpips.vgg.v0.1"]
    assert report.total["squeezenet.features"] is None and "SqueezeNet" in report.missing["squeezenet.features"]
    assert report.total["bits_per_pixel"] is None and "continuous" in report.missing["bits_per_pixel"]
    assert report.total["ssim.rgb.gauss11.valid"] is None and "11 pixels" in report.missing["ssim.rgb.gauss11.valid"]
    for row in [*report.rows, report.total]:
        assert {column for column, value in row.items() if value is None} <= {*report.missing, "height", "width"}


def test_a_report_survives_json_and_csv_and_its_table_shows_the_reasons(tmp_path):
    report = evaluate_reconstruction(tiny("fsq"), [clip("a clip", 3)], name="tiny")
    json_path, csv_path = report.write(tmp_path / "scores" / "tiny")
    stored = json.loads(json_path.read_text())
    assert stored["total"] == report.total and stored["clips"] == report.rows
    assert {"device", "versions", "commit", "python"} <= set(stored["environment"])
    rows = list(csv.DictReader(csv_path.open()))
    assert [row["clip"] for row in rows] == ["a clip", "total"]
    assert float(rows[1]["psnr.rgb.global"]) == report.total["psnr.rgb.global"]
    console = Console(width=240, record=True, file=io.StringIO())
    console.print(report.table())
    shown = console.export_text()
    assert "PSNR dB" in shown and "a clip" in shown and "alexnet" in shown


def test_a_tokenizer_that_loses_frames_is_caught():
    class Loses(CausalConvTokenizer):
        def decode_stream(self, chunks):
            for chunk in super().decode_stream(chunks):
                yield chunk[:, :, :1]

    tokenizer = Loses(
        bottleneck_options={"levels": [5]}, stride=(2, 4, 4), patch=2, widths=(8, 8), depth=1, decoder_depth=1,
        block_frames=4,
    )  # fmt: skip
    with pytest.raises(ValueError, match="gave back only"):
        evaluate_reconstruction(tokenizer, [clip("clip", 9)], name="loses")


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(ValueError, match="at least one clip"):
        evaluate_reconstruction(tiny("kl"), [], name="tiny")
    with pytest.raises(ValueError, match="has no frames"):
        evaluate_reconstruction(tiny("kl"), [Clip("empty", lambda: iter(()))], name="tiny")


def test_datasets_are_clips_and_the_shared_squeezenet_gives_its_own_column(shared):
    distance = SqueezeNetDistance.from_file(shared / "weights" / "squeezenet1_0_imagenet.pt")
    clips = clips_from_dataset(ShapesWorld(num_frames=3, height=24, width=24), 2)
    report = evaluate_reconstruction(tiny("fsq"), clips, name="tiny", distances=[distance])
    assert report.total["squeezenet.features"] > 0
    assert "squeezenet.features" not in report.missing


def test_a_real_file_is_cut_to_the_frames_asked_for(shared):
    clips = clips_from_files([shared / "clips" / "asl_bird.mkv"], max_frames=5, size=(32, 48))
    (row,) = evaluate_reconstruction(tiny("fsq"), clips, name="tiny").rows
    assert (row["clip"], row["frames"], row["height"], row["width"]) == ("asl_bird.mkv", 5, 32, 48)


class Renderer:
    """A text-to-video "pipeline" that draws what the prompt says, or always the same thing."""

    device = torch.device("cpu")

    def __init__(self, always: str | None = None) -> None:
        self.always = always

    def set_progress_bar_config(self, **options) -> None:
        pass

    def __call__(self, *, prompt, generator, output_type, num_frames):
        assert output_type == "pt"
        videos = [
            render(parse_caption(self.always or text), num_frames=num_frames, height=64, width=64, generator=noise)
            for text, noise in zip(prompt, generator, strict=True)
        ]
        return SimpleNamespace(frames=(torch.stack(videos).transpose(1, 2) + 1) / 2)


def test_a_pipeline_that_draws_its_prompts_obeys_and_wrong_prompts_are_not_credited(tmp_path):
    result = evaluate_obedience(Renderer(), num_prompts=12, seed=2, batch_size=5, num_frames=17, name="renderer")
    for share in result["attributes"].values():
        assert share["right"] == 12 and share["high"] == 1 and 0.7 < share["low"] < 1
    assert result["wrong_prompt"]["all_right"]["right"] == 0
    write_obedience(tmp_path / "renderer.json", result)
    assert json.loads((tmp_path / "renderer.json").read_text())["settings"] == {"num_frames": 17}


def test_a_pipeline_that_ignores_its_prompts_does_not_obey():
    always = "a large red square moving left on a navy background"
    result = evaluate_obedience(Renderer(always), num_prompts=12, seed=2, num_frames=17)
    assert result["attributes"]["all_right"]["right"] <= 1
    assert result["by_word"]["motion"].get("moving left", 1) == 1
    assert all(share == 0 for word, share in result["by_word"]["motion"].items() if word != "moving left")


def test_results_do_not_depend_on_the_batch_size():
    results = [evaluate_obedience(Renderer(), num_prompts=5, seed=2, batch_size=b, num_frames=9) for b in (1, 3)]
    assert results[0]["prompts"] == results[1]["prompts"]


@pytest.mark.parametrize("objects", [1, 2])
def test_the_two_splits_share_no_prompt_whatever_the_seeds(objects):
    test = {scene.caption for seed in (1, 2) for scene in draw_prompts("test", 200, seed=seed, objects=objects)}
    selection = {scene.caption for scene in draw_prompts("selection", 200, seed=1, objects=objects)}
    assert not test & selection
    assert len(selection) == 200
    assert all(split_of(parse_caption(caption)) == "test" for caption in test)


def test_drawing_more_prompts_than_exist_is_an_error():
    with pytest.raises(ValueError, match="fewer than 5000"):
        draw_prompts("test", 5000, seed=1, objects=1)
