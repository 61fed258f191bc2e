"""The public video autoencoders of diffusers as tokenizers: any length and size, and honest about what streams."""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from vidgen.bottlenecks import Bottleneck, build_bottleneck
from vidgen.latents import Latents
from vidgen.nn.causal_conv import StreamCache
from vidgen.tokenizers.base import check_loss_weights
from vidgen.tokenizers.blockwise import BlockwiseTokenizer
from vidgen.tokenizers.diffusers_families import FAMILIES, REFUSED


class DiffusersAutoencoderTokenizer(BlockwiseTokenizer, ConfigMixin):
    """A thin adapter: frames and rows are repeated until the network takes them, and cropped after it.

    Tokens are normalised as the pipelines of diffusers do (scaling factor, or mean and deviation of each channel).

    Args:
        autoencoder_config: configuration of an autoencoder of diffusers, with its class as `_class_name`.
        squared_weight: of the squared error beside the absolute one in training.
        bottleneck_type: None keeps the autoencoder's own; a name in `vidgen.bottlenecks.BOTTLENECKS` puts another in
            its place, to train tokens from there. Its channels must be those of the latents (`z_dim` and the like).
        bottleneck_options: keyword arguments of that bottleneck.
    """

    @register_to_config
    def __init__(
        self,
        autoencoder_config: dict[str, Any],
        squared_weight: float = 0.0,
        bottleneck_type: str | None = None,
        bottleneck_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        name = str(autoencoder_config.get("_class_name"))
        check_loss_weights(squared_weight=squared_weight)
        self.squared_weight = squared_weight
        self.autoencoder: Any = autoencoder_class(name).from_config(autoencoder_config)
        self.family = FAMILIES[name](self.autoencoder)
        modules = dict(self.autoencoder.named_children())
        encoding = [f"autoencoder.{part}" for part in ("encoder", "quant_conv") if part in modules]
        self.token_parts = (*encoding, "bottleneck")
        self.stride = self.family.stride(self.autoencoder)
        self.block_frames, self.lone_first = self.family.block_frames, self.family.lone_first
        self.causal, self.bottleneck = self.family.causal, self.family.bottleneck()
        if bottleneck_type is None and bottleneck_options:
            raise ValueError(
                f"bottleneck_options {bottleneck_options} are those of a bottleneck_type, and there is none: the "
                "autoencoder keeps its own; say which, or leave them out"
            )
        if bottleneck_type is not None:
            self.bottleneck = another_bottleneck(bottleneck_type, bottleneck_options, instead_of=self.bottleneck)
        self.register_statistics(self.bottleneck.channels)
        if bottleneck_type is None:
            mean, deviation = self.family.statistics(self.autoencoder)
            self.latent_mean.copy_(mean)
            self.latent_std.copy_(deviation)

    @classmethod
    def around(cls, autoencoder: ModelMixin) -> "DiffusersAutoencoderTokenizer":
        """The tokenizer that runs `autoencoder`, which is shared, not copied."""
        described: Any = autoencoder.config
        config = {name: value for name, value in described.items() if not name.startswith("_")}
        with init_empty_weights():
            tokenizer = cls({"_class_name": type(autoencoder).__name__, **config})
        tokenizer.autoencoder = autoencoder
        mean, deviation = tokenizer.family.statistics(autoencoder)
        tokenizer.latent_mean, tokenizer.latent_std = mean.to(autoencoder.device), deviation.to(autoencoder.device)
        return tokenizer.train(autoencoder.training)

    def features(self, video: Tensor, cache: StreamCache | None) -> Tensor:
        with pooling_for(video):
            moments = self.family.moments(self.autoencoder, video, {} if cache is None else cache.states)
        return moments[:, : self.bottleneck.in_channels]

    def pixels(self, vectors: Tensor, cache: StreamCache | None) -> Tensor:
        with pooling_for(vectors):
            return self.family.pixels(self.autoencoder, vectors, {} if cache is None else cache.states)

    def last_layer(self, frames: int) -> Tensor:
        decoder = dict(self.autoencoder.decoder.named_children())
        layer = next(decoder[name] for name in ("proj_out", "time_conv_out", "conv_out") if name in decoder)
        return next(weight for weight in layer.parameters() if weight.ndim > 1)

    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Latents]:
        self._check_streams()
        return super().encode_stream(chunks)

    def decode_stream(self, chunks: Iterable[Latents]) -> Iterator[Tensor]:
        self._check_streams()
        return super().decode_stream(chunks)

    def _check_streams(self) -> None:
        if self.block_frames is None:
            raise ValueError(
                f"{type(self.autoencoder).__name__} does not stream: {self.family.why_whole}; use encode and decode "
                "on whole clips"
            )


class PoolsInFloat(TorchFunctionMode):
    """Inside, 3D average pooling runs in float32."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not F.avg_pool3d:
            return func(*args, **(kwargs or {}))
        pooled = func(args[0].float(), *args[1:], **(kwargs or {}))
        return pooled.to(args[0].dtype)


def pooling_for(x: Tensor) -> AbstractContextManager[Any]:
    """What networks with 3D average pooling (Cosmos, VidTok) need for `x`: a CPU pools 16-bit numbers in some
    memory layouts only."""
    return PoolsInFloat() if x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16) else nullcontext()


def another_bottleneck(kind: str, options: dict[str, Any] | None, *, instead_of: Bottleneck) -> Bottleneck:
    """A bottleneck that fits between the same encoder and decoder as `instead_of`."""
    made = build_bottleneck(kind, options or {})
    if made.channels != instead_of.channels or made.in_channels > instead_of.in_channels:
        raise ValueError(
            f"the autoencoder gives {instead_of.in_channels} channels, with latents of {instead_of.channels}; {kind!r} "
            f"takes {made.in_channels} for {made.channels}; change its options or the autoencoder's latent channels"
        )
    return made


def autoencoder_folder(folder: Path) -> Path:
    """Where the autoencoder lies in `folder`: in it, or in the `vae` of a pipeline."""
    for found in (folder, folder / "vae"):
        if (found / "config.json").is_file():
            return found
    raise ValueError(f"{folder} holds no autoencoder: expected config.json or vae/config.json")


def autoencoder_class(name: str) -> Any:
    """The class of diffusers that is called `name`, if it is a video autoencoder that is known here."""
    if name not in FAMILIES:
        known, why = ", ".join(FAMILIES), f": {REFUSED[name]}" if name in REFUSED else ""
        raise ValueError(f"expected a video autoencoder of diffusers, one of {known}, got a {name}{why}")
    return getattr(diffusers, name)
