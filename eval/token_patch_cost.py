"""What fewer tokens save in training: `python eval/token_patch_cost.py` → eval/results/token_patch_cost.csv.

A training step (forward, backward, bf16, one thread) of the small masked and autoregressive networks on clips of
17×64×64: 320 tokens of 4,096 codes, and the same trunk's 80 tokens of 8 ids, drawn one after the other by a head in
depth or all at once. Random videos and weights; the variants take turns, and the least CPU-seconds of each count.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vidgen.conditioning import Condition
from vidgen.eval.report import environment_stamp, write_csv, write_json
from vidgen.nn.random import seeded
from vidgen.pipelines.presets import PIPELINE_PRESETS, PipelinePreset

RESULTS = Path(__file__).resolve().parent / "results"
ONE_ID = "worlds-fsq"  # the trunk of shapes-fsq with a token at each position


def all_at_once(preset: PipelinePreset) -> PipelinePreset:
    return replace(preset, config={name: value for name, value in preset.config.items() if "head_" not in name})


def variants() -> dict[str, PipelinePreset]:
    found = {}
    for name in ("shapes-masked", "shapes-ar"):
        preset = PIPELINE_PRESETS[name]
        found[f"{name}, 320 tokens of one id"] = replace(all_at_once(preset), tokenizer=ONE_ID)
        found[f"{name}, 80 tokens, head in depth"] = preset
        found[f"{name}, 80 tokens, ids at once"] = all_at_once(preset)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "token_patch_cost.csv")
    arguments = parser.parse_args()
    batch = arguments.batch_size
    torch.manual_seed(0)
    video = torch.rand(batch, 3, 17, 64, 64) * 2 - 1
    steps: dict[str, Any] = {}
    for name, preset in variants().items():
        pipeline: Any = preset.build()
        width = pipeline.text_encoder.width
        condition = Condition(torch.randn(batch, 16, width), torch.ones(batch, 16, dtype=torch.bool))
        steps[name] = (pipeline.transformer.train(), pipeline.video_tokenizer.encode(video), condition)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(arguments.rounds):
        for name, (network, latents, condition) in steps.items():
            began = time.process_time()
            with torch.autocast("cpu", torch.bfloat16):
                loss = sum(network.losses(latents, condition, generators=seeded(range(batch))).values())
            loss.backward()
            seconds[name].append(time.process_time() - began)
            network.zero_grad()
    rows = [
        {"network": name, "cpu_seconds": round(min(some), 4), "clips_per_second": round(batch / min(some), 1)}
        for name, some in seconds.items()
    ]
    write_csv(arguments.output, rows)
    settings = {"batch_size": batch, "rounds": arguments.rounds}
    write_json(
        arguments.output.with_suffix(".json"),
        {"schema": "vidgen.token_patch_cost/1", "settings": settings, "rows": rows, "environment": environment_stamp()},
    )
    for row in rows:
        print(row)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
