"""What a model takes over from an earlier one, and which of its weights stay fresh."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

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
