"""What every feature network is to a distance: a named map from preprocessed videos to rows of features."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from vidgen.eval.extractors.weights import Weights

COUNTER = "num_batches_tracked"


class FeatureExtractor(nn.Module, ABC):
    """A frozen network with the facts that a result has to carry.

    `distance` is what a Fréchet or kernel distance in this space may be called after its kind: "vd" makes FVD and KVD,
    "id" FID and KID. It is None for every network without published distances and for weights that are not the
    published ones: those are called fd.<name> and kd.<name>.
    """

    name: str
    tap: str  # the layer, and how it is pooled
    num_features: int
    frame_size: tuple[int, int] | None  # height and width of its input; None takes any
    least_frames: int = 1
    per_frame: bool = False  # an image network: its rows are those of the frames
    distance: str | None = None
    weights: Weights

    @abstractmethod
    def features(self, video: Tensor) -> Tensor:
        """``b 3 t h w`` in the value range of the network's protocol -> ``b n d``; n is 1, or t for image networks."""

    def forward(self, video: Tensor) -> Tensor:
        """As `features`, after a look at the shape. ValueError when the network cannot take it."""
        size = tuple(video.shape[-2:])
        if video.ndim != 5 or video.shape[1] != 3 or (self.frame_size is not None and size != self.frame_size):
            wanted = "h w" if self.frame_size is None else f"{self.frame_size[0]} {self.frame_size[1]}"
            raise ValueError(f"{self.name} expects `b 3 t {wanted}`, got {tuple(video.shape)}; preprocess the video")
        if video.shape[2] < self.least_frames:
            raise ValueError(f"{self.name} needs at least {self.least_frames} frames, got {video.shape[2]}")
        return self.features(video)

    def identity(self) -> dict[str, Any]:
        """The entry `extractor` of a `vidgen.eval/1` result; equal for networks that give equal features."""
        return {
            "name": self.name,
            "tap": self.tap,
            "weights_sha256": self.weights.sha256,
            "weights_file": self.weights.known,
            "dtype": "float32",
            "tf32": False,
        }

    def distance_name(self, kind: str) -> str:
        """`kind` is "f" (Fréchet) or "k" (kernel): "fvd", "kid", "fd.squeezenet1_0"…"""
        return f"{kind}d.{self.name}" if self.distance is None else kind + self.distance


AnyExtractor = TypeVar("AnyExtractor", bound=FeatureExtractor)


def load_public(network: AnyExtractor, state: dict[str, Tensor], *, layout_of: str, path: str | Path) -> AnyExtractor:
    """`network`, frozen, with all weights of a state dict that has its very keys and shapes. ValueError otherwise.

    Counters of batch norms (`num_batches_tracked`) may be in the state or not.
    """
    needed = {key: value.shape for key, value in network.state_dict().items() if not key.endswith(COUNTER)}
    given = {key: value for key, value in state.items() if not key.endswith(COUNTER)}
    wrong = [key for key in needed if key not in given or given[key].shape != needed[key]]
    wrong += [key for key in given if key not in needed]
    if wrong:
        raise ValueError(
            f"expected {network.name} in the layout of {layout_of}, but {path} differs in {', '.join(wrong[:3])} "
            f"({len(wrong)} in all); is it another network?"
        )
    network.load_state_dict(given, strict=False)
    return network.eval().requires_grad_(False)
