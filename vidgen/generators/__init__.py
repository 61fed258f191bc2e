"""Networks over tokens: masked, diffusion (flow matching) and autoregressive; they never import a tokenizer."""

from vidgen.generators.autoregressive import AutoregressiveTransformer
from vidgen.generators.base import Generator
from vidgen.generators.diffusion import DiffusionTransformer
from vidgen.generators.llama import LlamaTransformer
from vidgen.generators.masked import MaskedTransformer
from vidgen.generators.masked_efficient import EfficientMaskedTransformer
from vidgen.generators.masked_frames import FrameMaskedTransformer
from vidgen.generators.masked_prefix import PrefixMaskedTransformer

__all__ = [
    "AutoregressiveTransformer",
    "DiffusionTransformer",
    "EfficientMaskedTransformer",
    "FrameMaskedTransformer",
    "Generator",
    "LlamaTransformer",
    "MaskedTransformer",
    "PrefixMaskedTransformer",
]
