"""The front door: a model by built-in name, folder or hub id (`load`), or a preset with fresh weights (`build`)."""

import difflib
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError, safe_open
from torch import nn

from vidgen.conditioning import TransformersTextEncoder
from vidgen.matchers import MATCHERS, Matcher
from vidgen.matchers.presets import MATCHER_PRESETS
from vidgen.nn.memory import own_memory
from vidgen.pipelines import PIPELINES, Cascade, VideoPipeline
from vidgen.pipelines.cascade import DESCRIPTION, stage_from
from vidgen.pipelines.cascade_presets import CASCADE_PRESETS
from vidgen.pipelines.presets import PIPELINE_PRESETS
from vidgen.tokenizers import TOKENIZERS, Tokenizer
from vidgen.tokenizers.diffusers_autoencoder import (
    DiffusersAutoencoderTokenizer,
    autoencoder_class,
    autoencoder_folder,
)
from vidgen.tokenizers.presets import TOKENIZER_PRESETS

Model = Tokenizer | VideoPipeline | Cascade | Matcher
PRETRAINED = Path(__file__).parent / "pretrained"
DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
OPTIONS = frozenset(  # those of diffusers, and the components of a pipeline
    ("dtype", "torch_dtype", "variant", "revision", "cache_dir", "token", "local_files_only", "force_download")
    + ("proxies", "use_safetensors", "low_cpu_mem_usage", "device_map", "max_memory", "offload_folder")
    + ("offload_state_dict", "subfolder", "quantization_config", "disable_mmap")
    + ("video_tokenizer", "text_encoder", "transformer", "scheduler", "matcher")
)
OF_HUB = ("revision", "token", "cache_dir", "local_files_only", "force_download")  # say how files get here
ALL_PRESETS: dict[str, Any] = {**TOKENIZER_PRESETS, **PIPELINE_PRESETS, **CASCADE_PRESETS, **MATCHER_PRESETS}
LIBRARIES = ("diffusers", "transformers")  # whose classes a pipeline's components may be, beside those imported
DIFFUSERS = "diffusers:"  # before the folder or hub id of a public autoencoder


def builtin_names() -> list[str]:
    """Names of the models that come with vidgen, sorted."""
    return sorted(folder.name for folder in PRETRAINED.glob("*") if is_model(folder))


def load(name_or_dir: str | Path, **kwargs: Any) -> Model:
    """A tokenizer, pipeline, cascade or matcher, ready for inference, in fp32 on the CPU unless `kwargs` say otherwise.

    Args:
        name_or_dir: a built-in name (`builtin_names`), a folder that `save_pretrained` wrote, or a hub id `owner/name`;
            or "diffusers:" and the folder or hub id of a video autoencoder of diffusers, or of a pipeline that has one.
        kwargs: go to `from_pretrained`: `dtype` (a torch type, or "fp32", "bf16", "fp16"), or a component that a
            pipeline shall have in place of its own, such as `video_tokenizer`.

    Raises:
        ValueError: no such model (the nearest names are listed), a folder that holds none of vidgen's, weights
            that are missing, damaged, not finite, or of another model, or an option that does not exist.
    """
    kwargs = checked_options(kwargs)
    if str(name_or_dir).startswith(DIFFUSERS):
        return load_autoencoder(str(name_or_dir).removeprefix(DIFFUSERS), **kwargs)
    return load_folder(folder_of(str(name_or_dir), kwargs), **kwargs)


def folder_of(name: str, options: dict[str, Any]) -> Path:
    """Where the files of a model lie: a built-in one, a folder, or one of the hub, which comes here first."""
    folder = PRETRAINED / name
    if not is_model(folder):
        folder = Path(name)
    if not folder.exists() and looks_like_hub_id(name):
        return hub_folder(name, options)
    if not folder.exists() and len(folder.parts) > 1:
        raise ValueError(
            f"there is no folder {name}; give that of a saved model, or a name: {', '.join(builtin_names())}"
        )
    if not folder.exists() and name in ALL_PRESETS:
        raise ValueError(
            f"{name} is a preset, which has no weights yet: train it (`vidgen train-tokenizer`, `vidgen "
            f"train-generator` or `vidgen train-matcher`), or take fresh ones by vidgen.build({name!r})"
        )
    if not folder.exists():
        raise ValueError(f"unknown model {name!r}; {suggestion(name, builtin_names())}")
    if not is_model(folder):
        raise ValueError(
            f"{folder} is not a model: expected a folder with model_index.json (pipeline) or config.json (tokenizer or "
            "matcher)"
        )
    return folder


def checked_options(options: dict[str, Any]) -> dict[str, Any]:
    """The options of `load`, their dtype as torch has it; ValueError for one that does not exist."""
    if "device" in options:
        raise ValueError(f"load takes no device; move what it gives: vidgen.load(…).to({options['device']!r})")
    for name in options:
        if name not in OPTIONS:
            raise ValueError(f"load has no option {name!r}; {suggestion(name, sorted(OPTIONS))}")
    checked = dict(options)
    for name in ("dtype", "torch_dtype"):
        dtype = checked.get(name)
        if isinstance(dtype, str):
            dtype = checked[name] = getattr(torch, DTYPES.get(dtype, dtype), dtype)
        if dtype is not None and not isinstance(dtype, torch.dtype):
            raise ValueError(f"dtype is a torch type or one of {', '.join(DTYPES)}, got {dtype!r}")
    return checked


def load_folder(folder: Path, **kwargs: Any) -> Model:
    if (folder / DESCRIPTION).is_file():
        return load_cascade(folder, **kwargs)
    if (folder / "model_index.json").is_file():
        return load_pipeline(folder, **kwargs)
    return load_single(folder, **kwargs)


def load_single(folder: Path, **kwargs: Any) -> Tokenizer | Matcher:
    """A tokenizer or matcher that `save_pretrained` wrote."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no component of a pipeline: expected config.json of a tokenizer or matcher")
    model = class_named(folder / "config.json", (*TOKENIZERS, *MATCHERS))
    check_weights(folder, model)
    loaded = model.from_pretrained(folder, **kwargs).eval()
    check_finite(folder, loaded)
    own_memory(loaded)
    return loaded


def load_autoencoder(name_or_dir: str, **kwargs: Any) -> DiffusersAutoencoderTokenizer:
    """A video autoencoder of diffusers as a tokenizer."""
    folder = Path(name_or_dir)
    if not folder.exists():
        patterns = ["config.json", "diffusion_pytorch_model*", "vae/*"]
        folder = hub_folder(name_or_dir, kwargs, allow_patterns=patterns)
    folder = autoencoder_folder(folder)
    model: Any = autoencoder_class(str(read_json(folder / "config.json").get("_class_name")))
    check_weights(folder, model)
    autoencoder = model.from_pretrained(folder, **kwargs).eval()
    check_finite(folder, autoencoder)
    own_memory(autoencoder)
    return DiffusersAutoencoderTokenizer.around(autoencoder)


def load_cascade(folder: Path, **kwargs: Any) -> Cascade:
    """A folder that `Cascade.save_pretrained` wrote."""
    described = read_json(folder / DESCRIPTION)
    base, stages = described.get("base"), described.get("stages")
    folders = [stage.get("folder") for stage in stages if isinstance(stage, dict)] if isinstance(stages, list) else []
    names = [*([] if base is None else [base]), *folders]
    if not isinstance(stages, list) or len(folders) != len(stages) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{folder / DESCRIPTION} does not name a base and the folder of each stage; save it again")
    try:
        return Cascade(
            None if base is None else load_pipeline(folder / base, **kwargs),
            [stage_from(stage, load_pipeline(folder / stage["folder"], **kwargs)) for stage in stages],
        )
    except TypeError as error:  # of a stage's fields
        raise ValueError(f"{folder / DESCRIPTION} is of another version: {error}; save the cascade again") from error


def load_pipeline(folder: Path, **kwargs: Any) -> VideoPipeline:
    passed_on = {name: kwargs[name] for name in ("dtype", "torch_dtype", *OF_HUB) if name in kwargs}
    passed_on.pop("revision", None)  # of this model, not of another
    described = shared_components(folder)
    shared = {
        name: load_single(folder_of(model, passed_on), **passed_on)
        for name, model in described.items()
        if name not in kwargs
    }
    model = class_named(folder / "model_index.json", PIPELINES)
    own = {name: kind for name, kind in models_of_pipeline(folder).items() if name not in shared | kwargs}
    for name, kind in own.items():
        check_weights(folder / name, kind)
    pipeline = model.from_pretrained(folder, **shared, **kwargs)
    for name in own:
        check_finite(folder / name, getattr(pipeline, name))
    return pipeline


def models_of_pipeline(folder: Path) -> dict[str, type[ModelMixin]]:
    """Classes of the components with weights that a saved pipeline says it has, by name.

    Raises:
        ValueError: a component of a class that nobody has imported: the file must not decide what is run.
    """
    models = {}
    for name, entry in read_json(folder / "model_index.json").items():
        if name.startswith("_") or not isinstance(entry, list) or entry == [None, None]:
            continue
        kind = component_class(entry)
        if kind is None:
            raise ValueError(
                f"{folder / 'model_index.json'} has a component {name!r} of {entry}, which is no model or scheduler of "
                "vidgen, diffusers or transformers; import its module first if you trust it"
            )
        ours = kind.__module__.startswith("vidgen.") and issubclass(kind, ModelMixin)
        if ours and kind is not TransformersTextEncoder:  # transformers knows its weights
            models[name] = kind
    return models


def component_class(entry: list[Any]) -> type[Any] | None:
    """The class that ["module", "name"] says, of modules that are there already; `None` if it is no class to load."""
    if len(entry) != 2 or not all(isinstance(part, str) for part in entry):
        return None
    module = importlib.import_module(entry[0]) if entry[0] in LIBRARIES else sys.modules.get(entry[0])
    kind = getattr(module, entry[1], None)
    return kind if isinstance(kind, type) and hasattr(kind, "from_pretrained") else None


def check_weights(folder: Path, model: type[ModelMixin]) -> None:
    """ValueError unless the safetensors files of `folder` hold the weights that its configuration asks for.

    Without it diffusers would fill missing weights with random numbers, and say so in a log line only.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not a saved {model.__name__}: it has no config.json; save the model again")
    files = sorted(folder.glob("diffusion_pytorch_model*.safetensors"))
    if not files:
        if any(folder.glob("*.bin")):
            return  # diffusers' other format; it has no header to look into
        raise ValueError(f"{folder} holds no weights: expected a .safetensors file; save the model again")
    found = {}
    for file in files:
        try:
            with safe_open(str(file), framework="pt") as weights:
                found |= {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged ({error}); copy or save the model again") from error
    with init_empty_weights():
        expected_model: Any = model.from_config(read_json(folder / "config.json"))  # pyright: ignore
    expected = {name: tuple(tensor.shape) for name, tensor in expected_model.state_dict().items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"the weights in {folder} are of another model than its config.json: {len(wrong)} tensors differ, such as "
            f"{name}, expected {expected.get(name, 'none')}, got {found.get(name, 'none')}; use matching files"
        )


def check_finite(folder: Path, model: nn.Module) -> None:
    """ValueError if a weight is NaN or infinite."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            broken = int((~tensor.isfinite()).sum())
            raise ValueError(
                f"{folder} has broken weights: {broken} of {tensor.numel()} numbers of {name} are NaN or infinite; "
                "use an earlier checkpoint"
            )


def read_json(file: Path) -> dict[str, Any]:
    try:
        described = json.loads(file.read_text())
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}); copy or save the model again") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{file} is damaged: {error}; copy or save the model again") from error
    if not isinstance(described, dict):
        raise ValueError(f"{file} is damaged: it is no object of JSON; copy or save the model again")
    return described


def shared_components(folder: Path) -> dict[str, str]:
    """Components that are not in a pipeline's folder but another model, by name: `shared.json`."""
    described = folder / "shared.json"
    return {name: str(model) for name, model in read_json(described).items()} if described.is_file() else {}


def hub_folder(name: str, options: dict[str, Any], *, allow_patterns: list[str] | None = None) -> Path:
    """Where the files of the hub's model `name` lie once they are here; those `OF_HUB` of the options of `load` act."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        of_hub = {option: options[option] for option in OF_HUB if option in options}
        return Path(snapshot_download(name, allow_patterns=allow_patterns, **of_hub))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"there is no folder {name}, and the hub did not give a model of that name: {reason}"
        ) from error


def build(preset: str) -> Model:
    """Any preset, freshly initialised from the global generator (`torch.manual_seed` fixes it).

    Raises:
        ValueError: no such preset; the nearest names are listed.
    """
    if preset in ALL_PRESETS:
        return ALL_PRESETS[preset].build()
    raise ValueError(f"unknown preset {preset!r}; {suggestion(preset, sorted(ALL_PRESETS))}")


def is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("model_index.json", "config.json", DESCRIPTION))


def looks_like_hub_id(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not name.endswith("/")


def suggestion(name: str, names: list[str]) -> str:
    if not names:
        return "this installation has no built-in models; give the folder of a saved one"
    nearest = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(nearest)}?" if nearest else f"there are {', '.join(names)}"


def class_named(description: Path, classes: Any) -> Any:
    """The class that a saved model says it is, of those that may be loaded."""
    name = read_json(description).get("_class_name")
    for known in classes:
        if known.__name__ == name:
            return known
    names = ", ".join(known.__name__ for known in classes)
    raise ValueError(f"{description.parent} holds a {name}, which is not one of vidgen's: {names}")
