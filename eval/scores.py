"""Score the built-in models again (`make scores`): eval/results/obedience*.json, reconstruction*.json, README tables.

Obedience: prompts of the test split with one and with two objects, which no model or setting was chosen on; each share
with a 95 % Wilson interval. The ceiling is the tokenizer: rendered videos of the same prompts, encoded and decoded,
before the same judge. Reconstruction: the shapes world, and the real clips of the shared folder where it is present.
What `vidgen models` shows goes to `scores.json` beside the weights.
"""

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

import vidgen
from vidgen.data import render
from vidgen.data.shapes import ShapesWorld
from vidgen.eval.detector import ATTRIBUTES, judge
from vidgen.eval.interval import wilson_interval
from vidgen.eval.obedience import TEST_SEED, draw_prompts, evaluate_obedience
from vidgen.eval.recon_suite import clips_from_dataset, clips_from_files, evaluate_reconstruction
from vidgen.eval.report import environment_stamp, write_json
from vidgen.loading import PRETRAINED
from vidgen.nn.random import seeded

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "eval" / "results"
PIPELINES = ("shapes-masked", "shapes-flow", "shapes-ar")
TOKENIZERS = ("shapes-fsq", "shapes-kl")
# one clip of each real source of the shared folder, those without damage
REAL_CLIPS = (
    "asl_book.mkv",
    "carnd_lanelines_p1_solidwhiteright.mp4",
    "learning_area_rabbit320.mp4",
    "media_sample.avi",
    "sam2_01_dog.mp4",
    "sam2_05_default_juggle.mp4",
    "sample_videos_car_detection.mp4",
    "torchcodec_nasa_13013.mp4",
)
HEADINGS = {"colour_motion_background": "colour, motion, background", "all_right": "all right"}
OBJECTS = {1: "", 2: "two_objects_"}  # number of objects in a prompt, and what its result file is called by


def ceiling(tokenizer_name: str, prompts: int, objects: int) -> dict[str, Any]:
    """Obedience of rendered videos after encoding and decoding: what a perfect generator would reach."""
    tokenizer: Any = vidgen.load(tokenizer_name)
    scenes = draw_prompts("test", prompts, seed=TEST_SEED, objects=objects)
    right: dict[str, int] = dict.fromkeys(ATTRIBUTES, 0)
    for scene, generator in zip(scenes, seeded(range(prompts)), strict=True):
        video = render(scene, num_frames=17, height=64, width=64, generator=generator)
        found = judge(tokenizer.decode(tokenizer.encode(video[None]))[0], scene)
        for name in ATTRIBUTES:
            right[name] += bool(getattr(found, name))
    shares = {}
    for name, count in right.items():
        interval = wilson_interval(count, prompts)
        shares[name] = {"right": count, "share": count / prompts, "low": interval.low, "high": interval.high}
    model = f"{tokenizer_name} (ceiling)"
    return {
        "model": model,
        "objects": objects,
        "num_prompts": prompts,
        "attributes": shares,
        "environment": environment_stamp(),
    }


def obedience(names: list[str], prompts: int, batch_size: int) -> None:
    """Score the models called `names`; each has its own result file for either number of objects."""
    for name in names:
        for objects in OBJECTS:
            if name in TOKENIZERS:
                result = ceiling(name, prompts, objects)
            else:
                pipeline: Any = vidgen.load(name)
                result = evaluate_obedience(
                    pipeline,
                    num_prompts=prompts,
                    objects=objects,
                    seed=TEST_SEED,
                    batch_size=batch_size,
                    split="test",
                    name=name,
                )
            write_json(result_file(name, objects), result)
            print(name, objects, {key: value["share"] for key, value in result["attributes"].items()}, flush=True)
        if name in PIPELINES:
            one, two = (percent(saved(name, objects)["attributes"]["all_right"]) for objects in OBJECTS)
            write_json(PRETRAINED / name / "scores.json", {"summary": f"all right: one object {one}, two {two}"})


def result_file(name: str, objects: int) -> Path:
    return RESULTS / f"obedience_{OBJECTS[objects]}{name}.json"


def saved(name: str, objects: int) -> dict[str, Any]:
    """The result as `obedience` wrote it."""
    return json.loads(result_file(name, objects).read_text())


def percent(share: dict[str, float]) -> str:
    """Value and interval."""
    return f"{100 * share['share']:.0f} % ({100 * share['low']:.0f}–{100 * share['high']:.0f})"


def reconstruction(shared: Path | None) -> list[tuple[str, str, dict[str, Any]]]:
    """Total row of each tokenizer on each kind of clips."""
    sets = {"shapes": clips_from_dataset(ShapesWorld(seed=1), 64)}
    if shared is None:
        print("no shared folder (VIDGEN_SHARED): the real clips are not scored", file=sys.stderr)
    else:
        paths = [shared / "clips" / name for name in REAL_CLIPS]
        sets["real"] = clips_from_files(paths, max_frames=33, size=(128, 128))
    rows = []
    for kind, clips in sets.items():
        for name in TOKENIZERS:
            tokenizer: Any = vidgen.load(name)
            report = evaluate_reconstruction(tokenizer, clips, name=name)
            report.write(RESULTS / f"reconstruction_{kind}_{name}.json")
            Console(width=240).print(report.table(), *report.notes(), sep="\n")
            rows.append((kind, name, report.subjects[0].total))
            if kind == "shapes":
                write_json(PRETRAINED / name / "scores.json", {"summary": summary(report.subjects[0].total)})
    return rows


def summary(total: dict[str, Any]) -> str:
    """One line for `vidgen models`."""
    return f"PSNR {total['psnr.rgb.frame_mean.cap100']:.1f} dB on the shapes world"


def obedience_table() -> str:
    """Markdown: share and interval in percent."""
    headings = [
        heading if objects == 1 else f"two objects: {heading}" for objects in OBJECTS for heading in HEADINGS.values()
    ]
    lines = [f"| model | N | {' | '.join(headings)} | seconds a video |", "|---" * (len(headings) + 3) + "|"]
    for name in (*PIPELINES, *TOKENIZERS):
        one = saved(name, 1)
        cells = [percent(saved(name, objects)["attributes"][key]) for objects in OBJECTS for key in HEADINGS]
        seconds = one.get("seconds_per_video")
        cells.append("" if seconds is None else f"{seconds:.1f}")
        lines.append(f"| {one['model']} | {one['num_prompts']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def reconstruction_table(rows: list[tuple[str, str, dict[str, Any]]]) -> str:
    """Markdown: the columns that the spine asks for, from the totals."""
    columns = [key for key in rows[0][2] if key.startswith(("psnr", "ssim")) or key in ("tokens", "bits_per_pixel")]
    lines = [f"| clips | tokenizer | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for kind, name, total in rows:
        cells = ["" if total[key] is None else f"{total[key]:.4g}" for key in columns]
        lines.append(f"| {kind} | {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def write_between(marker: str, text: str) -> None:
    """Put `text` between the README's comments `<!-- marker -->` and `<!-- /marker -->`."""
    readme = ROOT / "README.md"
    pattern = re.compile(f"(<!-- {marker} -->\n).*?(\n<!-- /{marker} -->)", re.DOTALL)
    content, count = pattern.subn(lambda match: match[1] + text + match[2], readme.read_text())
    if count != 1:
        raise ValueError(f"README.md needs the comments <!-- {marker} --> and <!-- /{marker} --> once, found {count}")
    readme.write_text(content)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=25)
    parser.add_argument("--only", nargs="*", help="score these models' obedience only, and no reconstruction")
    arguments = parser.parse_args()
    place = Path(os.environ.get("VIDGEN_SHARED", ROOT.parent / "shared"))
    if arguments.only is None:
        write_between("reconstruction", reconstruction_table(reconstruction(place if place.is_dir() else None)))
    wanted = [*PIPELINES, *TOKENIZERS] if arguments.only is None else arguments.only
    obedience(wanted, arguments.prompts, arguments.batch_size)
    write_between("obedience", obedience_table())
