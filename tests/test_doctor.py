"""Does the doctor find what is here by its bytes, miss nothing that a command takes, and never fail?"""

import hashlib
from importlib.metadata import version

import pytest
import torch

from vidgen.cli import main
from vidgen.eval import doctor
from vidgen.eval.codecs import CODECS, can_encode
from vidgen.eval.doctor import WantedFile, digests, examine, weight_files


def test_every_section_says_what_is_here_and_what_is_not(tmp_path):
    sections = {section.title: section.findings for section in examine([tmp_path / "absent"])}
    assert list(sections) == ["devices", "packages", "codecs and filters", "weight files"]
    packages = {finding.name: finding for finding in sections["packages"]}
    assert packages["torch"].present and packages["torch"].detail.startswith(version("torch"))
    encoders = {finding.name: finding.present for finding in sections["codecs and filters"]}
    assert all(encoders[name] == can_encode(codec) for name, codec in CODECS.items())
    assert any(finding.name.startswith("cuda") and finding.present for finding in sections["devices"]) == (
        torch.cuda.is_available()
    )
    weights = sections["weight files"]
    assert len(weights) == 8 and not any(finding.present for finding in weights)
    assert all("sha256" in finding.detail or "git hash-object" in finding.detail for finding in weights)
    assert any(finding.detail.startswith("--lpips-weights vgg=FILE") for finding in weights)


@pytest.mark.parametrize("kind", ["sha256", "first characters", "git"])
def test_weight_files_are_known_by_their_bytes_and_not_by_their_names(tmp_path, monkeypatch, kind):
    (tmp_path / "deep").mkdir()
    path = tmp_path / "deep" / "renamed.pth"
    path.write_bytes(b"some weights")
    sha256, blob = digests(path)
    assert sha256 == hashlib.sha256(b"some weights").hexdigest()
    assert blob == hashlib.sha1(b"blob 12\0some weights").hexdigest()
    digest = {"sha256": sha256, "first characters": sha256[:8], "git": blob}[kind]
    monkeypatch.setattr(doctor, "wanted_files", lambda: [WantedFile("--net FILE", "net.pt", digest, "somewhere")])
    (tmp_path / "net.pt").write_bytes(b"other bytes under the right name")
    (tmp_path / "notes.txt").write_bytes(b"some weights")
    known, other = weight_files([tmp_path, tmp_path / "deep"])
    assert known.present and known.name == "net.pt" and f"--net FILE: {path} (sha256 {sha256})" in known.detail
    assert other.name == "net.pt" and other.detail.startswith("digest not known")


def test_the_command_ends_well_whatever_is_missing_and_names_a_folder_that_is_not_there(tmp_path, capsys):
    assert main(["eval", "doctor", "--weights", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "devices" in lines and any(line.startswith("  no ") and "i3d_pretrained_400.pt" in line for line in lines)
    assert main(["eval", "doctor", "--weights", str(tmp_path / "absent")]) == 2
    assert "takes folders" in capsys.readouterr().err


def test_the_shared_squeezenet_is_listed_with_its_digest(shared):
    rows = {finding.detail: finding for finding in weight_files([shared / "weights"]) if finding.present}
    assert any("squeezenet1_0_imagenet.pt" in detail and "sha256" in detail for detail in rows)
