"""What a network is told of an image beside its time."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from .random import Stream, uniform
from .record import Record


class Unconditional(Record):
    """Nothing; the network is not told the class."""

    kind: Literal["none"] = "none"

    @property
    def classes(self) -> int:
        """Classes that the network is told of."""
        return 0

    def training_label(self, labels: Tensor, seed: int, positions: Tensor) -> None:  # noqa: ARG002  # as all of its kind
        """No label."""
        return


class ClassLabels(Record):
    """The class of each image, withheld now and then, so that the network also learns to do without it.

    Ho & Salimans 2021, algorithm 1.
    """

    kind: Literal["class_label"] = "class_label"
    classes: int = Field(ge=2)
    """Number of classes; labels are 0 to classes - 1, and the label `classes` stands for none."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Share of training images whose label is withheld."""

    def training_label(self, labels: Tensor, seed: int, positions: Tensor) -> Tensor:
        """The labels, some of them withheld by their image's position. All int64 [B]."""
        withheld = uniform(seed, Stream.LABEL, positions) < self.dropout
        return torch.where(withheld, self.classes, labels)


Conditioning = Annotated[Unconditional | ClassLabels, Field(discriminator="kind")]
"""What the network is told of an image beside x_t and t: one of them, told apart by `kind`."""
