"""Named tokenizer configurations; each has a tiny twin of the same architecture for tests."""

from dataclasses import dataclass, replace
from typing import Any

from vidgen.tokenizers.base import Tokenizer
from vidgen.tokenizers.causal_conv import CausalConvTokenizer


@dataclass(frozen=True, kw_only=True)
class TokenizerPreset:
    """A model class with its configuration.

    Args:
        about: one line for people.
        model: the class.
        config: its constructor's arguments.
        small: what the tiny twin has instead.
    """

    about: str
    model: type[Tokenizer]
    config: dict[str, Any]
    small: dict[str, Any]

    def build(self) -> Tokenizer:
        """The model, freshly initialised from the global generator."""
        return self.model(**self.config)

    def tiny(self) -> "TokenizerPreset":
        """The same architecture, small enough to train in a test."""
        return replace(self, about=f"tiny twin: {self.about}", config={**self.config, **self.small})


def causal_conv(about: str, *, small_widths: int = 3, **config: Any) -> TokenizerPreset:
    small = {"widths": (16,) * small_widths, "depth": 1, "decoder_depth": 1}
    return TokenizerPreset(about=about, model=CausalConvTokenizer, config=config, small=small)


SHAPES = {
    "stride": (4, 8, 8),
    "patch": 4,
    "widths": (48, 96, 192),
    "depth": 1,
    "decoder_depth": 2,
    "squared_weight": 4.0,
}
BASE = {"stride": (4, 8, 8), "patch": 2, "widths": (96, 192, 384), "depth": 2, "decoder_depth": 3}
DEEP = {"stride": (8, 16, 16), "patch": 2, "widths": (96, 192, 384, 384), "depth": 2, "decoder_depth": 3}

TOKENIZER_PRESETS: dict[str, TokenizerPreset] = {
    "shapes-fsq": causal_conv(
        "1,000 codes at 4×8×8 for the shapes world",
        bottleneck_type="fsq",
        bottleneck_options={"levels": [8, 5, 5, 5]},
        **SHAPES,
    ),
    "shapes-vq": causal_conv(
        "1,024 learned codes at 4×8×8 for the shapes world",
        bottleneck_type="vq",
        bottleneck_options={"codes": 1024, "channels": 8},
        **SHAPES,
    ),
    "shapes-kl": causal_conv(
        "8 real channels at 4×8×8 for the shapes world",
        bottleneck_type="kl",
        bottleneck_options={"channels": 8, "weight": 1e-4},
        **SHAPES,
    ),
    "base-fsq": causal_conv(
        "64,000 codes at 4×8×8 for real video",
        bottleneck_type="fsq",
        bottleneck_options={"levels": [8, 8, 8, 5, 5, 5]},
        **BASE,
    ),
    "base-vq": causal_conv(
        "8,192 learned codes at 4×8×8 for real video",
        bottleneck_type="vq",
        bottleneck_options={"codes": 8192, "channels": 8},
        **BASE,
    ),
    "base-kl": causal_conv(
        "16 real channels at 4×8×8 for real video",
        bottleneck_type="kl",
        bottleneck_options={"channels": 16, "weight": 1e-6},
        **BASE,
    ),
    "deep-kl": causal_conv(
        "16 real channels at 8×16×16 for real video (Step-Video's ratio)",
        bottleneck_type="kl",
        bottleneck_options={"channels": 16, "weight": 1e-6},
        small_widths=4,
        **DEEP,
    ),
}
