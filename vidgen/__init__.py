"""vidgen: any tokenizer feeds any generator, in one pipeline call, with numbers that can be trusted."""

from typing import TYPE_CHECKING, Any

from vidgen.registration import register_with_diffusers

if TYPE_CHECKING:
    from vidgen.loading import build, builtin_names, load

__version__ = "0.1.0"
__all__ = ["build", "builtin_names", "load"]

register_with_diffusers()


def __getattr__(name: str) -> Any:  # heavy imports wait until they are needed
    if name in __all__:
        from vidgen import loading

        return getattr(loading, name)
    raise AttributeError(f"module 'vidgen' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
