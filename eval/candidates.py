"""What is a choice between candidates worth? `python eval/candidates.py [shapes-flow …]` -> eval/results/candidates.csv

For prompts of the selection split every model makes several candidates; the judge reads all of them. Rows: model,
number of objects, rule of choice, candidates that it chooses from; share of prompts whose chosen video is all right,
mean over the disjoint groups of so many candidates, with a 95 % bootstrap interval over prompts. Rules:
    both          matcher and plausibility, standardised over a prompt's candidates: what `num_candidates` goes by
    matcher       `Matcher.score`, where the model has a matcher
    plausibility  `Generator.plausibility`, what `num_candidates` goes by without one
    difference    the same minus that without a prompt (what classifier-free guidance adds)
    any           a choice that knows the judge: right if one candidate is
Rows of models that are not asked for stay in the table.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vidgen
from vidgen.conditioning import Condition
from vidgen.eval.bootstrap import Bootstrap
from vidgen.eval.detector import compare, detect
from vidgen.eval.obedience import SELECTION_SEED, draw_prompts, noise, videos_of
from vidgen.eval.report import environment_stamp, write_csv, write_json
from vidgen.nn.fingerprint import weights_sha256
from vidgen.pipelines.candidates import standardised

RESULTS = Path(__file__).resolve().parent / "results"
PIPELINES = ("shapes-masked", "shapes-flow", "shapes-ar")


@torch.no_grad()
def candidates_of(pipeline: Any, *, prompts: int, objects: int, candidates: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Which candidates are all right, `prompts candidates` bool, and what each rule thinks of them."""
    rights, plausible, unprompted, matched = [], [], [], []
    for number, scene in enumerate(draw_prompts("selection", prompts, seed=SELECTION_SEED, objects=objects)):
        generators = [noise(SELECTION_SEED, number * candidates + index) for index in range(candidates)]
        call = {"num_videos_per_prompt": candidates, "num_candidates": 1, "generator": generators}
        latents = pipeline(scene.caption, **call, output_type="latent").frames
        states, mask, _, _ = pipeline.encode_prompt(scene.caption, num_videos_per_prompt=candidates)
        condition = Condition(states, mask)
        plausible.append(pipeline.judged(latents, condition))
        unprompted.append(pipeline.judged(latents, condition.without_text()))
        if pipeline.matcher is not None:
            matched.append(pipeline.matched(latents, [[(0, scene.caption)]]))
        rights.append(
            torch.tensor([compare(detect(one), scene).all_right for one in videos_of(pipeline.decode(latents, "pt"))])
        )
    right, likely = torch.stack(rights), torch.stack(plausible)
    rules = {}
    if matched:
        fits = torch.stack(matched)
        rules = {"both": standardised(fits) + standardised(likely), "matcher": fits}
    return right, {
        **rules,
        "plausibility": likely,
        "difference": likely - torch.stack(unprompted),
        "any": right.float(),
    }


def table(right: Tensor, rules: dict[str, Tensor]) -> list[dict[str, Any]]:
    """The rows of one model and number of objects; numbers of candidates are 1, 2, 4 … as far as they go."""
    bootstrap, rows = Bootstrap(), []
    prompts, most = right.shape
    for rule, scores in rules.items():
        for count in [2**power for power in range(most.bit_length())]:
            groups = scores[:, : most // count * count].unflatten(1, (-1, count))
            chosen = groups.argmax(dim=2, keepdim=True)
            share = right[:, : groups.shape[1] * count].unflatten(1, (-1, count)).gather(2, chosen)
            per_prompt = share.double().mean(dim=(1, 2)).numpy()
            low, high = bootstrap.interval(bootstrap.draws(prompts) @ per_prompt / prompts)
            rows.append({"rule": rule, "candidates": count, "share": per_prompt.mean(), "low": low, "high": high})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(PIPELINES), help="built-in names, or folders of pipelines")
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--objects", type=int, nargs="*", choices=(1, 2), default=(1, 2))
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "candidates.csv")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if arguments.output.is_file():
        with arguments.output.open() as file:
            rows = [row for row in csv.DictReader(file) if row["model"] not in arguments.models]
    for name in arguments.models:
        pipeline: Any = vidgen.load(name)
        pipeline.set_progress_bar_config(disable=True)
        for objects in arguments.objects:
            asked = {"prompts": arguments.prompts, "objects": objects}
            found = table(*candidates_of(pipeline, candidates=arguments.candidates, **asked))
            about = {"model": name, "weights": weights_sha256(pipeline.transformer)[:16], **asked}
            rows += [{**about, **row} for row in found]
            for row in found:
                print(name, objects, row["rule"], row["candidates"], f"{row['share']:.3f}", flush=True)
            write_csv(arguments.output, rows)
            settings = {"split": "selection", "seed": SELECTION_SEED, "environment": environment_stamp(pipeline.device)}
            write_json(arguments.output.with_suffix(".json"), {"schema": "vidgen.candidates/1", **settings})
    print(arguments.output)


if __name__ == "__main__":
    main()
