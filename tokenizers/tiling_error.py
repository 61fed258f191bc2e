"""How far off are tiles of trunks that see whole frames? `python tokenizers/tiling_error.py` → the table of it.

Tiny twins of the presets, trained for a few hundred steps on clips of the shapes world, give new ones of the same size
back in one piece and in tiles with several halos; beside them the built-in `real-kl`, whose halo is known. Some minutes
on one core. Errors of large trained models are others: `vidgen.tokenizers.tiling.tiling_error` measures those.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vidgen
from vidgen.data.shapes import ShapesWorld
from vidgen.eval.report import environment_stamp, write_csv, write_json
from vidgen.nn.random import seeded
from vidgen.tokenizers import Tokenizer
from vidgen.tokenizers.presets import TOKENIZER_PRESETS
from vidgen.tokenizers.tiling import decode_tiled, encode_tiled, halos

TABLE = Path(__file__).resolve().parents[1] / "eval" / "results" / "tokenizers_tiling.csv"
PRESETS = ("omnitokenizer-kl", "c-vivit", "bsq-vit", "vq-kd", "vitok-s-b")
LOCAL = "real-kl"
FRAMES, SIDE, TILE, HALOS = 5, 96, 32, (0, 16, 32)


def trained(preset: str, steps: int) -> Tokenizer:
    """The tiny twin of a preset after `steps` steps."""
    torch.manual_seed(0)
    tokenizer = TOKENIZER_PRESETS[preset].tiny().build().train()
    optimiser = torch.optim.Adam(tokenizer.parameters(), lr=3e-3)
    for step in range(steps):
        losses = tokenizer.training_losses(
            clips(2, first=2 * step, seed=0), generators=seeded([2 * step, 2 * step + 1])
        )
        optimiser.zero_grad()
        sum(losses.values(), torch.zeros(())).backward()
        optimiser.step()
    return tokenizer.eval()


def clips(count: int, *, first: int, seed: int) -> Tensor:
    world = ShapesWorld(FRAMES, SIDE, width=SIDE, seed=seed)
    return torch.stack([world[first + index]["video"] for index in range(count)])


def decibel(one: Tensor, other: Tensor) -> float:
    """PSNR of videos in [-1, 1]."""
    return float(-10 * ((one - other).square().mean() / 4).log10())


@torch.no_grad()
def rows(name: str, tokenizer: Tokenizer, weights: str) -> list[dict[str, Any]]:
    video = clips(8, first=0, seed=1)
    latents = tokenizer.encode(video)
    whole = tokenizer.decode(latents)
    exact = None if None in tokenizer.reach else max(halos(tokenizer, tile=TILE, halo=None))
    found = []
    for halo in (*HALOS, *(() if exact is None else (exact,))):
        tiled = encode_tiled(tokenizer, video, tile=TILE, halo=halo)
        decoded = decode_tiled(tokenizer, tiled, tile=TILE, halo=halo)
        found.append(
            {
                "model": name,
                "weights": weights,
                "halo": halo,
                "exact": halo == exact,
                "psnr_in_one_piece": round(decibel(whole, video), 2),
                "psnr_in_tiles": round(decibel(decoded, video), 2),
                "tokens_mean": f"{(tiled.tokens - latents.tokens).abs().mean().item():.2g}",
                "pixels_mean": f"{(decoded - whole).abs().mean().item():.2g}",
                "pixels_max": f"{(decoded - whole).abs().max().item():.2g}",
            }
        )
        print(found[-1], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("-o", "--output", type=Path, default=TABLE)
    arguments = parser.parse_args()
    table = []
    for name in PRESETS:
        table += rows(name, trained(name, arguments.steps), f"tiny twin, {arguments.steps} steps")
    built_in = vidgen.load(LOCAL)
    assert isinstance(built_in, Tokenizer)
    table += rows(LOCAL, built_in, "built-in")
    write_csv(arguments.output, table)
    settings = {"frames": FRAMES, "side": SIDE, "tile": TILE, "steps": arguments.steps}
    write_json(
        arguments.output.with_suffix(".json"),
        {
            "schema": "vidgen.tokenizers_tiling/1",
            "settings": settings,
            "rows": table,
            "environment": environment_stamp(),
        },
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
