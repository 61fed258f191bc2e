"""Class labels to states: each class has one learned state, and its name is the prompt."""

import difflib
from collections.abc import Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks the loader up in this module
from torch import nn

from vidgen.conditioning.text import TextEncoder, TextStates


class ClassEncoder(TextEncoder, ConfigMixin):
    """One state for each class, trained with the generator; takes the place of a text encoder.

    Args:
        names: of the classes, in the order of their labels.
        width: length of a state.
    """

    trained_jointly = True

    @register_to_config
    def __init__(self, names: Sequence[str], width: int = 192) -> None:
        super().__init__()
        self.class_names = tuple(names)
        self.embedding = nn.Embedding(len(self.class_names), width)
        nn.init.normal_(self.embedding.weight, std=0.7)

    @property
    def width(self) -> int:
        return self.embedding.embedding_dim

    def encode(self, prompts: Sequence[str]) -> TextStates:
        """The state of each class by its name, `b 1 d`; "" has none."""
        labels = torch.tensor([self.label(name) if name else 0 for name in prompts], device=self.device)
        told = torch.tensor([bool(name) for name in prompts], device=self.device)
        return TextStates(self.embedding(labels)[:, None], told[:, None])

    @torch.no_grad()
    def begin_as_words(self, text_encoder: TextEncoder) -> None:
        """Let each class begin as the mean of the states of its name, as a text encoder of the same width has them."""
        told = text_encoder.encode(self.class_names)
        mask = told.mask[..., None]
        self.embedding.weight.copy_((told.states * mask).sum(dim=1) / mask.sum(dim=1))

    def name(self, label: int) -> str:
        """Name of a label; ValueError if there is none."""
        if not 0 <= label < len(self.class_names):
            raise ValueError(f"class_label {label} is none of the {len(self.class_names)} classes; use 0 and up")
        return self.class_names[label]

    def label(self, name: str) -> int:
        """Label of a name; ValueError with the nearest names if there is none."""
        if name not in self.class_names:
            nearest = difflib.get_close_matches(name, self.class_names, n=3, cutoff=0.0)
            raise ValueError(f"there is no class {name!r}; nearest: {', '.join(nearest)}")
        return self.class_names.index(name)
