"""A distance between two sets of videos as a result that can be trusted: value, interval, bias, and where from."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from vidgen.eval.features import FeatureSet
from vidgen.eval.protocol import FeatureProtocol
from vidgen.eval.report import environment_stamp


@dataclass(frozen=True)
class DistanceReport:
    """Distances between the same two sets; the first of `results` is the one that was asked for.

    Args:
        results: entries `metric`, `value`, `higher_is_better`, `uncertainty`, `estimator`.
        bias: how many rows there are for how many features, and how far halves of the real set are apart.
        protocol: None where only feature files are known.
        overrides: conditions in which `protocol` differs from the preset of its name.
    """

    results: list[dict[str, Any]]
    bias: dict[str, Any]
    real: FeatureSet
    fake: FeatureSet
    protocol: FeatureProtocol | None
    overrides: dict[str, Any]
    selfcheck: dict[str, float]
    seconds: float
    environment: dict[str, Any] = field(default_factory=environment_stamp)

    def to_json(self) -> dict[str, Any]:
        """In the schema `vidgen.eval/1`."""
        conditions = self.real.conditions
        return {
            "schema": "vidgen.eval/1",
            "protocol": self._protocol(),
            **self.results[0],
            "bias": self.bias,
            "results": self.results,
            "inputs": {"real": self.real.inputs, "fake": self.fake.inputs},
            "preprocess": conditions["preprocess"],
            "clip": conditions["clip"],
            "extractor": conditions["extractor"],
            "selfcheck": self.selfcheck,
            "env": self.environment,
            "wall_s": self.seconds,
        }

    def _protocol(self) -> dict[str, Any]:
        """Feature files carry their conditions but no preset's name: those conditions are the protocol then."""
        if self.protocol is not None:
            return self.protocol.to_json() | {"overrides": self.overrides}
        conditions = self.real.conditions | {"estimator": self.results[0]["estimator"]}
        canonical = json.dumps(conditions, sort_keys=True, separators=(",", ":"))
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        return {"id": "features", "version": 1, "sha256": digest, "conditions": conditions, "source": "feature files"}

    def table(self) -> Table:
        """For the terminal."""
        title = "distance between features"
        if self.protocol is not None:
            title = f"distance by {self.protocol.name}" + (" (changed)" if self.overrides else "")
        bias = self.bias
        caption = [
            f"{bias['n_real']} real and {bias['n_fake']} fake rows of {bias['d']} features, from "
            f"{self.real.num_videos} and {self.fake.num_videos} videos",
            f"halves of the real set are {bias['real_vs_real_split_half']:.4g} apart",
        ]
        if not bias["rank_ok"]:
            caption.append("no more rows than features: a Fréchet distance is mostly bias, trust the kernel distance")
        table = Table(title=title, caption="\n".join(caption), caption_justify="left")
        table.add_column("metric", overflow="fold")
        for column in ("value", "± sd", "95 %"):
            table.add_column(column, justify="right")
        for result in self.results:
            spread = result["uncertainty"]
            low, high = spread["ci95"]
            table.add_row(result["metric"], f"{result['value']:.6g}", f"{spread['sd']:.2g}", f"{low:.5g} … {high:.5g}")
        return table
