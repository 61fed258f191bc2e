"""What the commands that compare two sets of videos share: their options, and the way from folders to a result."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from vidgen.cli.loading import load_tokenizer, make_folder, pick_device

if TYPE_CHECKING:
    import torch

    from vidgen.eval.distance_report import DistanceReport
    from vidgen.eval.extractors import FeatureExtractor
    from vidgen.eval.protocol import FeatureProtocol

CACHE = Path("~/.cache/vidgen/features")
TOKENIZER = "tokenizer:"


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Which network looks at the videos, and how they are given to it."""

    weights: Annotated[Path | None, arg(aliases=["--i3d", "--inception"], metavar="FILE")] = None
    """The network's weight file. Without it the error says which file is wanted."""
    weights_sha256: str | None = None
    """Digest of a weight file of your own; the result is then called fd.NAME, not FVD or FID."""
    torchscript: bool = False
    """Accept a TorchScript weight file: loading one runs the program in it."""
    extractor: str | None = None
    """Another network than the protocol's, by name, or `tokenizer:NAME`; the result is then called fd.NAME."""
    cache: Annotated[Path, arg(metavar="DIR")] = CACHE
    """Where features are kept, so that a second run is instant and one cut short goes on."""
    no_cache: bool = False
    """Keep no features."""
    seed: int = 0
    """Draws the videos, the clips and the subsets."""
    allow_missing: bool = False
    """Leave out damaged and doubled videos, and say so in the result, instead of an error."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


@dataclass(frozen=True, kw_only=True)
class DistanceOptions(NetworkOptions):
    """Two sets of videos to compare."""

    real: Annotated[Path, arg(metavar="DIR")]
    """Folder of real videos."""
    fake: Annotated[Path, arg(metavar="DIR")]
    """Folder of generated or reconstructed videos."""
    output: Annotated[Path | None, arg(aliases=["-o"], metavar="FILE")] = None
    """Where to write the result as JSON."""
    repeats: int = 20
    """Subsets that the interval is drawn from."""
    allow_small_n: bool = False
    """Take the videos that are there, where the protocol asks for more or they are fewer than the features."""
    allow_mismatch: bool = False
    """Compare folders that differ in frame size or rate."""


def run_distance(options: DistanceOptions, protocol_name: str, metrics: tuple[str, ...]) -> None:
    """Folders to features to a printed and written result."""
    from vidgen.eval.distance import check_numbers, kinds_of, measure_distance
    from vidgen.eval.feature_extraction import examine, extract_features
    from vidgen.eval.protocol import FeatureProtocol
    from vidgen.eval.protocols import get_protocol
    from vidgen.eval.ranks import join_launch, rank
    from vidgen.eval.video_survey import check_alike, survey

    make_folder(options.output)
    device = join_launch(pick_device(options.device))
    speaks = rank() == 0
    protocol, overrides = get_protocol(protocol_name, FeatureProtocol), {}
    if options.allow_small_n:
        protocol, overrides = changed(protocol, num_real=None, num_fake=None, repeats=1)
    protocol, extractor, others = pick_extractor(options, protocol, device)
    real, fake = (survey(root, allow_missing=options.allow_missing) for root in (options.real, options.fake))
    if not options.allow_mismatch:
        check_alike(real, fake, resampled=protocol.clip.fps is not None)
    fakes = None if protocol.num_fake is None else protocol.num_fake * protocol.repeats
    for which, one, count in (("real", real, protocol.num_real), ("fake", fake, fakes)):
        if count is not None and len(one.videos) < count:
            raise ValueError(
                f"{protocol.name} needs {count} {which} videos, and {one.root} has {len(one.videos)}; add videos, or "
                "take what is there with --allow-small-n"
            )
    counts = (protocol.num_real, fakes)
    reading: dict[str, Any] = {
        "cache": cache_folder(options), "seed": options.seed, "allow_missing": options.allow_missing,
    }  # fmt: skip
    examined = [
        examine(one, extractor, protocol, count=count, **reading)
        for one, count in zip((real, fake), counts, strict=True)
    ]
    check_numbers(
        kinds_of(metrics),
        videos=(examined[0].num_videos, examined[1].num_videos),
        rows=min(one.num_rows for one in examined),
        width=extractor.num_features,
        name=extractor.distance_name("f"),
        protocol=protocol,
        allow_small_n=options.allow_small_n,
    )
    say = print if speaks else lambda line: None
    sets = [
        extract_features(one.survey, extractor, protocol, count=count, device=device, say=say, **reading)
        for one, count in zip(examined, counts, strict=True)
    ]
    if not speaks:
        return
    report = measure_distance(
        *sets,
        metrics=metrics,
        protocol=protocol,
        overrides=overrides | others,
        allow_small_n=options.allow_small_n,
        seed=options.seed,
        repeats=options.repeats,
    )
    show(report, options.output)


def pick_extractor(
    options: NetworkOptions, protocol: "FeatureProtocol", device: "torch.device"
) -> tuple["FeatureProtocol", "FeatureExtractor", dict[str, Any]]:
    """The protocol as it is run, its network, and the conditions that differ from the preset."""
    from vidgen.eval.extractors import TokenizerFeatures, WeightChoice, load_extractor

    name = options.extractor or protocol.extractor
    if name.startswith(TOKENIZER):
        model = name.removeprefix(TOKENIZER)
        tokenizer = load_tokenizer(model, device=str(device), precision="fp32")
        extractor: FeatureExtractor = TokenizerFeatures(tokenizer, name=Path(model).name)
    else:
        choice = WeightChoice(options.weights, options.weights_sha256, options.torchscript)
        extractor = load_extractor(name, choice)
    metric = extractor.distance_name("f" if protocol.estimator == "frechet" else "k")
    protocol, overrides = changed(protocol, extractor=extractor.name, tap=extractor.tap, metric=metric)
    return protocol, extractor, overrides


def changed(protocol: "FeatureProtocol", **conditions: Any) -> tuple["FeatureProtocol", dict[str, Any]]:
    """`protocol` under other conditions, and which of them are new: its hash is then no longer the preset's."""
    new = {name: value for name, value in conditions.items() if getattr(protocol, name) != value}
    return replace(protocol, **new), new


def cache_folder(options: NetworkOptions) -> Path | None:
    return None if options.no_cache else options.cache.expanduser()


def show(report: "DistanceReport", output: Path | None) -> None:
    """Print the table; write the JSON where one is asked for."""
    from rich.console import Console

    from vidgen.eval.report import write_json

    Console().print(report.table())
    if output is not None:
        write_json(output, report.to_json())
        print(f"wrote {output}")
