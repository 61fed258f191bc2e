"""Video tokenizers: one interface (`Tokenizer`), one file each."""

from vidgen.tokenizers.base import Critic, Tokenizer
from vidgen.tokenizers.causal_conv import CausalConvTokenizer

TOKENIZERS = (CausalConvTokenizer,)

__all__ = ["TOKENIZERS", "CausalConvTokenizer", "Critic", "Tokenizer"]
