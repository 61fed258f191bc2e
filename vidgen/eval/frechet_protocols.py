"""Presets of published FVD, FID and KVD protocols: which clips, preprocessing, network, numbers and estimator.

Each was read in the source that it names. Where a condition could not be read, `note` says so.
"""

from vidgen.eval.protocol import ClipRule, FeatureProtocol, Kernel, Preprocess, Quantise, Resize

I3D = "i3d-kinetics400"
I3D_PORT = "i3d-kinetics400.eps1e-05"  # the same weights, batch norms with epsilon 1e-5
INCEPTION = "inception-2015-12-05"
LOGITS = "logits, mean over time"
POOL = "last pooling"
WITHIN_ONE = (-1.0, 1.0)
# (level - 128) / 128, as the TensorFlow graph has it
ABOUT_ONE = (-1.0, 127 / 128)
INSIDE_TORCHSCRIPT = (
    "The script lets i3d_torchscript.pt resize; which kernel it has inside was not inspected, and half-pixel bilinear "
    "is taken here. For frames of 224x224 there is no difference."
)


def _squash(side: int, kernel: Kernel) -> Resize:
    return Resize(height=side, width=side, fit="squash", kernel=kernel)


def _cover(side: int, kernel: Kernel) -> Resize:
    return Resize(height=side, width=side, fit="cover", kernel=kernel)


def _to_i3d(*resizes: Resize, quantise: Quantise = "round") -> Preprocess:
    return Preprocess(resizes=resizes, quantise=quantise, value_range=WITHIN_ONE)


STYLEGANV_SOURCE = (
    "StyleGAN-V 3fecd69, src/metrics/{frechet_video_distance,metric_utils,metric_main}.py, training/dataset.py"
)
LARP_SOURCE = "hywang66/LARP c91ff39, eval/rfvd_evaluator.py, sample.py, datasets/video_dataset.py"
MAGVIT_SOURCE = "google-research/magvit 05e8cfd, videogvt/tools/compute_fvd.py"


def _styleganv(name: str, *, frames: int, stride: int) -> FeatureProtocol:
    return FeatureProtocol(
        name=name,
        clip=ClipRule(frames=frames, stride=stride, offset="random", short="drop"),
        preprocess=_to_i3d(_squash(224, "torch-bilinear")),
        metric="fvd",
        extractor=I3D,
        tap=LOGITS,
        ddof=0,
        num_real=2048,
        num_fake=2048,
        source=STYLEGANV_SOURCE,
        note=f"The script takes fewer videos without a word where there are fewer. {INSIDE_TORCHSCRIPT}",
    )


FVD = (
    FeatureProtocol(
        name="fvd.google",
        clip=ClipRule(frames=16),
        preprocess=_to_i3d(_squash(224, "tf1-bilinear"), quantise="none"),
        metric="fvd",
        extractor=I3D,
        tap=LOGITS,
        source="google-research frechet_video_distance/{frechet_video_distance,example}.py; Unterthiner et al. 2018",
        note="The reference leaves length and number to the caller (its example has 16 videos of 15 frames).",
    ),
    _styleganv("fvd.styleganv.2048x16", frames=16, stride=1),
    _styleganv("fvd.styleganv.2048x128", frames=128, stride=1),
    _styleganv("fvd.styleganv.2048x128s8", frames=16, stride=8),
    FeatureProtocol(
        name="fvd.tats",
        clip=ClipRule(frames=16, offset="random", short="drop"),
        preprocess=_to_i3d(_squash(224, "torch-bilinear"), quantise="floor"),
        metric="fvd",
        extractor=I3D_PORT,
        tap=LOGITS,
        num_real=2048,
        num_fake=2048,
        source="songweige/TATS 26c33f5, tats/fvd/{fvd,pytorch_i3d}.py",
        note="The script computes in float32 with torch.svd, which costs percents; here float64.",
    ),
    FeatureProtocol(
        name="fvd.videogpt.256",
        clip=ClipRule(frames=16, offset="random", short="drop"),
        preprocess=_to_i3d(_cover(224, "torch-bilinear"), quantise="floor"),
        metric="fvd",
        extractor=I3D_PORT,
        tap=LOGITS,
        num_real=256,
        num_fake=256,
        small_n=True,
        source="wilson1yan/VideoGPT 733d2b1, scripts/compute_fvd.py, videogpt/fvd/{fvd,pytorch_i3d}.py",
        note="256 samples of 400 features: mostly bias. The script computes in float32; here float64.",
    ),
    FeatureProtocol(
        name="fvd.tokenbench",
        clip=ClipRule(max_frames=300),
        preprocess=_to_i3d(_cover(224, "torch-bilinear")),
        metric="fvd",
        extractor=I3D,
        tap=LOGITS,
        source="NVlabs/TokenBench dcbb7d5, token_bench/{fvd,metrics_cli}.py",
        note="A whole video is one sample. The script reads mp4 files.",
    ),
    FeatureProtocol(
        name="fvd.magvit",
        clip=ClipRule(frames=16),
        preprocess=_to_i3d(_squash(64, "tf1-bilinear"), _squash(224, "tf1-bilinear"), quantise="none"),
        metric="fvd",
        extractor=I3D,
        tap=LOGITS,
        source=MAGVIT_SOURCE,
        note="Everything goes through 64x64 first. The number of samples is the data set's.",
    ),
)

TASKS = (
    FeatureProtocol(
        name="fvd.bair.prediction.magvit",
        clip=ClipRule(frames=16),
        preprocess=_to_i3d(_squash(64, "tf1-bilinear"), _squash(224, "tf1-bilinear"), quantise="none"),
        metric="fvd",
        extractor=I3D,
        tap=LOGITS,
        num_real=256,
        num_fake=25_600,
        repeats=4,
        conditioning_frames=1,
        small_n=True,
        source=f"{MAGVIT_SOURCE}, configs/maskgvt_bair_config.py",
        note="1 given frame, 15 predicted; 100 samples for each of 256 test videos, four times. The conditioning frame "
        "is part of the clip.",
    ),
    FeatureProtocol(
        name="fvd.k600.prediction.larp",
        clip=ClipRule(frames=16, offset="random", short="drop"),
        preprocess=_to_i3d(_squash(64, "torch-bilinear-antialias"), _squash(224, "torch-bilinear"), quantise="none"),
        metric="fvd",
        extractor=I3D,
        tap=LOGITS,
        ddof=0,
        num_real=50_000,
        num_fake=50_000,
        conditioning_frames=5,
        source=LARP_SOURCE,
        note="5 given frames, 11 predicted, compared at 64x64. The script draws its clips from all that do not "
        f"overlap. {INSIDE_TORCHSCRIPT}",
    ),
    FeatureProtocol(
        name="fvd.ucf101.class.larp",
        clip=ClipRule(frames=16, offset="random", short="drop"),
        preprocess=_to_i3d(_cover(128, "torch-bilinear-antialias"), _squash(224, "torch-bilinear"), quantise="none"),
        metric="fvd",
        extractor=I3D,
        tap=LOGITS,
        ddof=0,
        num_real=10_000,
        num_fake=10_000,
        source=LARP_SOURCE,
        note="Training videos; a generated sample for the class of each real one. The script draws its clips from all "
        f"that do not overlap, so a video may serve twice. {INSIDE_TORCHSCRIPT}",
    ),
    FeatureProtocol(
        name="fvd.ucf101.class.magvit",
        clip=ClipRule(frames=16),
        preprocess=_to_i3d(_squash(64, "tf1-bilinear"), _squash(224, "tf1-bilinear"), quantise="none"),
        metric="fvd",
        extractor=I3D,
        tap=LOGITS,
        num_fake=10_000,
        repeats=4,
        source=f"{MAGVIT_SOURCE}, configs/maskgvt_ucf101_config.py",
        note="Against the training videos; four sets of 10,000 samples.",
    ),
    FeatureProtocol(
        name="rfvd.ucf101.larp",
        clip=ClipRule(frames=16, offset="random", short="repeat-last"),
        preprocess=_to_i3d(_cover(128, "torch-bilinear-antialias"), _squash(224, "torch-bilinear"), quantise="none"),
        metric="fvd",
        extractor=I3D,
        tap=LOGITS,
        ddof=0,
        source=LARP_SOURCE,
        note=f"Reconstructions of one clip of each training video. {INSIDE_TORCHSCRIPT}",
    ),
    FeatureProtocol(
        name="rfvd.omnitokenizer",
        clip=ClipRule(frames=17, short="drop"),
        preprocess=_to_i3d(_squash(224, "torch-bilinear"), quantise="floor"),
        metric="fvd",
        extractor=I3D_PORT,
        tap=LOGITS,
        source="FoundationVision/OmniTokenizer 701b619, vqgan_eval.py, OmniTokenizer/fvd",
        note="The whole validation split at 256x256; its --replacewithgt would copy original frames into the fake set.",
    ),
)


def _frames(
    name: str,
    *,
    metric: str,
    kernel: Kernel,
    value_range: tuple[float, float],
    unbiased_mmd: bool = False,
    source: str,
    note: str = "",
) -> FeatureProtocol:
    return FeatureProtocol(
        name=name,
        clip=ClipRule(),
        preprocess=Preprocess(resizes=(_squash(299, kernel),), value_range=value_range),
        metric=metric,
        extractor=INCEPTION,
        tap=POOL,
        estimator="polynomial-mmd-unbiased" if unbiased_mmd else "frechet",
        source=source,
        note=note,
    )


IMAGES = (
    _frames(
        "fid.pytorch-fid",
        metric="fid",
        kernel="torch-bilinear",
        value_range=WITHIN_ONE,
        source="mseitzer/pytorch-fid b9c1811, src/pytorch_fid/{inception,fid_score}.py",
    ),
    _frames(
        "fid.torch-fidelity",
        metric="fid",
        kernel="tf1-bilinear",
        value_range=ABOUT_ONE,
        source="toshas/torch-fidelity 5e211a9; the same as torchmetrics with antialias=False",
    ),
    _frames(
        "fid.clean",
        metric="fid",
        kernel="pil-bicubic",
        value_range=ABOUT_ONE,
        source="GaParmar/clean-fid e88c4d6, mode clean",
    ),
    _frames(
        "rfid.frames",
        metric="fid",
        kernel="torch-bilinear",
        value_range=WITHIN_ONE,
        source="pytorch-fid on the frames of originals and reconstructions, as OmniTokenizer 701b619 does for images",
        note="Every frame of every video. Frames of a video depend on each other: intervals leave out whole videos.",
    ),
    _frames(
        "kid.frames",
        metric="kid",
        kernel="tf1-bilinear",
        value_range=ABOUT_ONE,
        unbiased_mmd=True,
        source="Binkowski et al. 2018, equation 4, on all samples at once, with the network of torch-fidelity",
    ),
)

KERNELS = (
    FeatureProtocol(
        name="kvd.i3d",
        clip=ClipRule(frames=16, offset="random", short="drop"),
        preprocess=_to_i3d(_squash(224, "tf1-bilinear"), quantise="none"),
        metric="kvd",
        extractor=I3D,
        tap=LOGITS,
        estimator="polynomial-mmd-unbiased",
        source="Unterthiner et al. 2018, section 3: the kernel of KID on the features of FVD",
        note="Unbiased: the choice for fewer than 2048 videos.",
    ),
)

SURROGATES = (
    FeatureProtocol(
        name="fd.squeezenet",
        clip=ClipRule(frames=16, short="drop"),
        preprocess=_to_i3d(_cover(128, "torch-bilinear-antialias")),
        metric="fd.squeezenet1_0",
        extractor="squeezenet1_0",
        tap="fire 9, mean over the frame; mean over time, root mean square of the change",
        small_n=True,
        source="vidgen: for development without the published weights; not comparable with any paper",
    ),
    FeatureProtocol(
        name="fd.tiny",
        clip=ClipRule(frames=4, short="drop"),
        preprocess=_to_i3d(_cover(32, "torch-bilinear-antialias")),
        metric="fd.tiny",
        extractor="tiny",
        tap="mean over time and space",
        small_n=True,
        source="vidgen: a random network, for tests of everything around it",
    ),
)

FRECHET_PROTOCOLS: tuple[FeatureProtocol, ...] = (*FVD, *TASKS, *IMAGES, *KERNELS, *SURROGATES)
