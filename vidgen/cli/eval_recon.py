"""`vidgen eval recon`: how well a tokenizer gives clips back, how small its tokens are, how fast it is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import arg

from vidgen.cli.loading import Precision, load_tokenizer

WORLD = "shapes"
UNLIMITED = 1000  # characters


@dataclass(frozen=True, kw_only=True)
class Command:
    """Score a tokenizer on clips: PSNR, SSIM, LPIPS, tokens, bits, codebook use, speed and memory.

    Prints a table, and with -o writes a JSON file (everything, with the conventions and the machine) and a CSV file
    beside it. A column that cannot be computed says why.

    Example: vidgen eval recon --tokenizer shapes-fsq --data clips/ -o scores/shapes-fsq.json
    """

    tokenizer: str
    """Built-in name (see `vidgen models`), folder, or hub id."""
    data: Annotated[tuple[str, ...], arg(metavar="DIR_OR_FILES")]
    """Folders of clips, clips, or the word `shapes` for the procedural world."""
    output: Annotated[Path | None, arg(aliases=["-o"], metavar="FILE")] = None
    """Where to write FILE.json and FILE.csv."""
    max_frames: int | None = None
    """Score so many frames of each clip; all of them by default."""
    fps: float | None = None
    """Resample the clips to this many frames a second; their own by default."""
    size: tuple[int, int] | None = None
    """Height and width to scale and crop the clips to; their own by default."""
    num_clips: int = 64
    """How many clips of `shapes` are drawn."""
    squeezenet_weights: Path | None = None
    """ImageNet SqueezeNet 1.0 weights, for the column `squeezenet.features`."""
    lpips_net: Literal["alex", "vgg", "squeeze"] = "alex"
    """Which backbone LPIPS uses."""
    lpips_weights: Path | None = None
    """ImageNet weights of that backbone in torchvision's layout, for the LPIPS column."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Precision = "fp32"
    """Number format of the network."""

    def __post_init__(self) -> None:
        if WORLD in self.data and len(self.data) > 1:
            raise ValueError(f"score {WORLD!r} and your own clips in two calls; got --data {' '.join(self.data)}")


def run(command: Command) -> None:
    """Do it; errors are for the user."""
    from rich.console import Console

    from vidgen.data import ShapesWorld, find_videos
    from vidgen.eval import FrameDistance, LpipsDistance, SqueezeNetDistance
    from vidgen.eval.recon_suite import clips_from_dataset, clips_from_files, evaluate_reconstruction

    if command.data == (WORLD,):
        clips = clips_from_dataset(ShapesWorld(seed=1), command.num_clips)
    else:
        paths = [clip for entry in command.data for clip in find_videos(entry)]
        clips = clips_from_files(paths, max_frames=command.max_frames, fps=command.fps, size=command.size)
    distances: list[FrameDistance] = []
    if command.squeezenet_weights is not None:
        distances.append(SqueezeNetDistance.from_file(command.squeezenet_weights))
    if command.lpips_weights is not None:
        distances.append(LpipsDistance.from_file(command.lpips_weights, net=command.lpips_net))
    tokenizer = load_tokenizer(command.tokenizer, device=command.device, precision=command.precision)
    report = evaluate_reconstruction(
        tokenizer, clips, name=command.tokenizer, distances=distances, lpips_net=command.lpips_net
    )
    table = report.table()
    # A cell cut short tells a number wrong: take the room that the table needs, even where the terminal wraps it.
    needed = Console(width=UNLIMITED).measure(table).maximum
    Console(width=max(Console().width, needed)).print(table)
    if command.output is not None:
        for path in report.write(command.output):
            print(f"wrote {path}")
