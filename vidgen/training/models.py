"""Where a run gets its untrained models: presets by name, or the weights of an earlier model of the same kind."""

import difflib
import inspect
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from vidgen.training.earlier_weights import OF_TRAINING, plain, take_weights

PRESETS_BY_COMMAND = {
    "train-tokenizer": TOKENIZER_PRESETS,
    "train-generator": PIPELINE_PRESETS,
    "train-matcher": MATCHER_PRESETS,
}

BUILT_IN = Path(vidgen.__file__).parent / "pretrained"


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
