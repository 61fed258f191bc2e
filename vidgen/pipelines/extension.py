"""Videos of any length, in constant memory: windows of the trained length, each of which continues the one before."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vidgen.conditioning.timeline import check_timeline, excerpt, is_timeline
from vidgen.nn.random import draw_seed
from vidgen.pipelines.output import VideoPipelineOutput
from vidgen.pipelines.prompting import count_prompts

TIME_AXIS = {"control_video": 2, "actions": 1}  # of arguments that say something of each frame


def windows(num_frames: int, *, window: int, overlap: int, given: int = 0) -> list[tuple[int, int]]:
    """First frame and end of each window, after `given` frames that exist already.

    All windows are `window` long unless the video is shorter; the last one overlaps more so as to end with the video.
    """
    start = max(0, given - overlap)
    spans = [(start, start + window)]
    while spans[-1][1] < num_frames:
        spans.append((spans[-1][1] - overlap, spans[-1][1] - overlap + window))
    last = max(0, num_frames - window)
    return [*spans[:-1], (min(spans[-1][0], last), num_frames)]


class LongVideo:
    """What makes a pipeline's videos longer than a window."""

    @torch.no_grad()
    def extend_stream(
        self,
        prompt: Any = None,
        *,
        num_frames: int,
        window_frames: int | None = None,
        overlap_frames: int | None = None,
        video: Any = None,
        **arguments: Any,
    ) -> Iterator[Tensor]:
        """Chunks `b 3 t h w` in [-1, 1] of a video of `num_frames` frames, in order and in constant memory.

        Each window is told the last frames of the one before as known pixels (Phenaki, section 2.2). Its own picture of
        them is faded in over the overlap, so that nothing jumps where it begins.

        Args:
            prompt: as in a call; the entries of a timeline count frames of the whole video.
            window_frames: frames made at once; by default those that the model was trained on.
            overlap_frames: frames that a window shares with the one before; by default a third of it.
            video: first frames, any number; they come back unchanged. One video for all prompts, or one for each.
            arguments: of the call, for each window; `control_video` and `actions` are those of the whole video, of
                which each window gets its own.
        """
        pipe: Any = self
        window = pipe.default("num_frames", window_frames, 17)
        overlap = max(1, window // 3) if overlap_frames is None else overlap_frames
        if not 1 <= overlap < window:
            raise ValueError(
                f"overlap_frames must lie between 1 and {window - 1}, one less than a window, got {overlap}"
            )
        for name in ("mask", "latents", "latents_path", "output_type", "return_dict"):
            if name in arguments:
                raise ValueError(f"{name} belongs to a single window; leave it out, or call the pipeline itself")
        if is_timeline(prompt):
            check_timeline(prompt, num_frames)
        recent = None if video is None else pipe.video_tensor(video)
        if recent is not None:
            recent = one_each(recent, videos_of(prompt, arguments))
        follows = {name: arguments.pop(name) for name in TIME_AXIS if arguments.get(name) is not None}
        if "control_video" in follows:
            follows["control_video"] = pipe.video_tensor(follows["control_video"])
        for name, followed in follows.items():
            if followed.shape[TIME_AXIS[name]] != num_frames:
                raise ValueError(
                    f"{name} of the whole video must have {num_frames} frames, got {followed.shape[TIME_AXIS[name]]}; "
                    "each window takes its own of them"
                )
        given = made = 0 if recent is None else recent.shape[2]
        if made >= num_frames:
            raise ValueError(
                f"the video to extend has {made} frames already, {num_frames} were asked for; ask for more"
            )
        shown = max(0, made - overlap)
        if recent is not None and shown > 0:
            yield recent[:, :, :shown]
        spans = windows(num_frames, window=window, overlap=overlap, given=given)
        generator = arguments.pop("generator", None)
        generator = torch.default_generator if generator is None else generator
        if isinstance(generator, torch.Generator):
            generator = in_turn(generator, videos_of(prompt, arguments), draws=len(spans))
        for index, (first, end) in enumerate(spans):
            known = None if recent is None else recent[:, :, recent.shape[2] - (made - first) :]
            latents = pipe(
                prompt=excerpt(prompt, first, end),
                num_frames=end - first,
                video=known,
                output_type="latent",
                generator=generator,
                **{name: followed.narrow(TIME_AXIS[name], first, end - first) for name, followed in follows.items()},
                **arguments,
            ).frames
            fresh = torch.cat([chunk.float() for chunk in pipe.decode_stream(latents)], dim=2).clamp(-1, 1)
            if known is not None:
                fresh = faded(known.to(fresh.device), fresh, kept=max(0, given - first))
            recent, made = fresh, end
            following = spans[index + 1][0] if index + 1 < len(spans) else end
            yield fresh[:, :, shown - first : following - first]
            shown = following

    def extend(self, prompt: Any = None, *, output_type: str = "pil", **arguments: Any) -> VideoPipelineOutput:
        """The whole video of `extend_stream`, in the form of `output_type` ("pil", "np" or "pt")."""
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type must be one of pil, np, pt for a long video, got {output_type!r}")
        pipe: Any = self
        video = torch.cat([chunk.cpu() for chunk in self.extend_stream(prompt, **arguments)], dim=2)
        return VideoPipelineOutput(frames=pipe.video_processor.postprocess_video(video, output_type=output_type))


def videos_of(prompt: Any, arguments: dict[str, Any]) -> int:
    """How many videos a call with this prompt and these arguments makes."""
    labels = arguments.get("class_label")
    prompts = count_prompts(prompt, arguments.get("prompt_embeds")) if not isinstance(labels, list) else len(labels)
    return prompts * arguments.get("num_videos_per_prompt", 1)


def in_turn(source: torch.Generator, videos: int, *, draws: int) -> list[torch.Generator]:
    """A generator for each video, as if one were made after the other: the first draws what it would draw alone.

    Each draws `draws` seeds, one in each window; `source` is left behind the last one.
    """
    generators = []
    for _ in range(videos):
        generators.append(source.clone_state())
        for _ in range(draws):
            draw_seed(source)
    return generators


def one_each(videos: Tensor, count: int) -> Tensor:
    """Videos `b 3 t h w` for each of `count` to make: those of a prompt side by side, as in a call."""
    if count % len(videos):
        raise ValueError(f"{len(videos)} videos to extend do not fit {count} videos to make; give one or one each")
    return videos.repeat_interleave(count // len(videos), 0)


def faded(before: Tensor, after: Tensor, *, kept: int) -> Tensor:
    """`after`, whose first frames take over from `before` step by step; the first `kept` ones are `before`'s."""
    count = before.shape[2]
    share = torch.arange(1, count - kept + 1, device=after.device) / (count - kept + 1)
    share = torch.cat([share.new_zeros(kept), share])[:, None, None]
    return torch.cat([torch.lerp(before.to(after.dtype), after[:, :, :count], share), after[:, :, count:]], dim=2)
