"""From CUDA C++ source to a cubin with NVRTC, which PyTorch's CUDA wheels bring; results are kept on disk.

The cache lies in `$VIDGEN_CACHE`, else in `$XDG_CACHE_HOME/vidgen` or `~/.cache/vidgen`. The name of an entry is a hash
of everything that determines it, so entries never go stale and may be deleted at any time.
"""

import hashlib
import importlib.util
import os
import tempfile
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch

HEAD_SIZES = (64, 128)
DTYPES = (torch.bfloat16, torch.float16)

HEADERS = ("instructions.cuh", "problem.cuh", "softmax.cuh")
# Only Hopper has WGMMA; mma.sync runs everywhere from Ampere on.
HOPPER = "90a"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One compiled form of the attention kernel."""

    architecture: str
    """Of the GPU, as in `sm_…`: "80", "86", "89", "90a", "100"…"""
    head_size: int
    dtype: torch.dtype

    def __post_init__(self) -> None:
        if self.head_size not in HEAD_SIZES:
            raise ValueError(f"head size {self.head_size} is not compiled; use one of {HEAD_SIZES}")
        if self.dtype not in DTYPES:
            raise ValueError(f"{self.dtype} is not compiled; use one of {', '.join(map(str, DTYPES))}")

    def __str__(self) -> str:
        return f"sm_{self.architecture}, head size {self.head_size}, {str(self.dtype).removeprefix('torch.')}"

    @property
    def source(self) -> str:
        """Name of the source file."""
        return "attention_sm90.cu" if self.architecture == HOPPER else "attention_sm80.cu"

    @property
    def options(self) -> tuple[str, ...]:
        """What NVRTC is told, apart from the architecture."""
        bf16 = int(self.dtype == torch.bfloat16)
        return ("--std=c++17", f"-DHEAD_SIZE={self.head_size}", f"-DELEMENT_IS_BF16={bf16}")


def missing() -> str | None:
    """Why kernels cannot be compiled here, or None when they can."""
    try:
        found = importlib.util.find_spec("cuda.bindings.nvrtc")
    except ModuleNotFoundError:  # there is no package `cuda` at all
        found = None
    if found is None:
        return "cuda.bindings is not installed, which PyTorch's CUDA wheels bring; pip install cuda-bindings"
    return None


def architecture_of(device: torch.device) -> str:
    """The architecture that kernels for a CUDA device are compiled for."""
    major, minor = torch.cuda.get_device_capability(device)
    return HOPPER if (major, minor) == (9, 0) else f"{major}{minor}"


def compile_cubin(variant: Variant) -> bytes:
    """The kernel `attention` as a cubin, from the cache or compiled in about a second.

    RuntimeError: NVRTC's messages when it fails.
    """
    path = _cache_folder() / f"attention-{_fingerprint(variant)}.cubin"
    if path.is_file():
        return path.read_bytes()
    cubin, _ = build(variant, "cubin")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
        file.write(cubin)
    os.replace(file.name, path)  # another process sees the whole file or none
    return cubin


def build(variant: Variant, form: Literal["cubin", "ptx"]) -> tuple[bytes, str]:
    """Compiles without the cache; returns the code and the compiler's messages. RuntimeError as in `compile_cubin`."""
    nvrtc = _nvrtc()
    texts, names = [_read(name).encode() for name in HEADERS], [name.encode() for name in HEADERS]
    source = _read(variant.source).encode()
    program = _call(nvrtc.nvrtcCreateProgram, source, variant.source.encode(), len(texts), texts, names)
    target = "sm" if form == "cubin" else "compute"
    options = [option.encode() for option in (f"--gpu-architecture={target}_{variant.architecture}", *variant.options)]
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        log = _text(program, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog).decode()
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise RuntimeError(f"NVRTC cannot compile {variant.source} for {variant}: {status.name}\n{log}")
        if form == "ptx":
            return _text(program, nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX), log
        size = _call(nvrtc.nvrtcGetCUBINSize, program)
        cubin = bytearray(size)
        _call(nvrtc.nvrtcGetCUBIN, program, cubin)
        return bytes(cubin), log
    finally:
        _call(nvrtc.nvrtcDestroyProgram, program)


def _fingerprint(variant: Variant) -> str:
    """A hash of the sources, the options and the compiler."""
    version = _call(_nvrtc().nvrtcVersion)
    parts = [str(version), variant.architecture, *variant.options, *map(_read, (variant.source, *HEADERS))]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _cache_folder() -> Path:
    if folder := os.environ.get("VIDGEN_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vidgen"


def _read(name: str) -> str:
    return files("vidgen.kernels.cuda").joinpath(name).read_text()


def _nvrtc() -> Any:
    from cuda.bindings import nvrtc

    return nvrtc


def _call(function: Any, *arguments: Any) -> Any:
    """The results of an NVRTC call without its status, which is checked."""
    status, *results = function(*arguments)
    if status.value != 0:
        raise RuntimeError(f"{function.__name__} failed: {status.name}")
    return results[0] if len(results) == 1 else tuple(results)


def _text(program: Any, size_of: Any, read: Any) -> bytes:
    buffer = bytearray(_call(size_of, program))
    _call(read, program, buffer)
    return bytes(buffer).rstrip(b"\0")
