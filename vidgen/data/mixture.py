"""Several data sets in one: their items take turns."""

from collections.abc import Sequence
from typing import Any

from torch.utils.data import Dataset


class Mixture(Dataset):
    """Item i is item i // n of the data set i % n, of n map-style data sets; as long as the shortest allows.

    Args:
        datasets: map-style data sets with a length, all with `class_label` in their items or none.
        first_labels: what is added to the class labels of each data set, so that no two share one.
    """

    def __init__(self, datasets: Sequence[Any], first_labels: Sequence[int]) -> None:
        if not datasets or len(datasets) != len(first_labels):
            raise ValueError(
                f"expected data sets and the first class label of each; got {len(datasets)} and {len(first_labels)}"
            )
        self.datasets, self.first_labels = tuple(datasets), tuple(first_labels)

    def __len__(self) -> int:
        return len(self.datasets) * min(len(dataset) for dataset in self.datasets)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"index must be in 0…{len(self) - 1}; got {index}")
        place, turn = divmod(index, len(self.datasets))
        item = dict(self.datasets[turn][place])
        if "class_label" in item:
            item["class_label"] += self.first_labels[turn]
        return item

    def captions(self) -> list[str]:
        """Captions of all data sets."""
        return [caption for dataset in self.datasets for caption in dataset.captions()]
