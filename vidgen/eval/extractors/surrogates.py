"""Feature networks without published distances: SqueezeNet with motion, a tiny random network, any video tokenizer.

Their distances order videos as any sensible features do and are called fd.<name>: none of them is FVD or FID.
"""

from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from vidgen.eval.extractors.base import FeatureExtractor
from vidgen.eval.extractors.weights import Weights, identify
from vidgen.eval.perceptual import SqueezeNetFeatures
from vidgen.nn.fingerprint import config_sha256, weights_sha256
from vidgen.tokenizers.base import Tokenizer

BATCH_FRAMES = 8
TINY_SEED = 0


class SqueezeNetMotion(FeatureExtractor):
    """ImageNet SqueezeNet 1.0 over the frames: ``b 3 t h w`` in [-1, 1], t of at least 2 -> ``b 1 1024``.

    The last activation, averaged over the frame, gives 512 numbers a frame; the features are their mean over time and
    the root mean square of their change from frame to frame, so that frozen and shuffled videos are seen.
    """

    name = "squeezenet1_0"
    tap = "fire 9, mean over the frame; mean over time, root mean square of the change"
    num_features = 1024
    frame_size = None
    least_frames = 2

    def __init__(self, network: SqueezeNetFeatures, *, weights: Weights) -> None:
        super().__init__()
        self.weights = weights
        self.network = network

    @classmethod
    def from_file(cls, path: str | Path) -> "SqueezeNetMotion":
        """Torchvision-layout weights, as `SqueezeNetFeatures.from_file`."""
        weights = identify(path, known=(), network="SqueezeNet 1.0")
        return cls(SqueezeNetFeatures.from_file(path), weights=weights).eval()

    def features(self, video: Tensor) -> Tensor:
        frames = rearrange(video, "b c t h w -> (b t) c h w")
        pooled = torch.cat([self.network(some)[-1].mean(dim=(2, 3)) for some in frames.split(BATCH_FRAMES)])
        states = rearrange(pooled, "(b t) d -> b t d", b=len(video))
        change = states.diff(dim=1).square().mean(dim=1).sqrt()
        return torch.cat([states.mean(dim=1), change], dim=1)[:, None]


class TinyNetwork(FeatureExtractor):
    """Two random 3D convolutions with fixed weights, for tests without files: ``b 3 t h w`` -> ``b 1 32``."""

    name = "tiny"
    tap = "mean over time and space"
    num_features = 32
    frame_size = None

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(3, 16, (2, 4, 4), stride=(1, 4, 4), padding=(1, 0, 0))
        self.second = nn.Conv3d(16, self.num_features, (2, 2, 2), stride=(1, 2, 2))
        generator = torch.Generator().manual_seed(TINY_SEED)
        for weight in self.parameters():
            scale = weight[0].numel() ** -0.5 if weight.ndim > 1 else 0.1
            weight.data = scale * torch.randn(weight.shape, generator=generator)
        self.weights = Weights(None, weights_sha256(self), "state-dict", None)
        self.eval().requires_grad_(False)

    def features(self, video: Tensor) -> Tensor:
        hidden = functional.relu(self.second(functional.relu(self.first(video))))
        return hidden.mean(dim=(2, 3, 4))[:, None]


class TokenizerFeatures(FeatureExtractor):
    """Latents of a video tokenizer: mean and standard deviation of each channel over the tokens, ``b 1 2c``."""

    tap = "latents, mean and standard deviation over the tokens"
    frame_size = None

    def __init__(self, tokenizer: Tokenizer, *, name: str) -> None:
        super().__init__()
        self.name = f"tokenizer-{name}"
        self.num_features = 2 * tokenizer.spec.channels
        self.tokenizer = tokenizer
        self.weights = Weights(None, weights_sha256(tokenizer), "state-dict", None)
        self.eval().requires_grad_(False)

    def identity(self) -> dict[str, Any]:
        """With class and configuration, which may decide what no weight does, such as the levels of FSQ."""
        return super().identity() | {"config_sha256": config_sha256(self.tokenizer)}

    def features(self, video: Tensor) -> Tensor:
        tokens = self.tokenizer.encode(video).tokens
        return torch.cat([tokens.mean(dim=1), tokens.std(dim=1, correction=0)], dim=1)[:, None]
