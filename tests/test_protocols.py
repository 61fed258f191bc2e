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
}


def test_the_published_reconstruction_presets_have_not_changed():
    now = {protocol.name: protocol.sha256[:16] for protocol in list_protocols(ReconstructionProtocol)}
    assert now == PUBLISHED


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
    with pytest.raises(ValueError, match="ReconstructionProtocol"):
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


def test_files_that_hold_no_result_are_refused(tmp_path):
    (tmp_path / "old.json").write_text(json.dumps({"schema": "vidgen.reconstruction/1"}))
    (tmp_path / "text.json").write_text("psnr 30")
    with pytest.raises(ValueError, match="evaluate again"):
        read_result(tmp_path / "old.json")
    with pytest.raises(ValueError, match="is no JSON"):
        read_result(tmp_path / "text.json")
