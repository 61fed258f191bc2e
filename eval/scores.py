"""Score the built-in models again (`make scores`): eval/results/*.json, tables of them as CSV, README tables.

Suites (`--suites`, all of them by default), on prompts of the test split, which no model or setting was chosen on; each
share with a 95 % Wilson interval:
    reconstruction  the shapes world, and the real clips of the shared folder where it is present
    obedience       prompts with one object and with two, with the model's choice between candidates and without;
                    obedience_errors.csv says by attribute and by word what was wrong
    timelines       does the video change where the prompt does
    long            65 frames by `pipe.extend`, judged in four segments
    continuation    five first frames are given: is their object kept
    speed           seconds for one video on two threads
    matching        does the matcher tell a scene from near misses
The ceiling is the tokenizer: rendered videos of the same prompts, encoded and decoded, before the same judge. A result
file of the same weights and settings is not made again, so a call that was cut off goes on when it is repeated. What
`vidgen models` shows goes to `scores.json` beside the weights.
"""

import argparse
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from error_analysis import table as error_table
from rich.console import Console

import vidgen
from vidgen.data.shapes import ShapesWorld
from vidgen.eval.clips import ClipSet, clips_from_dataset, clips_from_files
from vidgen.eval.continuation_obedience import evaluate_continuation
from vidgen.eval.long_obedience import evaluate_long
from vidgen.eval.matching import evaluate_matching
from vidgen.eval.obedience import TEST_SEED, evaluate_obedience
from vidgen.eval.oracle import Oracle
from vidgen.eval.perceptual import SqueezeNetDistance
from vidgen.eval.protocol import ReconstructionProtocol
from vidgen.eval.protocols import get_protocol
from vidgen.eval.recon_report import ReconstructionReport
from vidgen.eval.recon_suite import evaluate
from vidgen.eval.report import write_csv, write_json
from vidgen.eval.sampling_speed import measure_sampling
from vidgen.eval.subjects import Subject, TokenizerSubject
from vidgen.eval.timeline_obedience import evaluate_timelines
from vidgen.loading import PRETRAINED, shared_components
from vidgen.matchers.presets import MATCHER_PRESETS
from vidgen.tokenizers import DiffusersAutoencoderTokenizer

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "eval" / "results"
PIPELINES = ("shapes-masked", "shapes-flow", "shapes-ar")
TOKENIZERS = ("shapes-fsq", "shapes-kl")  # of these pipelines
MATCHER = "shapes-matcher"  # by which they choose
RECONSTRUCTED = (*TOKENIZERS, "worlds-fsq")
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
# autoencoders of diffusers that a CPU can run on the real clips
PEERS = ("AutoencoderKLLTXVideo", "AutoencoderKLCosmos")
# the README's columns of reconstruction
SCORES = {
    "psnr.rgb.frame_mean.cap100": "PSNR, dB",
    "ssim.rgb.gauss11.valid": "SSIM",
    "squeezenet.features": "SqueezeNet features ↓",
}
COSTS = {
    "bits_per_pixel": "bits/pixel",
    "values_ratio": "RGB values per value",
    "parameters": "parameters, M",
    "encode_gflop_per_frame": "GFLOP/frame to encode",
    "decode_gflop_per_frame": "to decode",
}
HEADINGS = {"colour_motion_background": "colour, motion, background", "all_right": "all right"}
OBJECTS = {1: "", 2: "two_objects_"}  # number of objects in a prompt, and what its result file is called by
ALONE = {"num_candidates": 1}  # how a call does without a choice, which pipelines are scored for as well


SUITES = ("reconstruction", "obedience", "timelines", "long", "continuation", "speed", "matching")
SPEED_PROMPTS = 5


def obedience(names: list[str], prompts: int, batch_size: int) -> None:
    """Score the models called `names`; each has its own result file for either number of objects."""
    for name in names:
        for objects in OBJECTS:
            settings = {"num_prompts": prompts, "objects": objects}
            score(result_file(name, objects), name, evaluate_obedience, settings, batch_size=batch_size)
            if name in PIPELINES:
                place = result_file(name, objects, alone=True)
                score(place, name, evaluate_obedience, {**settings, **ALONE}, batch_size=batch_size)
        if name in PIPELINES:
            one, two = (percent(saved(name, objects)["attributes"]["all_right"]) for objects in OBJECTS)
            write_json(PRETRAINED / name / "scores.json", {"summary": f"all right: one object {one}, two {two}"})


def further(suites: list[str], names: list[str], prompts: int, batch_size: int) -> None:
    """Ask the models called `names` the other questions; each answer has its own file."""
    for name in names:
        if "timelines" in suites:
            score(RESULTS / f"timelines_{name}.json", name, evaluate_timelines, {"num_prompts": prompts})
        if "long" in suites:
            score(RESULTS / f"long_{name}.json", name, evaluate_long, {"num_prompts": prompts})
        if "continuation" in suites:
            place = RESULTS / f"continuation_{name}.json"
            score(place, name, evaluate_continuation, {"num_prompts": prompts}, batch_size=batch_size)
        if "speed" in suites and name in PIPELINES:
            score(RESULTS / f"speed_{name}.json", name, measure_sampling, {"num_prompts": SPEED_PROMPTS})


def matching(prompts: int) -> None:
    """Score the matcher."""
    tokenizer: Any = vidgen.load(MATCHER_PRESETS[MATCHER].tokenizer)
    settings = {"num_prompts": prompts}
    result = score(RESULTS / f"matching_{MATCHER}.json", MATCHER, evaluate_matching, settings, tokenizer=tokenizer)
    write_json(
        PRETRAINED / MATCHER / "scores.json", {"summary": f"caption above near miss {percent(result['ranked'])}"}
    )


def score(
    place: Path, name: str, suite: Callable[..., dict[str, Any]], settings: dict[str, Any], **how: Any
) -> dict[str, Any]:
    """The result of a suite with `settings` on a model, from `place` if it is there already; `how` changes nothing."""
    fingerprint = fingerprint_of(suite.__name__, settings, name)
    if place.is_file():
        result = json.loads(place.read_text())
        if result.get("fingerprint") == fingerprint:
            return result
    model: Any = vidgen.load(name)
    shown = name
    if name in TOKENIZERS:
        model, shown = Oracle(model), f"{name} (ceiling)"
    result = {**suite(model, seed=TEST_SEED, name=shown, **settings, **how), "fingerprint": fingerprint}
    write_json(place, result)
    print(place.stem, answers(result), flush=True)
    return result


def fingerprint_of(suite: str, settings: dict[str, Any], name: str) -> str:
    """What a result says of the question and the weights that it belongs to; without a choice there is no matcher."""
    shared = ("video_tokenizer",) if settings.get("num_candidates") == 1 else ("video_tokenizer", "matcher")
    return hashlib.sha256(f"{suite} {settings} {weights_of(name, shared)}".encode()).hexdigest()[:16]


def weights_of(name: str, shared: tuple[str, ...]) -> str:
    """Hash of a built-in model's files that decide what it makes, with those of the `shared` components."""
    folder, digest = PRETRAINED / name, hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.suffix == ".safetensors" or file.name.endswith(("config.json", "model_index.json")):
            digest.update(file.read_bytes())
    others = [other for component, other in shared_components(folder).items() if component in shared]
    return digest.hexdigest() + "".join(weights_of(other, shared) for other in others)


def answers(result: dict[str, Any]) -> dict[str, float]:
    """The shares of a result that say most."""
    shares = {**result.get("attributes", {}), **result}
    found = {key: shares[key]["share"] for key in HEADINGS if key in shares}
    found |= {key: shares[key]["share"] for key in ("switched", "kept", "ranked") if key in shares}
    return found | ({"seconds": shares["seconds"]["median"]} if "seconds" in shares else {})


def suite_rows() -> list[dict[str, Any]]:
    """One row for each share of each suite and model that was scored: what `obedience_suites.csv` holds."""
    rows = []
    for name in (*PIPELINES, *TOKENIZERS):
        for suite in ("timelines", "long", "continuation", "speed"):
            place = RESULTS / f"{suite}_{name}.json"
            if not place.is_file():
                continue
            result = json.loads(place.read_text())
            row = {"model": result["model"], "suite": suite, "prompts": result["num_prompts"]}
            shares = {**result.get("attributes", {}), **result}
            for key in answers(result):
                values = shares[key] if key != "seconds" else {"value": result["seconds"]["median"]}
                rows.append({**row, "score": key, **values})
    return rows


def error_rows() -> list[dict[str, Any]]:
    """What is wrong with the videos of the obedience suite, by `error_analysis.py`: `obedience_errors.csv`."""
    results = [saved(name, objects) for name in (*PIPELINES, *TOKENIZERS) for objects in OBJECTS]
    return [row for result in results for row in error_table(result["model"], result)]


def result_file(name: str, objects: int, *, alone: bool = False) -> Path:
    return RESULTS / f"obedience_{OBJECTS[objects]}{'alone_' if alone else ''}{name}.json"


def saved(name: str, objects: int, *, alone: bool = False) -> dict[str, Any]:
    """The result as `obedience` wrote it."""
    return json.loads(result_file(name, objects, alone=alone).read_text())


def percent(share: dict[str, float]) -> str:
    """Value and interval."""
    return f"{100 * share['share']:.0f} % ({100 * share['low']:.0f}–{100 * share['high']:.0f})"


def reconstruction(shared: Path | None) -> dict[str, ReconstructionReport]:
    """The built-in tokenizers on clips of the shapes world and, if the shared folder is there, on real ones.

    Beside them on the real clips autoencoders of diffusers with random weights, whose cost is all that they tell.
    """
    own: list[Subject] = []
    for name in RECONSTRUCTED:
        tokenizer: Any = vidgen.load(name)
        own.append(TokenizerSubject(tokenizer, name))
    protocol = get_protocol("recon.v1", ReconstructionProtocol)
    drawn = ClipSet(clips_from_dataset(ShapesWorld(seed=1), 64))
    reports = {"shapes world": evaluate(own, drawn, protocol=protocol)}
    for subject in reports["shapes world"].subjects:
        write_json(PRETRAINED / subject.name / "scores.json", {"summary": summary(subject.total)})
    if shared is None:
        print("no shared folder (VIDGEN_SHARED): the real clips are not scored", file=sys.stderr)
    else:
        real = clips_from_files([shared / "clips" / name for name in REAL_CLIPS], max_frames=33, size=(128, 128))
        distance = SqueezeNetDistance.from_file(shared / "weights" / "squeezenet1_0_imagenet.pt")
        subjects = [*own, *map(random_weights, PEERS)]
        reports["real clips"] = evaluate(subjects, ClipSet(real), protocol=protocol, distances=[distance])
    for kind, report in reports.items():
        report.write(RESULTS / f"reconstruction_{kind.replace(' ', '_')}.json")
        Console(width=240).print(report.table(), *report.notes(), sep="\n")
    return reports


def random_weights(family: str) -> TokenizerSubject:
    """An autoencoder of diffusers in its default configuration."""
    torch.manual_seed(0)
    name = f"{family.removeprefix('AutoencoderKL')} (random weights)"
    return TokenizerSubject(DiffusersAutoencoderTokenizer({"_class_name": family}).eval(), name)


def summary(total: dict[str, Any]) -> str:
    """One line for `vidgen models`."""
    return f"PSNR {total['psnr.rgb.frame_mean.cap100']:.1f} dB on the shapes world"


def obedience_table() -> str:
    """Markdown: share and interval in percent."""
    headings = [
        heading if objects == 1 else f"two objects: {heading}" for objects in OBJECTS for heading in HEADINGS.values()
    ]
    headings += ["alone: all right", "two objects, alone: all right"]
    lines = [f"| model | N | {' | '.join(headings)} | seconds a video |", "|---" * (len(headings) + 3) + "|"]
    for name in (*PIPELINES, *TOKENIZERS):
        one = saved(name, 1)
        cells = [percent(saved(name, objects)["attributes"][key]) for objects in OBJECTS for key in HEADINGS]
        made = name in PIPELINES
        cells += [percent(saved(name, n, alone=True)["attributes"]["all_right"]) if made else "" for n in OBJECTS]
        cells.append(f"{seconds_of_one(name):.1f}" if made else "")
        lines.append(f"| {one['model']} | {one['num_prompts']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def seconds_of_one(name: str) -> float:
    """For one video by itself, as the suite `speed` found."""
    return json.loads((RESULTS / f"speed_{name}.json").read_text())["seconds"]["median"]


def reconstruction_table(reports: dict[str, ReconstructionReport]) -> str:
    """Markdown: scores with their intervals over clips, then rate and cost."""
    lines = [f"| clips | tokenizer | {' | '.join([*SCORES.values(), *COSTS.values()])} |"]
    lines.append("|---" * (len(SCORES) + len(COSTS) + 2) + "|")
    for kind, report in reports.items():
        for subject, estimates in zip(report.subjects, report.estimates, strict=True):
            trained = not subject.name.endswith("(random weights)")
            cells = [str(estimates[key]) if trained and key in estimates else "" for key in SCORES]
            cells += [cost(key, subject.total.get(key)) for key in COSTS]
            lines.append(f"| {kind} | {subject.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cost(column: str, value: float | None) -> str:
    """A cell of the table: parameters in millions, everything else to three digits."""
    return "" if value is None else f"{value / 1e6 if column == 'parameters' else value:.3g}"


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
    parser.add_argument("--suite-prompts", type=int, default=100, help="prompts of the suites after obedience")
    parser.add_argument("--suites", nargs="*", choices=SUITES, default=list(SUITES), help="questions to ask")
    parser.add_argument("--only", nargs="*", help="score these models only, and no reconstruction")
    arguments = parser.parse_args()
    place = Path(os.environ.get("VIDGEN_SHARED", ROOT.parent / "shared"))
    if arguments.only is None and "reconstruction" in arguments.suites:
        write_between("reconstruction", reconstruction_table(reconstruction(place if place.is_dir() else None)))
    wanted = [*PIPELINES, *TOKENIZERS, MATCHER] if arguments.only is None else arguments.only
    if "matching" in arguments.suites and MATCHER in wanted:
        matching(arguments.suite_prompts)
    wanted = [name for name in wanted if name != MATCHER]
    if "obedience" in arguments.suites:
        obedience(wanted, arguments.prompts, arguments.batch_size)
    further(arguments.suites, wanted, arguments.suite_prompts, arguments.batch_size)
    if {"obedience", "speed"} & set(arguments.suites):
        write_between("obedience", obedience_table())
        write_csv(RESULTS / "obedience_errors.csv", error_rows())
    write_csv(RESULTS / "obedience_suites.csv", suite_rows())
