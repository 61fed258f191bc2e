"""The shapes world with texts that change: scenes that hold from a frame on, and nothing jumps where one follows."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from vidgen.data.shapes import BACKGROUNDS, COLOURS, Scene, ShapesWorld, item_generator, render

SceneTimeline = list[tuple[int, Scene]]

OPPOSITES = {
    "moving left": "moving right",
    "moving right": "moving left",
    "moving up": "moving down",
    "moving down": "moving up",
    "growing": "shrinking",
    "shrinking": "growing",
    "staying still": "staying still",
    "spinning": "spinning",
}
NATURAL_FRAMES = 17  # frames over which the world's motions take place


class ShapesTimelines(Dataset):
    """Clips of a shapes world, in a share of which the scene changes in one word at a frame; item i depends on i alone.

    The caption of such a clip is a timeline, `[(0, caption), (frame, caption)]`. No item has a class, since a colour
    may not last.

    Args:
        world: whose clips they are; what it holds out does not occur after a change either.
        share: of the clips that change, 0 to 1.
    """

    def __init__(self, world: ShapesWorld, share: float) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"share is between 0 and 1, got {share}")
        self.world, self.share = world, share

    def __len__(self) -> int:
        return len(self.world)

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator = item_generator(self.world.seed, len(self.world) + index)  # beyond the world's own items
        if float(torch.rand((), generator=generator)) >= self.share or self.world.num_frames < 2:
            return {name: value for name, value in self.world[index].items() if name != "class_label"}
        timeline = draw_timeline(
            self.world.scene(index),
            num_frames=self.world.num_frames,
            hold_out=self.world.hold_out,
            generator=generator,
        )
        video = render_timeline(
            timeline,
            self.world.num_frames,
            height=self.world.height,
            width=self.world.width,
            natural_frames=self.world.num_frames,
            generator=generator,
        )
        captions = [(frame, scene.caption) for frame, scene in timeline]
        return {"video": video, "caption": captions, "id": f"shapes-timelines-{self.world.seed}-{index}"}

    def captions(self) -> list[str]:
        """Captions that together have every word of this world's."""
        return self.world.captions()


def draw_timeline(
    scene: Scene,
    *,
    num_frames: int,
    generator: torch.Generator,
    hold_out: frozenset[tuple[str, str]] = frozenset(),
) -> SceneTimeline:
    """The scene, and from a random frame on one with another background, with one object of another colour, or with the
    ways of moving objects turned round; each is drawn as often, where it can be.
    """

    def draw(choices: list[Any]) -> Any:
        return choices[int(torch.randint(len(choices), (), generator=generator))]

    others: list[list[Scene]] = [
        [replace(scene, background=background) for background in BACKGROUNDS if background != scene.background]
    ]
    colours = []
    for place, item in enumerate(scene.objects):
        for colour in COLOURS.keys() - {each.colour for each in scene.objects}:
            if (colour, item.shape) not in hold_out:
                objects = [*scene.objects]
                objects[place] = replace(item, colour=colour)
                colours.append(replace(scene, objects=tuple(objects)))
    if colours:
        others.append(sorted(colours, key=lambda each: each.caption))
    turned = turned_round(scene)
    if turned != scene and not {"growing", "shrinking"} & {item.motion for item in scene.objects}:
        others.append([turned])  # the size of what grows and then shrinks is not the one that its word means
    return [(0, scene), (draw([*range(1, num_frames)]), draw(draw(others)))]


def turned_round(scene: Scene) -> Scene:
    """The scene with every motion as its opposite."""
    return replace(scene, objects=tuple(replace(item, motion=OPPOSITES[item.motion]) for item in scene.objects))


def render_timeline(
    timeline: SceneTimeline,
    num_frames: int,
    *,
    generator: torch.Generator,
    height: int = 64,
    width: int = 64,
    natural_frames: int = NATURAL_FRAMES,
) -> Tensor:
    """Render ``3 t h w`` of scenes that hold from a frame on; the motions are the first scene's or opposite to them.

    All scenes go the same way to and fro, so that nothing jumps where the prompt changes. ``natural_frames`` are those
    over which a motion takes place.
    """
    first = timeline[0][1]
    seed = int(torch.randint(2**62, (1,), generator=generator))
    holds = [max(index for index, (start, _) in enumerate(timeline) if start <= frame) for frame in range(num_frames)]
    place, places = 0, [0]
    for number in holds[1:]:
        motions = [item.motion for item in timeline[number][1].objects]
        forward = motions == [item.motion for item in first.objects]
        if not forward and motions != [item.motion for item in turned_round(first).objects]:
            raise ValueError(f"a timeline keeps its motions or turns them round; got {first.caption}, then {motions}")
        place += 1 if forward else -1
        places.append(place)
    size = {"num_frames": max(natural_frames, max(places) - min(places) + 1), "height": height, "width": width}
    clips = []
    for _, scene in timeline:
        objects = tuple(
            replace(item, motion=begun.motion) for item, begun in zip(scene.objects, first.objects, strict=True)
        )
        clips.append(render(replace(scene, objects=objects), generator=torch.Generator().manual_seed(seed), **size))
    return torch.stack([clips[number][:, place - min(places)] for number, place in zip(holds, places, strict=True)], 1)
