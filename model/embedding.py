"""What a network is told beside the image: the time and, where there are classes, the label."""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .precision import without_autocast


class TimeEmbedding(nn.Module):
    """Sinusoids of the time through two dense layers. t: [B] -> [B, width].

    ddpm: all sines, then all cosines, of frequencies 10,000^(-i / (half - 1)) for i < half; Ho et al. 2020's code.
    iddpm: all cosines, then all sines, of frequencies 10,000^(-i / half); Nichol & Dhariwal 2021's code.
    """

    frequencies: Tensor

    def __init__(
        self,
        sinusoids: int,
        width: int,
        convention: Literal["ddpm", "iddpm"],
        dense: Callable[[int, int], nn.Linear] = nn.Linear,
    ) -> None:
        super().__init__()
        half = sinusoids // 2
        last = half - 1 if convention == "ddpm" else half
        frequencies = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float64) / last)
        self.register_buffer("frequencies", frequencies.float(), persistent=False)
        self.sines_first = convention == "ddpm"
        self.dense1 = dense(sinusoids, width)
        self.dense2 = dense(width, width)

    def forward(self, t: Tensor) -> Tensor:
        """All in float32, also under autocast: in bfloat16, step 998 would be step 1000."""
        with without_autocast(t.device):
            angles = t.float()[:, None] * self.frequencies
            waves = (angles.sin(), angles.cos()) if self.sines_first else (angles.cos(), angles.sin())
            embedding: Tensor = self.dense2(F.silu(self.dense1(torch.cat(waves, dim=1))))
        return embedding


def label_embedding(classes: int, width: int) -> nn.Embedding | None:
    """A row for each class and a last one for no label; None where there are no classes."""
    return nn.Embedding(classes + 1, width) if classes else None


def condition(time: Tensor, labels: nn.Embedding | None, label: Tensor | None) -> Tensor:
    """The swish of time and label together. time: [B, width]; label: int64 [B] or None -> [B, width].

    ValueError where a network of classes gets no labels, or one without classes gets some.
    """
    if labels is None:
        if label is not None:
            raise ValueError("the network was built without classes and takes no label; pass None, or set classes")
        return F.silu(time)
    if label is None:
        null = labels.num_embeddings - 1
        raise ValueError(f"the network has {null} classes and was given no label; pass int64 [B], {null} for none")
    return F.silu(time + labels(label))
