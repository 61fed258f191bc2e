"""Files of tensors as they come to lie on the disk."""

import os
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor


def save_tensors(tensors: dict[str, Tensor], path: str | Path, *, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file that may be read by whom a new file may."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)
    share(Path(path))


def share(path: Path) -> None:
    """Give a file the permissions of a new one (`umask`): safetensors keeps what it writes to its owner."""
    mask = os.umask(0o077)
    os.umask(mask)
    path.chmod(0o666 & ~mask)
