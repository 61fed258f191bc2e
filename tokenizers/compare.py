"""Which bottleneck, which trunk? `python tokenizers/compare.py --clips DIR` trains small ones of all and scores them.

`--contest beside-wan` trains the base presets and a trunk like Wan's in the same way.

Every bottleneck on one trunk and every trunk on one bottleneck (`vidgen/tokenizers/comparison.py`), on the same clips
for the same steps, in the shapes world and on real clips that are split by source. Hours in all: stop it whenever you
like, the same command goes on where it was, and with the table alone on another machine too. Each row has a folder with
`row.json` once it is finished; a row whose loss was no number or that failed in another way says so in the table, and
the next one begins.
"""

import json
import multiprocessing
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Any, Literal, NamedTuple, get_args

import torch
import tyro
from real_clips import FAMILIES

import vidgen
from vidgen.data.pieces import DESCRIPTION, Cutting, cut_by_source
from vidgen.data.sources import read_families
from vidgen.eval.charts import Series, Whisker, curve_chart, interval_chart
from vidgen.eval.clips import ClipSet, clips_from_dataset
from vidgen.eval.perceptual import SqueezeNetDistance
from vidgen.eval.protocol import ClipRule, Preprocess, ReconstructionProtocol
from vidgen.eval.psnr import Psnr
from vidgen.eval.recon_suite import evaluate
from vidgen.eval.report import environment_stamp, git_commit, write_csv, write_json
from vidgen.eval.subjects import TokenizerSubject
from vidgen.tokenizers import HolisticTokenizer, Tokenizer
from vidgen.tokenizers.comparison import CONTESTS, TIMES_STEPS
from vidgen.tokenizers.holistic import prefix
from vidgen.tokenizers.presets import TokenizerPreset
from vidgen.training import DataConfig, OptimiserConfig, TokenizerRun, TrainingDiverged, train_tokenizer
from vidgen.training.clips import training_clips, validation_clips
from vidgen.training.config import Precision
from vidgen.training.monitor import codebook_collapsed, health

World = Literal["shapes", "real"]
Contest = Literal["parts", "beside-wan"]
PROTOCOL = ReconstructionProtocol(
    name="compare.v1",
    clip=ClipRule(),
    preprocess=Preprocess(),
    metrics=("psnr.rgb.frame_mean.cap100", "ssim.rgb.gauss11.valid"),
    source="tokenizers/compare.py: whole pieces, 8-bit levels, every frame counts the same",
)
# Column of the table -> score of the evaluation.
SCORES = {
    "psnr": "psnr.rgb.frame_mean.cap100",
    "ssim": "ssim.rgb.gauss11.valid",
    "squeezenet_features": "squeezenet.features",
    "usage": "codebook.usage",
    "perplexity": "codebook.perplexity",
    "entropy_bits_per_token": "codebook.bits_per_token",
    "bits_per_pixel": "bits_per_pixel",
    "values_ratio": "values_ratio",
    "encode_frames_per_second": "encode_frames_per_second",
    "decode_frames_per_second": "decode_frames_per_second",
}
CONVENTIONS = {
    "bits_per_pixel": "log2 of the codebook size of each id, over frames x height x width; none for continuous latents",
    "values_ratio": "RGB values of a clip over values of its tokens",
    "entropy_bits_per_token": "each id coded by its own frequency in the scored clips",
    "usage": "share of codes seen at least once in the scored clips",
    "gflop": "round trip of one clip, multiply and add count as two",
    "frames_per_second": "batch 1, wall clock; only to be compared on one device; none with --jobs",
    "train_cpu_seconds": "training and scoring, of the last sitting alone where the row was interrupted",
    "status": "trained; collapsed: few codes in use after training; diverged: a loss was no number; failed: see note",
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is trained, for how long, and where results go."""

    contest: Contest = "parts"
    """`parts`: small tokenizers, all bottlenecks, all trunks; `beside-wan`: the base presets and a trunk like Wan's."""
    only: tuple[str, ...] = ()
    """Rows by name, such as conv/fsq; all by default."""
    worlds: tuple[World, ...] = ("shapes", "real")
    """The shapes world, real clips, or both."""
    clips: Path | None = None
    """Folder of real videos, for `real`."""
    families: Path = FAMILIES
    """Which of them are one source though their names differ: JSON, source -> patterns of names."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds of initial weights, order and noise."""
    steps: int = 2000
    """Steps of every row."""
    batch_size: int = 4
    """Clips of a step."""
    learning_rate: float = 1e-3
    """Peak learning rate of every row."""
    precision: Precision = "fp32"
    """Number format of the forward pass."""
    scored_clips: int = 48
    """Most clips that a row is scored on."""
    squeezenet_weights: Path | None = None
    """ImageNet SqueezeNet 1.0, for the perceptual distance."""
    output_dir: Path = Path("runs/compare")
    """Pieces of real clips, and a run folder a row."""
    results: Path = Path("eval/results/tokenizers_compare.csv")
    """The table; JSON and plots lie beside it."""
    checkpoint_every: int = 250
    """Steps that are lost at most when a run is stopped."""
    jobs: int = 1
    """Rows that are trained at a time, each in a process of its own if more than one."""
    device: Literal["auto", "cpu"] = "auto"
    """`cpu` leaves a GPU alone."""
    retry: bool = False
    """Train rows again that have failed."""
    tiny: bool = False
    """Tiny twins, tiny clips, two steps: does everything run?"""

    def __post_init__(self) -> None:
        unknown = [name for name in self.only if name not in self.contestants]
        if unknown:
            raise ValueError(f"there is no row {unknown[0]!r}; there are {', '.join(self.contestants)}")
        if "real" in self.worlds and self.clips is None:
            raise ValueError("real clips are wanted, and there are none: give --clips DIR or --worlds shapes")
        if min(self.steps, self.batch_size, self.scored_clips, self.checkpoint_every, self.jobs) < 1:
            raise ValueError("steps, batch_size, scored_clips, checkpoint_every and jobs are at least 1")

    @property
    def contestants(self) -> dict[str, TokenizerPreset]:
        return CONTESTS[self.contest]

    @property
    def cutting(self) -> Cutting:
        """Of the real clips."""
        return Cutting(num_frames=9, height=32, width=32, pieces=2) if self.tiny else Cutting(pieces=24)

    @property
    def pieces(self) -> Path:
        return self.output_dir / "pieces"


class Row(NamedTuple):
    """One tokenizer in one world from one seed."""

    name: str
    world: World
    seed: int

    def folder(self, settings: Settings) -> Path:
        return settings.output_dir / self.world / self.name.replace("/", "-") / f"seed-{self.seed}"

    def steps(self, settings: Settings) -> int:
        return settings.steps * TIMES_STEPS.get(self.name, 1)

    def finished(self, settings: Settings) -> dict[str, Any] | None:
        """The row of the table, None before it is there."""
        path = self.folder(settings) / "row.json"
        return json.loads(path.read_text()) if path.is_file() else None


def rows_of(settings: Settings) -> Iterator[Row]:
    """All tokenizers from the first seed before the next: half the time already gives a whole table."""
    for seed in settings.seeds:
        for world in settings.worlds:
            yield from (Row(name, world, seed) for name in settings.only or settings.contestants)


def train_row(row: Row, settings: Settings) -> dict[str, Any]:
    """Train, score and write `row.json`. What goes wrong is a result of its own, but for an interruption."""
    began = time.process_time()
    folder = row.folder(settings)
    trunk, bottleneck = row.name.split("/")
    result: dict[str, Any] = {
        "name": row.name,
        "trunk": trunk,
        "bottleneck": bottleneck,
        "world": row.world,
        "seed": row.seed,
        "steps": row.steps(settings),
    }
    try:
        found = trained_and_scored(row, settings)
        result |= {"status": "collapsed" if found["note"] else "trained", **found}
    except TrainingDiverged as error:
        result |= {"status": "diverged", "note": str(error)}
    except Exception as error:  # hours of other rows wait behind this one, and the table says what happened
        result |= {"status": "failed", "note": f"{type(error).__name__}: {error}"}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "error.txt").write_text(traceback.format_exc())
    result["train_cpu_seconds"] = round(time.process_time() - began, 1)
    result |= {"device": environment_stamp("cuda" if on_gpu(settings) else "cpu")["device"]}
    result |= {"commit": git_commit(), "date": datetime.now(UTC).date().isoformat()}
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    write_json(folder / "row.json", result)
    return result


def trained_and_scored(row: Row, settings: Settings) -> dict[str, Any]:
    """Columns of the table, an empty note when all is well."""
    cutting = settings.cutting
    clip = DataConfig(num_frames=cutting.num_frames, height=cutting.height, width=cutting.width, validation_clips=0)
    if row.world == "shapes":
        data = replace(clip, source="shapes", objects=(1, 1, 2))
        unseen = validation_clips(replace(data, validation_clips=settings.scored_clips))
    else:
        data = replace(clip, source=str(settings.pieces / "train"), fps=None, clips_per_video=1)
        unseen = training_clips(replace(data, source=str(settings.pieces / "unseen")))
    preset = settings.contestants[row.name]
    with torch.random.fork_rng():
        torch.manual_seed(row.seed)
        tokenizer = (preset.tiny() if settings.tiny else preset).build()
    model = train_tokenizer(
        TokenizerRun(
            preset=row.name,
            output_dir=row.folder(settings),
            data=data,
            optimiser=OptimiserConfig(learning_rate=settings.learning_rate, warmup_steps=min(100, settings.steps)),
            steps=row.steps(settings),
            batch_size=settings.batch_size,
            precision=settings.precision,
            ema_decay=0.99,
            seed=row.seed,
            checkpoint_every=settings.checkpoint_every,
            keep=1,
            validate_every=0,
            sample_every=0,
            log_every=100,
            statistics_clips=4 * settings.batch_size,
            resume=True,
            device=settings.device,
        ),
        tokenizer=tokenizer,
    )
    trained: Any = vidgen.load(model)
    return scored(trained.eval().to("cuda" if on_gpu(settings) else "cpu"), row, unseen, settings)


def on_gpu(settings: Settings) -> bool:
    return settings.device == "auto" and torch.cuda.is_available()


def scored(tokenizer: Tokenizer, row: Row, unseen: Any, settings: Settings) -> dict[str, Any]:
    """The columns of a trained tokenizer."""
    count = min(settings.scored_clips, len(unseen))
    distances = []
    if settings.squeezenet_weights is not None:
        distances.append(SqueezeNetDistance.from_file(settings.squeezenet_weights))
    clips = ClipSet(clips_from_dataset(unseen, count))
    report = evaluate([TokenizerSubject(tokenizer, row.name)], clips, protocol=PROTOCOL, distances=distances)
    total = report.subjects[0].total
    found = {column: total.get(score) for column, score in SCORES.items()}
    if settings.jobs > 1:  # other rows take their share of the machine
        found |= {column: None for column in found if column.endswith("frames_per_second")}
    per_frame = total["encode_gflop_per_frame"] + total["decode_gflop_per_frame"]
    found |= {
        "tokens": round(total["tokens"] / count),
        "parameters_million": round(total["parameters"] / 1e6, 3),
        "gflop": round(per_frame * settings.cutting.num_frames, 4),
        "note": collapse(tokenizer, total, settings.cutting) or "",
    }
    if isinstance(tokenizer, HolisticTokenizer) and tokenizer.tail_drop:
        found["prefix_psnr"] = prefix_curve(tokenizer, unseen, count)
    return found


def collapse(tokenizer: Tokenizer, total: dict[str, Any], cutting: Cutting) -> str | None:
    """What the training monitor would say of the codes that the scored clips use, of the worst codebook."""
    found, size = [], (cutting.num_frames, cutting.height, cutting.width)
    clips = total["tokens"] / tokenizer.spec.num_tokens(size)
    for part in tokenizer.spec.parts:
        for number, codes in enumerate(part.codebooks):
            if part.name == "motion":  # vectors, not learned codes: still pictures use few
                continue
            perplexity = total[f"codebook.{part.name}.{number}.perplexity"]
            used = codes * total[f"codebook.{part.name}.{number}.usage"]
            possible = min(codes, clips * part.num_tokens(size))
            found.append({"perplexity": perplexity, "codes_used": used, "codes_possible": possible})
    if not found:
        return None
    return codebook_collapsed(min(found, key=health))


@torch.no_grad()
def prefix_curve(tokenizer: HolisticTokenizer, unseen: Any, count: int) -> list[list[float]]:
    """[tokens, PSNR] for prefixes of 1, 2, 4… tokens and all of them."""
    lengths = [2**power for power in range(20) if 2**power < tokenizer.queries] + [tokenizer.queries]
    metrics = {length: Psnr() for length in lengths}
    for index in range(count):
        video = unseen[index]["video"][None].to(tokenizer.device)
        latents = tokenizer.encode(video)
        for length, metric in metrics.items():
            metric.update(tokenizer.decode(prefix(latents, length)), video, start=0)
    return [[length, metric.compute()[metric.key]] for length, metric in metrics.items()]


def write_table(settings: Settings) -> None:
    """CSV, JSON and plots of all rows that are finished, those of worlds and seeds that this call leaves out too."""
    seeds = {int(path.parent.name.removeprefix("seed-")) for path in settings.output_dir.glob("*/*/seed-*/row.json")}
    every = [
        Row(name, world, seed) for seed in sorted(seeds) for world in get_args(World) for name in settings.contestants
    ]
    rows = [found for row in every if (found := row.finished(settings)) is not None]
    table = [{column: value for column, value in row.items() if column != "prefix_psnr"} for row in rows]
    write_csv(settings.results, table)
    write_json(
        settings.results.with_suffix(".json"),
        {
            "rows": rows,
            "conventions": CONVENTIONS,
            "protocol": PROTOCOL.to_json(),
            "settings": conditions(settings),
            "real_clips": real_clips(settings),
            "environment": environment_stamp(),
        },
    )
    for name, chart in charts(rows).items():
        settings.results.with_name(f"{settings.results.stem}_{name}.svg").write_text(chart, encoding="utf-8")


def real_clips(settings: Settings) -> dict[str, Any] | None:
    """Sources and pieces of the real clips, as cut here or as the table already says."""
    pieces, table = settings.pieces / DESCRIPTION, settings.results.with_suffix(".json")
    if pieces.is_file():
        return json.loads(pieces.read_text())
    return json.loads(table.read_text())["real_clips"] if table.is_file() else None


def charts(rows: list[dict[str, Any]]) -> dict[str, str]:
    """Plots by name: PSNR of all rows by world, PSNR over the length of a prefix, PSNR over the tokens of planes."""
    drawn, prefixes, planes = {}, [], []
    scored = [row for row in rows if row.get("psnr") is not None]
    for colour, world in enumerate(dict.fromkeys(row["world"] for row in scored)):
        of_name: dict[str, list[dict[str, Any]]] = {}
        for row in scored:
            if row["world"] == world:
                of_name.setdefault(row["name"], []).append(row)
        values = {name: [row["psnr"] for row in some] for name, some in of_name.items()}
        whiskers = [Whisker(name, mean(some), min(some), max(some)) for name, some in values.items()]
        label = f"PSNR (dB) on {world} clips never trained on: mean, least and greatest of the seeds"
        drawn[world] = interval_chart(whiskers, label=label, width=720)
        curves = [row["prefix_psnr"] for some in of_name.values() for row in some if "prefix_psnr" in row]
        if curves:
            points = [(step[0][0], mean(psnr for _, psnr in step)) for step in zip(*curves, strict=True)]
            prefixes.append(Series(world, points, colour=colour))
        points = [(of_name[name][0]["tokens"], mean(values[name])) for name in of_name if name.startswith("planes")]
        if points:
            planes.append(Series(world, points, colour=colour))
    if prefixes:
        drawn["prefix"] = curve_chart(prefixes, x_label="tokens decoded", y_label="PSNR (dB)")
    if planes:
        drawn["planes"] = curve_chart(planes, x_label="tokens of the three planes", y_label="PSNR (dB)")
    return drawn


def conditions(settings: Settings) -> dict[str, Any]:
    """What all rows of one table share."""
    decisive = ("contest", "steps", "batch_size", "learning_rate", "precision", "scored_clips", "tiny")
    shared = {name: getattr(settings, name) for name in decisive}
    return shared | {"perceptual": settings.squeezenet_weights is not None}


def check_conditions(found: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    """ValueError when rows were trained otherwise, which one table may not mix."""
    differing = [name for name, value in wanted.items() if found.get(name) != value]
    if differing:
        raise ValueError(
            f"{path} is of rows with another {', '.join(differing)}; give what it says, or choose another --output-dir "
            "and --results"
        )


def take_up(settings: Settings) -> None:
    """Finished rows of the run folder and of the table count as done: the table alone is enough to go on elsewhere."""
    wanted, path = conditions(settings), settings.output_dir / "settings.json"
    if path.is_file():
        check_conditions(json.loads(path.read_text()), wanted, path)
    table = settings.results.with_suffix(".json")
    if table.is_file():
        found = json.loads(table.read_text())
        check_conditions(found["settings"], wanted, table)
        for result in found["rows"]:
            row = Row(result["name"], result["world"], result["seed"])
            if row.finished(settings) is None:
                write_json(row.folder(settings) / "row.json", result)
    write_json(path, wanted)


def compare(settings: Settings) -> None:
    """Train what is not finished yet; the table is written anew after every row."""
    take_up(settings)
    if settings.clips is not None and "real" in settings.worlds:
        families = read_families(settings.families)
        cut_by_source(settings.clips, settings.pieces, settings.cutting, families=families)
    waiting = []
    for row in rows_of(settings):
        before = row.finished(settings)
        if before is None or (settings.retry and before["status"] == "failed"):
            waiting.append(row)
    print(f"{len(waiting)} rows to train", flush=True)
    for number, result in enumerate(results(waiting, settings), 1):
        write_table(settings)
        shown = [result["world"], result["name"], f"seed {result['seed']}", result["status"]]
        shown += [f"{result['psnr']:.2f} dB"] if "psnr" in result else []
        shown += [result["note"]] if result["note"] else []
        print(f"[{number}/{len(waiting)}] {', '.join(shown)}", flush=True)
    write_table(settings)


def results(rows: Sequence[Row], settings: Settings) -> Iterator[dict[str, Any]]:
    if settings.jobs == 1:
        yield from (train_row(row, settings) for row in rows)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        settings.jobs, mp_context=context, initializer=end_with_parent, max_tasks_per_child=1
    ) as pool:
        futures = [pool.submit(train_row, row, settings) for row in rows]
        yield from (future.result() for future in as_completed(futures))


def end_with_parent() -> None:
    """In a child: do not train on, unseen, when the parent was killed; its checkpoints stay."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main() -> int:
    """Read the command line and compare; 2 after a mistake that the user can mend, 130 when interrupted."""
    try:
        settings = tyro.cli(Settings, description=__doc__)
        if settings.tiny:
            settings = replace(settings, steps=2, batch_size=2, scored_clips=2, seeds=settings.seeds[:1])
        compare(settings)
    except ValueError as error:
        print(f"tokenizers/compare.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
