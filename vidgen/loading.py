"""The front door: a model by built-in name, folder or hub id (`load`), or a preset with fresh weights (`build`)."""

import difflib
import json
from pathlib import Path
from typing import Any

from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from vidgen.pipelines import PIPELINES, VideoPipeline
from vidgen.pipelines.presets import PIPELINE_PRESETS
from vidgen.tokenizers import TOKENIZERS, Tokenizer
from vidgen.tokenizers.presets import TOKENIZER_PRESETS

PRETRAINED = Path(__file__).parent / "pretrained"


def builtin_names() -> list[str]:
    """Names of the models that come with vidgen, sorted."""
    return sorted(folder.name for folder in PRETRAINED.iterdir() if is_model(folder))


def load(name_or_dir: str | Path, **kwargs: Any) -> Tokenizer | VideoPipeline:
    """A tokenizer or a pipeline, ready for inference, in fp32 on the CPU unless `kwargs` say otherwise.

    Args:
        name_or_dir: a built-in name (`builtin_names`), a folder that `save_pretrained` wrote, or a hub id `owner/name`.
        kwargs: go to `from_pretrained`, e.g. `torch_dtype`.

    Raises:
        ValueError: no such model (the nearest names are listed), or a folder that holds none of vidgen's.
    """
    folder = PRETRAINED / str(name_or_dir)
    if not is_model(folder):
        folder = Path(name_or_dir)
    if not folder.exists() and looks_like_hub_id(str(name_or_dir)):
        return load_from_hub(str(name_or_dir), **kwargs)
    if not folder.exists():
        raise ValueError(f"unknown model {str(name_or_dir)!r}; {suggestion(str(name_or_dir), builtin_names())}")
    if not is_model(folder):
        raise ValueError(
            f"{folder} is not a model: expected a folder with model_index.json (pipeline) or config.json (tokenizer)"
        )
    return load_folder(folder, **kwargs)


def load_folder(folder: Path, **kwargs: Any) -> Tokenizer | VideoPipeline:
    if (folder / "model_index.json").is_file():
        shared = {name: load(model) for name, model in shared_components(folder).items()}
        return class_named(folder / "model_index.json", PIPELINES).from_pretrained(folder, **shared, **kwargs)
    return class_named(folder / "config.json", TOKENIZERS).from_pretrained(folder, **kwargs).eval()


def shared_components(folder: Path) -> dict[str, str]:
    """Components that are not in a pipeline's folder but another model, by name: `shared.json`."""
    described = folder / "shared.json"
    return json.loads(described.read_text()) if described.is_file() else {}


def load_from_hub(name: str, **kwargs: Any) -> Tokenizer | VideoPipeline:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return load_folder(Path(snapshot_download(name)), **kwargs)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"no built-in model or folder is called {name!r}, and the hub did not give it: {reason}; "
            f"{suggestion(name, builtin_names())}"
        ) from error


def build(preset: str) -> Tokenizer | VideoPipeline:
    """Any preset, freshly initialised from the global generator (`torch.manual_seed` fixes it).

    Raises:
        ValueError: no such preset; the nearest names are listed.
    """
    presets = {**TOKENIZER_PRESETS, **PIPELINE_PRESETS}
    if preset in presets:
        return presets[preset].build()
    raise ValueError(f"unknown preset {preset!r}; {suggestion(preset, sorted(presets))}")


def is_model(folder: Path) -> bool:
    return (folder / "model_index.json").is_file() or (folder / "config.json").is_file()


def looks_like_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")


def suggestion(name: str, names: list[str]) -> str:
    nearest = difflib.get_close_matches(name, names, n=3, cutoff=0.3)
    return f"did you mean {' or '.join(nearest)}?" if nearest else f"there are {', '.join(names)}"


def class_named(description: Path, classes: Any) -> Any:
    """The class that a saved model says it is, of those that may be loaded."""
    name = json.loads(description.read_text()).get("_class_name")
    for known in classes:
        if known.__name__ == name:
            return known
    names = ", ".join(known.__name__ for known in classes)
    raise ValueError(f"{description.parent} holds a {name}, which is not one of vidgen's: {names}")
