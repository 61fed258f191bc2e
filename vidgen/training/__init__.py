"""Training: one trainer over accelerate; `train_tokenizer`, `train_generator` and `train_matcher` are the ways in."""

import importlib
from typing import TYPE_CHECKING, Any

from vidgen.training.config import DataConfig, GeneratorRun, MatcherRun, OptimiserConfig, TokenizerRun

if TYPE_CHECKING:
    from vidgen.training.checkpoint import CheckpointNotWritten
    from vidgen.training.generator_training import train_generator
    from vidgen.training.matcher_training import train_matcher
    from vidgen.training.tokenizer_training import train_tokenizer
    from vidgen.training.trainer import TrainingDiverged

__all__ = [
    "CheckpointNotWritten",
    "DataConfig",
    "GeneratorRun",
    "MatcherRun",
    "OptimiserConfig",
    "TokenizerRun",
    "TrainingDiverged",
    "train_generator",
    "train_matcher",
    "train_tokenizer",
]
# Where the names are that bring torch and diffusers along. No file may be called like one of them: once it was imported
# it would be found in the place of the function.
HEAVY = {
    "CheckpointNotWritten": "checkpoint",
    "TrainingDiverged": "trainer",
    "train_generator": "generator_training",
    "train_matcher": "matcher_training",
    "train_tokenizer": "tokenizer_training",
}


def __getattr__(name: str) -> Any:  # the help of a command needs the configs alone
    if name in HEAVY:
        return getattr(importlib.import_module(f"vidgen.training.{HEAVY[name]}"), name)
    raise AttributeError(f"module 'vidgen.training' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
