"""How a command gets the model it was asked for, on the device it was asked for, or one clear line."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

    from vidgen.tokenizers.base import Tokenizer

Precision = Literal["fp32", "bf16", "fp16"]


def pick_device(wanted: str) -> "torch.device":
    """The torch device called `wanted`; "auto" is CUDA where there is one, else the CPU."""
    import torch

    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise ValueError(f"--device takes auto, cpu, cuda or cuda:N; got {wanted!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {wanted} needs a CUDA device, and torch sees none here; use --device cpu")
    return device


def load_tokenizer(name: str, *, device: str, precision: Precision) -> "Tokenizer":
    """The tokenizer called `name` (built-in name, folder, hub id), ready for inference."""
    from vidgen.tokenizers.base import Tokenizer

    place = pick_device(device)
    model = _load(name, precision)
    if not isinstance(model, Tokenizer):
        raise ValueError(
            f"expected a tokenizer, and {name!r} is a {type(model).__name__}; `vidgen models` lists tokenizers"
        )
    return model.to(place)  # pyright: ignore[reportArgumentType]  diffusers' decorator hides self


def load_identified_tokenizer(name: str, *, device: str, precision: Precision) -> "tuple[Tokenizer, str]":
    """The tokenizer called `name` and the hash of its weights as they are in float32, whatever it then computes in."""
    from vidgen.nn.fingerprint import weights_sha256

    tokenizer = load_tokenizer(name, device="cpu", precision="fp32")
    identity = weights_sha256(tokenizer)
    if precision != "fp32":  # diffusers warns of a cast, even of one to what a model is already
        tokenizer = tokenizer.to(torch_dtype(precision))  # pyright: ignore[reportArgumentType]
    return tokenizer.to(pick_device(device)), identity  # pyright: ignore[reportArgumentType]


def load_pipeline(name: str, *, device: str, precision: Precision) -> Any:
    """The pipeline called `name` (built-in name, folder, hub id), ready for inference: a `VideoPipeline`."""
    from vidgen.pipelines.base import VideoPipeline

    model = load_generator(name, device=device, precision=precision)
    if not isinstance(model, VideoPipeline):
        raise ValueError(
            f"expected a pipeline, and {name!r} is a cascade of several; `vidgen generate` runs it, and "
            f"vidgen.load({name!r}).pipelines are those that it has"
        )
    return model


def load_generator(name: str, *, device: str, precision: Precision) -> Any:
    """The pipeline or cascade called `name`, ready for inference."""
    from vidgen.pipelines import Cascade
    from vidgen.pipelines.base import VideoPipeline

    place = pick_device(device)
    model = _load(name, precision)
    if not isinstance(model, VideoPipeline | Cascade):
        raise ValueError(
            f"expected a pipeline, and {name!r} is a {type(model).__name__}; `vidgen models` lists pipelines"
        )
    return model.to(place)


def make_folder(output: Path | None) -> None:
    """Make the folder that a result shall lie in before it is computed; ValueError if it cannot lie there."""
    if output is None:
        return
    try:
        output.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot write {output}: {output.parent} cannot be a folder ({error.strerror})") from error
    if output.is_dir():
        raise ValueError(f"cannot write {output}: a folder has that name; choose another one")


def _load(name: str, precision: Precision) -> Any:
    from diffusers.utils import logging

    import vidgen

    logging.disable_progress_bar()  # of loading, which takes a moment here; sampling keeps its own
    return vidgen.load(name, dtype=precision)


def torch_dtype(precision: Precision) -> "torch.dtype":
    """What torch calls it."""
    import torch

    from vidgen.loading import DTYPES

    return getattr(torch, DTYPES[precision])
