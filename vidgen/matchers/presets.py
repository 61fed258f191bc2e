"""Named matchers; each has a tiny twin of the same architecture for tests."""

from vidgen.matchers.base import Matcher
from vidgen.matchers.cross_attention import CrossAttentionMatcher
from vidgen.nn.preset import NetworkPreset


class MatcherPreset(NetworkPreset[Matcher]):
    """A matcher by class and configuration."""


TINY = {"width": 32, "heads": 2, "channels": 8, "video_layers": 1, "fusion_layers": 1, "buckets": 64}
MATCHER_PRESETS: dict[str, MatcherPreset] = {
    "shapes-matcher": MatcherPreset(
        about="words that look into 17×64×64 pixels, the shapes world",
        model=CrossAttentionMatcher,
        config={"width": 128, "heads": 4, "channels": 48, "video_layers": 3, "fusion_layers": 2, "buckets": 256},
        small=TINY,
    ),
    "base-matcher": MatcherPreset(
        about="words that look into 17×128×128 pixels, real video",
        model=CrossAttentionMatcher,
        config={
            **{"width": 512, "heads": 8, "expansion": 4.0, "channels": 128, "video_layers": 8, "fusion_layers": 6},
            **{"text_layers": 4, "buckets": 16384, "max_words": 128},
        },
        small=TINY,
    ),
}
