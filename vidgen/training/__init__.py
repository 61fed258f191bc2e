"""Training: one trainer over accelerate; `train_tokenizer(run)` and `train_generator(run)` are the ways in."""

from vidgen.training.checkpoint import CheckpointNotWritten
from vidgen.training.config import DataConfig, GeneratorRun, OptimiserConfig, TokenizerRun
from vidgen.training.train_generator import train_generator
from vidgen.training.train_tokenizer import train_tokenizer
from vidgen.training.trainer import TrainingDiverged

__all__ = [
    "CheckpointNotWritten",
    "DataConfig",
    "GeneratorRun",
    "OptimiserConfig",
    "TokenizerRun",
    "TrainingDiverged",
    "train_generator",
    "train_tokenizer",
]
