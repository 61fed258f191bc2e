"""Do the suites count what they say: reconstruction of clips by real tokenizers, obedience of pipelines?"""

import csv
import io
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from rich.console import Console

from vidgen.cli import main
from vidgen.data import probe, read_video, to_tensor, write_video
from vidgen.data.shapes import ShapesWorld, parse_caption, render
from vidgen.eval import FrameDistance, Psnr, SqueezeNetDistance, SqueezeNetFeatures, Ssim
from vidgen.eval.clips import ClipSet, clips_for_protocol, find_clips
from vidgen.eval.compare import why_incomparable
from vidgen.eval.diversity import Diversity
from vidgen.eval.obedience import draw_prompts, evaluate_obedience, split_of
from vidgen.eval.perceptual import distances_from_files
from vidgen.eval.protocol import ClipRule, Preprocess, ReconstructionProtocol, Resize
from vidgen.eval.protocols import get_protocol
from vidgen.eval.recon_report import SubjectResult
from vidgen.eval.recon_suite import Clip, clips_from_dataset, clips_from_files, evaluate, evaluate_reconstruction
from vidgen.eval.reconstruction import why_missing
from vidgen.eval.subjects import FolderSubject, TokenizerSubject
from vidgen.tokenizers.causal_conv import CausalConvTokenizer

QUICK = get_protocol("recon.quick", ReconstructionProtocol)


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


def scored(tokenizer, clips: list[Clip], **options) -> SubjectResult:
    return evaluate_reconstruction(tokenizer, clips, name="tiny", **options).subjects[0]


def test_every_clip_and_the_total_carry_scores_that_follow_from_the_decoded_frames():
    tokenizer = tiny("fsq")
    clips = [clip("first", 5), clip("second", 6)]
    result = scored(tokenizer, clips)
    psnr, ssim, tokens = Psnr(), Ssim(), 0
    for one, row in zip(clips, result.rows, strict=True):
        (video,) = one.chunks()
        latents = tokenizer.encode(video[None])
        fake = tokenizer.decode(latents)
        psnr.update(fake, video[None])
        ssim.update(fake, video[None])
        tokens += latents.tokens.shape[1]
        per_frame = psnr.frame_scores(fake, video[None])
        assert row[psnr.key] == pytest.approx(float(per_frame.mean()), abs=1e-6)
        assert row["frames"] == video.shape[1]
        assert row["bits"] == pytest.approx(tokenizer.spec.bits((video.shape[1], 24, 20)))
        assert row["compression_ratio"] == pytest.approx(24 / row["bits_per_pixel"])
    total = result.total
    assert total[psnr.key] == pytest.approx(psnr.compute()[psnr.key], abs=1e-6)
    assert total[ssim.key] == pytest.approx(ssim.compute()[ssim.key], abs=1e-6)
    assert total["tokens"] == tokens
    assert total["frames"] == 11
    assert 0 < total["codebook.usage"] <= 1 <= total["codebook.perplexity"] <= 25
    assert total["encode_frames_per_second"] > 0 and total["peak_memory_megabytes"] > 0
    assert total["parameters"] == sum(weight.numel() for weight in tokenizer.parameters())
    assert total["encode_gflop_per_frame"] > 0 and total["decode_gflop_per_frame"] > 0


def test_the_chunks_in_which_a_clip_is_read_do_not_change_its_scores():
    tokenizer = tiny("fsq")
    whole = scored(tokenizer, [clip("clip", 11)]).rows[0]
    pieces = scored(tokenizer, [clip("clip", 11, chunks=(1, 3, 5, 2))]).rows[0]
    varying = {"encode_frames_per_second", "decode_frames_per_second", "peak_memory_megabytes"}
    assert whole.keys() == pieces.keys()
    for column in whole.keys() - varying - {"clip"}:
        assert whole[column] == pytest.approx(pieces[column], abs=1e-9), column


def test_what_is_missing_has_a_reason_instead_of_a_number():
    result = scored(tiny("kl"), [clip("clip", 3, height=10, width=12)])
    assert result.total["lpips.vgg.v0.1"] is None and "vgg16" in result.missing["lpips.vgg.v0.1"]
    assert "--lpips-weights vgg=FILE" in result.missing["lpips.vgg.v0.1"]
    assert result.total["squeezenet.features"] is None and "SqueezeNet" in result.missing["squeezenet.features"]
    assert result.total["ssim.rgb.gauss11.valid"] is None and "11 pixels" in result.missing["ssim.rgb.gauss11.valid"]
    assert "bits_per_pixel" not in result.total, "continuous latents have no fixed-length code"
    for row in [*result.rows, result.total]:
        assert {column for column, value in row.items() if value is None} <= result.missing.keys()


def test_one_frame_has_no_motion_to_score_and_one_clip_no_interval():
    report = evaluate_reconstruction(tiny("fsq"), [clip("picture", 1)], name="tiny")
    assert "one frame" in report.subjects[0].missing["tdiff_psnr.rgb.frame_mean.cap100"]
    assert report.estimates[0]["psnr.rgb.frame_mean.cap100"].low is None
    assert any("at least two clips" in note for note in report.notes())


def test_a_report_survives_json_and_csv_and_its_table_shows_values_intervals_and_reasons(tmp_path):
    subjects = [TokenizerSubject(tiny("fsq"), "first"), TokenizerSubject(tiny("kl"), "second")]
    clips = ClipSet([clip("a clip", 3), clip("another", 5)])
    report = evaluate(subjects, clips, protocol=QUICK)
    json_path, csv_path = report.write(tmp_path / "scores" / "tiny")
    stored = json.loads(json_path.read_text())
    assert stored["schema"] == "vidgen.eval/1" and stored["protocol"]["sha256"] == QUICK.sha256
    assert [subject["total"] for subject in stored["subjects"]] == [one.total for one in report.subjects]
    assert [subject["clips"] for subject in stored["subjects"]] == [one.rows for one in report.subjects]
    assert {"device", "versions", "commit", "python"} <= set(stored["environment"])
    for subject in stored["subjects"]:
        for score in subject["scores"].values():
            assert score["low"] <= score["value"] <= score["high"]
        assert len(subject["psnr_by_phase"]) == 3 and len(subject["worst_frames"]) == 8
    (difference,) = stored["differences"]
    key = "psnr.rgb.frame_mean.cap100"
    assert (difference["of"], difference["minus"]) == ("second", "first")
    values = [subject["scores"][key]["value"] for subject in stored["subjects"]]
    assert difference["scores"][key]["value"] == pytest.approx(values[1] - values[0])
    rows = list(csv.DictReader(csv_path.open()))
    assert [(row["subject"], row["clip"]) for row in rows[:3]] == [
        ("first", "a clip"), ("first", "another"), ("first", "total")
    ]  # fmt: skip
    assert float(rows[2]["psnr.rgb.global.cap100"]) == report.subjects[0].total["psnr.rgb.global.cap100"]
    console = Console(width=240, record=True, file=io.StringIO())
    console.print(report.table(), *report.notes())
    shown = console.export_text()
    for text in (str(report.estimates[0][key]), str(report.differences[0][key]), "second − first", "alexnet"):
        assert text in shown


def test_a_protocol_that_means_over_clips_weighs_short_clips_like_long_ones():
    tokenizer, clips = tiny("fsq"), [clip("short", 1), clip("long", 9)]
    result = scored(tokenizer, clips, protocol="recon.bsq")
    rows = [row["ssim.rgb.gauss11.valid"] for row in result.rows]
    assert result.total["ssim.rgb.gauss11.valid"] == pytest.approx(sum(rows) / 2, abs=1e-12)
    by_frame = scored(tokenizer, clips, protocol="recon.quick")
    assert by_frame.total["ssim.rgb.gauss11.valid"] == pytest.approx((rows[0] + 9 * rows[1]) / 10, abs=1e-9)


class Loses(CausalConvTokenizer):
    def decode_stream(self, chunks):
        for chunk in super().decode_stream(chunks):
            yield chunk[:, :, :1]


class Breaks(CausalConvTokenizer):
    """Fails at the clip of nine frames."""

    def encode_stream(self, chunks):
        for chunk in chunks:
            if chunk.shape[2] == 9:
                raise RuntimeError("out of memory")
            yield from super().encode_stream([chunk])


def shaped_as(kind: type[CausalConvTokenizer]) -> CausalConvTokenizer:
    torch.manual_seed(0)
    return kind(
        bottleneck_options={"levels": [5]}, stride=(2, 4, 4), patch=2, widths=(8, 8), depth=1, decoder_depth=1,
        block_frames=4,
    ).eval()  # fmt: skip


def test_a_tokenizer_that_loses_frames_is_caught():
    with pytest.raises(ValueError, match="gave back only"):
        scored(shaped_as(Loses), [clip("clip", 9)])


def test_nothing_to_evaluate_and_names_that_come_twice_are_errors():
    with pytest.raises(ValueError, match="at least one clip"):
        scored(tiny("kl"), [])
    with pytest.raises(ValueError, match="has no frames"):
        scored(tiny("kl"), [Clip("empty", lambda: iter(()))])
    with pytest.raises(ValueError, match="a name of its own"):
        scored(tiny("kl"), [clip("same", 2), clip("same", 3)])
    one = TokenizerSubject(tiny("kl"), "one")
    with pytest.raises(ValueError, match="a name of its own"):
        evaluate([one, one], ClipSet([clip("clip", 2)]), protocol=QUICK)


def with_content(one: Clip) -> Clip:
    return Clip(one.name, one.chunks, sha256=f"content of {one.name}")


def without_clocks(result: SubjectResult) -> list[dict]:
    varying = {"encode_frames_per_second", "decode_frames_per_second", "peak_memory_megabytes"}
    return [{key: value for key, value in row.items() if key not in varying} for row in [*result.rows, result.total]]


def test_a_crash_loses_no_finished_clip_and_the_second_run_goes_on(tmp_path):
    clips = ClipSet([with_content(clip(name, frames)) for name, frames in (("a", 3), ("b", 9), ("c", 4))])
    broken, whole = shaped_as(Breaks), shaped_as(CausalConvTokenizer)
    whole.load_state_dict(broken.state_dict())
    with pytest.raises(RuntimeError, match="out of memory"):
        evaluate([TokenizerSubject(broken, "it")], clips, protocol=QUICK, records=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text() + '{"clip": "b", "sha')  # the line that the crash cut short
    broken.encode_stream = whole.encode_stream
    seen: list[str] = []
    resumed = evaluate(
        [TokenizerSubject(broken, "it")], clips, protocol=QUICK, records=tmp_path,
        on_clip=lambda subject, name: seen.append(name),
    )  # fmt: skip
    assert seen == ["b", "c"], "a was finished before the crash"
    fresh = evaluate([TokenizerSubject(whole, "it")], clips, protocol=QUICK)
    assert without_clocks(resumed.subjects[0]) == without_clocks(fresh.subjects[0])
    again: list[str] = []
    evaluate(
        [TokenizerSubject(broken, "it")], clips, protocol=QUICK, records=tmp_path,
        on_clip=lambda subject, name: again.append(name),
    )  # fmt: skip
    assert again == []


def test_records_of_other_weights_another_protocol_or_other_content_are_not_taken_up(tmp_path):
    clips = [with_content(clip("a", 3))]
    tokenizer = tiny("fsq")
    seen: list[str] = []

    def run(name: str, *, protocol=QUICK, of=clips) -> None:
        subject = TokenizerSubject(tokenizer, "it")
        evaluate([subject], ClipSet(of), protocol=protocol, records=tmp_path, on_clip=lambda *_: seen.append(name))

    run("first")
    run("nothing new")
    run("another protocol", protocol=get_protocol("recon.bsq", ReconstructionProtocol))
    run("other content", of=[Clip("a", clips[0].chunks, sha256="another")])
    with torch.no_grad():
        next(tokenizer.parameters()).add_(0.01)
    run("other weights")
    assert seen == ["first", "another protocol", "other content", "other weights"]


@pytest.mark.parametrize(
    ("changed", "by"),
    [
        ("code_digest", lambda *sources: "edited"),
        ("version", lambda package: "another"),
        ("platform.machine", lambda: "another"),
        ("torch.get_num_threads", lambda: 99),
    ],
)
def test_records_of_other_code_versions_or_machines_are_not_taken_up(tmp_path, monkeypatch, changed, by):
    seen: list[str] = []

    def run() -> None:
        evaluate(
            [TokenizerSubject(tiny("fsq"), "it")], ClipSet([with_content(clip("a", 3))]), protocol=QUICK,
            records=tmp_path, on_clip=lambda *_: seen.append("scored"),
        )  # fmt: skip

    run()
    run()
    assert seen == ["scored"]
    monkeypatch.setattr(f"vidgen.eval.report.{changed}", by)
    run()
    assert seen == ["scored"] * 2


def test_a_score_that_was_not_computed_before_is_computed_by_the_next_call(tmp_path, monkeypatch):
    clips, key = ClipSet([with_content(clip("a", 3))]), "ssim.rgb.gauss11.valid"

    def run() -> dict:
        subject = TokenizerSubject(tiny("fsq"), "it")
        return evaluate([subject], clips, protocol=QUICK, records=tmp_path).subjects[0].total

    def without_ssim(name, *, available):
        return "not installed" if name == key else why_missing(name, available=available)

    with monkeypatch.context() as patch:
        patch.setattr("vidgen.eval.reconstruction.why_missing", without_ssim)
        assert run()[key] is None
    assert run()[key] is not None


def test_the_distances_of_a_command_are_those_whose_files_are_given(shared):
    assert distances_from_files(None, []) == []
    (distance,) = distances_from_files(shared / "weights" / "squeezenet1_0_imagenet.pt", [])
    assert isinstance(distance, SqueezeNetDistance)
    with pytest.raises(ValueError, match="vgg16"):
        distances_from_files(None, [("vgg", "nowhere.pth")])


def test_datasets_are_clips_and_the_shared_squeezenet_gives_its_own_column(shared):
    distance = SqueezeNetDistance.from_file(shared / "weights" / "squeezenet1_0_imagenet.pt")
    clips = clips_from_dataset(ShapesWorld(num_frames=3, height=24, width=24), 2)
    result = scored(tiny("fsq"), clips, distances=[distance])
    assert result.total["squeezenet.features"] > 0
    assert "squeezenet.features" not in result.missing


def test_a_real_file_is_cut_to_the_frames_asked_for(shared):
    clips = clips_from_files([shared / "clips" / "asl_bird.mkv"], max_frames=5, size=(32, 48))
    (row,) = scored(tiny("fsq"), clips).rows
    assert (row["clip"], row["frames"]) == ("asl_bird.mkv", 5)


# files


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three short videos as folders of PNGs, one of them shorter."""
    for seed, frames in enumerate((4, 4, 2)):
        video = torch.rand(3, frames, 16, 20, generator=torch.Generator().manual_seed(seed)) * 2 - 1
        write_video(tmp_path / "clips" / f"clip{seed}", video, fps=10)
    return tmp_path / "clips"


def short_protocol(**clip_rule) -> ReconstructionProtocol:
    return replace(QUICK, clip=ClipRule(**clip_rule))


def test_clips_of_a_protocol_are_read_in_its_size_and_length(folder):
    protocol = replace(
        QUICK,
        clip=ClipRule(max_frames=3),
        preprocess=Preprocess(resizes=(Resize(height=8, width=8, fit="short-side", kernel="swscale"),)),
    )
    found = clips_for_protocol(find_clips([folder]), protocol)
    assert [one.name for one in found.clips] == ["clip0", "clip1", "clip2"]
    assert [sum(chunk.shape[1] for chunk in one.chunks()) for one in found.clips] == [3, 3, 2]
    assert next(found.clips[0].chunks()).shape == (3, 3, 8, 10)
    assert found.to_json()["frames"] == 8 and found.to_json()["decoded_lossy"] is False


@pytest.mark.parametrize(
    "rule", [{"fps": 30.0}, {"fps": 7.0}, {"fps": 30.0, "stride": 2}, {"fps": 30.0, "max_frames": 3}]
)
def test_frames_are_counted_as_they_are_read(rule, folder):
    found = clips_for_protocol(find_clips([folder]), short_protocol(**rule))
    assert [one.frames for one in found.clips] == [sum(chunk.shape[1] for chunk in one.chunks()) for one in found.clips]


def test_clips_that_cannot_be_scored_stop_the_work_before_it_starts_or_are_recorded(folder):
    (folder / "letter.mp4").write_text("dear sir or madam")
    shutil.copytree(folder / "clip0", folder / "copy")
    files = find_clips([folder / "letter.mp4", *(folder / name for name in ("clip0", "clip1", "clip2", "copy"))])
    protocol = short_protocol(frames=4)
    with pytest.raises(ValueError, match=r"3 of 5 clips cannot be scored .*--allow-missing"):
        clips_for_protocol(files, protocol)
    found = clips_for_protocol(files, protocol, allow_missing=True)
    reasons = {one.clip: one.reason for one in found.excluded}
    assert [one.name for one in found.clips] == ["clip0", "clip1"]
    assert "letter.mp4" in reasons["letter.mp4"]
    assert reasons["clip2"] == "has 2 frames and recon.quick takes 4"
    assert reasons["copy"] == "has the same content as clip0"
    assert len(found.to_json()["excluded"]) == 3
    report = evaluate([TokenizerSubject(tiny("fsq"), "tiny")], found, protocol=protocol)
    assert any("left out: letter.mp4" in note for note in report.notes())


def test_a_damaged_tail_is_found_before_work_starts_unless_it_is_not_used(shared):
    files = {"damaged": shared / "clips" / "decord_corrupted.mp4"}
    with pytest.raises(ValueError, match="22 of 50 frames lost"):
        clips_for_protocol(files, QUICK)
    assert len(clips_for_protocol(files, short_protocol(max_frames=20)).clips) == 1


def test_too_few_videos_and_names_that_come_twice_are_errors(folder):
    with pytest.raises(ValueError, match="needs 4 videos, got 3"):
        clips_for_protocol(find_clips([folder]), replace(QUICK, num_videos=4))
    assert len(clips_for_protocol(find_clips([folder]), replace(QUICK, num_videos=2)).clips) == 2
    with pytest.raises(ValueError, match="two clips are called clip0"):
        find_clips([folder, folder])
    with pytest.raises(ValueError, match="does not read"):
        squash = Resize(height=8, width=8, fit="squash", kernel="torch-bilinear")
        clips_for_protocol(find_clips([folder]), replace(QUICK, preprocess=Preprocess(resizes=(squash,))))


def finished(folder: Path, target: Path, *, frames: int = 4, height: int = 16, fps: float = 10) -> FolderSubject:
    """Videos that somebody else reconstructed: the originals, made darker."""
    for name in ("clip0", "clip1"):
        original = to_tensor(read_video(folder / name).frames)
        darker = (original - 2 * 5 / 255).repeat(1, 2, 1, 1)[:, :frames, :height]
        write_video(target / name, darker, fps=fps)
    return FolderSubject(target, "folder", originals=find_clips([folder]), protocol=QUICK)


def test_finished_images_without_times_fit_every_rate(folder, tmp_path):
    """Only what `write_video` writes says its rate."""
    shutil.rmtree(folder / "clip2")
    finished(folder, tmp_path / "done")
    for image in (tmp_path / "done").rglob("*.png"):
        Image.open(image).convert("RGB").save(image)
    subject = FolderSubject(tmp_path / "done", "folder", originals=find_clips([folder]), protocol=QUICK)
    assert probe(tmp_path / "done" / "clip0").fps == 25 and probe(folder / "clip0").fps == 10
    assert subject.check(clips_for_protocol(find_clips([folder]), QUICK).clips) == []


def test_every_second_frame_has_half_the_rate_that_was_resampled_to(folder, tmp_path):
    protocol = short_protocol(fps=20.0, stride=2)
    (one, *_) = clips_for_protocol(find_clips([folder]), protocol).clips
    for name, fps in (("right", 10), ("wrong", 20)):
        write_video(tmp_path / name / one.name, torch.cat(list(one.chunks()), 1), fps=fps)
    right, wrong = (
        FolderSubject(tmp_path / name, name, originals=find_clips([folder]), protocol=protocol)
        for name in ("right", "wrong")
    )
    assert right.check([one]) == []
    assert "at 16x20 and 10.00 frames/s" in wrong.check([one])[0].reason


def test_perceptual_scores_and_diversity_never_see_tf32():
    seen: list[bool] = []

    class Watched(FrameDistance):
        key, smallest_side = "watched", 1

        def frame_distances(self, a, b):
            seen.append(torch.backends.cudnn.allow_tf32)
            return (a - b).abs().mean(dim=(1, 2, 3))

    before = torch.backends.cudnn.allow_tf32
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        scored(tiny("fsq"), [clip("a", 3)], distances=[Watched()])
        Diversity([Watched()]).of_prompt("", [torch.zeros(3, 2, 8, 8)] * 2)
        assert seen == [False] * 2 and torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 == before


def test_a_folder_of_finished_videos_is_scored_like_a_tokenizer(folder, tmp_path):
    shutil.rmtree(folder / "clip2")
    clips = clips_for_protocol(find_clips([folder]), QUICK)
    subject = finished(folder, tmp_path / "done")
    report = evaluate([subject, TokenizerSubject(tiny("fsq"), "tiny")], clips, protocol=QUICK)
    # clipped at black, five levels darker elsewhere
    assert 20 * math.log10(255 / 5) < report.subjects[0].total["psnr.rgb.frame_mean.cap100"] < 35
    assert report.table().row_count > 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 12}, "scored at 16x20 .* has 12x20"),
        ({"fps": 12}, "10.00 frames/s, .* 12.00 frames/s"),
        ({"frames": 3}, "has 4 frames, and its reconstruction in .* 3; make them equally long"),
        ({"frames": 5}, "has 4 frames, and its reconstruction in .* 5; make them equally long"),
    ],
)
def test_finished_videos_of_another_length_size_or_rate_are_refused_before_work(folder, tmp_path, change, message):
    shutil.rmtree(folder / "clip2")
    clips = clips_for_protocol(find_clips([folder]), QUICK)
    seen: list[str] = []
    with pytest.raises(ValueError, match=message):
        evaluate(
            [TokenizerSubject(tiny("fsq"), "tiny"), finished(folder, tmp_path / "done", **change)], clips,
            protocol=QUICK, on_clip=lambda *_: seen.append("scored"),
        )  # fmt: skip
    assert not seen


def test_wrong_damaged_and_absent_reconstructions_are_left_out_for_all_subjects_and_recorded(folder, tmp_path):
    video = torch.rand(3, 4, 16, 20, generator=torch.Generator().manual_seed(9)) * 2 - 1
    for number in (3, 4):
        write_video(folder / f"clip{number}", video.roll(number, 1), fps=10)
    subject = finished(folder, tmp_path / "done")  # none for clip2, whole ones for clip0 and clip1
    write_video(tmp_path / "done" / "clip3", video[:, :2], fps=10)
    (tmp_path / "done" / "clip4.mp4").write_text("dear sir or madam")
    subject = FolderSubject(tmp_path / "done", "folder", originals=find_clips([folder]), protocol=QUICK)
    clips = clips_for_protocol(find_clips([folder]), QUICK)
    subjects = [TokenizerSubject(tiny("fsq"), "tiny"), subject]
    with pytest.raises(ValueError, match=r"3 of 5 clips cannot be scored .*--allow-missing"):
        evaluate(subjects, clips, protocol=QUICK)
    report = evaluate(subjects, clips, protocol=QUICK, allow_missing=True)
    assert [[row["clip"] for row in one.rows] for one in report.subjects] == [["clip0", "clip1"]] * 2
    reasons = {one["clip"]: one["reason"] for one in report.inputs["excluded"]}
    assert "no reconstruction of it" in reasons["clip2"] and "make them equally long" in reasons["clip3"]
    assert "its reconstruction is damaged" in reasons["clip4"]
    assert (report.inputs["clips"], report.inputs["frames"]) == (2, 8)
    assert any("left out: clip3" in note for note in report.notes())


class Spoils(CausalConvTokenizer):
    """Gives NaN for the clip of nine frames."""

    def decode_stream(self, chunks):
        for chunk in super().decode_stream(chunks):
            yield chunk * math.nan if self.spoiling else chunk

    def encode_stream(self, chunks):
        chunks = list(chunks)
        self.spoiling = sum(chunk.shape[2] for chunk in chunks) == 9
        yield from super().encode_stream(iter(chunks))


def test_frames_that_are_no_numbers_name_their_clip_and_are_left_out_for_all_subjects(tmp_path):
    clips = ClipSet([with_content(clip(name, frames)) for name, frames in (("a", 3), ("b", 9), ("c", 4))])
    subjects = [TokenizerSubject(tiny("fsq"), "good"), TokenizerSubject(shaped_as(Spoils), "bad")]
    with pytest.raises(
        ValueError, match=r"1 of 3 clips cannot be scored \(b: what bad made of it .*NaN.*--allow-missing"
    ):
        evaluate(subjects, clips, protocol=QUICK, records=tmp_path)
    seen: list[tuple[str, str]] = []
    report = evaluate(
        subjects, clips, protocol=QUICK, records=tmp_path, allow_missing=True,
        on_clip=lambda *names: seen.append(names),
    )  # fmt: skip
    assert seen == [("bad", "b")], "the others were scored and kept before the error"
    assert [[row["clip"] for row in one.rows] for one in report.subjects] == [["a", "c"]] * 2
    assert [one["clip"] for one in report.inputs["excluded"]] == ["b"] and report.inputs["clips"] == 2
    assert math.isfinite(report.subjects[1].total["psnr.rgb.frame_mean.cap100"]) and len(report.differences) == 1


def test_a_result_names_the_weights_of_its_perceptual_scores_and_other_weights_are_not_compared(tmp_path):
    def result(seed: int) -> dict:
        torch.manual_seed(seed)
        distance = SqueezeNetDistance(SqueezeNetFeatures())
        subject = TokenizerSubject(tiny("fsq"), "tiny")
        clips = ClipSet([with_content(clip("a", 2)), with_content(clip("b", 3))])
        path, _ = evaluate([subject], clips, protocol=QUICK, distances=[distance]).write(tmp_path / str(seed))
        return json.loads(path.read_text())

    one, other = result(0), result(1)
    assert not why_incomparable(one, one)
    (difference,) = why_incomparable(one, other)
    assert difference.startswith("weights.squeezenet.features: ")


def test_clips_without_a_finished_video_are_named(folder, tmp_path):
    clips = clips_for_protocol(find_clips([folder]), QUICK)
    with pytest.raises(ValueError, match=r"1 of 3 clips cannot be scored \(clip2: .* has no reconstruction of it"):
        evaluate([finished(folder, tmp_path / "done")], clips, protocol=QUICK)


@pytest.mark.slow  # starts two processes
def test_two_processes_share_the_clips_and_agree_with_one(folder, tmp_path):
    tiny("fsq").save_pretrained(tmp_path / "tokenizer")
    arguments = ["eval", "recon", "--tokenizers", str(tmp_path / "tokenizer"), "--data", str(folder), "--device", "cpu"]
    arguments += ["--protocol", "recon.quick"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m", "vidgen.cli"]
    two = subprocess.run(
        [sys.executable, *launch, *arguments, "-o", str(tmp_path / "two.json")],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert two.returncode == 0, two.stderr[-3000:]
    assert main([*arguments, "-o", str(tmp_path / "one.json")]) == 0
    files = sorted(path.name.rsplit(".", 2)[1] for path in (tmp_path / "two.clips").iterdir())
    assert files == ["rank0", "rank1"], "each process kept its own clips"
    one, both = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("one", "two"))
    assert both["inputs"] == one["inputs"]
    assert both["subjects"][0]["sums"] == one["subjects"][0]["sums"]
    for key, score in one["subjects"][0]["scores"].items():
        assert both["subjects"][0]["scores"][key] == pytest.approx(score, abs=1e-9)


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


def test_a_pipeline_that_draws_its_prompts_obeys_and_wrong_prompts_are_not_credited():
    result = evaluate_obedience(Renderer(), num_prompts=12, seed=2, batch_size=5, num_frames=17, name="renderer")
    for share in result["attributes"].values():
        assert share["right"] == 12 and share["high"] == 1 and 0.7 < share["low"] < 1
    assert result["wrong_prompt"]["all_right"]["right"] == 0
    assert json.loads(json.dumps(result))["settings"] == {"num_frames": 17}


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
