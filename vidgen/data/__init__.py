"""Videos in and out, and the datasets that training reads."""

from vidgen.data.shapes import Scene, ShapeObject, ShapesWorld, parse_caption, render, sample_scene

__all__ = ["Scene", "ShapeObject", "ShapesWorld", "parse_caption", "render", "sample_scene"]
