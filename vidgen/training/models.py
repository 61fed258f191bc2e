"""Where a run gets its untrained models: presets by name, or the weights of an earlier model of the same kind."""

import difflib
import inspect
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vidgen
from vidgen.conditioning import ClassEncoder, TransformersTextEncoder
from vidgen.data.digits import DIGIT_SEPARATOR
from vidgen.matchers import Matcher
from vidgen.matchers.presets import MATCHER_PRESETS
from vidgen.pipelines.base import VideoPipeline
from vidgen.pipelines.cascade_presets import CASCADE_PRESETS
from vidgen.pipelines.presets import PIPELINE_PRESETS
from vidgen.tokenizers import Tokenizer, WrappingTokenizer
from vidgen.tokenizers.presets import TOKENIZER_PRESETS, TokenizerPreset
from vidgen.training.changed_options import changed_options
from vidgen.training.clips import class_names
from vidgen.training.config import SHAPES_WORLDS, GeneratorRun, LatentRun, MatcherRun, Run, TokenizerRun

PRESETS_BY_COMMAND = {
    "train-tokenizer": TOKENIZER_PRESETS,
    "train-generator": PIPELINE_PRESETS,
    "train-matcher": MATCHER_PRESETS,
}

BUILT_IN = Path(vidgen.__file__).parent / "pretrained"
OF_TRAINING = (  # whatever they are, the same weights fit
    *("text_dropped", "token_weight", "refine_weight", "reconstruction_weight", "squared_weight"),
    *("smallest_ratio", "time_order_share", "level_mean", "level_std", "vocabulary"),
)
OF_BOTTLENECK_TRAINING = (  # whatever they are, ids and vectors mean the same
    *("commitment", "codebook", "decay", "restart_below", "kmeans_steps", "rotation", "balance", "dropout"),
    *("weight", "entropy", "entropy_boost", "boost_steps", "diversity", "disentangle"),
    *("temperature", "last_temperature", "cooling_steps"),
)
FRESH_WITH_OTHER_TASKS = ("task_embedding.",)
FRESH_WITH_OTHER_TOKENS = (
    *FRESH_WITH_OTHER_TASKS,
    *("bottleneck.", "bottlenecks.", "latent_"),
    *("token_embedding.", "known_embedding.", "proj_in.", "proj_out."),
)


def fresh_tokenizer(run: TokenizerRun) -> Tokenizer:
    """The preset of a run with fresh weights, or with those of `init_from`."""
    check_name(run.preset, TOKENIZER_PRESETS)
    preset = TOKENIZER_PRESETS[run.preset]
    preset = preset.tiny() if run.tiny else preset
    preset = replace(preset, config={**preset.config, **changed_options(preset.model, run.changed)})
    if run.data.hold_out:
        for source in (run.around, run.init_from):
            if source is not None:
                check_held_out(source)
    tokenizer = preset.build() if run.around is None else decoder_around(run.around, run.preset, preset)
    if run.init_from is not None:
        take_weights(tokenizer, vidgen.load(run.init_from), source=run.init_from)
    return tokenizer


def fresh_matcher(run: MatcherRun, tokenizer: Tokenizer) -> Matcher:
    """The preset of a run for the tokens of a tokenizer, with fresh weights, or with those of `init_from`."""
    preset = MATCHER_PRESETS[run.preset]
    preset = preset.tiny() if run.tiny else preset
    preset = replace(preset, config={**preset.config, **changed_options(preset.model, run.changed)})
    matcher = preset.build(tokenizer)
    if run.init_from is not None:
        if run.data.hold_out:
            check_held_out(run.init_from)
        take_weights(matcher, vidgen.load(run.init_from), source=run.init_from)
    return matcher


def tokenizer_of(run: LatentRun, preset: str) -> Tokenizer:
    """The tokenizer that a run names, else that of its preset; ValueError for another kind of model."""
    name = run.tokenizer or preset
    if run.data.hold_out:
        check_held_out(name)
    tokenizer = vidgen.load(name)
    if not isinstance(tokenizer, Tokenizer):
        raise ValueError(f"expected a video tokenizer, and {name!r} is a {type(tokenizer).__name__}")
    return tokenizer


def decoder_around(source: str, name: str, preset: TokenizerPreset) -> Tokenizer:
    """The decoder of a preset, fresh, behind the tokenizer called `source`, which is frozen."""
    if not issubclass(preset.model, WrappingTokenizer):
        wrapping = [name for name, other in TOKENIZER_PRESETS.items() if issubclass(other.model, WrappingTokenizer)]
        raise ValueError(
            f"--around is for decoders of another tokenizer's tokens ({', '.join(wrapping)}), and {name} has its own"
        )
    wrapped = vidgen.load(source)
    if not isinstance(wrapped, Tokenizer):
        raise ValueError(f"expected a video tokenizer, and {source!r} is a {type(wrapped).__name__}")
    options = {option: value for option, value in preset.config.items() if option != "encoder_config"}
    return preset.model.around(wrapped, **{**options, "freeze_encoder": True})


def fresh_pipeline(run: GeneratorRun) -> VideoPipeline:
    """The preset of a run on the run's tokenizer with fresh weights, or with those of `init_from`.

    Classes begin as the words of their names when the earlier model was told words; words stay fresh when it was told
    classes.
    """
    check_name(run.preset, PIPELINE_PRESETS)
    preset = PIPELINE_PRESETS[run.preset]
    tokenizer = tokenizer_of(run, preset.tokenizer)
    if run.data.hold_out and run.init_from is not None:
        check_held_out(run.init_from)
    preset = preset.tiny() if run.tiny else preset
    preset = replace(preset, config={**preset.config, **changed_options(preset.generator, run.changed)})
    text_encoder = None if run.text_encoder is None else TransformersTextEncoder(run.text_encoder)
    if run.classes:
        separator = DIGIT_SEPARATOR if run.data.source == "digits" else None
        text_encoder = ClassEncoder(class_names(run.data), preset.text.get("width", 192), separator)
    pipeline = preset.build(tokenizer, text_encoder)
    if run.init_from is not None:
        earlier = vidgen.load(run.init_from)
        if type(earlier) is not type(pipeline):
            raise ValueError(
                f"cannot start a {type(pipeline).__name__} from {run.init_from}: that is a {type(earlier).__name__}"
            )
        if earlier.transformer.config.control_layers:
            pipeline.transformer.add_control(earlier.transformer.config.control_layers)
        if earlier.transformer.config.has_references:
            pipeline.transformer.add_references()
        take_weights(pipeline.transformer, earlier.transformer, source=run.init_from)
        told, before = pipeline.text_encoder, earlier.text_encoder
        if told.trained_jointly and isinstance(told, ClassEncoder) == isinstance(before, ClassEncoder):
            take_weights(told, before, source=run.init_from)
            told.meet(before.config.get("vocabulary", ()))
        elif isinstance(told, ClassEncoder) and told.width == before.width:
            told.begin_as_words(before)
    return pipeline


def network_options(run: Run) -> dict[str, Any] | None:
    """Constructor arguments of a run's network with their defaults, but for what its parts decide (`latent_spec`…) and
    what only training asks (`OF_TRAINING`); `None` for a preset of no known name, whose network the caller brings.

    Raises:
        ValueError: a `--set` that the network does not take.
    """
    presets: dict[type[Run], dict[str, Any]] = {
        TokenizerRun: TOKENIZER_PRESETS,
        GeneratorRun: PIPELINE_PRESETS,
        MatcherRun: MATCHER_PRESETS,
    }
    preset = next(
        (named[run.preset] for kind, named in presets.items() if isinstance(run, kind) and run.preset in named), None
    )
    if preset is None:
        return None
    preset = preset.tiny() if run.tiny else preset
    network = preset.generator if isinstance(run, GeneratorRun) else preset.model
    arguments = inspect.signature(network).parameters.values()
    defaults = {argument.name: argument.default for argument in arguments if argument.default is not argument.empty}
    options = {**defaults, **preset.config, **changed_options(network, run.changed)}
    return {name: plain(value) for name, value in options.items() if name not in OF_TRAINING}


def run_file(source: str | Path) -> Path | None:
    """The `run.json` of a built-in model, a run folder or a model in one; `None` where there is none."""
    folders = (BUILT_IN / source, Path(source), Path(source).parent)
    return next((folder / "run.json" for folder in folders if (folder / "run.json").is_file()), None)


def check_held_out(source: str) -> None:
    """ValueError if the model called `source` was trained on all pairs of the shapes world, as its run file says."""
    described = run_file(source)
    if described is None:
        return
    data = json.loads(described.read_text())["data"]
    if data["source"] in SHAPES_WORLDS and not data.get("hold_out", False):
        raise ValueError(
            f"--hold-out promises that pairs of colour and shape are never seen, and {source} was trained on all of "
            "them; train it with --hold-out too, or leave the flag out"
        )


def check_name(name: str, names: Iterable[str]) -> None:
    """ValueError with the nearest names when there is no preset of that name."""
    names = sorted(names)
    if name not in names:
        for kind, others in PRESETS_BY_COMMAND.items():
            if name in others:
                raise ValueError(f"{name!r} is a preset of another kind of model; train it by `vidgen {kind}`")
        if name in CASCADE_PRESETS:
            raise ValueError(f"{name!r} is a chain of pipelines; train each of them by itself (pipelines/README.md)")
        nearest = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
        offered = f"nearest: {', '.join(nearest)}" if nearest else f"there are: {', '.join(names)}"
        raise ValueError(f"there is no preset {name!r}; {offered}")


def take_weights(model: Any, earlier: Any, *, source: str) -> None:
    """Copy the weights of `earlier` (called `source` in errors); ValueError when it is another kind of model.

    A tokenizer may have another bottleneck and larger tokens of the same trunk, a generator other tokens, another head
    or other tasks: then the layers that touch them stay fresh, as a warning tells, and the trunk is taken. A bottleneck
    whose codes are the same and are learned otherwise (`same_codes`) keeps them. It may also have more `layers`, which
    begin without effect (`deepened`). Weights of losses, masks and the share of dropped prompts may differ. A kind of
    the earlier model with the same weights (`FrameMaskedTransformer` of `MaskedTransformer`) takes them too.
    """
    kind = type(model).__name__
    same_weights = isinstance(model, type(earlier)) and model.state_dict().keys() == earlier.state_dict().keys()
    if type(earlier) is not type(model) and not same_weights:
        raise ValueError(f"cannot start a {kind} from {source}: that is a {type(earlier).__name__}; choose its preset")
    differing = [
        name
        for name, value in model.config.items()
        if not name.startswith("_") and name not in OF_TRAINING and plain(earlier.config.get(name)) != plain(value)
    ]
    of_tokens = ("bottleneck_", "latent_spec", "head_", "tasks")
    if hasattr(model, "trunk_stride") and model.trunk_stride == earlier.trunk_stride:  # other tokens, the same trunk
        of_tokens = (*of_tokens, "stride", "token_patch")
    weights = earlier.state_dict()
    if "layers" in differing and hasattr(model, "transformer_blocks") and model.config.layers > earlier.config.layers:
        behind = earlier.config.get("single_layers", 0)
        weights = deepened(weights, earlier.config.layers, model.config.layers, behind=behind)
        differing.remove("layers")
    for name in differing:
        if not name.startswith(of_tokens):
            raise ValueError(
                f"cannot start from {source}: its {name} is {earlier.config.get(name)}, the preset's is "
                f"{model.config[name]}; choose the preset that it was trained with"
            )
    if differing:
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        fresh = FRESH_WITH_OTHER_TASKS if differing == ["tasks"] else FRESH_WITH_OTHER_TOKENS
        of_bottlenecks = all(name in ("bottleneck_options", "dynamics_options") for name in differing)
        if of_bottlenecks and all(same_codes(earlier.config[name], model.config[name]) for name in differing):
            fresh = ()
        weights = {
            name: tensor
            for name, tensor in weights.items()
            if shapes.get(name) == tensor.shape and not name.startswith(fresh)
        }
        if left := sorted(shapes.keys() - weights.keys()):
            logging.getLogger(__name__).warning("not from %s, but fresh: %s", source, ", ".join(left))
    model.load_state_dict(weights, strict=not differing)


def same_codes(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> bool:
    """Whether two bottlenecks of one kind have the same codes, however these are learned, by their options."""
    return codes_of(before or {}) == codes_of(after or {})


def codes_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a bottleneck without those of its training, within composed ones too."""
    return {
        name: codes_of(value) if isinstance(value, Mapping) else plain(value)
        for name, value in options.items()
        if name not in OF_BOTTLENECK_TRAINING
    }


def deepened(weights: dict[str, Tensor], before: int, after: int, *, behind: int = 0) -> dict[str, Tensor]:
    """Weights of a transformer of `before` blocks as those of one of `after` blocks that computes the same.

    The new blocks come last. They are copies of the first ones whose outputs are zero (Wu et al., LLaMA Pro, arXiv
    2401.02415, section 3.1), so that training starts where it was and moves all of them.

    Args:
        behind: blocks of another kind that follow in the same list (Flux's single stream); they follow the new ones.
    """
    deeper = {}
    for name, tensor in weights.items():
        blocks, _, rest = name.partition(".")
        number, _, inner = rest.partition(".")
        if blocks != "transformer_blocks":
            deeper[name] = tensor
        elif int(number) >= before:
            assert int(number) < before + behind
            deeper[f"{blocks}.{int(number) + after - before}.{inner}"] = tensor
        else:
            deeper[name] = tensor
            for new in range(before, after):
                if new % before == int(number):
                    silent = "to_out." in inner
                    deeper[f"{blocks}.{new}.{inner}"] = torch.zeros_like(tensor) if silent else tensor.clone()
    return deeper


def plain(value: object) -> object:
    """JSON's view of a config value: tuples are lists."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value
