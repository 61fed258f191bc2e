"""`vidgen models`: the names that `vidgen.load` and `vidgen.build` know."""

import json
from dataclasses import dataclass
from pathlib import Path

PRETRAINED = Path(__file__).resolve().parents[1] / "pretrained"


@dataclass(frozen=True, kw_only=True)
class Command:
    """List the built-in models, which load by name and without a network, or the presets to train from.

    Wherever a command takes a model it takes one of these names, a folder with a saved model, or a hub id.
    """

    presets: bool = False
    """List the presets in place of the trained models: architectures that `vidgen.build` makes with fresh weights."""


def run(command: Command) -> None:
    """Print the list."""
    rows = presets() if command.presets else built_in_models()
    name_width = max((len(name) for name, _, _ in rows), default=0)
    kind_width = max((len(kind) for _, kind, _ in rows), default=0)
    for name, kind, about in rows:
        print(f"{name:<{name_width}}  {kind:<{kind_width}}  {about}")


def built_in_models() -> list[tuple[str, str, str]]:
    """Name, kind, class, size and scores of every model in `vidgen/pretrained`; tokenizers first, matchers last."""
    rows: dict[str, list[tuple[str, str, str]]] = {"tokenizer": [], "pipeline": [], "matcher": []}
    for folder in sorted(path for path in PRETRAINED.iterdir() if path.is_dir()):
        megabytes = sum(file.stat().st_size for file in folder.rglob("*.safetensors")) / 1e6
        if (folder / "model_index.json").is_file():
            config = folder / "model_index.json"
        elif (folder / "config.json").is_file():
            config = folder / "config.json"
        else:
            continue
        class_name = json.loads(config.read_text())["_class_name"]
        kind = next(kind for kind in rows if class_name.lower().endswith(kind))
        about = f"{class_name}, {megabytes:.1f} MB"
        scores = folder / "scores.json"  # a model that was shipped a moment ago has none yet
        if scores.is_file():
            about += f"; {json.loads(scores.read_text())['summary']}"
        rows[kind].append((folder.name, kind, about))
    return [row for of_kind in rows.values() for row in of_kind]


def presets() -> list[tuple[str, str, str]]:
    """Name, kind and description of every preset; tokenizers first."""
    from vidgen.matchers.presets import MATCHER_PRESETS
    from vidgen.pipelines.cascade_presets import CASCADE_PRESETS
    from vidgen.pipelines.presets import PIPELINE_PRESETS
    from vidgen.tokenizers.presets import TOKENIZER_PRESETS

    kinds = {
        "tokenizer": TOKENIZER_PRESETS,
        "pipeline": PIPELINE_PRESETS,
        "cascade": CASCADE_PRESETS,
        "matcher": MATCHER_PRESETS,
    }
    return [(name, kind, preset.about) for kind, named in kinds.items() for name, preset in named.items()]
