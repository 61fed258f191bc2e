"""Named matchers; each has a tiny twin of the same architecture for tests."""

from dataclasses import dataclass, replace
from typing import Any

from vidgen.matchers.base import Matcher
from vidgen.matchers.cross_attention import CrossAttentionMatcher
from vidgen.tokenizers.base import Tokenizer
from vidgen.tokenizers.presets import TOKENIZER_PRESETS


@dataclass(frozen=True, kw_only=True)
class MatcherPreset:
    """A matcher by class and configuration.

    Args:
        about: one line for people.
        tokenizer: name of the tokenizer (preset or built-in model) whose tokens it reads.
        model: the class.
        config: constructor's arguments, without `latent_spec`.
        small: what the tiny twin has instead.
        is_tiny: the tokenizer's tiny twin is meant.
    """

    about: str
    tokenizer: str
    model: type[Matcher]
    config: dict[str, Any]
    small: dict[str, Any]
    is_tiny: bool = False

    def build(self, tokenizer: Tokenizer | None = None) -> Matcher:
        """The model, freshly initialised from the global generator, for the tokens of a tokenizer."""
        if tokenizer is None:
            preset = TOKENIZER_PRESETS[self.tokenizer]
            tokenizer = (preset.tiny() if self.is_tiny else preset).build()
        arguments = {"latent_spec": tokenizer.spec.to_json(), **self.config}
        return self.model(**arguments)

    def tiny(self) -> "MatcherPreset":
        """The same architecture, small enough to train in a test."""
        config = {**self.config, **self.small}
        return replace(self, about=f"tiny twin: {self.about}", config=config, is_tiny=True)


TINY = {"width": 32, "heads": 2, "video_layers": 1, "fusion_layers": 1, "buckets": 64}
MATCHER_PRESETS: dict[str, MatcherPreset] = {
    "shapes-matcher": MatcherPreset(
        about="words over the tokens of shapes-fsq, the shapes world",
        tokenizer="shapes-fsq",
        model=CrossAttentionMatcher,
        config={"width": 128, "heads": 4, "video_layers": 4, "fusion_layers": 2, "buckets": 256},
        small=TINY,
    ),
    "base-matcher": MatcherPreset(
        about="words over the tokens of base-fsq, real video",
        tokenizer="base-fsq",
        model=CrossAttentionMatcher,
        config={
            **{"width": 512, "heads": 8, "expansion": 4.0, "video_layers": 8, "fusion_layers": 6},
            **{"text_layers": 4, "buckets": 16384, "max_words": 128},
        },
        small=TINY,
    ),
}
