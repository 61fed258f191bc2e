"""How many seconds does one video take? Sampled one at a time, after a warm-up, on a set number of threads."""

import statistics
import time
from typing import Any

import torch

from vidgen.eval.obedience import draw_prompts, noise, plain_settings
from vidgen.eval.report import environment_stamp


@torch.no_grad()
def measure_sampling(
    pipeline: Any, *, num_prompts: int, seed: int, threads: int = 2, name: str = "", **call_kwargs: Any
) -> dict[str, Any]:
    """Wall-clock and CPU seconds of ``num_prompts`` calls for one prompt each, decoding included; JSON-able result.

    CPU seconds above wall-clock seconds times ``threads`` cannot be; far below, other work held the cores.
    """
    scenes = draw_prompts("test", num_prompts, seed=seed)
    pipeline.set_progress_bar_config(disable=True)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        pipeline(prompt=[scenes[0].caption], generator=[noise(seed, 0)], output_type="pt", **call_kwargs)
        walls, processors = [], []
        for index, scene in enumerate(scenes):
            wall, processor = time.perf_counter(), time.process_time()
            pipeline(prompt=[scene.caption], generator=[noise(seed, index)], output_type="pt", **call_kwargs)
            walls.append(time.perf_counter() - wall)
            processors.append(time.process_time() - processor)
        stamp = environment_stamp(pipeline.device)
    finally:
        torch.set_num_threads(before)
    return {
        "schema": "vidgen.sampling_speed/1",
        "model": name,
        "seed": seed,
        "num_prompts": num_prompts,
        "threads": threads,
        "seconds": {"median": statistics.median(walls), "least": min(walls), "most": max(walls)},
        "cpu_seconds": {"median": statistics.median(processors), "least": min(processors), "most": max(processors)},
        "settings": plain_settings(call_kwargs),
        "environment": stamp,
    }
