"""Does a video show what a text says: one interface (`Matcher`), one file each."""

from vidgen.matchers.base import Matcher
from vidgen.matchers.cross_attention import CrossAttentionMatcher

MATCHERS = (CrossAttentionMatcher,)

__all__ = ["MATCHERS", "CrossAttentionMatcher", "Matcher"]
