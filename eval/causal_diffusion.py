"""How much does a cache of clean frames save (ViD-GPT)? `python eval/causal_diffusion.py -o FILE.csv`.

A video grows chunk by chunk under guidance. "cached" runs each step on the new chunk alone, "recomputed" on all frames
so far, the clean ones at noise level 0; both make the same video from the same noise, so the ratio is that of the work.
"""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor

from vidgen.eval.report import environment_stamp, write_csv, write_json
from vidgen.generators import DiffusionTransformer
from vidgen.latents import LatentPart, LatentSpec
from vidgen.nn.random import randn, seeded


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured, and for how long."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """CSV file to write; the same name with .json gets the rows together with device, versions, commit and date."""
    chunks: int = 8
    """Chunks of the longest rollout; there is a row for each length up to it."""
    chunk_frames: int = 2
    """Latent frames of a chunk."""
    side: int = 8
    """Rows and columns of tokens in a frame."""
    steps: int = 10
    """Euler steps of a chunk."""
    guidance_scale: float = 3.0
    """Guidance; two branches with a cache each."""
    width: int = 256
    """Width of the transformer."""
    layers: int = 8
    """Layers of the transformer."""
    heads: int = 8
    """Heads of the transformer."""
    repeats: int = 3
    """Rollouts of each kind; the table has the shortest time."""
    device: str = "cpu"
    """`cuda` measures a GPU."""
    threads: int = 1
    """CPU threads."""


class Rollout:
    """One model, one prompt, one noise; with and without the cache."""

    def __init__(self, settings: Settings) -> None:
        torch.manual_seed(0)
        self.settings = settings
        self.spec = LatentSpec((LatentPart("grid", "thw", (1, 8, 8), 4),), causal=True, streamable=True)
        self.model: Any = DiffusionTransformer(
            self.spec.to_json(),
            64,
            width=settings.width,
            layers=settings.layers,
            heads=settings.heads,
            attention="frame-causal",
            attention_options={"group": settings.chunk_frames},
        ).eval()
        with torch.no_grad():  # fresh gates are zero: nothing would reach another token
            for weight in self.model.parameters():
                weight.add_(0.02 * torch.randn_like(weight))
        self.model.to(settings.device)
        size = (settings.chunks * settings.chunk_frames, 8 * settings.side, 8 * settings.side)
        self.size, self.coordinates = size, self.spec.coordinates(size).to(settings.device)
        self.noise = randn((1, self.spec.num_tokens(size), 4), seeded([0])).to(settings.device)
        states = torch.randn(1, 8, 64, device=settings.device)
        mask = torch.ones(1, 8, dtype=torch.bool, device=settings.device)
        self.branches = [
            {"encoder_hidden_states": states, "encoder_attention_mask": seen} for seen in (mask, torch.zeros_like(mask))
        ]
        self.tokens = settings.chunk_frames * settings.side**2

    def guided(self, outputs: list[Tensor]) -> Tensor:
        return outputs[1] + self.settings.guidance_scale * (outputs[0] - outputs[1])

    @torch.no_grad()
    def cached(self) -> tuple[Tensor, list[float]]:
        """The video and the seconds after each chunk."""
        caches = [self.model.empty_cache(self.size) for _ in self.branches]
        made, seconds, started = [], [], self.now()
        for start in range(0, self.noise.shape[1], self.tokens):
            x, here = self.noise[:, start : start + self.tokens], self.coordinates[start : start + self.tokens]
            for step in range(self.settings.steps):
                level = torch.full((1,), 1000 * (1 - step / self.settings.steps), device=x.device)
                outputs = [
                    self.model(x, level, here, **told, grid=self.grid(x), cache=cache)
                    for told, cache in zip(self.branches, caches, strict=True)
                ]
                x = x - self.guided(outputs) / self.settings.steps
            for told, cache in zip(self.branches, caches, strict=True):
                cache.storing = True
                self.model(x, torch.zeros(1, device=x.device), here, **told, grid=self.grid(x), cache=cache)
                cache.storing = False
            made.append(x)
            seconds.append(self.now() - started)
        return torch.cat(made, dim=1), seconds

    @torch.no_grad()
    def recomputed(self) -> tuple[Tensor, list[float]]:
        """The same without a cache."""
        clean, seconds, started = self.noise[:, :0], [], self.now()
        for start in range(0, self.noise.shape[1], self.tokens):
            x, here = self.noise[:, start : start + self.tokens], self.coordinates[: start + self.tokens]
            for step in range(self.settings.steps):
                level = torch.full((1, len(here)), 1000 * (1 - step / self.settings.steps), device=x.device)
                level[:, :start] = 0
                whole = torch.cat([clean, x], dim=1)
                grid = self.grid(whole)
                outputs = [self.model(whole, level, here, **told, grid=grid)[:, start:] for told in self.branches]
                x = x - self.guided(outputs) / self.settings.steps
            clean = torch.cat([clean, x], dim=1)
            seconds.append(self.now() - started)
        return clean, seconds

    def grid(self, tokens: Tensor) -> tuple[int, int, int]:
        """Extents of the frames that `tokens` are."""
        return tokens.shape[1] // self.settings.side**2, self.settings.side, self.settings.side

    def now(self) -> float:
        """CPU-seconds of this process, or wall-clock seconds of a GPU that is done."""
        if self.settings.device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


def measure(settings: Settings) -> list[dict[str, Any]]:
    """A row for each number of chunks."""
    rollout = Rollout(settings)
    times: dict[str, list[list[float]]] = {"cached": [], "recomputed": []}
    videos = {}
    for _ in range(settings.repeats):  # in turns, so that a busy moment hits both
        for kind in times:
            videos[kind], seconds = getattr(rollout, kind)()
            times[kind].append(seconds)
    difference = (videos["cached"] - videos["recomputed"]).abs().amax(dim=(0, 2))
    rows = []
    for chunk in range(settings.chunks):
        cached, recomputed = (min(run[chunk] for run in times[kind]) for kind in ("cached", "recomputed"))
        rows.append(
            {
                "chunks": chunk + 1,
                "tokens": (chunk + 1) * rollout.tokens,
                "cached_seconds": round(cached, 4),
                "recomputed_seconds": round(recomputed, 4),
                "speed_up": round(recomputed / cached, 2),
                "largest_difference": float(f"{difference[: (chunk + 1) * rollout.tokens].max().item():.2g}"),
            }
        )
    return rows


def main() -> None:
    """Measure, print the table, write CSV and JSON."""
    settings = tyro.cli(Settings, description=__doc__)
    torch.set_num_threads(settings.threads)
    rows = measure(settings)
    for row in rows:
        print(", ".join(f"{column} {value}" for column, value in row.items()))
    result = {
        "model": f"{settings.layers} layers of width {settings.width}, {settings.steps} steps, two guidance branches",
        "date": datetime.now(UTC).date().isoformat(),
        "environment": environment_stamp(settings.device),
        "rows": rows,
    }
    write_csv(settings.output, rows)
    write_json(settings.output.with_suffix(".json"), result)


if __name__ == "__main__":
    main()
