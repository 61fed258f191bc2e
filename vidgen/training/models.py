"""Where a run gets its untrained models: presets by name, or the weights of an earlier model of the same kind."""

import difflib
from collections.abc import Iterable
from pathlib import Path

from vidgen.tokenizers.base import Tokenizer
from vidgen.training.config import TokenizerRun


def fresh_tokenizer(run: TokenizerRun) -> Tokenizer:
    """The preset of a run with fresh weights, or with those of `init_from`."""
    from vidgen.tokenizers.presets import TOKENIZER_PRESETS

    check_name(run.preset, TOKENIZER_PRESETS)
    preset = TOKENIZER_PRESETS[run.preset]
    tokenizer = (preset.tiny() if run.tiny else preset).build()
    if run.init_from is not None:
        take_weights(tokenizer, run.init_from)
    return tokenizer


def check_name(name: str, names: Iterable[str]) -> None:
    """ValueError with the nearest names when there is no preset of that name."""
    names = sorted(names)
    if name not in names:
        nearest = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
        raise ValueError(f"there is no preset {name!r}; {'nearest' if nearest else 'there are'}: {', '.join(nearest or names)}")


def take_weights(model: Tokenizer, source: str) -> None:
    """Load the weights of the model in folder `source`; ValueError when it is another kind of model."""
    if not (Path(source) / "config.json").is_file():
        raise ValueError(f"expected a folder with a saved model to start from, got {source!r}, which has no config.json")
    config = type(model).load_config(source)
    kind = type(model).__name__
    if config["_class_name"] != kind:
        raise ValueError(f"cannot start a {kind} from {source}: that is a {config['_class_name']}; choose its preset")
    wanted = {name: value for name, value in model.config.items() if not name.startswith("_")}
    for name, value in wanted.items():
        if plain(config.get(name)) != plain(value):
            raise ValueError(
                f"cannot start from {source}: its {name} is {config.get(name)}, the preset's is {value}; choose the same preset"
            )
    model.load_state_dict(type(model).from_pretrained(source).state_dict())


def plain(value: object) -> object:
    """JSON's view of a config value: tuples are lists."""
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
