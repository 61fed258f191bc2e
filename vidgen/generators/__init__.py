"""Networks over tokens: masked, diffusion (flow matching) and autoregressive; they never import a tokenizer."""

from vidgen.generators.autoregressive import AutoregressiveTransformer
from vidgen.generators.base import Generator
from vidgen.generators.diffusion import DiffusionTransformer
from vidgen.generators.llama import LlamaTransformer
from vidgen.generators.masked import MaskedTransformer

__all__ = ["AutoregressiveTransformer", "DiffusionTransformer", "Generator", "LlamaTransformer", "MaskedTransformer"]
