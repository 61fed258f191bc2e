"""Which optimiser trains which weights, and the learning rate of each step."""

import math
from typing import Any

from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from vidgen.training.config import OptimiserConfig


class MuonWithAdamW(Optimizer):
    """Muon for the matrices of a transformer's blocks, AdamW for all other weights, as one optimiser.

    Muon's updates are scaled to AdamW's size (Liu et al., arXiv 2502.16982, equation 4), so both share a learning rate.

    Args:
        matrices: weights with two dimensions.
        groups: parameter groups of AdamW.
        learning_rate: of both.
        betas: decay rates of AdamW's moving averages; Muon's momentum is its own default, 0.95.
        weight_decay: of the matrices; AdamW's groups have their own.
    """

    def __init__(
        self,
        matrices: list[nn.Parameter],
        groups: list[dict[str, Any]],
        *,
        learning_rate: float,
        betas: tuple[float, float],
        weight_decay: float,
    ) -> None:
        self.parts: tuple[Optimizer, ...] = (
            Muon(matrices, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            AdamW(groups, lr=learning_rate, betas=betas),
        )
        super().__init__(self._groups(), {})

    def _groups(self) -> list[dict[str, Any]]:
        """The parts' own groups, not copies: who sets a learning rate here sets it there."""
        return [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        if closure is not None:
            raise ValueError("MuonWithAdamW takes no closure; compute gradients first, then call step()")
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = self._groups()


def build_optimiser(module: nn.Module, config: OptimiserConfig) -> Optimizer:
    """The optimiser of all trained parameters; vectors (biases, norms) do not decay.

    Raises:
        ValueError: every parameter is frozen, or Muon is asked for and no block of the module has a matrix.
    """
    trained = [weight for weight in module.parameters() if weight.requires_grad]
    if not trained:
        raise ValueError("nothing is left to train: every parameter is frozen")
    if config.algorithm == "adamw":
        return AdamW(groups_of(trained, config), lr=config.learning_rate, betas=config.betas)
    hidden = block_matrices(module)
    if not hidden:
        raise ValueError(
            f"Muon trains the matrices of blocks, and {type(module).__name__} has none; use --algorithm adamw"
        )
    names = {id(weight) for weight in hidden}
    others = groups_of([weight for weight in trained if id(weight) not in names], config)
    return MuonWithAdamW(
        hidden, others, learning_rate=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay
    )


def groups_of(trained: list[nn.Parameter], config: OptimiserConfig) -> list[dict[str, Any]]:
    """AdamW's groups: what decays and what does not."""
    matrices = [weight for weight in trained if weight.ndim >= 2]
    vectors = [weight for weight in trained if weight.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def block_matrices(module: nn.Module) -> list[nn.Parameter]:
    """Trained weights of linear layers in the blocks that a transformer repeats (diffusers' `_repeated_blocks`).

    Embeddings and heads, which stand outside of them, are what Muon's authors leave to AdamW.
    """
    found: dict[int, Any] = {}
    for model in module.modules():
        repeated = getattr(model, "_repeated_blocks", None) or ()
        blocks = (part for part in model.modules() if type(part).__name__ in repeated)
        layers = (layer for block in blocks for layer in block.modules() if isinstance(layer, nn.Linear))
        found |= {id(layer.weight): layer.weight for layer in layers if layer.weight.requires_grad}
    return list(found.values())


def rate_at(step: int, config: OptimiserConfig, *, steps: int) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then a cosine to `final_rate`."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    way = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    return config.final_rate + (1 - config.final_rate) * 0.5 * (1 + math.cos(math.pi * min(way, 1.0)))
