"""Presets of published reconstruction protocols: which frames are scored, at which size, under which conventions."""

from vidgen.eval.protocol import ClipRule, Preprocess, ReconstructionProtocol, Resize

TEMPORAL = ("tdiff_psnr.rgb.frame_mean.cap100", "flicker.rgb.static2", "warping_error.rgb.mestimate8r7")
SQUARE_256 = Resize(height=256, width=256, fit="cover", kernel="swscale")

RECONSTRUCTION_PROTOCOLS: tuple[ReconstructionProtocol, ...] = (
    ReconstructionProtocol(
        name="recon.v1",
        clip=ClipRule(),
        preprocess=Preprocess(),
        metrics=(
            "psnr.rgb.frame_mean.cap100",
            "psnr.rgb.global.cap100",
            "psnr.y601.frame_mean.cap100",
            "ssim.rgb.gauss11.valid",
            "msssim.rgb.gauss11",
            "lpips.alex.v0.1",
            "lpips.vgg.v0.1",
            "squeezenet.features",
            *TEMPORAL,
            "vmaf_v0.6.1",
        ),
        source="vidgen: whole videos at their own size, 8-bit levels, every frame counts the same",
    ),
    ReconstructionProtocol(
        name="recon.quick",
        clip=ClipRule(),
        preprocess=Preprocess(),
        metrics=(
            "psnr.rgb.frame_mean.cap100",
            "psnr.rgb.global.cap100",
            "ssim.rgb.gauss11.valid",
            "lpips.alex.v0.1",
            "squeezenet.features",
        ),
        source="vidgen: the scores that cost little",
    ),
    ReconstructionProtocol(
        name="rd.v1",
        clip=ClipRule(),
        preprocess=Preprocess(),
        metrics=(
            "psnr.rgb.frame_mean.cap100",
            "psnr.y601.frame_mean.cap100",
            "ssim.rgb.gauss11.valid",
            "msssim.rgb.gauss11",
            "lpips.alex.v0.1",
            "vmaf_v0.6.1",
        ),
        source="vidgen: the scores of rate-distortion curves; whole videos at their own size, 8-bit levels",
    ),
    ReconstructionProtocol(
        name="recon.vidtok",
        clip=ClipRule(fps=30),
        preprocess=Preprocess(resizes=(SQUARE_256,), quantise="none"),
        metrics=("psnr.rgb.frame_mean.eps1e-8.float", "ssim.rgb.gauss11.valid.pool256.float", "lpips.vgg.v0.1"),
        source="microsoft/VidTok d6ad92d, vidtok/modules/util.py: floats, mse + 1e-8 (80 dB at most), piq's SSIM",
        note="VidTok reads chunks of 16 frames (one more when causal) and repeats the last frame to fill the last one; "
        "our tokenizers take any length. Its resize kernel was not read; ours is swscale's.",
    ),
    ReconstructionProtocol(
        name="recon.tokenbench",
        clip=ClipRule(),
        preprocess=Preprocess(),
        metrics=(
            "psnr.rgb.clip_global.eps1.2e-7",
            "psnr.rgb.clip_global.eps1.2e-7.wrapped",
            "ssim.rgb.uniform7.sample",
            "lpips.vgg.v0.1",
        ),
        pooling="clip",
        source="NVlabs/TokenBench dcbb7d5 and 1fa61b5, token_bench/metrics_cli.py: one PSNR a video, mean over videos, "
        "scikit-image's SSIM",
        note="The script subtracts and squares 8-bit arrays without widening them, so squared errors wrap at 256 and "
        "the number it prints is the `.wrapped` one; the key without it is the PSNR. It reads mp4 files, which costs 4 "
        "to 8 dB at high quality; here nothing lossy lies between decoder and score.",
    ),
    ReconstructionProtocol(
        name="recon.bsq",
        clip=ClipRule(),
        preprocess=Preprocess(),
        metrics=(
            "psnr.rgb.clip_global.cap100",
            "ssim.rgb.gauss11.valid",
            "msssim.rgb.gauss11",
            "lpips.alex.v0.1",
        ),
        pooling="clip",
        source="zhaoyue-zephyrus/bsq-vit 37d212d, evaluations/psnr.py and ssim.py: PSNR of the clip's mean squared "
        "error, pytorch_msssim with data range 255, MS-SSIM from 256 pixels a side",
    ),
    ReconstructionProtocol(
        name="recon.omnitokenizer",
        clip=ClipRule(),
        preprocess=Preprocess(resizes=(SQUARE_256,), quantise="floor"),
        metrics=("psnr.rgb.frame_mean.cap100.floor", "ssim.rgb.gauss11.valid.floor"),
        source="FoundationVision/OmniTokenizer 701b619, vqgan_eval.py: levels by truncation, (x * 255).byte()",
        note="Its paper reports rFVD and rFID only; these are the pixel scores of the frames that those would see.",
    ),
    ReconstructionProtocol(
        name="recon.opensoraplan",
        clip=ClipRule(max_frames=100),
        preprocess=Preprocess(
            resizes=(Resize(height=336, width=336, fit="short-side", kernel="swscale"),), quantise="none"
        ),
        metrics=(
            "psnr.rgb.frame_mean.cap100.float",
            "ssim.rgb.gauss11.valid.float",
            "lpips.alex.spatial.v0.1",
        ),
        source="PKU-YuanGroup/Open-Sora-Plan 3f50a1b, opensora/models/causalvideovae/eval: floats in [0, 1], 100 dB "
        "where the mean squared error is below 1e-10, cv2's Gaussian window, LPIPS maps at full size",
        note="Its script scales both sides after reading; here the original is scaled first and then encoded.",
    ),
)
