"""What reuse saves in masked decoding: `python eval/masked_cost.py [--trained PLAIN EFFICIENT]`.

One trunk three ways, over all steps of a video: plain (every token in every layer at every step), efficient without
reuse (visible tokens encoded anew at each step) and with it. FLOPs are counted, CPU seconds are the least of
`--repeats`. With `--trained`, two trained pipelines of the shapes world are scored too, in few steps and many:
obedience on the same prompts and noise beside the FLOPs of each. Writes eval/results/masked_cost.csv and .json.
"""

import argparse
import itertools
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vidgen
from vidgen.conditioning import Condition
from vidgen.eval.flops import count_flops
from vidgen.eval.obedience import SELECTION_SEED, evaluate_obedience
from vidgen.eval.report import environment_stamp, model_label, write_csv, write_json
from vidgen.generators import EfficientMaskedTransformer, MaskedTransformer
from vidgen.latents import LatentPart, LatentSpec
from vidgen.nn.random import seeded
from vidgen.schedulers import MaskedTokenScheduler, SamplingRule

RESULTS = Path(__file__).resolve().parent / "results"
SPEC = LatentSpec((LatentPart("grid", "thw", (4, 8, 8), 5, (1024,)),), causal=False, streamable=False)
DECODER_LAYERS = 2


@torch.no_grad()
def decode(network: MaskedTransformer, *, size: tuple[int, int, int], steps: int, reuse: bool) -> Tensor:
    """Ids `b n q` of a video without a prompt, by the steps of MAGVIT."""
    spec, scheduler = network.spec, MaskedTokenScheduler()
    coordinates = spec.coordinates(size)
    masked = torch.ones(1, len(coordinates), dtype=torch.bool)
    unknown, sample = masked, torch.zeros(1, len(coordinates), 1, dtype=torch.long)
    condition = Condition(torch.zeros(1, 0, network.config.text_width), torch.zeros(1, 0, dtype=torch.bool))
    inputs = network.condition_inputs(condition, coordinates)
    memory = network.empty_memories()[0] if reuse else {}
    generators = seeded([0])
    scheduler.set_timesteps(steps)
    for timestep in scheduler.timesteps:
        hidden = network(sample, masked, coordinates, **inputs, **memory)
        ids, confidence = network.proj_out.sample(hidden, None, 1.0, generators=generators, rule=SamplingRule())
        step = scheduler.step(
            ids, timestep, sample, masked=masked, confidence=confidence, unknown=unknown, generators=generators
        )
        sample, masked = step.prev_sample, step.masked
    return sample


def cost(network: MaskedTransformer, *, repeats: int, **call: Any) -> dict[str, float]:
    """GFLOP and CPU seconds of a video."""
    with count_flops() as counter:
        decode(network, **call)
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        decode(network, **call)
        seconds.append(time.process_time() - start)
    return {"gigaflops": counter.get_total_flops() / 1e9, "cpu_seconds": min(seconds)}


def same_trunk(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The three ways on one trunk with random weights."""
    common = {"latent_spec": SPEC.to_json(), "width": arguments.width, "heads": arguments.width // 64}
    plain = MaskedTransformer(layers=arguments.layers, **common).eval()
    layers = arguments.layers - DECODER_LAYERS
    efficient = EfficientMaskedTransformer(layers=layers, decoder_layers=DECODER_LAYERS, **common).eval()
    ways = {"plain": (plain, False), "encoded anew": (efficient, False), "encoded once": (efficient, True)}
    size, rows = tuple(arguments.size), []
    for name, (network, reuse) in ways.items():
        call = {"size": size, "steps": arguments.steps, "reuse": reuse}
        row = {"model": name, "tokens": SPEC.num_tokens(size), "steps": arguments.steps}
        rows.append(row | cost(network, repeats=arguments.repeats, **call))
    return rows


def trained(names: list[str], prompts: int, every_steps: list[int]) -> list[dict[str, Any]]:
    """Obedience of trained pipelines and FLOPs of their networks, at the pipelines' own settings but for the steps."""
    rows = []
    pipelines: dict[str, Any] = {name: vidgen.load(name) for name in names}
    for (name, pipeline), steps in itertools.product(pipelines.items(), every_steps):
        defaults = pipeline.config.defaults
        size = (defaults["num_frames"], defaults["height"], defaults["width"])
        pipeline.register_to_config(defaults={**defaults, "num_inference_steps": steps})
        counted = cost(pipeline.transformer, repeats=1, size=size, steps=steps, reuse=True)
        asked = {"num_prompts": prompts, "seed": SELECTION_SEED, "split": "selection"}
        result = evaluate_obedience(pipeline, name=name, num_candidates=1, **asked)
        row = {"model": model_label(name), "tokens": pipeline.transformer.spec.num_tokens(size), "steps": steps}
        row |= counted | {"prompts": prompts}
        for attribute in ("colour_motion_background", "all_right"):
            share = result["attributes"][attribute]
            row |= {attribute: share["share"], f"{attribute}_low": share["low"], f"{attribute}_high": share["high"]}
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=3, default=(16, 128, 128), metavar=("FRAMES", "HEIGHT", "WIDTH"))
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--trained", nargs=2, metavar=("PLAIN", "EFFICIENT"), help="trained pipelines, shapes world")
    parser.add_argument("--trained-steps", type=int, nargs="+", default=[12, 24, 48], help="steps of their videos")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--output-dir", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    tables = [same_trunk(arguments)]
    if arguments.trained:
        tables.append(trained(arguments.trained, arguments.prompts, arguments.trained_steps))
    for table in tables:
        for row in table:
            for figure in ("gigaflops", "cpu_seconds"):
                row[f"{figure}_of_plain"] = row[figure] / table[0][figure]
            print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()})
    rows = [row for table in tables for row in table]
    write_csv(arguments.output_dir / "masked_cost.csv", rows)
    report = {"schema": "vidgen.masked_cost/1", "environment": environment_stamp(), "rows": rows}
    write_json(arguments.output_dir / "masked_cost.json", report)


if __name__ == "__main__":
    main()
