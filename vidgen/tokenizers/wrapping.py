"""Tokenizers around another one: its tokens, decoded in a way of their own."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, Self

from accelerate import init_empty_weights
from torch import Tensor, nn

from vidgen.latents import Latents, LatentSpec, VideoSize
from vidgen.nn.random import Generators
from vidgen.tokenizers.base import Critic, PixelTerms, Tokenizer


class WrappingTokenizer(Tokenizer):
    """The tokens are those of `encoder`, a whole tokenizer of any class; subclasses decode them otherwise.

    Subclasses take `encoder_config` and `freeze_encoder`, and call `register_encoder` and `build_decoder`.
    """

    encoder: Tokenizer
    freeze_encoder: bool

    @abstractmethod
    def build_decoder(self) -> None:
        """Fresh modules of one's own, for `self.config`."""

    def register_encoder(self, encoder_config: dict[str, Any], *, freeze: bool) -> None:
        """A fresh `encoder` by its configuration, with its class as `_class_name`; ValueError for an unknown class."""
        self.encoder = configured(encoder_config, option="encoder_config")
        if self.encoder.trains_on_pieces and not freeze:
            raise ValueError(
                f"{type(self.encoder).__name__} trains on pieces of its clips, and no decoder can learn beside it; "
                "train it alone first, then with freeze_encoder=True"
            )
        self.reach = self.encoder.reach
        self.token_parts = tuple(f"encoder.{part}" for part in self.encoder.token_parts)
        self.freeze_encoder = freeze
        self.encoder.requires_grad_(not freeze)

    @classmethod
    def around(cls, encoder: Tokenizer, **options: Any) -> Self:
        """A fresh decoder around `encoder`; `options` as for the constructor.

        `encoder` is shared, not copied; with `freeze_encoder` its weights require no gradient from then on.
        """
        config = {name: value for name, value in encoder.config.items() if not name.startswith("_")}
        with init_empty_weights():
            shell: Any = cls({"_class_name": type(encoder).__name__, **config}, **options)  # pyright: ignore[reportCallIssue]
        shell.encoder = encoder.requires_grad_(not shell.freeze_encoder)
        shell.build_decoder()
        nn.Module.to(shell, encoder.device, encoder.dtype)  # diffusers' own warns of this
        return shell.train(encoder.training)

    @property
    def spec(self) -> LatentSpec:
        return self.encoder.spec

    def encode(self, video: Tensor, *, sample: bool = False, generators: Generators | None = None) -> Latents:
        return self.encoder.encode(video, sample=sample, generators=generators)

    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Latents]:
        return self.encoder.encode_stream(chunks)

    def reals_from_ids(self, ids: Tensor, size: VideoSize | None = None) -> Tensor:
        return self.encoder.reals_from_ids(ids, size)

    def ids_from_reals(self, tokens: Tensor, size: VideoSize | None = None) -> Tensor:
        return self.encoder.ids_from_reals(tokens, size)

    def standardise(self, vectors: Tensor) -> Tensor:
        return self.encoder.standardise(vectors)

    def unstandardise(self, tokens: Tensor) -> Tensor:
        return self.encoder.unstandardise(tokens)

    def fit_statistics(self, videos: Iterable[Tensor]) -> None:
        if not self.freeze_encoder:  # generators are trained on those of a frozen one
            self.encoder.fit_statistics(videos)

    def coarse_and_losses(
        self, video: Tensor, *, generators: Generators, critic: Critic | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What the wrapped tokenizer makes of `video`, and its own terms; neither terms nor gradients when frozen."""
        if self.freeze_encoder:
            return self.encoder.decode(self.encoder.encode(video)), {}
        watching = WatchingCritic(critic)
        losses = self.encoder.training_losses(video, generators=generators, critic=watching)
        return watching.fake, losses


def configured(config: dict[str, Any], *, option: str) -> Tokenizer:
    """A fresh tokenizer by its configuration, with its class as `_class_name`; ValueError for an unknown class."""
    from vidgen import tokenizers  # lists those that call this too

    kinds = {kind.__name__: kind for kind in tokenizers.TOKENIZERS}
    name = config.get("_class_name")
    if name not in kinds:
        raise ValueError(f"{option} needs a _class_name of {', '.join(kinds)}; got {name}")
    return kinds[name].from_config(config)  # pyright: ignore[reportReturnType]


class WatchingCritic:
    """Passes the judging on, to `critic` or to the tokenizer's own terms, and remembers the reconstruction."""

    fake: Tensor

    def __init__(self, critic: Critic | None) -> None:
        self.critic = critic

    def __call__(self, real: Tensor, fake: Tensor, *, own: PixelTerms, last_layer: Tensor) -> dict[str, Tensor]:
        self.fake = fake
        return own(real, fake) if self.critic is None else self.critic(real, fake, own=own, last_layer=last_layer)
