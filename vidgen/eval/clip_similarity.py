"""CLIPSIM: how well the frames of a video fit its prompt, by any CLIP model in a local folder.

Wu et al. 2021 (GODIVA, arXiv 2104.14806): the mean over frames of the cosine between prompt and frame.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vidgen.data import to_frames
from vidgen.eval.prompt_score import OfPrompt, PromptScore
from vidgen.nn.fingerprint import weights_sha256

BATCH_FRAMES = 16


class ClipSimilarity(PromptScore):
    """``clipsim.<folder>``: a cosine; published numbers are often 100 times it. Long prompts are cut by the model.

    Args:
        folder: with config, safetensors weights and processor, as `CLIPModel.save_pretrained` and
            `CLIPProcessor.save_pretrained` write them.

    Raises:
        ValueError: no such folder, or transformers is not installed.
    """

    higher_is_better = True
    missing = "CLIPSIM needs prompts"

    def __init__(self, folder: str | Path, *, device: torch.device | str = "cpu") -> None:
        if find_spec("transformers") is None:
            raise ValueError("CLIPSIM needs transformers; install vidgen[text]")
        if not (Path(folder) / "config.json").is_file():
            raise ValueError(f"expected the folder of a CLIP model with its processor, and {folder} has no config.json")
        from transformers import CLIPModel, CLIPProcessor

        self.key = f"clipsim.{Path(folder).name}"
        self.keys = frozenset({self.key})
        self.device = torch.device(device)
        model: Any = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
        self.model = model.to(self.device).eval()
        self.longest_prompt = self.model.config.text_config.max_position_embeddings  # tokens
        self.processor: Any = CLIPProcessor.from_pretrained(folder, local_files_only=True)

    def weights(self) -> dict[str, str]:
        return {self.key: weights_sha256(self.model)}

    def of_prompt(self, prompt: str, videos: Sequence[Tensor]) -> dict[str, OfPrompt]:
        cosines = [self.cosines(prompt, video).mean().item() for video in videos]
        return {self.key: OfPrompt(sum(cosines) / len(cosines), len(cosines))}

    @torch.no_grad()
    def cosines(self, prompt: str, video: Tensor) -> Tensor:
        """``3 t h w`` in [-1, 1] -> ``t``."""
        frames = list(to_frames(video))
        found = []
        for first in range(0, len(frames), BATCH_FRAMES):
            some = frames[first : first + BATCH_FRAMES]
            inputs = self.processor(
                text=[prompt], images=some, return_tensors="pt", truncation=True, max_length=self.longest_prompt
            )
            output = self.model(**inputs.to(self.device))
            text, image = (
                torch.nn.functional.normalize(x.float(), dim=-1) for x in (output.text_embeds, output.image_embeds)
            )
            found.append((image @ text.T)[:, 0].cpu())
        return torch.cat(found)
