"""Does the tree keep its promises: who imports whom, what recipe folders may hold, and names that break others."""

import ast
import importlib.util
import os
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "vidgen"
RECIPE_FOLDERS = ("tokenizers", "pipelines", "eval")

# What each part of the library may import from vidgen. "part" means anything in it; "part.file" means only that file
# and what `vidgen.part` itself exports, the part's interface; "front door" means `vidgen.load` and `vidgen.build`.
# A part may always import itself.
LAYERS: dict[str, set[str]] = {
    "files": set(),
    "latents": {"files"},
    "kernels": set(),
    "nn": {"latents", "kernels"},
    "bottlenecks": {"latents", "kernels", "nn"},
    "schedulers": {"latents", "kernels", "nn"},
    "conditioning": {"latents", "kernels", "nn"},
    "tokenizers": {"latents", "kernels", "nn", "bottlenecks", "schedulers"},
    "generators": {"latents", "kernels", "nn", "conditioning", "schedulers"},
    "matchers": {"latents", "kernels", "nn", "conditioning", "tokenizers.base", "tokenizers.presets"},
    "pipelines": {
        *("latents", "kernels", "nn", "bottlenecks", "schedulers", "conditioning", "tokenizers", "generators"),
        "matchers",
    },
    "codec": {"latents", "kernels", "nn", "bottlenecks", "schedulers", "conditioning", "tokenizers", "generators"},
    "data": {"latents"},
    "eval": {"files", "latents", "data", "nn.fingerprint", "tokenizers.base", "generators.base", "pipelines.base"},
    "training": {
        "front door",
        "files",
        "latents",
        "nn",
        "data",
        "eval",
        "conditioning",
        "tokenizers.base",
        "bottlenecks.record",
        "tokenizers.discriminator",
        "tokenizers.losses",
        "tokenizers.presets",
        "generators.presets",
        "matchers",
        "pipelines.presets",
        "pipelines.cascade_presets",
        "generators.base",
        "pipelines.base",
    },
}
# The front door, its presets and the command line put the parts together.
MAY_IMPORT_ANYTHING = {"__init__", "__main__", "loading", "registration", "cli", "pretrained"}


def library_files() -> list[Path]:
    return sorted(path for path in LIBRARY.rglob("*.py") if "__pycache__" not in path.parts)


def recipe_files() -> list[Path]:
    return sorted(path for folder in RECIPE_FOLDERS for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(path: Path) -> str:
    """The first name below vidgen/: the folder, or the stem of a file that lies directly in it."""
    below = path.relative_to(LIBRARY).with_suffix("").parts
    return below[0]


def imported_names(path: Path) -> Iterator[tuple[str, int]]:
    """Every absolute dotted name that a file imports, relative imports resolved, wherever in the file they stand."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join(start + (node.module.split(".") if node.module else []))
            for alias in node.names:
                yield f"{origin}.{alias.name}", node.lineno


def allowed(part: str, target: str) -> bool:
    """May a file of `part` import the dotted name `target` (which starts with vidgen.)?"""
    names = target.split(".")[1:]
    if not names or names[0] in ("load", "build", "builtin_names"):
        return "front door" in LAYERS[part]
    if names[0] == part or names[0] in LAYERS[part]:
        return True
    reachable = {name.split(".")[1] for name in LAYERS[part] if name.startswith(f"{names[0]}.")}
    if not reachable:
        return False
    below = LIBRARY / names[0]
    is_module = len(names) > 1 and ((below / f"{names[1]}.py").exists() or (below / names[1]).is_dir())
    return names[1] in reachable if is_module else True


def test_every_library_part_has_a_place_in_the_import_order():
    unknown = {part_of(path) for path in library_files()} - set(LAYERS) - MAY_IMPORT_ANYTHING
    assert not unknown, f"add {sorted(unknown)} to LAYERS in {Path(__file__).name} (and to the design)"


def test_library_parts_import_only_what_lies_below_them():
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {target}"
        for path in library_files()
        if part_of(path) in LAYERS
        for target, line in imported_names(path)
        if target.split(".")[0] == "vidgen" and not allowed(part_of(path), target)
    ]
    assert not wrong, "\n".join(wrong)


def test_tokenizers_and_generators_never_import_each_other():
    for one, other in (("tokenizers", "generators"), ("generators", "tokenizers")):
        for path in (LIBRARY / one).rglob("*.py"):
            reached = [target for target, _ in imported_names(path) if target.startswith(f"vidgen.{other}")]
            assert not reached, f"{path.relative_to(ROOT)} imports {reached}"


def test_the_import_guard_itself_sees_relative_and_late_imports(tmp_path, monkeypatch):
    folder = tmp_path / "vidgen" / "tokenizers"
    folder.mkdir(parents=True)
    (folder / "bad.py").write_text('"""x"""\nfrom ..generators import masked\ndef f():\n    import vidgen.pipelines\n')
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert [name for name, _ in imported_names(folder / "bad.py")] == ["vidgen.generators.masked", "vidgen.pipelines"]
    assert not allowed("tokenizers", "vidgen.generators.masked")
    assert not allowed("tokenizers", "vidgen.pipelines")


def test_the_library_never_imports_recipes():
    for path in library_files():
        for target, line in imported_names(path):
            origin = target.split(".")[0]
            assert origin not in {"pipelines", "eval", "tests"}, f"{path.relative_to(ROOT)}:{line} imports {target}"


@pytest.mark.parametrize("folder", RECIPE_FOLDERS)
def test_recipe_folders_cannot_be_imported_and_hold_no_tests(folder):
    for path in (ROOT / folder).rglob("*.py"):
        assert path.name != "__init__.py", f"{path}: an importable `{folder}` hides other people's package"
        assert not path.name.startswith("test_"), f"{path}: tests live in tests/"


def test_no_recipe_file_is_named_like_an_importable_module():
    """`python eval/lpips.py` puts eval/ first on the path: every `import lpips` would then find the recipe."""
    for path in recipe_files():
        found = importlib.util.find_spec(path.stem)
        origin = None if found is None or found.origin is None else Path(found.origin)
        taken = origin is not None and origin != path and not origin.is_relative_to(ROOT / "tests")
        assert not taken and path.stem not in sys.stdlib_module_names, f"{path} is named like an importable module"


def test_component_module_paths_are_not_taken_for_diffusers_pipelines():
    """diffusers looks up the second-to-last element of a component's module path among its own pipeline modules."""
    import diffusers.pipelines

    taken = {module.name for module in pkgutil.iter_modules(diffusers.pipelines.__path__)}
    assert "dit" in taken
    for path in library_files():
        parts = module_name(path).split(".")
        second_to_last = parts[-2] if len(parts) > 1 else ""
        assert second_to_last not in taken - {"pipelines"}, f"{path}: diffusers has a pipeline `{second_to_last}`"


def test_modules_that_define_components_name_their_loadable_base():
    """diffusers finds the loading method through the names in the module that defines the class."""
    for path in library_files():
        tree = ast.parse(path.read_text())
        registers = any(
            isinstance(decorator, ast.Name) and decorator.id == "register_to_config"
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef)
            for decorator in node.decorator_list
        )
        if registers:
            names = {target.split(".")[-1] for target, _ in imported_names(path)}
            loadable = names & {"ModelMixin", "SchedulerMixin"}
            assert loadable, (
                f"{path}: import ModelMixin or SchedulerMixin by name here, or it saves and cannot be loaded"
            )


def test_transformers_and_diffusers_import_from_the_repository_root():
    code = (
        "from transformers import PreTrainedTokenizerFast\n"
        "from diffusers import DiffusionPipeline, ModelMixin\n"
        "import tokenizers\n"
        "assert hasattr(tokenizers, 'Tokenizer'), tokenizers.__path__"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=dict(os.environ), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_every_module_says_first_what_it_is_for():
    for path in [*library_files(), *recipe_files()]:
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring in its first line"


def test_no_file_is_named_after_nothing():
    for path in [*library_files(), *recipe_files()]:
        words = set(path.stem.lower().split("_"))
        assert not words & {"utils", "util", "helpers", "helper", "misc", "manager", "common"}, path


def test_attention_over_a_grid_goes_through_attention3d_alone():
    """No pattern of a grid: masks that differ between samples (conditions of different lengths, tokens that are
    encoded already) or from step to step (the filled part of a static cache), tokens that are not the whole grid, or
    a grid twice (whole and masked).
    Those classes are listed. Text of one length looks the same as text of many, because a network does not read the
    values of a mask: joint attention always has one. Llama blocks have one wherever groups of tokens follow text or a
    cache, and go through attention3d where all see all."""
    calls = {"scaled_dot_product_attention", "MultiheadAttention", "multi_head_attention_forward", "flex_attention"}
    found = set()
    for path in library_files():
        if part_of(path) == "kernels":
            continue
        for scope in ast.parse(path.read_text()).body:
            names = {node.attr for node in ast.walk(scope) if isinstance(node, ast.Attribute)}
            called = {node.id for node in ast.walk(scope) if isinstance(node, ast.Name)}
            names |= called | {
                alias.name for node in ast.walk(scope) if isinstance(node, ast.ImportFrom) for alias in node.names
            }
            used = calls & names | {"masked_attention"} & called
            found |= {(module_name(path), getattr(scope, "name", "module")) for _ in used}
    assert found == {
        ("vidgen.nn.transformer", "CrossAttention"),
        ("vidgen.nn.joint_transformer", "JointAttention"),
        ("vidgen.nn.joint_transformer", "SingleStreamAttention"),
        ("vidgen.nn.reduced_attention", "ReducedAttention"),
        ("vidgen.generators.masked_efficient", "SparseBlock"),
        ("vidgen.generators.masked_frames", "TeacherForced"),
        ("vidgen.nn.llama", "LlamaAttention"),
        ("vidgen.tokenizers.guided_decoder", "KnownAttention"),
    }


def test_nothing_loads_pickles():
    for path in [*library_files(), *recipe_files(), *(ROOT / "tests").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            call = ast.unparse(node.func)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            where = f"{path.relative_to(ROOT)}:{node.lineno}"
            if call == "torch.load":
                assert keywords.get("weights_only") == "True", f"{where}: torch.load needs weights_only=True"
            assert call not in {"pickle.load", "pickle.loads"}, f"{where}: unpickling runs code of the file"
            assert keywords.get("allow_pickle") != "True", f"{where}: unpickling runs code of the file"


def test_every_declared_dependency_has_a_lower_bound_and_no_upper_one():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [name for names in project["optional-dependencies"].values() for name in names]
    for requirement in [*project["dependencies"], *extras]:
        assert ">=" in requirement and "<" not in requirement and "==" not in requirement, requirement
