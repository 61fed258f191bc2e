"""Training: one trainer over accelerate; `train_tokenizer`, `train_generator` and `train_matcher` are the ways in."""

from vidgen.training.checkpoint import CheckpointNotWritten
from vidgen.training.config import DataConfig, GeneratorRun, MatcherRun, OptimiserConfig, TokenizerRun
from vidgen.training.train_generator import train_generator
from vidgen.training.train_matcher import train_matcher
from vidgen.training.train_tokenizer import train_tokenizer
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
