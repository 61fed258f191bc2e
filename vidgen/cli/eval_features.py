"""`vidgen eval features`: run a feature network over a folder of videos once, for as many distances as you like."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import arg

from vidgen.cli.distances import NetworkOptions, cache_folder, pick_extractor
from vidgen.cli.loading import make_folder, pick_device


@dataclass(frozen=True, kw_only=True)
class Command(NetworkOptions):
    """Write the features of all videos of a folder into one safetensors file, for `vidgen eval distance`.

    Goes on where a run was cut short. Under `accelerate launch` the processes share the videos.

    Example: vidgen eval features --videos clips/ --protocol fvd.tats --i3d i3d_pretrained_400.pt -o clips.safetensors
    """

    videos: Annotated[Path, arg(metavar="DIR")]
    """Folder of videos."""
    output: Annotated[Path, arg(aliases=["-o"], metavar="FILE")]
    """The feature file to write."""
    protocol: str = "fvd.styleganv.2048x16"
    """Preset that names network, clips and resizing; `vidgen eval list-protocols` lists them."""
    num_videos: int | None = None
    """Draw so many; all by default."""


def run(command: Command) -> None:
    """Do it; errors are for the user."""
    from vidgen.eval.feature_extraction import examine, extract_features
    from vidgen.eval.protocol import FeatureProtocol
    from vidgen.eval.protocols import get_protocol
    from vidgen.eval.ranks import join_launch, rank
    from vidgen.eval.video_survey import survey

    make_folder(command.output)
    device = join_launch(pick_device(command.device))
    speaks = rank() == 0
    protocol, extractor, _ = pick_extractor(command, get_protocol(command.protocol, FeatureProtocol), device)
    reading: dict[str, Any] = {
        "count": command.num_videos,
        "cache": cache_folder(command),
        "seed": command.seed,
        "allow_missing": command.allow_missing,
    }
    videos = survey(command.videos, allow_missing=command.allow_missing)
    examined = examine(videos, extractor, protocol, **reading)
    say = print if speaks else lambda line: None
    features = extract_features(examined.survey, extractor, protocol, device=device, say=say, **reading)
    if speaks:
        features.save(command.output)
        rows, width = features.features.shape
        print(f"wrote {command.output}: {rows} rows of {width} features from {features.num_videos} videos")
