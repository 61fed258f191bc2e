"""Training: one trainer over accelerate for tokenizers and generators; `train_tokenizer(run)` is the way in."""

from vidgen.training.checkpoint import CheckpointNotWritten
from vidgen.training.config import DataConfig, OptimiserConfig, TokenizerRun
from vidgen.training.train_tokenizer import train_tokenizer
from vidgen.training.trainer import TrainingDiverged

__all__ = [
    "CheckpointNotWritten", "DataConfig", "OptimiserConfig", "TokenizerRun", "TrainingDiverged", "train_tokenizer",
]  # fmt: skip
