"""LoRA adapters of a pipeline's transformer, through peft: load, save, merge (Hu et al. 2021, arXiv 2106.09685)."""

from pathlib import Path
from typing import Any

from safetensors import safe_open

WEIGHTS = "pytorch_lora_weights.safetensors"  # diffusers' name


class LoraVideo:
    """What lets a pipeline wear LoRA adapters."""

    transformer: Any

    def load_lora_weights(self, source: str | Path, adapter_name: str = "default") -> None:
        """Put on an adapter that `save_lora_weights` or a training run with `lora_rank` wrote.

        Args:
            source: the file, or the folder with `pytorch_lora_weights.safetensors`.
            adapter_name: to tell several apart, for `transformer.set_adapters`.

        Raises:
            ValueError: there is no such file, or it belongs to another transformer.
        """
        file = Path(source) / WEIGHTS if Path(source).is_dir() else Path(source)
        if not file.is_file():
            raise ValueError(f"there is no LoRA in {source}: expected a .safetensors file or a folder with {WEIGHTS}")
        self._check_lora(file)
        self.transformer.load_lora_adapter(
            str(file.parent), weight_name=file.name, prefix=None, adapter_name=adapter_name, local_files_only=True
        )

    def _check_lora(self, file: Path) -> None:
        with safe_open(str(file), framework="pt") as weights:
            shapes = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
        for name, shape in shapes.items():
            if not name.endswith(".lora_A.weight"):
                continue
            layer = name.removesuffix(".lora_A.weight")
            modules = dict(self.transformer.named_modules())
            wanted = getattr(modules.get(layer), "in_features", None)
            if wanted != shape[1]:
                raise ValueError(
                    f"the LoRA in {file} is for another transformer: its layer {layer} takes {shape[1]} channels, here "
                    f"{'there is none' if wanted is None else f'it takes {wanted}'}; load the model it was trained on"
                )

    def save_lora_weights(self, folder: str | Path, adapter_name: str = "default") -> None:
        """Write an adapter, a few percent of the transformer's size."""
        self.transformer.save_lora_adapter(folder, adapter_name=adapter_name, weight_name=WEIGHTS)

    def fuse_lora(self, lora_scale: float = 1.0) -> None:
        """Add the adapters to the weights: the same videos, as fast as without."""
        self.transformer.fuse_lora(lora_scale=lora_scale)

    def unfuse_lora(self) -> None:
        self.transformer.unfuse_lora()

    def unload_lora_weights(self) -> None:
        """Take the adapters off."""
        self.transformer.unload_lora()
