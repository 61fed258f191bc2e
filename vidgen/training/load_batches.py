"""Batches of a dataset, read here or by worker processes; a video that cannot be read is the same error from both."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from vidgen.data.decode import VideoError
from vidgen.training.step import Batch


def load_batches(
    items: Dataset,
    batches: Iterable[list[int]],
    collate: Callable[[list[dict]], Batch],
    *,
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """The items of each batch, joined, in order.

    Args:
        batches: indices of the items.
        workers: processes that read ahead; 0 reads here.
        pin_memory: into memory that a GPU can copy from while it computes.

    Raises:
        VideoError: as the dataset raises it.
    """
    loader = DataLoader(
        ErrorsAsItems(items),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=ErrorOrBatch(collate),
        generator=torch.Generator(),  # workers' seeds must not come from the global generator
        pin_memory=pin_memory,
    )
    for batch in loader:
        if isinstance(batch, VideoError):
            raise batch
        yield batch


class ErrorsAsItems(Dataset):
    """The items of a dataset; for a video that cannot be read its error, to which a worker would add its traceback."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __getitem__(self, index: int) -> dict[str, Any] | VideoError:
        try:
            return self.items[index]
        except VideoError as error:
            return error


class ErrorOrBatch:
    """Joins items as `collate` does, or gives the first error among them."""

    def __init__(self, collate: Callable[[list[dict]], Batch]) -> None:
        self.collate = collate

    def __call__(self, items: list[Any]) -> Batch | VideoError:
        return next((item for item in items if isinstance(item, VideoError)), None) or self.collate(items)
