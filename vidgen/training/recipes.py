"""Published losses and training settings by name, as values for the fields of a `TokenizerRun`.

What belongs to the model (KL weight, commitment, entropy, the prior's weight) stands in its preset, converted to our
reductions. What no field can say is left out and named here: OmniTokenizer's logit-laplace pixels and its video
discriminator that skips single frames, WF-VAE's wavelet term, and for LARP's prior a rate 50 times higher and a second
pass over its own guesses.
"""

from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

from vidgen.training.config import DataConfig, OptimiserConfig, TokenizerRun


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Values of a published training run.

    Args:
        about: one line for people, with the source.
        values: fields of `TokenizerRun`.
        data: fields of its `DataConfig`.
    """

    about: str
    values: dict[str, Any]
    data: dict[str, Any] = field(default_factory=dict)


def adam(learning_rate: float, *, betas: tuple[float, float] = (0.9, 0.99), clip_norm: float = 1.0) -> OptimiserConfig:
    return OptimiserConfig(learning_rate=learning_rate, betas=betas, weight_decay=0.0, clip_norm=clip_norm)


def square(side: int, *, num_frames: int = 17, **more: Any) -> dict[str, Any]:
    """Fields of a `DataConfig` for clips of so many frames of `side` × `side` pixels."""
    return {"num_frames": num_frames, "height": side, "width": side, **more}


# arXiv 2412.13061, both stages, and its code
VIDTOK = {
    "pixel_loss": "l1",
    "perceptual_weight": 1.0,
    "learned_variance": True,
    "adversarial_weight": 0.2,
    "adversarial_loss": "hinge-non-saturating",
    "discriminator_axes": "frames",
    "discriminator_width": 64,
    "lecam_weight": 0.005,
    "ema_decay": 0.0,
    "optimiser": adam(1e-5, betas=(0.9, 0.999), clip_norm=20.0),
    "discriminator_optimiser": adam(1e-5, betas=(0.9, 0.999), clip_norm=20.0),
}
# arXiv 2406.09399, all stages, and its code
OMNITOKENIZER = {
    "pixel_loss": "l1",
    "pixel_weight": 4.0,
    "perceptual_weight": 4.0,
    "adversarial_weight": 0.01,
    "adaptive_weight": False,
    "feature_weight": 4.0,
    "discriminator_start": 0,
    "discriminator_width": 64,
}

RECIPES: dict[str, Recipe] = {
    "vidtok": Recipe(
        about="VidTok (arXiv 2412.13061): small frames at 3 a second, frame discriminator from step 10,000, LeCam",
        data=square(128, fps=3.0),
        values={**VIDTOK, "discriminator_start": 10_000},  # 20,001 of its steps, which count both optimisers
    ),
    "vidtok-decoder": Recipe(
        about="VidTok's second stage: the decoder alone, on larger frames, from the first stage (--init-from)",
        data=square(256, fps=3.0),
        values={**VIDTOK, "discriminator_start": 0, "freeze": ("tokens",), "fit_statistics": False},
    ),
    "omnitokenizer-images": Recipe(
        about="OmniTokenizer's first stage (arXiv 2406.09399): single frames alone",
        values={
            **OMNITOKENIZER,
            "discriminator_axes": "frames",
            "image_share": 1.0,
            "optimiser": adam(1e-3, betas=(0.5, 0.9)),
            "discriminator_optimiser": adam(1e-3, betas=(0.5, 0.9)),
        },
    ),
    "omnitokenizer": Recipe(
        about="OmniTokenizer's second stage: images and video 1:1, four resolutions, frame and video discriminators",
        values={
            **OMNITOKENIZER,
            "discriminator_axes": "both",
            "image_share": 0.5,
            "sides": (128, 192, 256, 320),
            "optimiser": adam(5e-5, betas=(0.5, 0.9)),
            "discriminator_optimiser": adam(5e-5, betas=(0.5, 0.9)),
        },
    ),
    "omnitokenizer-progressive": Recipe(
        about="OmniTokenizer's stages in one run: images, then images and video, then four resolutions",
        values={
            **OMNITOKENIZER,
            "discriminator_axes": "both",
            "images_until": 500_000,
            "image_share": 0.5,
            "sides": (128, 192, 256, 320),
            "sides_from": 600_000,
            "steps": 1_000_000,
            "optimiser": adam(1e-3, betas=(0.5, 0.9)),
            "discriminator_optimiser": adam(1e-3, betas=(0.5, 0.9)),
        },
    ),
    "larp": Recipe(
        about="LARP (arXiv 2410.21264, its code): a transformer judges clips at every fifth step, noisy targets, LeCam",
        data=square(128, num_frames=16),
        values={
            "pixel_loss": "l1",
            "perceptual_weight": 1.0,
            "adversarial_weight": 0.3,
            "adversarial_loss": "non-saturating-smooth",
            "adaptive_weight": False,
            "discriminator_kind": "transformer",
            "discriminator_width": 512,
            "discriminator_layers": 12,
            "discriminator_every": 5,
            "discriminator_start": 0,
            "lecam_weight": 0.001,
            "ema_decay": 0.0,
            "optimiser": adam(1e-4, betas=(0.5, 0.9), clip_norm=0.0),
            "discriminator_optimiser": adam(3e-5, betas=(0.5, 0.9), clip_norm=0.0),
        },
    ),
    "open-sora": Recipe(
        about="Open-Sora 2.0's DC-AE, first stage: no discriminator, every fifth batch images",
        values={
            "pixel_loss": "l1",
            "perceptual_weight": 0.5,
            "image_share": 0.2,
            "ema_decay": 0.99,
            "optimiser": adam(5e-5, betas=(0.9, 0.98)),
        },
    ),
    "open-sora-gan": Recipe(
        about="Open-Sora 2.0's DC-AE, second stage: deep video discriminator",
        values={
            "pixel_loss": "l1",
            "perceptual_weight": 0.5,
            "adversarial_weight": 0.05,
            "discriminator_axes": "video",
            "discriminator_layers": 5,
            "discriminator_width": 64,
            "discriminator_start": 0,
            "image_share": 0.2,
            "ema_decay": 0.99,
            "optimiser": adam(5e-5, betas=(0.9, 0.98)),
            "discriminator_optimiser": adam(1e-4, betas=(0.9, 0.98)),
        },
    ),
    "wf-vae": Recipe(
        about="WF-VAE (arXiv 2411.17459): video discriminator from the first step",
        values={
            "pixel_loss": "l1",
            "perceptual_weight": 1.0,
            "adversarial_weight": 0.5,
            "discriminator_axes": "video",
            "discriminator_width": 64,
            "discriminator_start": 0,
            "ema_decay": 0.999,
            "optimiser": adam(1e-5),
            "discriminator_optimiser": adam(1e-5, betas=(0.9, 0.99)),
        },
    ),
}


def with_recipe(run: TokenizerRun) -> TokenizerRun:
    """The run with its recipe's values in all fields that are at their defaults.

    Raises:
        ValueError: there is no such recipe, it has nothing by a name in `recipe_without`, or it needs weights or clips
            that the run does not have.
    """
    if run.recipe is None:
        return run
    if run.recipe not in RECIPES:
        raise ValueError(f"there is no recipe {run.recipe!r}; there are: {', '.join(RECIPES)}")
    recipe = RECIPES[run.recipe]
    for name in run.recipe_without:
        if name not in {**recipe.values, **recipe.data}:
            raise ValueError(
                f"recipe {run.recipe} has no {name!r} to leave out; it has: {', '.join([*recipe.values, *recipe.data])}"
            )
    values = taken(recipe.values, run, defaults_of(TokenizerRun), without=run.recipe_without)
    if "perceptual_weight" in values and run.perceptual_weights is None:
        raise ValueError(
            f"recipe {run.recipe} has a perceptual distance; give its network's weights (--perceptual-weights FILE "
            "--perceptual-network NAME) or leave it out (--recipe-without perceptual_weight)"
        )
    data = replace(run.data, **taken(recipe.data, run.data, defaults_of(DataConfig), without=run.recipe_without))
    return replace(run, **values, data=data)


def taken(
    values: dict[str, Any], config: Any, defaults: dict[str, Any], *, without: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Those of a recipe's values whose fields of `config` are at their defaults; of optimisers field by field."""
    chosen: dict[str, Any] = {}
    for name, value in values.items():
        now, default = getattr(config, name), defaults[name]
        if name in without:
            continue
        if isinstance(value, OptimiserConfig):
            chosen[name] = replace(now, **taken(vars(value), now, vars(default)))
        elif now == default:
            chosen[name] = value
    return chosen


def defaults_of(config: type) -> dict[str, Any]:
    """The default of every field of a config that has one."""
    made = {item.name: item.default_factory() for item in fields(config) if item.default_factory is not MISSING}
    return made | {item.name: item.default for item in fields(config) if item.default is not MISSING}
