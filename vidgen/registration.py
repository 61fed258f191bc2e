"""Makes vidgen's pipelines names of diffusers, so that `DiffusionPipeline.from_pretrained(dir)` finds them.

diffusers looks a pipeline class up as an attribute of its own module. Importing all of vidgen and diffusers for that
would make `import vidgen` take seconds, so the names are resolved when they are first asked for.
"""

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

PIPELINE_NAMES = ("MaskedVideoPipeline", "DiffusionVideoPipeline", "AutoregressiveVideoPipeline")


def register_with_diffusers() -> None:
    """Add the names to diffusers now if it is imported, else as soon as it is."""
    if "diffusers" in sys.modules:
        _add_names(sys.modules["diffusers"])
    else:
        sys.meta_path.insert(0, _WhenDiffusersIsImported())


def _add_names(module: ModuleType) -> None:
    plain = type(module)

    class WithVidgen(plain):
        def __getattr__(self, name: str) -> Any:
            if name in PIPELINE_NAMES:
                return getattr(importlib.import_module("vidgen.pipelines"), name)
            return super().__getattr__(name)  # pyright: ignore[reportAttributeAccessIssue]

    module.__class__ = WithVidgen


class _WhenDiffusersIsImported(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname != "diffusers":
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenAddNames(spec.loader, self)
        return spec


class _ThenAddNames(Loader):
    def __init__(self, loader: Loader, finder: _WhenDiffusersIsImported) -> None:
        self.loader, self.finder = loader, finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        if self.finder in sys.meta_path:  # until diffusers is there: many only look for it before
            sys.meta_path.remove(self.finder)
        _add_names(sys.modules["diffusers"])  # diffusers puts a lazy module in its own place
