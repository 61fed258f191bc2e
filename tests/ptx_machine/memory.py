"""The machine's memories: the tensors of this process as global memory, and arrays of bytes for the rest."""

import ctypes

import numpy as np


class Memory:
    """Byte ranges that a kernel may touch; anything else, or a misaligned address, is an error as on a GPU."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ranges: list[tuple[int, np.ndarray]] = []

    def add(self, start: int, content: np.ndarray) -> None:
        """Lets `content` (bytes) lie at address `start`."""
        self.ranges.append((start, content))

    def add_process_memory(self, address: int, size: int) -> None:
        """Lets the kernel touch `size` bytes of this process, such as a tensor's."""
        if size:
            self.add(address, np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)))

    def _locate(self, addresses: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        low, high = int(addresses.min()), int(addresses.max()) + size
        for start, content in self.ranges:
            if start <= low and high <= start + len(content):
                offsets = (addresses - np.uint64(start)).astype(np.int64)
                break
        else:
            raise AssertionError(f"{self.name} access outside of memory: {low:#x} to {high:#x}")
        assert not (addresses % np.uint64(size)).any(), f"{self.name} address not aligned to {size}"
        return content[: len(content) // size * size], offsets

    def load(self, addresses: np.ndarray, dtype: str) -> np.ndarray:
        """One value for each address (uint64)."""
        size = np.dtype(dtype).itemsize
        content, offsets = self._locate(addresses, size)
        return content.view(dtype)[offsets // size]

    def store(self, addresses: np.ndarray, values: np.ndarray) -> None:
        """Writes one value to each address; the last lane wins where several write to one."""
        size = values.dtype.itemsize
        content, offsets = self._locate(addresses, size)
        content.view(values.dtype)[offsets // size] = values
