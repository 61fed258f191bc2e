"""Prompts to states: a small text encoder that is trained with the generator, and an adapter for any other."""

import re
import warnings
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

LISTED_WORDS = 60  # a longer vocabulary is not printed
SOURCE = "text_model"  # folder beside the weights with what transformers needs to build the encoder again


@dataclass
class TextStates:
    """`states`: `b l d`; `mask`: `b l` bool, True for real positions."""

    states: Tensor
    mask: Tensor


class TextEncoder(ModelMixin, ConfigMixin, ABC):
    """Turns prompts into states that generators attend to.

    Attributes:
        trained_jointly: its weights are trained with the generator, so that its states must not be cached.
    """

    trained_jointly: bool

    @property
    @abstractmethod
    def width(self) -> int:
        """Length of a state."""

    @abstractmethod
    def encode(self, prompts: Sequence[str]) -> TextStates:
        """States of a batch of prompts; an empty prompt has no states."""

    def meet(self, captions: Iterable[str]) -> None:
        """Remember the words that training shows; for encoders that know no language of their own."""

    def warn_of_strange_words(self, prompts: Sequence[str]) -> None:
        """Warn of words that training never showed, where they were remembered."""


class WordTextEncoder(TextEncoder, ConfigMixin):
    """Words hashed into embeddings, then a few transformer layers: nothing to download, any word is legal.

    A word's embedding is the sum of two rows chosen by two hashes, so that two words almost never share both
    (hash embeddings, Svenstrup et al. 2017).

    Args:
        width, layers, heads: of the transformer.
        buckets: rows of the embedding table.
        max_words: longer prompts are an error.
        vocabulary: words that training showed; a prompt with others draws a warning; empty: not known.
    """

    trained_jointly = True

    @register_to_config
    def __init__(
        self,
        width: int = 192,
        layers: int = 2,
        heads: int = 4,
        buckets: int = 1024,
        max_words: int = 64,
        vocabulary: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.buckets, self.max_words = buckets, max_words
        self.words = nn.Embedding(buckets, width)
        self.places = nn.Embedding(max_words, width)
        nn.init.normal_(self.words.weight, std=0.7)
        nn.init.normal_(self.places.weight, std=0.5)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)

    @property
    def width(self) -> int:
        return self.places.embedding_dim

    def encode(self, prompts: Sequence[str]) -> TextStates:
        words = [words_of(prompt) for prompt in prompts]
        for row in words:
            if len(row) > self.max_words:
                raise ValueError(
                    f"a prompt has {len(row)} words; this text encoder takes at most {self.max_words}; shorten it by "
                    f"{' '.join(row[self.max_words :])!r}"
                )
        length = max(1, *(len(row) for row in words))
        rows = torch.zeros(len(words), length, 2, dtype=torch.long)
        mask = torch.zeros(len(words), length, dtype=torch.bool)
        for index, row in enumerate(words):
            for place, word in enumerate(row):
                rows[index, place, 0] = zlib.crc32(word.encode()) % self.buckets
                rows[index, place, 1] = zlib.adler32(word.encode()[::-1]) * 2654435761 % 2**32 % self.buckets
                mask[index, place] = True
        return self(rows.to(self.device), mask.to(self.device))

    def meet(self, captions: Iterable[str]) -> None:
        words = {word for caption in captions for word in words_of(caption)}
        self.register_to_config(vocabulary=sorted(words.union(self.config.vocabulary)))

    def warn_of_strange_words(self, prompts: Sequence[str]) -> None:
        known = self.config.vocabulary
        strange = sorted({word for prompt in prompts for word in words_of(prompt)}.difference(known))
        if not known or not strange:
            return
        knows = f": {', '.join(known)}" if len(known) <= LISTED_WORDS else ""
        warnings.warn(
            f"this model was never trained on {', '.join(map(repr, strange))}, and what comes of that is chance; it "
            f"knows {len(known)} words{knows}",
            stacklevel=3,
        )

    def forward(self, rows: Tensor, mask: Tensor) -> TextStates:
        """`rows`: `b l 2` long, two hashes of each word; `mask`: `b l` bool."""
        x = self.words(rows).sum(dim=2) + self.places.weight[: rows.shape[1]]
        visible = mask.clone()
        visible[:, 0] = True  # a row with nothing to see would be NaN; its states stay masked for the generator
        return TextStates(self.transformer(x, src_key_padding_mask=~visible), mask)


def words_of(text: str) -> list[str]:
    """Words in lower case and punctuation marks, in order."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


class TransformersTextEncoder(TextEncoder, ConfigMixin):
    """Any encoder of the transformers library (T5, CLIP text…), frozen.

    Args:
        repository: folder or hub id for `AutoTokenizer` and `AutoModel`.
        max_length: prompts are cut to this many tokens, as these encoders do, with a warning that says what is lost.
        strict: a longer prompt is a ValueError instead.
        pretrained: take the repository's weights; otherwise only its architecture, for weights that come next.
    """

    trained_jointly = False

    @register_to_config
    def __init__(
        self, repository: str = "", max_length: int = 128, pretrained: bool = True, strict: bool = False
    ) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModel, AutoTokenizer

        self.max_length, self.strict = max_length, strict
        self.text_tokenizer = AutoTokenizer.from_pretrained(repository)
        config: Any = AutoConfig.from_pretrained(repository)
        self.text_config = config
        if pretrained:
            model = AutoModel.from_pretrained(repository, config=config, use_safetensors=True)
        else:
            model = AutoModel.from_config(config)
        self.model = model.get_encoder() if getattr(config, "is_encoder_decoder", False) else model
        self.model.requires_grad_(False)

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """As diffusers', with transformers' configuration and tokenizer beside the weights, to need no repository."""
        super().save_pretrained(save_directory, *args, **kwargs)
        source = Path(save_directory) / SOURCE
        self.text_config.save_pretrained(source)
        self.text_tokenizer.save_pretrained(source)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **kwargs: Any) -> "TransformersTextEncoder":
        """An encoder that `save_pretrained` wrote."""
        return super().from_pretrained(folder, repository=str(Path(folder) / SOURCE), pretrained=False, **kwargs)

    @property
    def width(self) -> int:
        return self.model.config.hidden_size

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> TextStates:
        for prompt in prompts:
            self.check_length(prompt)
        batch = self.text_tokenizer(
            list(prompts), padding=True, truncation=True, max_length=self.max_length, return_tensors="pt"
        ).to(self.device)
        states = self.model(**batch).last_hidden_state
        empty = torch.tensor([not prompt.strip() for prompt in prompts], device=self.device)
        return TextStates(states, batch["attention_mask"].bool() & ~empty[:, None])

    def check_length(self, prompt: str) -> None:
        """Warn of the end of a prompt that no state will stand for; ValueError if strict."""
        whole = self.text_tokenizer(prompt)["input_ids"]
        if len(whole) <= self.max_length:
            return
        special = self.text_tokenizer.num_special_tokens_to_add()
        words = self.text_tokenizer(prompt, add_special_tokens=False)["input_ids"]
        lost = self.text_tokenizer.decode(words[self.max_length - special :])
        message = f"a prompt has {len(whole)} tokens; this text encoder takes {self.max_length}"
        if self.strict:
            raise ValueError(f"{message}; shorten it by {lost!r}")
        warnings.warn(f"{message} and does not read {lost!r}", stacklevel=3)
