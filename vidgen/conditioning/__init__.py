"""What a generator is told: text or class states, and known pixels with a state for every token."""

from vidgen.conditioning.classes import ClassEncoder
from vidgen.conditioning.condition import Condition, TokenState
from vidgen.conditioning.control import CONTROLS, edges
from vidgen.conditioning.known import known_from_video, known_prefix
from vidgen.conditioning.tasks import NO_TASK, TASK_NAMES, TASKS, known_mask, task_numbers
from vidgen.conditioning.text import TextEncoder, TextStates, TransformersTextEncoder, WordTextEncoder

__all__ = [
    "CONTROLS",
    "NO_TASK",
    "TASKS",
    "TASK_NAMES",
    "ClassEncoder",
    "Condition",
    "TextEncoder",
    "TextStates",
    "TokenState",
    "TransformersTextEncoder",
    "WordTextEncoder",
    "edges",
    "known_from_video",
    "known_mask",
    "known_prefix",
    "task_numbers",
]
