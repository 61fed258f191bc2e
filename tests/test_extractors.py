"""Are the feature networks the published ones, and is a wrong weight file refused?"""

import hashlib
import importlib.util
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vidgen.cli import main
from vidgen.data import write_video
from vidgen.eval.extractors import EXTRACTORS, SqueezeNetMotion, TinyNetwork, WeightChoice, load_extractor
from vidgen.eval.extractors.base import load_public
from vidgen.eval.extractors.i3d import EPSILON, I3D, PORT_EPSILON, load_i3d
from vidgen.eval.extractors.inception import Inception, load_inception
from vidgen.eval.extractors.weights import I3D_FILES, INCEPTION_FILES, Weights, identify
from vidgen.eval.feature_extraction import extract_features
from vidgen.eval.frechet import frechet_distance
from vidgen.eval.preprocess import preprocess
from vidgen.eval.protocol import ClipRule, FeatureProtocol
from vidgen.eval.protocols import get_protocol
from vidgen.eval.video_survey import survey

# What public implementations give for the random weights and inputs below: VideoGPT's pytorch_i3d.py (c6655e8) and
# torch-fidelity 0.4.0. The tests marked external make them again from a checkout.
GOLDEN = Path(__file__).parent / "golden" / "feature_networks.safetensors"
NO_FILE = Weights(None, "0" * 64, "state-dict", None)


def random_state(network: torch.nn.Module, *, seed: int) -> dict[str, torch.Tensor]:
    """Weights that keep activations alive, drawn in the order of the sorted keys."""
    generator, state = torch.Generator().manual_seed(seed), {}
    for key, value in sorted(network.state_dict().items()):
        if key.endswith("num_batches_tracked"):
            continue
        if key.endswith("running_var"):
            state[key] = 0.5 + torch.rand(value.shape, generator=generator)
        elif value.ndim > 1:
            state[key] = torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5
        elif key.endswith("bn.weight"):
            state[key] = 0.8 + 0.4 * torch.rand(value.shape, generator=generator)
        else:
            state[key] = 0.1 * torch.randn(value.shape, generator=generator)
    return state


def smooth_video(frames: int, side: int, *, seed: int) -> torch.Tensor:
    """`1 3 t h w` in [-1, 1]."""
    coarse = torch.rand(1, 3, 3, 5, 5, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, (frames, side, side), mode="trilinear")


def random_i3d(*, epsilon: float = PORT_EPSILON) -> I3D:
    network = I3D(weights=NO_FILE, epsilon=epsilon)
    return load_public(network, random_state(network, seed=1), layout_of="the recipe", path="memory")


def random_inception() -> Inception:
    network = Inception(weights=NO_FILE)
    return load_public(network, random_state(network, seed=2), layout_of="the recipe", path="memory")


# An odd size that still ends in 7x7, so that the uneven padding of TensorFlow's SAME is tried at every stride.
I3D_INPUT = (9, 195, 3)
INCEPTION_INPUT = (1, 299, 4)


def assert_close(ours: torch.Tensor, public: torch.Tensor) -> None:
    assert ours.shape == public.shape
    assert float((ours - public).abs().max()) <= 1e-5 * float(public.abs().max())


@torch.no_grad()
def test_i3d_equals_the_public_implementation_on_random_weights():
    frames, side, seed = I3D_INPUT
    assert_close(random_i3d().features(smooth_video(frames, side, seed=seed))[0, 0], load_file(GOLDEN)["i3d"])


@torch.no_grad()
def test_inception_equals_the_public_implementation_on_random_weights():
    frames, side, seed = INCEPTION_INPUT
    network, golden = random_inception(), load_file(GOLDEN)
    features = network(smooth_video(frames, side, seed=seed))[0, 0]
    assert_close(features, golden["inception"])
    assert_close(network.unbiased_logits(features), golden["inception_logits"])


def public_module(variable: str):
    path = os.environ.get(variable)
    if not path:
        pytest.skip(f"set {variable} to the file pytorch_i3d.py of a checkout of wilson1yan/VideoGPT")
    spec = importlib.util.spec_from_file_location("public_network", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@torch.no_grad()
def public_features() -> dict[str, torch.Tensor]:
    """The golden values, from the public implementations."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    frames, side, seed = I3D_INPUT
    i3d = public_module("VIDGEN_PUBLIC_I3D").InceptionI3d(400, in_channels=3).eval()
    i3d.load_state_dict(random_state(I3D(weights=NO_FILE), seed=1), strict=False)
    made = {"i3d": i3d(smooth_video(frames, side, seed=seed))[0]}
    frames, side, seed = INCEPTION_INPUT
    video = smooth_video(frames, side, seed=seed)[:, :, 0]
    network = FeatureExtractorInceptionV3.__new__(FeatureExtractorInceptionV3)
    state = random_state(Inception(weights=NO_FILE), seed=2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pt"
        torch.save(state, path)
        network.__init__("inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path))
    # its forward takes 8-bit images and resizes them: enter behind that
    steps = [module for name, module in network.named_children() if name not in ("AvgPool", "fc")]
    for step in steps:
        video = step(video)
    made["inception"] = network.AvgPool(video).flatten()
    made["inception_logits"] = made["inception"] @ network.fc.weight.T
    return made


@pytest.mark.external
def test_the_golden_values_are_those_of_a_public_checkout():
    golden = load_file(GOLDEN)
    for name, public in public_features().items():
        assert_close(public, golden[name])


@torch.no_grad()
def test_inception_with_the_preset_equals_torch_fidelity_from_8_bit_images_on():
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    image = torch.randint(256, (1, 3, 40, 52), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    steps = get_protocol("fid.torch-fidelity", FeatureProtocol).preprocess
    theirs = (interpolate_bilinear_2d_like_tensorflow1x(image.float(), (299, 299), align_corners=False) - 128) / 128
    torch.testing.assert_close(preprocess(image[:, :, None], steps)[:, :, 0], theirs, rtol=0, atol=1e-6)


def test_port_and_original_differ_in_the_epsilon_of_their_batch_norms_and_in_their_name():
    with torch.device("meta"):
        original, port = I3D(weights=NO_FILE), I3D(weights=NO_FILE, epsilon=PORT_EPSILON)
    assert {original.name, port.name} <= set(EXTRACTORS)
    for network, epsilon in ((original, EPSILON), (port, PORT_EPSILON)):
        assert {layer.eps for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm3d)} == {epsilon}


@torch.no_grad()
@pytest.mark.parametrize("frames,side,words", [(8, 224, "at least 9 frames"), (16, 112, "224 224")])
def test_i3d_says_which_videos_it_takes(frames, side, words):
    with pytest.raises(ValueError, match=words):
        unfilled(I3D)(torch.zeros(1, 3, frames, side, side))


def unfilled(kind: type[torch.nn.Module]):
    """A network whose weights take no memory."""
    with torch.device("meta"):
        return kind(weights=NO_FILE)


def save_state(path: Path, kind: type[torch.nn.Module], **changes: torch.Tensor) -> str:
    """Write all-zero weights of a network; returns the SHA-256 of the file."""
    shapes = {key: value.shape for key, value in unfilled(kind).state_dict().items() if value.ndim}
    save_file({key: torch.zeros(shape) for key, shape in shapes.items()} | changes, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_weights_of_your_own_need_their_digest_and_lose_the_published_name(tmp_path):
    path = tmp_path / "mine.safetensors"
    digest = save_state(path, I3D)
    with pytest.raises(ValueError, match=r"not a published weight file of I3D .*i3d_pretrained_400.pt.*a867b87ac3"):
        load_i3d(path)
    with pytest.raises(ValueError, match="not a published weight file"):
        load_i3d(path, sha256="0" * 64)
    network = load_i3d(path, sha256=digest)
    assert network.distance_name("f") == "fd.i3d-kinetics400" and network.weights.known is None
    assert network.identity()["weights_sha256"] == digest
    assert not network.training and not any(weight.requires_grad for weight in network.parameters())


def test_published_weights_give_the_published_name(tmp_path, monkeypatch):
    path = tmp_path / "pt_inception.safetensors"
    known = INCEPTION_FILES[0]
    digest = save_state(path, Inception)
    monkeypatch.setattr("vidgen.eval.extractors.inception.INCEPTION_FILES", (replace(known, sha256=digest),))
    network = load_inception(path)
    assert [network.distance_name(kind) for kind in "fk"] == ["fid", "kid"]
    assert network.weights.known == known.name


def test_a_file_known_by_its_git_id_is_recognised(tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(b"hello\n")
    known = replace(
        I3D_FILES[0], git_blob="ce013625030ba8dba906f756967f9e9ca394464a"
    )  # git hash-object, of these bytes
    assert identify(path, known=(known,), network="I3D").known == known.name


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    digest = save_state(path, I3D)
    with pytest.raises(ValueError, match=r"inception-2015-12-05.*differs in.*another network"):
        load_inception(path, sha256=digest)
    digest = save_state(path, I3D, **{"logits.conv3d.weight": torch.zeros(600, 1024, 1, 1, 1)})
    with pytest.raises(ValueError, match=r"differs in logits.conv3d.weight \(1 in all\)"):
        load_i3d(path, sha256=digest)


def test_without_weights_the_error_names_the_file():
    with pytest.raises(ValueError, match=r"i3d_torchscript.pt .*sha256 bec6519f66ea"):
        load_extractor("i3d-kinetics400", WeightChoice())
    with pytest.raises(ValueError, match=r"there is none at .*6726825d0af5"):
        load_extractor("inception-2015-12-05", WeightChoice(Path("nowhere.pth")))
    with pytest.raises(ValueError, match="there are i3d-kinetics400"):
        load_extractor("resnet", WeightChoice())


class Program(torch.nn.Module):
    """Called as `i3d_torchscript.pt` is."""

    def forward(
        self, x: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False
    ) -> torch.Tensor:
        assert return_features and not rescale and not resize
        return x.mean(dim=(1, 2, 3, 4))[:, None].repeat(1, 400)


@pytest.mark.filterwarnings("ignore")  # PyTorch calls TorchScript old
def test_a_torchscript_file_runs_only_by_choice_and_with_the_right_digest(tmp_path):
    path = tmp_path / "i3d_torchscript.pt"
    torch.jit.script(Program()).save(str(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match="not a published weight file"):
        load_i3d(path, torchscript=True)
    with pytest.raises(ValueError, match="runs the program in it; pass --torchscript"):
        load_i3d(path, sha256=digest)
    with pytest.raises(ValueError, match="a fixed program"):
        load_i3d(path, sha256=digest, torchscript=True, epsilon=PORT_EPSILON)
    network = load_i3d(path, sha256=digest, torchscript=True)
    video = smooth_video(9, 224, seed=0)
    torch.testing.assert_close(network(video)[0, 0], video.mean().expand(400))


def test_no_surrogate_is_called_fvd_or_fid():
    for network in (TinyNetwork(), unfilled(I3D), unfilled(Inception)):
        assert network.distance_name("f") == f"fd.{network.name}"


@torch.no_grad()
def test_squeezenet_features_see_frozen_and_shuffled_frames(shared):
    network = SqueezeNetMotion.from_file(shared / "weights" / "squeezenet1_0_imagenet.pt")
    video = smooth_video(6, 32, seed=0)
    features, change = network(video)[0, 0].split(512)
    frozen_features, frozen_change = network(video[:, :, :1].expand(-1, -1, 6, -1, -1))[0, 0].split(512)
    shuffled_features, shuffled_change = network(video[:, :, [0, 3, 1, 5, 2, 4]])[0, 0].split(512)
    assert float(frozen_change.abs().max()) < 1e-5 < float(change.mean())
    torch.testing.assert_close(shuffled_features, features, rtol=1e-4, atol=1e-5)
    assert float(shuffled_change.mean()) > 1.2 * float(change.mean())
    assert network.num_features == 1024 and not torch.equal(features, frozen_features)


def black_and_white(folder: Path, level: int) -> Path:
    """Eight one-frame videos, each a little darker than `level`."""
    for number in range(8):
        write_video(folder / f"clip{number}", [np.full((32, 40, 3), level - number, dtype=np.uint8)], fps=8)
    return folder


@torch.no_grad()
@pytest.mark.slow  # 32 frames of 299x299
def test_inception_with_weights_of_ones_own_goes_from_the_command_to_a_result(tmp_path, capsys):
    network = random_inception()
    path = tmp_path / "mine.safetensors"
    save_file(network.state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    dark, bright = black_and_white(tmp_path / "dark", 40), black_and_white(tmp_path / "bright", 200)
    arguments = ["eval", "fid", "--real", dark, "--fake", bright, "--inception", path, "--weights-sha256", digest]
    arguments += ["--repeats", 3, "--no-cache", "--device", "cpu", "-o", tmp_path / "fid.json"]
    assert main([str(word) for word in arguments]) == 0, capsys.readouterr().err
    result = json.loads((tmp_path / "fid.json").read_text())
    assert [one["metric"] for one in result["results"]] == [f"{kind}d.inception-2015-12-05" for kind in "fk"]
    assert result["extractor"]["weights_sha256"] == digest and result["extractor"]["weights_file"] is None
    steps = get_protocol("rfid.frames", FeatureProtocol).preprocess
    rows = [
        network(torch.stack([preprocess(torch.full((1, 3, 1, 32, 40), level - k, dtype=torch.uint8), steps)[0]
                             for k in range(8)]))[:, 0]
        for level in (40, 200)
    ]  # fmt: skip
    assert result["value"] == pytest.approx(frechet_distance(*rows), rel=1e-4)


@torch.no_grad()
def test_i3d_with_weights_of_ones_own_extracts_what_the_network_gives(tmp_path):
    network = random_i3d()
    path = tmp_path / "mine.safetensors"
    save_file(network.state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    loaded = load_extractor("i3d-kinetics400.eps1e-05", WeightChoice(path, sha256=digest))
    video = np.random.default_rng(0).integers(256, size=(9, 48, 64, 3), dtype=np.uint8)
    write_video(tmp_path / "videos" / "one", list(video), fps=8)
    protocol = replace(get_protocol("fvd.tats", FeatureProtocol), clip=ClipRule(frames=9))
    found = extract_features(survey(tmp_path / "videos"), loaded, protocol, count=None, cache=None)
    expected = network(preprocess(torch.from_numpy(video).permute(3, 0, 1, 2)[None], protocol.preprocess))[0]
    torch.testing.assert_close(found.features, expected, rtol=1e-4, atol=1e-4)
    assert found.conditions["names"] == {kind: f"{kind}d.i3d-kinetics400.eps1e-05" for kind in "fk"}


class Pooled(torch.nn.Module):
    """What `inception-2015-12-05.pt` has under `layers`: frames of 299x299 to the last pooling."""

    def __init__(self, network: Inception) -> None:
        super().__init__()
        self.network = network

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return self.network._pooled(frames)[:, :, None, None]


class InceptionProgram(torch.nn.Module):
    """Laid out as `inception-2015-12-05.pt` is: `layers` behind a resizing of its own."""

    def __init__(self, layers: torch.nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(torch.nn.functional.interpolate(images, (299, 299))).flatten(1)


@torch.no_grad()
@pytest.mark.slow  # traces and saves 24 million weights
@pytest.mark.filterwarnings("ignore")  # PyTorch calls TorchScript old
def test_an_inception_program_gives_the_features_of_the_same_weights_in_a_state_dict(tmp_path):
    network = random_inception()
    layers: Any = torch.jit.trace(Pooled(network), torch.zeros(1, 3, 299, 299), check_trace=False)
    path = tmp_path / "inception-2015-12-05.pt"
    torch.jit.script(InceptionProgram(layers)).save(str(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ValueError, match="runs the program in it; pass --torchscript"):
        load_inception(path, sha256=digest)
    program = load_inception(path, sha256=digest, torchscript=True)
    video = smooth_video(2, 299, seed=5)
    torch.testing.assert_close(program(video), network(video), rtol=1e-4, atol=1e-4)
    assert program.distance_name("f") == "fd.inception-2015-12-05"


# FVD of black against white videos of 64x64 as other projects print them, (frames, number): StyleGAN-V's TorchScript
# file in JunyaoHu/common_metrics_on_video_quality (README at 5f75173), whose last number is 151.39244 in TensorFlow
# 1.15 with TF-Hub's weights.
BLACK_AND_WHITE = [
    (10, 569.2296), (11, 486.3584), (13, 146.3664), (15, 133.7031), (21, 78.1726), (30, 151.2565), (30, 151.39244),
]  # fmt: skip
# The docstring of google-research's frechet_video_distance/example.py says "around 131" of 16 videos of 15 frames, and
# a port with wrong features has given 219 there. The commit at which it was read is not known.
REFERENCE_EXAMPLE = (15, 131.0)


def needs_i3d() -> str:
    if "VIDGEN_I3D" not in os.environ:
        wanted = " or ".join(str(one) for one in I3D_FILES)
        pytest.skip(f"set VIDGEN_I3D to the path of {wanted}")
    return os.environ["VIDGEN_I3D"]


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize(
    ("frames", "published", "tolerance"),
    [*((*pair, 2e-3) for pair in BLACK_AND_WHITE), (*REFERENCE_EXAMPLE, 0.03)],
)
def test_black_against_white_gives_the_published_number(frames, published, tolerance):
    """Constant videos have no spread, so this checks network, weights and value range, not resizing or covariance."""
    network = load_i3d(needs_i3d(), torchscript=True)
    steps = get_protocol("fvd.google", FeatureProtocol).preprocess
    black, white = (
        network(preprocess(torch.full((1, 3, frames, 64, 64), level, dtype=torch.uint8), steps))[0]
        for level in (0, 255)
    )
    distance = frechet_distance(black.expand(2, -1), white.expand(2, -1))
    assert distance == pytest.approx(published, rel=tolerance)
