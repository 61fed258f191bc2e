"""The entropy term of table-free quantizers: sure about each token, even over the whole codebook, annealed."""

import math
from typing import Any

import torch
from torch import Tensor, nn


class EntropyTerm(nn.Module):
    """weight · (H(code | token) + diversity · (ln K - H(code))): zero for sure tokens that use all K codes alike.

    MAGVIT-v2 (arXiv 2310.05737, equation 5) up to the constant, which keeps the term from going below zero.

    Args:
        weight: after annealing.
        boost, steps: the weight begins `boost` times higher and falls linearly to `weight` over so many forward passes
            in training, one a step without accumulation (a buffer counts, so that a resumed run goes on where it was).
        diversity: weight of the second part.
    """

    updates: Tensor

    def __init__(self, weight: float, *, boost: float = 1.0, steps: int = 2000, diversity: float = 1.0) -> None:
        super().__init__()
        if weight < 0 or boost < 1 or steps < 1 or diversity < 0:
            raise ValueError(
                "an entropy term needs a weight and a diversity of at least 0, a boost of at least 1 and at least 1 "
                f"step, got weight {weight}, diversity {diversity}, boost {boost} and {steps} steps"
            )
        self.weight, self.boost, self.steps, self.diversity = weight, boost, steps, diversity
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def forward(self, of_a_token: Tensor, of_the_mean: Tensor, *, codes: tuple[int, ...]) -> Tensor:
        """The two entropies in nats -> the weighted term."""
        left = (1 - self.updates / self.steps).clamp(min=0)
        if self.training and torch.is_grad_enabled():
            self.updates += 1
        lost = sum(math.log(size) for size in codes) - of_the_mean
        return self.weight * (1 + (self.boost - 1) * left) * (of_a_token + self.diversity * lost)


def product_entropy(probabilities: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean entropy of a token's code and entropy of the mean code, in nats, for codes of independent digits.

    `probabilities` has `n levels` for each digit. The mean distribution over all codes is one product of two halves,
    `n √K` each, never `n K`; exact, and over the tokens of all processes.
    """
    of_a_token = torch.stack([digit_entropy(digit).mean() for digit in probabilities]).sum()
    middle = len(probabilities) // 2
    halves = []
    for digits in (probabilities[:middle], probabilities[middle:]):
        half = probabilities[0].new_ones(len(probabilities[0]), 1)
        for digit in digits:
            half = (half.unsqueeze(-1) * digit.unsqueeze(-2)).flatten(-2)
        halves.append(half)
    mean = mean_over_processes(halves[0].T @ halves[1] / len(halves[0]))
    return of_a_token, digit_entropy(mean.flatten())


def digit_entropy(probabilities: Tensor) -> Tensor:
    """`… k -> …` in nats; what cannot happen counts nothing."""
    smallest = torch.finfo(probabilities.dtype).tiny
    return -(probabilities * probabilities.clamp(min=smallest).log()).sum(dim=-1)


class SumOverProcesses(torch.autograd.Function):
    """Every process uses the sum, so the gradient of a summand is the sum of the gradients of all processes."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return SumOverProcesses.apply(gradients[0])  # pyright: ignore[reportReturnType]


def mean_over_processes(values: Tensor) -> Tensor:
    """Mean over the equal shares of a batch that processes train on, with gradients; without a group `values` alone.

    Entropies do not average, distributions do: a term of this mean has the gradient of one process with the whole
    batch, once data-parallel training has averaged the gradients.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return values
    return SumOverProcesses.apply(values) / torch.distributed.get_world_size()
