"""`vidgen eval generation`: do generators obey their prompts, how much moves, how much do samples differ?"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from vidgen.cli.loading import Precision, load_pipeline, make_folder, pick_device

if TYPE_CHECKING:
    import torch

    from vidgen.eval.extractors import Inception
    from vidgen.eval.perceptual import LpipsNet
    from vidgen.eval.samples import Suffix

FPS = 8.0  # of the files, as VBench has it
VBENCH_SAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class Command:
    """Score generators, or folders of their videos: prompts obeyed, CLIPSIM, motion, diversity, Inception Score.

    Videos are named {prompt}-{index}, as VBench reads them. Models sample into FILE.videos/MODEL/ (or --keep DIR), and
    the same command goes on after a crash. Without prompts of your own they get captions of the shapes world from the
    split that no model was chosen on, and their videos are kept as PNGs; otherwise as mp4. The scores of each prompt go
    into FILE.clips/ as they come.

    Example: vidgen eval generation --models shapes-masked shapes-flow --num-prompts 100 -o generation.json

    Example: vidgen eval generation --models DIR --vbench-prompts all_dimension.txt --keep vbench/

    Example: vidgen eval generation --videos samples/ --clip clip-vit-base-patch32/ -o samples.json
    """

    models: Annotated[tuple[str, ...], arg(metavar="NAMES", aliases=["--model"])] = ()
    """Built-in pipelines (see `vidgen models`), folders, hub ids."""
    videos: Annotated[tuple[Path, ...], arg(metavar="DIRS")] = ()
    """Folders of finished videos."""
    prompts: Annotated[Path | None, arg(metavar="FILE")] = None
    """A prompt a line."""
    vbench_prompts: Annotated[Path | None, arg(metavar="FILE")] = None
    """As --prompts, with VBench's five samples a prompt at 8 frames a second."""
    num_prompts: int = 64
    """How many captions of the shapes world are drawn, where no file gives the prompts."""
    samples: int | None = None
    """Videos of each prompt; 2 by default, and diversity needs as many."""
    output: Annotated[Path | None, arg(aliases=["-o"], metavar="FILE")] = None
    """Where to write FILE.json and FILE.csv."""
    keep: Annotated[Path | None, arg(metavar="DIR")] = None
    """Where the models' videos lie, each in a folder of its own; FILE.videos by default."""
    clip: Annotated[Path | None, arg(metavar="DIR")] = None
    """Folder of a CLIP model with its processor, for CLIPSIM."""
    inception: Annotated[Path | None, arg(metavar="FILE")] = None
    """Weights for the Inception Score, as for `vidgen eval fid`."""
    squeezenet_weights: Path | None = None
    """ImageNet SqueezeNet 1.0 weights, for diversity in its features."""
    lpips_weights: Annotated[Path | None, arg(metavar="FILE")] = None
    """ImageNet AlexNet weights in torchvision's layout, for diversity in LPIPS."""
    num_frames: int | None = None
    """Frames of each video; the model's own number by default."""
    height: int | None = None
    """Pixel rows; the model's own number by default."""
    width: int | None = None
    """Pixel columns; the model's own number by default."""
    steps: int | None = None
    """Sampling steps; the model's own number by default."""
    guidance: float | None = None
    """Strength of classifier-free guidance; the model's own by default."""
    batch_size: int = 8
    """Videos made at once; it changes no video."""
    seed: int = 2
    """Of the drawn captions and the noise."""
    resamples: int = 2000
    """Draws of the bootstrap behind the intervals."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Precision = "fp32"
    """Number format of the networks."""

    def __post_init__(self) -> None:
        if not self.models and not self.videos:
            raise ValueError("nothing to score; give --models NAMES or --videos DIRS")
        if self.num_prompts < 1:
            raise ValueError(f"--num-prompts must be at least 1, got {self.num_prompts}")
        if self.models and self.output is None and self.keep is None:
            raise ValueError("the models' videos need a place; give -o FILE or --keep DIR")
        if self.prompts is not None and self.vbench_prompts is not None:
            raise ValueError("--prompts and --vbench-prompts are two lists; give one of them")


def run(command: Command) -> None:
    """Do it; errors are for the user."""
    from vidgen.cli.tables import print_whole
    from vidgen.eval.bootstrap import Bootstrap
    from vidgen.eval.clip_similarity import ClipSimilarity
    from vidgen.eval.diversity import Diversity
    from vidgen.eval.generation import GenerationReport, score_folder
    from vidgen.eval.inception_score import InceptionScore
    from vidgen.eval.motion import Motion
    from vidgen.eval.perceptual import distances_from_files
    from vidgen.eval.prompt_score import Obedience, PromptScore
    from vidgen.eval.report import model_label
    from vidgen.eval.samples import samples_in

    make_folder(command.output)
    device = pick_device(command.device)
    lpips: list[tuple[LpipsNet, Path]] = [] if command.lpips_weights is None else [("alex", command.lpips_weights)]
    diversity = Diversity(distances_from_files(command.squeezenet_weights, lpips))
    scores: list[PromptScore] = [Obedience(), Motion(), diversity]
    absent = {}
    if command.clip is None:
        absent["clipsim"] = "not computed: needs the folder of a CLIP model with its processor (--clip DIR)"
    else:
        scores.insert(1, ClipSimilarity(command.clip, device=device))
    network = None
    if command.inception is None:
        absent[InceptionScore.key] = f"not computed: {inception_wanted()}"
    else:
        network = load_classifier(command.inception, device)
    bootstrap = Bootstrap(resamples=command.resamples)
    labels = [model_label(model) for model in command.models]
    if len(set(labels)) < len(labels):
        raise ValueError(f"two models have one name in {labels}, and so one folder of videos; score them in two calls")
    folders = [(name, *sampled(command, name)) for name in command.models]
    folders += [(str(folder), folder, samples_in(folder)) for folder in command.videos]
    results = [
        score_folder(
            folder,
            scores,
            name=name,
            videos=videos,
            inception=None if network is None else InceptionScore(network),
            bootstrap=bootstrap,
            records=None if command.output is None else command.output.with_suffix(".clips"),
            say=print,
        )
        for name, folder, videos in folders
    ]
    report = GenerationReport(results, absent, bootstrap)
    print_whole(report.table(), *report.notes())
    if command.output is not None:
        for path in report.write(command.output):
            print(f"wrote {path}")


def sampled(command: Command, model: str) -> tuple[Path, dict[str, list[Path]]]:
    """The folder of a model, and the videos in it that were asked for, by prompt; makes those that are missing."""
    import torch

    from vidgen.eval.report import model_label, write_json
    from vidgen.eval.samples import cost_file, sample_paths, sample_videos
    from vidgen.nn.fingerprint import weights_sha256

    place = command.keep or (command.output or Path()).with_suffix(".videos")
    folder = place / model_label(model)
    prompts, suffix = wanted_prompts(command)
    pipeline = load_pipeline(model, device=command.device, precision=command.precision)
    modules = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    options: dict[str, Any] = {
        "num_frames": command.num_frames,
        "height": command.height,
        "width": command.width,
        "num_inference_steps": command.steps,
        "guidance_scale": command.guidance,
    }
    cost = sample_videos(
        pipeline,
        prompts,
        folder,
        samples=wanted_samples(command),
        suffix=suffix,
        fps=FPS,
        seed=command.seed,
        identity={"class": type(pipeline).__name__, "precision": command.precision}
        | {name: weights_sha256(part) for name, part in sorted(modules.items())},
        batch_size=command.batch_size,
        say=print,
        **options,
    )
    if cost is not None:
        parameters = sum(weight.numel() for part in modules.values() for weight in part.parameters())
        write_json(cost_file(folder), {"parameters": parameters, **cost._asdict()})
    return folder, sample_paths(folder, prompts, samples=wanted_samples(command), suffix=suffix)


def wanted_samples(command: Command) -> int:
    """Videos of each prompt."""
    return command.samples or (VBENCH_SAMPLES if command.vbench_prompts is not None else 2)


def wanted_prompts(command: Command) -> "tuple[list[str], Suffix]":
    """The prompts, and how their videos are kept."""
    from vidgen.eval.obedience import draw_prompts
    from vidgen.eval.samples import read_prompts

    listed = command.vbench_prompts or command.prompts
    if listed is not None:
        return read_prompts(listed), ".mp4"
    return [scene.caption for scene in draw_prompts("test", command.num_prompts, seed=command.seed)], ""


def inception_wanted() -> str:
    from vidgen.eval.extractors.weights import INCEPTION_FILES, files_wanted

    return f"{files_wanted(INCEPTION_FILES[:1])} (--inception FILE)"


def load_classifier(path: Path, device: "torch.device") -> "Inception":
    """Inception with its last layer, which the TorchScript file does not give."""
    from vidgen.eval.extractors import Inception, load_inception

    network = load_inception(path)
    assert isinstance(network, Inception)  # a TorchScript file is refused without consent
    return network.to(device)
