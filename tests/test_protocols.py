"""Are protocols immutable data whose hash changes exactly when a condition does, and are unlike results kept apart?"""

import dataclasses
import json

import pytest

from vidgen.eval.bootstrap import Bootstrap
from vidgen.eval.compare import compare, read_result, why_incomparable
from vidgen.eval.protocol import ClipRule, Preprocess, ReconstructionProtocol, Resize
from vidgen.eval.protocols import PROTOCOLS, get_protocol, list_protocols
from vidgen.eval.reconstruction import scores_for, why_missing

# A published preset never changes: when this fails, raise its version and give the new hash here.
PUBLISHED = {
    "recon.v1": "212992a44a04742c",
    "recon.quick": "2136136287616ee1",
    "recon.vidtok": "5d8e3bbb69f5597b",
    "recon.tokenbench": "4424813eeaf98b7a",
    "recon.bsq": "8036abac73d67455",
    "recon.omnitokenizer": "95d3930680d1e374",
    "rd.v1": "6671e83ccd759835",
    "recon.opensoraplan": "3d5bef9596deaf71",
    "fvd.google": "0fd3697ca7a5a61e",
    "fvd.styleganv.2048x16": "01402ca8e22ea25d",
    "fvd.styleganv.2048x128": "df37e2cf62096098",
    "fvd.styleganv.2048x128s8": "9604070a0eb11afb",
    "fvd.tats": "8a28fd443af255eb",
    "fvd.videogpt.256": "33b6bfaaa182ed8e",
    "fvd.tokenbench": "9f4de0d523ce761d",
    "fvd.magvit": "7e9bdad3d1c875f5",
    "fvd.bair.prediction.magvit": "3e69dcfae702b650",
    "fvd.k600.prediction.larp": "7bf2debc2931a848",
    "fvd.ucf101.class.larp": "c44f95d1738d80d6",
    "fvd.ucf101.class.magvit": "1402d5f9da620da1",
    "rfvd.ucf101.larp": "b1ae3635f0605b80",
    "rfvd.omnitokenizer": "dc3d1ef0f8d23120",
    "fid.pytorch-fid": "0177f77e6111fa52",
    "fid.torch-fidelity": "92a9ccfb8ae4363e",
    "fid.clean": "3f0ac17ed091451e",
    "rfid.frames": "8c4198f6a79fc526",
    "kid.frames": "38465c4a60cea3b9",
    "kvd.i3d": "df35655d09e79762",
    "fd.squeezenet": "ecdb1fa460251d9c",
    "fd.tiny": "0b44b4435b2f467c",
}


def test_the_published_presets_have_not_changed():
    assert {protocol.name: protocol.sha256[:16] for protocol in list_protocols()} == PUBLISHED


def test_every_preset_says_where_it_was_read_and_is_found_by_its_name():
    names = [protocol.name for protocol in list_protocols()]
    assert len(set(names)) == len(names)
    assert len({protocol.sha256 for protocol in list_protocols()}) == len(names)
    for name, protocol in PROTOCOLS.items():
        assert protocol.source and get_protocol(name) is protocol


def test_protocols_cannot_be_changed():
    protocol = get_protocol("recon.v1")
    with pytest.raises(dataclasses.FrozenInstanceError):
        protocol.version = 2  # pyright: ignore
    with pytest.raises(TypeError):
        PROTOCOLS["recon.v1"] = protocol  # pyright: ignore
    hash(protocol)


def test_every_condition_changes_the_hash_and_notes_do_not():
    protocol = get_protocol("recon.vidtok", ReconstructionProtocol)
    resize = dataclasses.replace(protocol.preprocess.resizes[0], kernel="torch-bilinear")
    others = [
        dataclasses.replace(protocol, clip=dataclasses.replace(protocol.clip, fps=25)),
        dataclasses.replace(protocol, preprocess=Preprocess(resizes=(resize,), quantise="none")),
        dataclasses.replace(protocol, preprocess=dataclasses.replace(protocol.preprocess, quantise="round")),
        dataclasses.replace(protocol, metrics=protocol.metrics[:1]),
        dataclasses.replace(protocol, pooling="clip"),
        dataclasses.replace(protocol, version=2),
    ]
    assert len({other.sha256 for other in [protocol, *others]}) == len(others) + 1
    assert dataclasses.replace(protocol, note="another note", source="elsewhere").sha256 == protocol.sha256
    assert protocol.differences(others[0]) == ["clip.fps: 30, 25"]
    assert protocol.differences(protocol) == []


def test_a_mistyped_protocol_names_the_nearest_and_kinds_are_told_apart():
    with pytest.raises(ValueError, match=r"recon\.vidtok"):
        get_protocol("recon.vidtk", ReconstructionProtocol)
    with pytest.raises(
        ValueError, match=r"protocol fvd\.tats is to compare sets of videos .* one to score reconstructions .*recon\.v1"
    ):
        get_protocol("fvd.tats", ReconstructionProtocol)


def test_impossible_conditions_are_refused():
    with pytest.raises(ValueError, match="above 0"):
        ClipRule(frames=0)
    with pytest.raises(ValueError, match="at least one pixel"):
        Resize(height=0, width=4, fit="cover", kernel="swscale")


@pytest.mark.parametrize("protocol", list_protocols(ReconstructionProtocol), ids=lambda protocol: protocol.name)
def test_every_score_of_every_preset_is_computed_or_says_what_it_needs(protocol):
    found = scores_for(protocol)
    assert {metric.key for metric in found.metrics} | set(found.missing) == set(protocol.metrics)
    rounding = {"round": "", "none": ".float", "floor": ".floor"}[protocol.preprocess.quantise]
    for metric in found.metrics:
        endings = {ending for ending in (".float", ".floor") if metric.key.endswith(ending)}
        assert endings == ({rounding} if rounding else set()), "the keys and the preprocessing disagree"
    for reason in found.missing.values():
        assert "--" in reason or "av>=" in reason


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (Preprocess(quantise="none"), "psnr.rgb.frame_mean.cap100 rounds in another way"),
        (Preprocess(quantise="floor"), "psnr.rgb.frame_mean.cap100 rounds in another way"),
        (Preprocess(value_range=(-1.0, 1.0)), r"levels in \(-1.0, 1.0\)"),
    ],
)
def test_preprocessing_that_the_scores_would_not_follow_is_refused(steps, words):
    protocol = dataclasses.replace(get_protocol("recon.quick", ReconstructionProtocol), preprocess=steps)
    with pytest.raises(ValueError, match=words):
        scores_for(protocol)


def test_a_score_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="no score is called"):
        why_missing("psnr", available=[])


# results


def result(protocol: ReconstructionProtocol, *, manifest: str = "m", value: float = 30.0) -> dict:
    sums = [{"total": value * 4, "count": 4.0}, {"total": (value + 2) * 4, "count": 4.0}]
    subject = {
        "name": "model",
        "scores": {"psnr.rgb.frame_mean.cap100": {"value": value + 1, "low": value, "high": value + 2}},
        "sums": {"psnr.rgb.frame_mean.cap100": sums},
    }
    return {
        "schema": "vidgen.eval/1",
        "protocol": protocol.to_json(),
        "inputs": {"clips": 2, "manifest_sha256": manifest},
        "subjects": [subject],
    }


def test_results_of_equal_conditions_are_compared_by_clip():
    protocol = get_protocol("recon.v1", ReconstructionProtocol)
    table = compare(result(protocol), result(protocol, value=31.5), settings=Bootstrap())
    (change,) = list(table.columns[3].cells)
    # the clips differ by far more than the models, yet the paired difference is the same in each
    assert str(change) == "1.5"


def test_results_of_other_conditions_or_clips_are_refused_and_the_difference_is_named():
    protocol = get_protocol("recon.v1", ReconstructionProtocol)
    shorter = dataclasses.replace(protocol, clip=ClipRule(max_frames=17))
    assert why_incomparable(result(protocol), result(shorter)) == ["protocol clip.max_frames: None, 17"]
    assert why_incomparable(result(protocol), result(protocol, manifest="n")) == ["inputs.manifest_sha256: 'm', 'n'"]
    with pytest.raises(ValueError, match=r"not comparable: protocol clip\.max_frames: None, 17"):
        compare(result(protocol), result(shorter), settings=Bootstrap())


def test_scores_by_other_weights_are_refused_and_scores_of_one_side_alone_are_not():
    protocol = get_protocol("recon.v1", ReconstructionProtocol)
    ours, theirs = (result(protocol) | {"weights": {"lpips.alex.v0.1": digest}} for digest in ("a", "b"))
    assert why_incomparable(ours, theirs) == ["weights.lpips.alex.v0.1: 'a', 'b'"]
    assert not why_incomparable(ours, ours) and not why_incomparable(ours, result(protocol))


def distance_result(**changes: object) -> dict:
    """Changes by dotted place: `inputs.fake.n_videos`."""
    made: dict = {
        "schema": "vidgen.eval/1",
        "protocol": get_protocol("fvd.tats").to_json(),
        "inputs": {
            name: {"n_videos": 40, "n_rows": 40, "seed": 0, "manifest_sha256": "m"} for name in ("real", "fake")
        },
        "extractor": {"name": "i3d", "weights_sha256": "w"},
        "metric": "fvd",
        "value": 100.0,
        "uncertainty": {"seed": 0, "ci95": [90.0, 110.0]},
    }
    for place, value in changes.items():
        *path, last = place.split("__")
        inside = made
        for step in path:
            inside = inside[step]
        inside[last] = value
    return made


@pytest.mark.parametrize(
    "change,difference",
    [
        ({"inputs__fake__n_videos": 30}, "inputs.fake.n_videos: 40, 30"),
        ({"inputs__real__manifest_sha256": "n"}, "inputs.real.manifest_sha256: 'm', 'n'"),
        ({"inputs__real__seed": 1}, "inputs.real.seed: 0, 1"),
        ({"extractor__weights_sha256": "v"}, "extractor.weights_sha256: 'w', 'v'"),
        ({"uncertainty__seed": 1}, "uncertainty.seed: 0, 1"),
    ],
)
def test_distances_of_other_numbers_networks_or_draws_are_refused_and_the_difference_is_named(change, difference):
    assert why_incomparable(distance_result(), distance_result(**change)) == [difference]
    other_fakes = distance_result(inputs__fake__manifest_sha256="another model's", value=120.0)
    table = compare(distance_result(), other_fakes, settings=Bootstrap())
    assert [str(cell) for cell in table.columns[3].cells] == ["20"]


def test_files_that_hold_no_result_are_refused(tmp_path):
    (tmp_path / "old.json").write_text(json.dumps({"schema": "vidgen.reconstruction/1"}))
    (tmp_path / "text.json").write_text("psnr 30")
    (tmp_path / "bare.json").write_text(json.dumps({"schema": "vidgen.eval/1", "subjects": []}))
    with pytest.raises(ValueError, match="does not say under which conditions it was made; evaluate again"):
        read_result(tmp_path / "bare.json")
    with pytest.raises(ValueError, match="evaluate again"):
        read_result(tmp_path / "old.json")
    with pytest.raises(ValueError, match="is no JSON"):
        read_result(tmp_path / "text.json")
