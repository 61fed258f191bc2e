"""`NetworkPreset`: a class of networks with its configuration, and a twin that is small enough for tests."""

from dataclasses import dataclass, replace
from typing import Any, Generic, Self, TypeVar

Network = TypeVar("Network", covariant=True)


@dataclass(frozen=True, kw_only=True)
class NetworkPreset(Generic[Network]):
    """A model class with its configuration.

    Args:
        about: one line for people.
        model: the class.
        config: its constructor's arguments.
        small: what the tiny twin has instead.
    """

    about: str
    model: type[Network]
    config: dict[str, Any]
    small: dict[str, Any]

    def build(self) -> Network:
        """The model, freshly initialised from the global generator."""
        return self.model(**self.config)

    def tiny(self) -> Self:
        """The same architecture, small enough to train in a test."""
        return replace(self, about=f"tiny twin: {self.about}", config={**self.config, **self.small})
