"""A recipe (a script of `eval/`, `tokenizers/`, `pipelines/`) as a module, for tests of what is inside."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def recipe_module(path: str) -> Any:
    """A module of its own for every call; it finds the scripts beside it. `path` counts from the repository's root."""
    name = f"recipe_{Path(path).stem}"
    described = importlib.util.spec_from_file_location(name, ROOT / path)
    assert described is not None and described.loader is not None
    module: ModuleType = importlib.util.module_from_spec(described)
    sys.modules[name] = module  # its dataclasses look themselves up there
    sys.path.insert(0, str((ROOT / path).parent))  # as Python does for a script
    try:
        described.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module
