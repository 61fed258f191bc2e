"""How a token is drawn from its distribution: temperature, top-k, top-p."""

from dataclasses import dataclass

from torch import Tensor

from vidgen.nn.random import Generators, categorical


@dataclass(frozen=True, kw_only=True)
class SamplingRule:
    """Filter of a categorical distribution.

    Args:
        temperature: divides the logits; 0 = the most likely code.
        top_k: keep this many codes; 0 = all.
        top_p: keep the smallest set of codes with this probability (Holtzman et al. 2020).
        flow_steps: Euler steps of a flow head, which has no logits.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    flow_steps: int = 16

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1 or self.flow_steps < 1:
            raise ValueError(
                "expected temperature ≥ 0, top_k ≥ 0, 0 < top_p ≤ 1 and flow_steps ≥ 1, "
                f"got {self.temperature}, {self.top_k}, {self.top_p}, {self.flow_steps}"
            )

    def filter(self, logits: Tensor) -> Tensor:
        """`… codes`: logits at this temperature, with the codes that may not be drawn at -inf."""
        if self.temperature > 0:
            logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            smallest = logits.topk(self.top_k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < smallest, float("-inf"))
        if self.top_p < 1:
            ordered, order = logits.sort(dim=-1, descending=True)
            probability = ordered.softmax(dim=-1)
            beyond = probability.cumsum(dim=-1) - probability >= self.top_p
            logits = logits.masked_fill(beyond.scatter(-1, order, beyond), float("-inf"))
        return logits

    def draw(self, filtered: Tensor, generators: Generators) -> Tensor:
        """Codes `b …` from what `filter` returned, `b … codes`: drawn, or the most likely at temperature 0."""
        return categorical(filtered, generators) if self.temperature > 0 else filtered.argmax(dim=-1)
