"""A decoder that is shown known pixels: whole frames (ToonCrafter) or all but a hole (PUT), around any tokenizer."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  diffusers looks the loader up in this module
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vidgen.kernels import masked_attention
from vidgen.latents import Latents, VideoSize
from vidgen.nn.causal_conv import CausalConv3d
from vidgen.nn.folding import PatchFolding
from vidgen.nn.norms import ActivatedChannelNorm, ChannelRMSNorm, RotaryRMSNorm
from vidgen.nn.positions import rotary
from vidgen.nn.random import Generators, rand
from vidgen.tokenizers.base import Critic, check_known, check_loss_weights, check_video, reconstruction_losses
from vidgen.tokenizers.blockwise import pad
from vidgen.tokenizers.causal_conv import ResidualBlock
from vidgen.tokenizers.vit import check_transformer, grid_places
from vidgen.tokenizers.wrapping import WrappingTokenizer


class KnownAttention(nn.Module):
    """Every place of a clip looks at the known ones, wherever they are in time (ToonCrafter, section 3.2).

    Beside them is one place that nothing is at, for clips of which nothing is known.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_x, self.norm_known = ChannelRMSNorm(width), ChannelRMSNorm(width)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_kv = nn.Linear(width, 2 * width, bias=False)
        self.norm_q, self.norm_k = RotaryRMSNorm(width // heads), RotaryRMSNorm(width // heads)
        self.nowhere = nn.Parameter(torch.zeros(2, heads, 1, width // heads))
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Tensor, reference: Tensor, covered: Tensor) -> Tensor:
        """`x`, `reference`: `b c t h w`; `covered`: `b t h w` bool, where a patch has known pixels -> `b c t h w`."""
        grid = (x.shape[2], x.shape[3], x.shape[4])
        (seen,) = covered.flatten(1).any(dim=0).nonzero(as_tuple=True)  # places that some clip of the batch knows
        cosines, sines = rotary(grid_places(grid, device=x.device), x.shape[1] // self.heads)
        q = rearrange(self.to_q(tokens(self.norm_x(x))), "b n (h d) -> b h n d", h=self.heads)
        kv = self.to_kv(tokens(self.norm_known(reference))[:, seen])
        k, v = rearrange(kv, "b n (two h d) -> two b h n d", two=2, h=self.heads)
        q, k = self.norm_q(q, cosines, sines), self.norm_k(k, cosines[seen], sines[seen])
        nowhere = self.nowhere.to(k.dtype).expand(len(x), -1, -1, -1, -1).unbind(1)
        k, v = torch.cat([nowhere[0], k], dim=2), torch.cat([nowhere[1], v], dim=2)
        mask = F.pad(covered.flatten(1)[:, seen], (1, 0), value=True)[:, None, None]
        attended = masked_attention(q, k, v, mask)
        out = self.to_out(rearrange(attended, "b h n d -> b n (h d)"))
        return rearrange(out, "b (t h w) c -> b c t h w", t=grid[0], h=grid[1])


def tokens(x: Tensor) -> Tensor:
    return rearrange(x, "b c t h w -> b (t h w) c")


class GuidedBlock(nn.Module):
    """+ attention to what is known, + what is known where it is (PUT's mask guided addition), a residual block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = KnownAttention(width, heads)
        self.add = CausalConv3d(width, width, kernel=(1, 1, 1))
        self.residual = ResidualBlock(width)

    def forward(self, x: Tensor, reference: Tensor, coverage: Tensor) -> Tensor:
        """`b c t h w` twice, and the known share of each patch `b 1 t h w` -> `b c t h w`."""
        x = x + self.attn(x, reference, coverage.squeeze(1) > 0)
        return self.residual(x + coverage * self.add(reference))


class Guide(nn.Module):
    """(coarse video, known pixels, where they are) -> video."""

    def __init__(self, *, patch: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.folding = PatchFolding(frames=1, side=patch)
        pixels = self.folding.pixels
        self.conv_in = CausalConv3d(3 * pixels, width, kernel=(1, 1, 1))
        self.reference_in = CausalConv3d(4 * pixels, width, kernel=(1, 3, 3))
        self.reference = ResidualBlock(width)
        self.blocks = nn.ModuleList(GuidedBlock(width, heads) for _ in range(depth))
        self.norm_out = ActivatedChannelNorm(width)
        self.conv_out = CausalConv3d(width, 3 * pixels, kernel=(1, 1, 1))
        nn.init.normal_(self.conv_out.conv.weight, std=0.01)  # begins close to the coarse video

    def forward(self, coarse: Tensor, known: Tensor, where: Tensor) -> Tensor:
        """`b 3 t h w` twice and bool `b 1 t h w` -> `b 3 t h w`; unknown pixels of `known` do not matter."""
        h, w = coarse.shape[3:]
        missing = (0, -h % self.folding.side, -w % self.folding.side)
        mask = where.to(coarse.dtype)
        shown = pad(torch.cat([torch.where(where, known, 0.0).to(coarse.dtype), mask], dim=1), missing)
        coverage = self.folding.folded(shown[:, 3:]).mean(dim=1, keepdim=True)
        reference = self.reference(self.reference_in(self.folding.folded(shown)))
        x = self.conv_in(self.folding.folded(pad(coarse, missing)))
        for block in self.blocks:
            x = block(x, reference, coverage)
        return coarse + self.folding.unfolded(self.conv_out(self.norm_out(x)))[..., :h, :w]


class GuidedDecoderTokenizer(WrappingTokenizer, ConfigMixin):
    """The tokens of any tokenizer, decoded beside pixels that are known: `decode_known(latents, known, where)`.

    ToonCrafter (arXiv 2405.17933, section 3.2) shows its decoder the first and the last frame, and PUT (arXiv
    2205.05076, section 3.1) all that surrounds a hole; both lead what tokens lose around them, by attention and by
    addition. Here that happens behind the wrapped decoder, so that any tokenizer will do; `decode` is that decoder
    alone, and streams as it does. Pipelines decode so wherever they are given frames or regions.

    Args:
        encoder_config: configuration of the wrapped tokenizer, with its class as `_class_name`.
        patch: pixels a side that are folded into channels.
        width, depth, heads: of the network.
        freeze_encoder: train the network alone; otherwise the wrapped tokenizer learns with it.
        squared_weight: of the squared error beside the absolute one in training.
    """

    learns_hidden_frames = False  # the known pixels are those of the clip that the wrapped tokenizer sees

    @register_to_config
    def __init__(
        self,
        encoder_config: dict[str, Any],
        patch: int = 8,
        width: int = 256,
        depth: int = 4,
        heads: int = 4,
        freeze_encoder: bool = False,
        squared_weight: float = 1.0,
    ) -> None:
        super().__init__()
        check_transformer(width=width, heads=heads, layers=depth)
        if patch < 1:
            raise ValueError(f"patch must be at least 1, got {patch}")
        self.register_encoder(encoder_config, freeze=freeze_encoder)
        self.build_decoder()
        check_loss_weights(squared_weight=squared_weight)
        self.squared_weight = squared_weight

    def build_decoder(self) -> None:
        self.guide = Guide(**{name: self.config[name] for name in ("patch", "width", "depth", "heads")})

    def decode(self, latents: Latents, *, steps: int | None = None, generators: Generators | None = None) -> Tensor:
        return self.encoder.decode(latents, steps=steps, generators=generators)

    def decode_stream(self, chunks: Iterable[Latents]) -> Iterator[Tensor]:
        return self.encoder.decode_stream(chunks)

    @torch.no_grad()
    def decode_known(self, latents: Latents, known: Tensor, where: Tensor) -> Tensor:
        check_known(known, where, len(latents), latents.size)
        coarse = self.decode(latents)
        guided = self.guide(coarse, known, where).clamp(-1.0, 1.0)
        guided = torch.where(where.flatten(1).any(dim=1)[:, None, None, None, None], guided, coarse)
        return torch.where(where, known, guided.to(known.dtype))

    def training_losses(
        self, video: Tensor, *, generators: Generators, critic: Critic | None = None
    ) -> dict[str, Tensor]:
        """Its own terms are called `guided_…` beside those of a wrapped tokenizer that learns; the critic judges what
        is decoded from the tokens alone then, and what is decoded beside known pixels where that one is frozen."""
        check_video(video)
        coarse, losses = self.coarse_and_losses(video, generators=generators, critic=critic)
        where = drawn_known((video.shape[2], video.shape[3], video.shape[4]), generators, device=video.device)
        made = torch.where(where, video, self.guide(coarse.detach(), video, where))
        own = reconstruction_losses(
            video,
            made,
            squared_weight=self.squared_weight,
            critic=critic if self.freeze_encoder else None,
            last_layer=self.guide.conv_out.conv.weight,
        )
        return own if self.freeze_encoder else {**losses, **{f"guided_{name}": term for name, term in own.items()}}


def drawn_known(size: VideoSize, generators: Generators, *, device: torch.device) -> Tensor:
    """`b 1 t h w` bool: the first and the last frame, or as often all but a box of a quarter to three quarters of the
    height and of the width through all frames."""
    t, h, w = size
    drawn = rand((len(generators), 5), generators).to(device)
    kind, *box = drawn[:, :, None, None, None].unbind(1)
    inside = torch.ones((), dtype=torch.bool, device=device)
    for extent, share, place, shape in ((h, box[0], box[1], (1, 1, -1, 1)), (w, box[2], box[3], (1, 1, 1, -1))):
        length = (0.25 + 0.5 * share) * extent
        first = place * (extent - length)
        index = torch.arange(extent, device=device).view(shape) + 0.5
        inside = inside & (index > first) & (index < first + length)
    frame = torch.arange(t, device=device).view(-1, 1, 1)
    ends = ((frame == 0) | (frame == t - 1)).expand(len(kind), t, h, w)
    return torch.where(kind < 0.5, ends, ~inside).unsqueeze(1)
