"""May a run go on under these settings, and with these frozen networks?"""

from pathlib import Path
from typing import Any

from vidgen.nn.fingerprint import weights_sha256
from vidgen.training.config import Run
from vidgen.training.generator_step import GeneratorStep
from vidgen.training.models import network_options
from vidgen.training.step import TrainingStep

# What a resumed run may not change: the rest of its first part would be another run's.
FIXED_FIELDS = (
    "preset",
    "tiny",
    "tokenizer",
    "cached_clips",
    "data",
    "batch_size",
    "accumulation",
    "seed",
    "init_from",
    "around",
    "freeze",
    "text_encoder",
    "classes",
    "tasks",
    "lora_rank",
    "control",
    "control_layers",
    "references",
    "learned_variance",
    "distillation_channels",
    "discriminator_kind",
    "discriminator_width",
    "discriminator_layers",
    "discriminator_axes",
)
FIXED_PRESENCE = ("adversarial_weight", "lecam_weight", "distillation_weight")  # other weights, but not from or to 0
# Other shares, but not from or to none or all: weights that rested would begin, and the model would be said to know
# what most of its training has not shown it.
FIXED_KIND_OF_SHARE = ("known_frames", "drop_text")


def check_resumable(before: Run, run: Run) -> None:
    """Refuse settings under which what is left would be another run's.

    Raises:
        ValueError: names the field, what it was and what it is.
    """
    name = changed_field(before, run)
    if name is not None:
        was, now = getattr(before, name), getattr(run, name)
    else:
        name, was, now = changed_option(before, run) or (None, None, None)
    if name is not None:
        raise ValueError(
            f"cannot resume {run.output_dir}: {name} was {was} and is now {now}; "
            "give it as before, or start another run from these weights with --init-from"
        )


def changed_field(before: Run, run: Run) -> str | None:
    """A field that may not change and has changed, if any; `changed_option` looks into `--set`."""
    for name in FIXED_FIELDS:
        if getattr(before, name, None) != getattr(run, name, None):
            return name
    for name in FIXED_PRESENCE:
        if (getattr(before, name, 0) > 0) != (getattr(run, name, 0) > 0):
            return name
    for name in FIXED_KIND_OF_SHARE:
        if kind_of_share(getattr(before, name, 0)) != kind_of_share(getattr(run, name, 0)):
            return name
    for name in ("optimiser", "discriminator_optimiser"):
        of_states = [
            (config.algorithm, config.betas, config.weight_decay)
            for config in (getattr(before, name, None), getattr(run, name, None))
            if config is not None
        ]
        if len(set(of_states)) > 1:
            return name
    return "precision" if (before.precision == "fp16") != (run.precision == "fp16") else None


def kind_of_share(share: float) -> tuple[bool, bool]:
    """Does it happen at all, and is there anything else?"""
    return share > 0, share < 1


def changed_option(before: Run, run: Run) -> tuple[str, Any, Any] | None:
    """An option of the network that `--set` has changed, as it was and is; those of training alone may change.

    Options are compared as they come out, so `--set layers=6` where the preset has 6 layers changes nothing.
    """
    was, now = network_options(before), network_options(run)
    if was is None or now is None:
        return None if before.changed == run.changed else ("changed", before.changed, run.changed)
    changes = ((f"{name} (--set)", was.get(name), now.get(name)) for name in {**was, **now})
    return next((change for change in changes if change[1] != change[2]), None)


def frozen_weights(step: TrainingStep) -> dict[str, str]:
    """Hash of what the trained weights only fit with, by its name: a generator's video tokenizer."""
    if not isinstance(step, GeneratorStep):
        return {}
    return {"tokenizer": weights_sha256(step.pipeline.video_tokenizer)}


def check_frozen(header: dict[str, Any], frozen: dict[str, str], folder: Path) -> None:
    """ValueError if a checkpoint was trained with other frozen weights; its header did not always tell them."""
    before = header.get("frozen_weights", {})
    for name, now in frozen.items():
        if before.get(name, now) != now:
            raise ValueError(
                f"cannot resume {folder}: the weights of its {name} were {before[name][:12]}… and are now {now[:12]}…; "
                f"bring the {name} back that it began with, or start another run from these weights with --init-from"
            )
