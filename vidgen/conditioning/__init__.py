"""What a generator is told: text or class states, and known pixels with a state for every token."""

from vidgen.conditioning.condition import Condition, TokenState
from vidgen.conditioning.control import edges
from vidgen.conditioning.known import known_from_video, known_prefix
from vidgen.conditioning.text import TextEncoder, TextStates, TransformersTextEncoder, WordTextEncoder

__all__ = [
    "Condition",
    "TextEncoder",
    "TextStates",
    "TokenState",
    "TransformersTextEncoder",
    "WordTextEncoder",
    "edges",
    "known_from_video",
    "known_prefix",
]
