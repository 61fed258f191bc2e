"""Train the digit reader and measure it: `python eval/train_digit_reader.py --digits-dir DIR` (minutes on one core).

It sees handwriting of the training split alone, rendered as the world renders it, a little turned and stretched, and
blurred, faded and noisy as generated videos are. It is measured on clips of the test split, which share no handwriting.
Writes the weights (half precision) with their provenance into the package, and `eval/results/digit_reader.json`.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from vidgen.data.digits import DIGIT_MOTIONS, MovingDigits, parse_digits
from vidgen.data.shapes import item_generator
from vidgen.eval.digit_reader import STRIDE, WEIGHTS, DigitNetwork, compare_digits, read_digits
from vidgen.eval.interval import share
from vidgen.eval.report import environment_stamp, write_json

RESULTS = Path(__file__).resolve().parent / "results"
FRAMES = 3  # of each training clip: its first, middle and last one
POSITIVE_WEIGHT = 4.0
IGNORED = 1.6  # cells from a centre up to which nothing is asked; below 1.0 the answer is yes


def varied(images: Tensor, generator: torch.Generator) -> Tensor:
    """Digit images `n 28 28`, each turned, stretched and slanted a little."""
    count = len(images)
    draws = torch.rand(count, 5, generator=generator) * 2 - 1
    turn = draws[:, 0] * math.radians(12)
    stretch = 1 + 0.12 * draws[:, 1:3]
    cosine, sine, slant = turn.cos(), turn.sin(), 0.15 * draws[:, 3]
    rows = [cosine * stretch[:, 0], -sine + slant, torch.zeros(count), sine, cosine * stretch[:, 1], torch.zeros(count)]
    grid = functional.affine_grid(torch.stack(rows, 1).view(count, 2, 3), [count, 1, 28, 28], align_corners=False)
    return functional.grid_sample(images[:, None], grid, align_corners=False)[:, 0]


def worn(frames: Tensor, generator: torch.Generator) -> Tensor:
    """Frames `n 1 h w` in [0, 1], some blurred, some faded, some noisy."""
    blurred = functional.avg_pool2d(frames, 3, stride=1, padding=1)
    draws = torch.rand(len(frames), 4, 1, 1, generator=generator)
    amount = (2 * draws[:, :1] - 1).clamp(min=0)
    mixed = torch.lerp(frames, blurred, amount) * (1 - 0.3 * draws[:, 1:2]) + 0.08 * draws[:, 2:3]
    noise = torch.randn(frames.shape, generator=generator)
    return (mixed + 0.08 * draws[:, 3:4] * noise).clamp(0, 1)


def targets(centres: list[Tensor], labels: list[Tensor], side: int) -> tuple[Tensor, Tensor]:
    """Wanted answers and their weights, `b 10 h w`: frame i has digits `labels[i]` at pixels `centres[i]` (`n 2`)."""
    cells = side // STRIDE
    wanted, weights = torch.zeros(len(centres), 10, cells, cells), torch.ones(len(centres), 10, cells, cells)
    places = torch.arange(cells) + 0.5
    for frame, (points, digits) in enumerate(zip(centres, labels, strict=True)):
        for (x, y), digit in zip(points / STRIDE, digits, strict=True):
            distance = ((places[:, None] - y) ** 2 + (places[None] - x) ** 2).sqrt()
            weights[frame, digit][distance < IGNORED] = 0
        for (x, y), digit in zip(points / STRIDE, digits, strict=True):
            distance = ((places[:, None] - y) ** 2 + (places[None] - x) ** 2).sqrt()
            wanted[frame, digit][distance < 1] = 1
            weights[frame, digit][distance < 1] = POSITIVE_WEIGHT
    return wanted, weights


def draw_batch(world: MovingDigits, size: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Frames, wanted answers, weights of `size` clips with one digit or two."""
    motions = list(DIGIT_MOTIONS)
    numbers = 1 + torch.randint(2, (size,), generator=generator)
    chosen = torch.randint(len(world.labels), (int(numbers.sum()),), generator=generator)
    images = varied(world.images[chosen], generator).split(numbers.tolist())
    digits = torch.from_numpy(world.labels.astype(np.int64))[chosen].split(numbers.tolist())
    frames, centres, labels = [], [], []
    for drawn, shown in zip(images, digits, strict=True):
        moves = [motions[int(torch.randint(len(motions), (), generator=generator))] for _ in shown]
        video, ways = world.film(drawn, moves, generator=generator)
        frames.append(video[:1].transpose(0, 1).add(1).div(2))
        centres += list(ways.unbind(1))
        labels += [shown] * world.num_frames
    return worn(torch.cat(frames), generator), *targets(centres, labels, world.height)


def train(world: MovingDigits, *, steps: int, batch_size: int, learning_rate: float) -> DigitNetwork:
    """The trained network."""
    torch.manual_seed(0)
    network = DigitNetwork()
    optimiser = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps, pct_start=0.1)
    begun = time.perf_counter()
    for step in range(steps):
        frames, wanted, weights = draw_batch(world, batch_size, generator=item_generator(0, step))
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(frames).float()
        loss = functional.binary_cross_entropy_with_logits(logits, wanted, weights, reduction="sum")
        loss = loss / weights[wanted > 0].sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}: loss {loss.item():.4f}, {time.perf_counter() - begun:.0f} s", flush=True)
    return network.eval()


def measure(digits_dir: Path, network: DigitNetwork, clips: int) -> dict[str, Any]:
    """Shares of rendered clips of the test split that are read right."""
    result = {}
    for number, name in ((1, "one_digit"), (2, "two_digits")):
        world = MovingDigits(digits_dir, "test", digits=(number,), seed=7)
        items = (world[index] for index in range(clips))
        judged = [
            compare_digits(read_digits(item["video"], network=network), parse_digits(item["caption"])) for item in items
        ]
        result[name] = {
            key: share([getattr(one, key) for one in judged]) for key in ("count", "digit", "motion", "all_right")
        }
        print(name, {key: value["share"] for key, value in result[name].items()}, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--digits-dir", type=Path, required=True, help="folder with the MNIST files")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--batch-size", type=int, default=32, help="clips of a step, three frames each")
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--clips", type=int, default=300, help="test clips with one digit, and with two")
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--result", type=Path, default=RESULTS / "digit_reader.json")
    arguments = parser.parse_args()
    begun = time.perf_counter()
    world = MovingDigits(arguments.digits_dir, "train", num_frames=FRAMES)
    settings = {name: getattr(arguments, name) for name in ("steps", "batch_size", "learning_rate")}
    network = train(world, **settings)
    seconds = time.perf_counter() - begun
    weights = {name: tensor.half() for name, tensor in network.state_dict().items() if tensor.is_floating_point()}
    arguments.weights.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, arguments.weights)
    network.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, strict=False)
    made = {
        "command": f"python eval/train_digit_reader.py --digits-dir DIR ({json.dumps(settings)})",
        "trained_on": f"{len(world.labels)} MNIST images, the training split of vidgen.data.digits.MovingDigits",
        "seconds": seconds,
        **environment_stamp(),
    }
    write_json(arguments.weights.with_name("made.json"), made)
    scores = measure(arguments.digits_dir, network, arguments.clips)
    write_json(arguments.result, {"schema": "vidgen.digit_reader/1", **scores, "clips": arguments.clips, "made": made})


if __name__ == "__main__":
    sys.exit(main())
