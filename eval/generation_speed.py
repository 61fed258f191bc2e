"""How fast is generation? Each family and diffusers' transformers: `python eval/generation_speed.py -o FILE.csv`.

With `--llamagen DIR`, a checkout of FoundationVision/LlamaGen, also its cached decoder beside ours: both decode after
120 condition states (as many as its text models have), the same tokens out of the same number of codes.
"""

import importlib
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor, nn

import vidgen
from vidgen.conditioning import Condition, WordTextEncoder
from vidgen.eval.report import KEEPING_MEMORY, environment_stamp, peak_memory_megabytes, write_csv, write_json
from vidgen.generators import (
    AutoregressiveTransformer,
    DiffusionTransformer,
    Generator,
    LlamaTransformer,
    MaskedTransformer,
)
from vidgen.generators.sequence import AutoregressiveGenerator, at_positions
from vidgen.latents import LatentPart, LatentSpec, VideoSize
from vidgen.nn.random import seeded
from vidgen.pipelines.preset import FAMILIES
from vidgen.schedulers import SamplingRule

TEXT_WIDTH, WORDS, CHANNELS = 256, 32, 16
GUIDANCE = 5.0
DECODING = {"decode": 1.0, "decode guided": GUIDANCE}
CAPTION = 120  # condition states of LlamaGen's text models, whatever the prompt
PROMPT = "a large red circle moving left on a navy background"
SAMPLERS = ("masked-12", "ar-uncached", "ar-cached", "llama-cached", "llama-regions", "llama-frames", "flow-50-guided")
# Ours beside the public network of the same structure: text or class, factorised or full attention.
OURS = {
    "vidgen-interleaved": {"attention": "interleaved", "text_path": "modulation"},
    "vidgen-joint": {"text_path": "joint"},
    "vidgen-cross": {"text_path": "cross"},
}
NETWORKS = ("vidgen-interleaved", "latte", "vidgen-joint", "cogvideox", "vidgen-cross")
PEERS = {"vidgen-interleaved": "latte", "vidgen-joint": "cogvideox", "vidgen": "llamagen"}
LONG = 20.0  # seconds; what takes longer is measured once
LLAMAGEN_NETWORK = "autoregressive/models/gpt.py"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is measured, and for how long."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """CSV file to write; the same name with .json gets the rows together with device, versions, commit and date."""
    width: int = 256
    """Width of every network."""
    layers: int = 8
    """Transformer blocks of every network, an even number."""
    heads: int = 4
    """Attention heads of every network."""
    side: int = 16
    """Tokens along height and width; 4 rows of tokens along time make 1,024 of 16."""
    device: str = "cpu"
    """cpu (CPU-seconds on one thread) or cuda (seconds)."""
    repeats: int = 3
    """Measurements after a warm-up; the table has the fastest."""
    turns: int = 30
    """Most calls of ours and its public peer, one after the other in one process, so that a busy moment hits both."""
    turn_seconds: float = 120.0
    """No further turn begins after so many seconds, but four are taken."""
    samplers: tuple[str, ...] = SAMPLERS
    """Rows that make a whole video's tokens."""
    networks: tuple[str, ...] = NETWORKS
    """Rows that run one diffusion network forward, and forward and backward."""
    llamagen: Path | None = None
    """A checkout of FoundationVision/LlamaGen: its decoder and ours, without and with guidance."""

    def __post_init__(self) -> None:
        if self.llamagen is not None and not (self.llamagen / LLAMAGEN_NETWORK).is_file():
            raise ValueError(
                f"expected a checkout of FoundationVision/LlamaGen, but {self.llamagen} holds no {LLAMAGEN_NETWORK}; "
                "give the folder that git clone made"
            )

    @property
    def size(self) -> VideoSize:
        return 13, 8 * self.side, 8 * self.side

    @property
    def tokens(self) -> int:
        return 4 * self.side**2


def timed(work: Callable[[], Any], settings: Settings) -> list[float]:
    """Seconds of some runs after a warm-up; of a long one those of the first."""
    found: list[float] = []
    while len(found) < 1 + settings.repeats and max(found, default=0.0) < LONG:
        found.append(once(work, settings))
    return found[1:] or found


def once(work: Callable[[], Any], settings: Settings) -> float:
    """Seconds of one run."""
    clock = time.process_time if settings.device == "cpu" else time.perf_counter
    synchronise(settings.device)
    started = clock()
    work()
    synchronise(settings.device)
    return clock() - started


def synchronise(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


# ------------------------------------------------------------------------------------------------- whole samplings


def sampler(name: str, settings: Settings) -> tuple[nn.Module, Callable[[], Any]]:
    """A network and a call that makes all tokens of a video with it."""
    family: dict[str, tuple[type[Generator], dict[str, Any], dict[str, Any]]] = {
        "masked-12": (MaskedTransformer, {}, {"num_inference_steps": 12}),
        "ar-uncached": (AutoregressiveTransformer, {}, {}),
        "ar-cached": (AutoregressiveTransformer, {}, {}),
        "llama-cached": (LlamaTransformer, {}, {}),
        "llama-regions": (LlamaTransformer, {"group": "regions"}, {}),
        "llama-frames": (LlamaTransformer, {"group": "frame"}, {}),
        "flow-50-guided": (DiffusionTransformer, {}, {"num_inference_steps": 50, "guidance_scale": GUIDANCE}),
    }
    kind, config, call = family[name]
    tokenizer: Any = vidgen.build("base-kl" if kind is DiffusionTransformer else "base-fsq").eval()
    network = network_of(kind, tokenizer.spec, settings, **config)
    pipe = pipeline_of(tokenizer, network, settings)
    if name == "ar-uncached":
        return network, partial(sample_uncached, network, pipe.text_encoder, settings)
    return network, partial(sample_tokens, pipe, settings, prompt=PROMPT, **{"guidance_scale": 1.0, **call})


def pipeline_of(tokenizer: Any, network: Any, settings: Settings) -> Any:
    pipeline_class, scheduler = FAMILIES[type(network)]
    text_encoder = WordTextEncoder(width=TEXT_WIDTH, layers=1)
    pipe: Any = pipeline_class(tokenizer, text_encoder, network, scheduler())  # pyright: ignore
    pipe.to(settings.device).set_progress_bar_config(disable=True)
    return pipe


def sample_tokens(pipe: Any, settings: Settings, **call: Any) -> Any:
    frames, height, width = settings.size
    generator = torch.Generator().manual_seed(0)
    size = {"num_frames": frames, "height": height, "width": width}
    return pipe(**size, **call, generator=generator, output_type="latent")


def network_of(kind: type[Generator], spec: LatentSpec, settings: Settings, **config: Any) -> Any:
    torch.manual_seed(0)
    made: Any = kind
    built = made(
        latent_spec=spec.to_json(),
        text_width=TEXT_WIDTH,
        width=settings.width,
        layers=settings.layers,
        heads=settings.heads,
        **config,
    )
    return built.to(settings.device).eval()


def sample_uncached(network: AutoregressiveGenerator, text_encoder: WordTextEncoder, settings: Settings) -> Tensor:
    """All tokens one by one, each from a run over all before it."""
    text = text_encoder.encode([PROMPT])
    coordinates = network.spec.coordinates(settings.size).to(settings.device)
    order = network.order(coordinates)
    inputs = network.sequence_inputs(Condition(text.states, text.mask), coordinates, order)
    generators, rule = seeded([0]), SamplingRule()
    sample = torch.zeros(1, 0, network.spec.num_codebooks, dtype=torch.long, device=settings.device)
    for position in range(len(coordinates)):
        hidden = network(sample if position else None, **at_positions(inputs, slice(0, position + 1)))
        token, _ = network.proj_out.sample(hidden[:, -1:], None, 1.0, generators=generators, rule=rule)
        sample = torch.cat([sample, token], dim=1)
    return sample


# ------------------------------------------------------------------------------------- a cached decoder beside ours


def decoder(name: str, guidance: float, settings: Settings) -> tuple[nn.Module, Callable[[], Any]]:
    """Llama blocks, ours or LlamaGen's, and a call that makes all tokens of a video with them."""
    tokenizer: Any = vidgen.build("base-vq").eval()
    if name == "vidgen":
        network = network_of(LlamaTransformer, tokenizer.spec, settings)
        text = torch.randn(1, CAPTION - 1, TEXT_WIDTH)  # ours puts one in front: "nothing was said"
        pipe = pipeline_of(tokenizer, network, settings)
        return network, partial(sample_tokens, pipe, settings, prompt_embeds=text, guidance_scale=guidance)
    sys.path.insert(0, str(settings.llamagen))
    gpt, generation = (importlib.import_module(f"autoregressive.models.{name}") for name in ("gpt", "generate"))
    torch.manual_seed(0)
    config = gpt.ModelArgs(
        dim=settings.width,
        n_layer=settings.layers,
        n_head=settings.heads,
        model_type="t2i",
        caption_dim=TEXT_WIDTH,
        cls_token_num=CAPTION,
        vocab_size=tokenizer.spec.parts[0].codebooks[0],
        block_size=settings.tokens,
    )
    network = gpt.Transformer(config).to(settings.device).eval()
    text = torch.randn(1, CAPTION, TEXT_WIDTH, device=settings.device)
    return network, lambda: generation.generate(network, text, settings.tokens, cfg_scale=guidance)


# ------------------------------------------------------------------------------------------------- single networks


def diffusion_network(name: str, settings: Settings) -> tuple[nn.Module, Callable[[], Tensor]]:
    """A diffusion transformer of the same width, depth and tokens, and a call that runs it forward.

    Latte without cross-attention is its class-conditional form, which adaLN tells of the class.
    """
    network: Any
    shared: dict[str, Any] = {
        "num_attention_heads": settings.heads,
        "attention_head_dim": settings.width // settings.heads,
    }
    device, side = settings.device, settings.side
    words = WORDS - (name in OURS)  # ours puts a state in front: "nothing was said"
    text = torch.randn(1, words, TEXT_WIDTH, device=device)
    if name in OURS:
        part = LatentPart("grid", "thw", (4, 8, 8), CHANNELS, first_frame_alone=True)
        spec = LatentSpec((part,), causal=True, streamable=True)
        network = network_of(DiffusionTransformer, spec, settings, **OURS[name])
        coordinates = spec.coordinates(settings.size).to(device)
        noisy = torch.randn(1, len(coordinates), CHANNELS, device=device)
        mask = torch.ones(1, words, dtype=torch.bool, device=device)
        time_ = torch.full((1,), 500.0, device=device)
        return network, lambda: network(noisy, time_, coordinates, text, mask, grid=spec.grid(settings.size))
    torch.manual_seed(0)
    if name == "latte":  # its depth counts pairs of a spatial and a temporal block
        from diffusers import LatteTransformer3DModel

        latte: Any = LatteTransformer3DModel
        network = latte(
            **shared,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_layers=settings.layers // 2,
            cross_attention_dim=None,
            caption_channels=TEXT_WIDTH,
            sample_size=side,
            patch_size=1,
            video_length=4,
            activation_fn="gelu-approximate",
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            norm_eps=1e-6,
            attention_bias=True,
        ).to(device)
        noisy = torch.randn(1, CHANNELS, 4, side, side, device=device)
    else:
        from diffusers import CogVideoXTransformer3DModel

        cogvideox: Any = CogVideoXTransformer3DModel
        network = cogvideox(
            **shared,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_layers=settings.layers,
            text_embed_dim=TEXT_WIDTH,
            max_text_seq_length=WORDS,
            sample_width=side,
            sample_height=side,
            sample_frames=13,
            patch_size=1,
        ).to(device)
        noisy = torch.randn(1, 4, CHANNELS, side, side, device=device)
    steps = torch.full((1,), 500, device=device)
    return network, lambda: network(noisy, encoder_hidden_states=text, timestep=steps).sample


# -------------------------------------------------------------------------------------------------------- the table


def network_and_call(name: str, work: str, settings: Settings) -> tuple[nn.Module, Callable[[], Any]]:
    """A network, and a call that does the work of a row."""
    if work == "sample":
        network, call = sampler(name, settings)
    elif work in DECODING:
        network, call = decoder(name, DECODING[work], settings)
    else:
        network, call = diffusion_network(name, settings)
    if work == "forward+backward":
        return network, lambda: call().square().mean().backward()
    return network, torch.no_grad()(call)


def measure(name: str, work: str, settings: Settings) -> dict[str, Any]:
    """One row; meant for a process of its own, whose peak memory it reports."""
    torch.set_num_threads(1)
    network, call = network_and_call(name, work, settings)
    before = peak_memory_megabytes(settings.device)
    best = min(timed(call, settings))
    return {
        "name": name,
        "work": work,
        "parameters_million": round(sum(weight.numel() for weight in network.parameters()) / 1e6, 2),
        "tokens": settings.tokens,
        "seconds": round(best, 5),
        "tokens_per_second": round(settings.tokens / best, 1),
        "memory_built_mb": round(before),
        "memory_peak_mb": round(peak_memory_megabytes(settings.device)),
    }


def ratios(name: str, work: str, settings: Settings) -> list[float]:
    """Our seconds over the peer's in each turn of the two, who begin in turns; for a process of its own."""
    torch.set_num_threads(1)
    calls = [network_and_call(each, work, settings)[1] for each in (name, PEERS[name])]
    for call in calls:
        call()  # warm-up
    found: list[float] = []
    started = time.perf_counter()
    while len(found) < settings.turns and (len(found) < 4 or time.perf_counter() - started < settings.turn_seconds):
        first = len(found) % 2
        taken = {which: once(calls[which], settings) for which in (first, 1 - first)}
        found.append(taken[0] / taken[1])
    return found


def against_peers(rows: list[dict[str, Any]], settings: Settings) -> list[dict[str, Any]]:
    """The rows, how many times as fast each is as the slowest way to do its work, and ours over its peer's seconds.

    That ratio is the median of the turns, with the interval that holds its true value in 95 % of such experiments.
    """
    for line in rows:
        others = {other["name"]: other["seconds"] for other in rows if other["work"] == line["work"]}
        line["times_faster_than_slowest"] = round(max(others.values()) / line["seconds"], 2)
        line |= dict.fromkeys(("peer", "turns", "times_seconds_of_peer", "ratio_from", "ratio_to"))
        if PEERS.get(line["name"]) in others:
            found = in_fresh_process(ratios, line["name"], line["work"], settings)
            low, high = median_interval(found)
            line |= {"peer": PEERS[line["name"]], "turns": len(found), "times_seconds_of_peer": round(median(found), 3)}
            line |= {"ratio_from": round(low, 3), "ratio_to": round(high, 3)}
            print(", ".join(f"{column} {value}" for column, value in line.items()), flush=True)
    return rows


def median_interval(values: list[float]) -> tuple[float, float]:
    """A 95 % interval of the median, between two of the values in their order (of few values all)."""
    ordered, count = sorted(values), len(values)
    outside, chance = 0, 0.5**count  # chance: of at most `outside` values on one side of the true median
    while chance + math.comb(count, outside + 1) * 0.5**count <= 0.025:
        outside += 1
        chance += math.comb(count, outside) * 0.5**count
    return ordered[outside], ordered[count - 1 - outside]


def in_fresh_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """The result of `work` in a process that keeps freed memory."""
    os.environ.update(KEEPING_MEMORY)
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(work, *arguments).result()


def main() -> None:
    """Measure, print the table, write CSV and JSON."""
    settings = tyro.cli(Settings, description=__doc__)
    cases = [(name, "sample") for name in settings.samplers]
    if settings.llamagen is not None:
        cases += [(name, work) for work in DECODING for name in ("vidgen", "llamagen")]
    cases += [(name, work) for work in ("forward", "forward+backward") for name in settings.networks]
    rows = []
    for case in cases:
        rows.append(in_fresh_process(measure, *case, settings))
        print(", ".join(f"{column} {value}" for column, value in rows[-1].items()), flush=True)
    rows = against_peers(rows, settings)
    result = {
        "networks": f"width {settings.width}, {settings.layers} blocks, {settings.heads} heads, float32, batch 1",
        "repeats": settings.repeats,
        "clock": "CPU-seconds on one thread" if settings.device == "cpu" else "seconds",
        "date": datetime.now(UTC).date().isoformat(),
        "environment": environment_stamp(),
        "rows": rows,
    }
    write_csv(settings.output, rows)
    write_json(settings.output.with_suffix(".json"), result)


if __name__ == "__main__":
    main()
