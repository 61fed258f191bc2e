"""Do rate-distortion curves hold what they say: bytes of codecs, bits of tokens, BD-rates, intervals, charts?"""

import json
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import tyro
from scipy.interpolate import PchipInterpolator
from tiny_models import tokenizer

from vidgen.cli import eval_rd, main
from vidgen.data import to_frames, write_video
from vidgen.data.shapes import ShapesWorld
from vidgen.eval.bd_rate import bd_rate, rate_excess
from vidgen.eval.bootstrap import Bootstrap
from vidgen.eval.charts import Series, Whisker, curve_chart, interval_chart
from vidgen.eval.clips import Clip, ClipSet
from vidgen.eval.codecs import CODECS, USER_DATA, CodecSubject, can_encode, greeting_size
from vidgen.eval.protocol import ReconstructionProtocol
from vidgen.eval.protocols import get_protocol
from vidgen.eval.rate_distortion import (
    ENTROPY,
    FIXED,
    PACKETS,
    Family,
    RateDistortionReport,
    entropy_bits,
    fixed_length_bits,
)
from vidgen.eval.recon_suite import evaluate
from vidgen.eval.subjects import Counts, TokenizerSubject

QUICK = get_protocol("recon.quick", ReconstructionProtocol)
PSNR = "psnr.rgb.frame_mean.cap100"


def clip(seed: int, *, frames: int = 9, side: int = 64) -> Clip:
    """A clip of the shapes world."""
    world = ShapesWorld(seed=seed, num_frames=frames, height=side, width=side)
    video = world[0]["video"]
    return Clip(f"clip {seed}", lambda: iter(video.split(4, dim=1)))


def passed(subject: CodecSubject, one: Clip) -> tuple[torch.Tensor, torch.Tensor, Counts]:
    """Decoded and original video, and what was counted."""
    counts = Counts()
    pairs = list(subject.pairs(one, counts, None))
    return torch.cat([pair.video for pair in pairs], 2), torch.cat([pair.reference for pair in pairs], 2), counts


@pytest.fixture(scope="module")
def report() -> RateDistortionReport:
    """Two codecs at three qualities each, a tokenizer with ids and one without, three clips."""
    coders = [CodecSubject(name, crf) for name in ("x264", "x265") for crf in (20, 30, 40)]
    discrete, continuous = TokenizerSubject(tokenizer("fsq"), "fsq"), TokenizerSubject(tokenizer("kl"), "kl")
    clips = ClipSet([clip(seed) for seed in range(3)])
    scored = evaluate([*coders, discrete, continuous], clips, protocol=QUICK, bootstrap=Bootstrap(resamples=200))
    families = [Family(name, tuple(one.name for one in coders if one.family == name)) for name in ("x264", "x265")]
    families += [Family("fsq", ("fsq",)), Family("kl", ("kl",))]
    return RateDistortionReport(scored, families, "x264")


@pytest.mark.parametrize("name", CODECS)
def test_a_codec_gives_back_every_frame_in_order_and_its_bits_are_those_of_its_packets(name):
    if not can_encode(CODECS[name]):
        pytest.skip(f"PyAV {av.__version__} has no {CODECS[name].encoder}")
    one = clip(0)
    (original,) = [torch.cat(list(one.chunks()), 1)]
    video, reference, counts = passed(CodecSubject(name, 20), one)
    assert torch.equal(reference[0], original) and video.shape == reference.shape
    assert counts.frames == 9 and counts.pixels == 9 * 64 * 64 and counts.bits % 8 == 0 and counts.bits > 0
    of_each = [float((video[0, :, t] - original[:, u]).square().mean()) for t in (1, 7) for u in (1, 7)]
    assert of_each[0] < of_each[1] and of_each[3] < of_each[2], "frames came back in another order"
    mse = float((video[0] - original).square().mean()) / 4
    assert -10 * math.log10(mse) > 28


def test_a_poorer_quality_costs_fewer_bits_and_gives_more_error():
    bits, errors = [], []
    for crf in (15, 30, 45):
        video, reference, counts = passed(CodecSubject("x264", crf), clip(1))
        bits.append(counts.bits)
        errors.append(float((video - reference).square().mean()))
    assert bits == sorted(bits, reverse=True) and errors == sorted(errors)


def test_counted_bytes_are_those_of_a_raw_stream_without_the_encoders_greeting(tmp_path):
    coding = CodecSubject("x264", 28).coding(64, 64)
    encoder, packets = coding.encoder, []

    class Recorded:
        def encode(self, picture):
            made = encoder.encode(picture)
            packets.extend(bytes(packet) for packet in made)
            return made

    coding.encoder = Recorded()
    coding.push(to_frames(torch.cat(list(clip(2).chunks()), 1)))
    coding.finish()
    stream = b"".join(packets)
    start, greeting = stream.find(USER_DATA), greeting_size(stream)
    assert b"options: cabac" in stream and greeting > 300
    stripped = stream[:start] + stream[start + greeting :]
    assert b"options" not in stripped and coding.size == len(stripped)
    (tmp_path / "bare.h264").write_bytes(stripped)
    with av.open(str(tmp_path / "bare.h264")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 9


def test_frames_that_refer_to_later_ones_save_bits_and_low_delay_has_none():
    subject = CodecSubject("x264", 28, low_delay=True)
    coding = subject.coding(64, 64)
    frames = to_frames(torch.cat(list(clip(3).chunks()), 1))
    times = []
    for number, picture in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
        frame.pts = number
        times += [packet.pts for packet in coding.encoder.encode(frame)]
    times += [packet.pts for packet in coding.encoder.encode(None)]
    assert times == sorted(times) and subject.name == "x264 low delay crf 28"


def test_codecs_refuse_what_they_cannot_do_before_work_starts():
    odd = Clip("odd", lambda: iter([torch.zeros(3, 2, 33, 64)]))
    with pytest.raises(ValueError, match="even sides with --size, or a codec that ends in -444"):
        CodecSubject("x264", 28).check([odd])
    CodecSubject("x264-444", 28).check([odd])
    with pytest.raises(ValueError, match="there is no codec 'x267'; there are x264"):
        CodecSubject("x267", 28)
    with pytest.raises(ValueError, match=r"from 0 \(best\) to 51, got 60"):
        CodecSubject("x264", 60)


def test_bd_rate_of_a_curve_at_a_fixed_share_of_the_bits_is_that_share():
    rates = np.array([[0.05, 0.1, 0.2, 0.4]])
    psnr = np.array([[28.0, 31.0, 34.5, 37.0]])
    assert bd_rate(0.8 * rates, psnr, rates, psnr)[0] == pytest.approx(-20)
    assert bd_rate(2 * rates, psnr, rates, psnr)[0] == pytest.approx(100)
    assert bd_rate(rates, psnr, rates, psnr)[0] == pytest.approx(0, abs=1e-12)
    assert bd_rate(rates[:, ::-1], psnr[:, ::-1], rates, psnr)[0] == pytest.approx(0, abs=1e-12)


def test_bd_rate_equals_scipys_pchip_integrated_over_the_common_qualities():
    generator = np.random.default_rng(0)
    for points, others in ((4, 4), (6, 3), (2, 5), (3, 2)):
        curves = []
        for count in (points, others):
            psnr = np.sort(generator.uniform(27, 37, count))
            psnr[0], psnr[-1] = generator.uniform(24, 27), generator.uniform(37, 41)
            curves.append((np.sort(generator.uniform(0.01, 1, count)), psnr))
        (rate, quality), (anchor_rate, anchor_quality) = curves
        low, high = max(quality[0], anchor_quality[0]), min(quality[-1], anchor_quality[-1])
        mean = [float(PchipInterpolator(q, np.log(r)).integrate(low, high)) for r, q in curves]
        expected = (math.exp((mean[0] - mean[1]) / (high - low)) - 1) * 100
        assert bd_rate(rate[None], quality[None], anchor_rate[None], anchor_quality[None])[0] == pytest.approx(expected)
        at = generator.uniform(anchor_quality[0], anchor_quality[-1])
        curve = PchipInterpolator(anchor_quality, np.log(anchor_rate))
        excess = rate_excess(np.array([0.3]), np.array([at]), anchor_rate[None], anchor_quality[None])[0]
        assert excess == pytest.approx((0.3 / math.exp(float(curve(at))) - 1) * 100)


def test_there_is_no_bd_rate_without_common_quality_or_for_a_curve_that_falls():
    rates, psnr = np.array([[0.1, 0.2, 0.4]]), np.array([[30.0, 33.0, 36.0]])
    assert np.isnan(bd_rate(rates, psnr + 10, rates, psnr)[0])
    assert np.isnan(bd_rate(rates, psnr[:, ::-1], rates, psnr)[0])
    assert np.isnan(rate_excess(np.array([0.1]), np.array([50.0]), rates, psnr)[0])
    with pytest.raises(ValueError, match="k of at least 2"):
        bd_rate(rates[:, :1], psnr[:, :1], rates, psnr)


def test_bits_of_tokens_follow_from_the_ids(report):
    subject = next(one for one in report.scored.subjects if one.name == "fsq")
    model = tokenizer("fsq")
    encoded = [model.encode(torch.cat(list(clip(seed).chunks()), 1)[None]) for seed in range(3)]
    ids = [one.ids for one in encoded if one.ids is not None]
    assert fixed_length_bits(subject).tolist() == [one.numel() * 8 for one in ids], "200 codes take 8 bits"
    everything = torch.cat([one.flatten() for one in ids])
    counts = torch.bincount(everything).double()
    cost = -(counts / counts.sum()).log2()
    assert entropy_bits(subject).tolist() == pytest.approx([float(cost[one.flatten()].sum()) for one in ids])
    tokens = subject.total["codebook.bits_per_token"] * subject.total["tokens"]
    assert entropy_bits(subject).sum() == pytest.approx(tokens)
    assert entropy_bits(subject).sum() <= fixed_length_bits(subject).sum()


def test_the_two_numbers_of_bits_of_a_tokenizer_are_named_by_what_they_are(report):
    """200 codes: log2 is 7.64 bits, and a code of whole bits takes 8."""
    result = report.to_json()
    total = next(one["total"] for one in result["subjects"] if one["name"] == "fsq")
    point = next(one for one in result["points"] if one["rate"] == FIXED)
    assert total["bits_per_pixel"] / point["bits_per_pixel"] == pytest.approx(math.log2(200) / 8)
    assert result["conventions"]["bits"].startswith("log2 of the codebook size of each id")
    assert result["conventions"][f"points.{FIXED}"] == "ceil(log2 K) bits an id"
    assert any(f"{FIXED}: ceil(log2 K) bits an id; {ENTROPY}: by frequencies" in note for note in report.notes())


def test_every_codec_is_one_curve_a_discrete_tokenizer_two_and_a_continuous_one_none(report):
    assert [(curve.family.name, curve.rate) for curve in report.curves] == [
        ("x264", PACKETS), ("x265", PACKETS), ("fsq", FIXED), ("fsq", ENTROPY),
    ]  # fmt: skip
    x264 = report.curves[0]
    total = report.scored.subjects[0].total
    assert x264.rates[0, 0] == pytest.approx(total["bits_per_pixel"])
    assert x264.qualities[PSNR][0, 0] == pytest.approx(total[PSNR])
    assert any("kl: no bits" in note for note in report.notes())


def test_comparisons_are_bd_rates_for_curves_and_excess_rates_for_points_with_reasons_where_there_is_none(report):
    by_curve = {(one.curve, one.score): one for one in report.comparisons}
    x265 = by_curve["x265", PSNR]
    assert x265.kind == "bd-rate" and x265.percent is not None
    assert x265.percent.low is not None and x265.percent.low <= x265.percent.value <= x265.percent.high
    first, second = report.curves[:2]
    own = bd_rate(second.rates[:1], second.qualities[PSNR][:1], first.rates[:1], first.qualities[PSNR][:1])
    assert x265.percent.value == pytest.approx(own[0])
    untrained = by_curve[f"fsq ({FIXED})", PSNR]
    assert untrained.kind == "rate-excess" and untrained.percent is None and "do not meet" in str(untrained.reason)


def test_reports_are_written_with_points_comparisons_and_charts_that_are_valid_svg(report, tmp_path):
    json_path, csv_path = report.write(tmp_path / "rd.json")
    result = json.loads(json_path.read_text())
    assert (result["schema"], result["kind"], result["anchor"]) == ("vidgen.eval/1", "rate-distortion", "x264")
    assert len(result["points"]) == 8 and len(csv_path.read_text().splitlines()) == 9
    for point in result["points"]:
        assert point["bits_per_pixel_low"] <= point["bits_per_pixel"] <= point["bits_per_pixel_high"]
        assert point["encode_frames_per_second"] > 0 and point["decode_frames_per_second"] > 0
        assert point["peak_memory_megabytes"] > 0
        assert (point["parameters"] is None) == (point["rate"] == PACKETS)
    shown = [str(column.header) for column in report.tables()[0].columns]
    assert shown[-4:] == ["encode frames/s", "decode frames/s", "parameters", "memory MB"]
    report.plot(tmp_path / "rd.svg")
    root = ElementTree.parse(tmp_path / "rd.svg").getroot()
    assert root.tag.endswith("svg") and len(root.findall(".//{*}polyline")) == 4 * len(report.charts())


def test_charts_take_single_points_equal_values_and_names_with_signs():
    single = curve_chart([Series("a < b", [(0.1, 30.0)])], x_label="bits", y_label="PSNR & more")
    ElementTree.fromstring(single)
    assert "a &lt; b" in single
    ElementTree.fromstring(interval_chart([Whisker("a", 1.0, None, None), Whisker("b", 1.0, 0.9, 1.2)], label="x"))
    with pytest.raises(ValueError, match="above 0"):
        curve_chart([Series("a", [(0.0, 1.0)])], x_label="x", y_label="y")


def test_the_command_prints_curves_and_writes_everything(tmp_path, capsys):
    tokenizer("fsq").save_pretrained(tmp_path / "fsq")
    for seed in range(2):
        write_video(tmp_path / "clips" / str(seed), torch.cat(list(clip(seed, frames=5).chunks()), 1), fps=10)
    arguments = ["eval", "rd", "--tokenizers", f"ours={tmp_path / 'fsq'}", "--data", tmp_path / "clips"]
    arguments += ["--codecs", "x264,svtav1", "--crf", 25, 40, "--protocol", "recon.quick", "--device", "cpu"]
    arguments += ["-o", tmp_path / "rd.json", "--plot", tmp_path / "rd.svg", "--html", tmp_path / "rd.html"]
    assert main([str(word) for word in arguments]) == 0
    output = capsys.readouterr().out
    assert "more rate than x264 at equal quality" in output and "ours (order-0 entropy)" in output
    assert all((tmp_path / name).exists() for name in ("rd.json", "rd.csv", "rd.svg", "rd.html"))
    for wrong, words in ((["--plot", "rd.png"], "ends in .svg"), (["--codecs", "mpeg"], "--codecs takes x264")):
        assert main([str(word) for word in [*arguments[:6], *wrong]]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "options,anchor",
    [
        (("--low-delay", "--anchor", "x265"), "x265 low delay"),
        (("--low-delay", "--anchor", "x265 low delay"), "x265 low delay"),
        (("--low-delay",), "x264 low delay"),
        (("--anchor", "x265"), "x265"),
    ],
)
def test_the_anchor_is_found_by_the_name_of_its_codec(options, anchor):
    command = tyro.cli(eval_rd.Command, args=["--data", "clips", "--codecs", "x264", "x265", *options])
    families: dict[str, list[str]] = {}
    for coder in eval_rd.codec_subjects(command):
        families.setdefault(coder.family, []).append(coder.name)
    assert eval_rd.anchor_among(families, command) == anchor
    with pytest.raises(ValueError, match="--anchor is one of the curves x264"):
        eval_rd.anchor_among(families, replace(command, anchor="vp9"))


def test_folders_hold_no_leftovers_of_codecs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    passed(CodecSubject("x265", 30), clip(0, frames=3))
    assert not list(Path(tmp_path).iterdir())
