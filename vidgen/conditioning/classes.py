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
        separator: parts a name into what classes share: with " " the class `3 7` has two states, one of its `3` and one
            of its `7`, which all classes with a 3 or a 7 train; without one each class has a state of its own.
    """

    trained_jointly = True

    @register_to_config
    def __init__(self, names: Sequence[str], width: int = 192, separator: str | None = None) -> None:
        super().__init__()
        self.class_names = tuple(names)
        self.parts = [name.split(separator) if separator else [name] for name in self.class_names]
        self.part_names = list(dict.fromkeys(part for parts in self.parts for part in parts))
        self.embedding = nn.Embedding(len(self.part_names), width)
        nn.init.normal_(self.embedding.weight, std=0.7)
        self.most_parts = max(map(len, self.parts))
        if self.most_parts > 1:
            self.places = nn.Embedding(self.most_parts, width)  # else `3 3` would be what `3` is: attention means
            nn.init.normal_(self.places.weight, std=0.1)

    @property
    def width(self) -> int:
        return self.embedding.embedding_dim

    def encode(self, prompts: Sequence[str]) -> TextStates:
        """The states of each class by its name, `b l d`, with `l` the most parts of a name; "" has none."""
        rows = torch.zeros(len(prompts), self.most_parts, dtype=torch.long)
        mask = torch.zeros(len(prompts), self.most_parts, dtype=torch.bool)
        for index, name in enumerate(prompts):
            for place, part in enumerate(self.parts[self.label(name)] if name else []):
                rows[index, place], mask[index, place] = self.part_names.index(part), True
        states = self.embedding(rows.to(self.device))
        if self.most_parts > 1:
            states = states + self.places.weight
        return TextStates(states, mask.to(self.device))

    @torch.no_grad()
    def begin_as_words(self, text_encoder: TextEncoder) -> None:
        """Let each class, or each part of one, begin as the mean of the states that a text encoder of the same width
        has of its name."""
        told = text_encoder.encode(self.part_names)
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
