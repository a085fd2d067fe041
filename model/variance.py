"""The variance of a step of the reverse chain: fixed by the path, or learned beside the mean."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from .discrete_paths import DiscretePath
from .gaussian_path import GaussianPath
from .record import Record


class FixedVariance(Record):
    """Fixed by the path; the network predicts the mean alone. Ho et al. 2020, section 3.2."""

    outputs: ClassVar[int] = 1
    """Images that the network puts out for each one that it gets."""
    kind: Literal["fixed"] = "fixed"

    def check(self, path: GaussianPath) -> None:
        """Any path will do."""

    def split(self, output: Tensor) -> tuple[Tensor, None]:
        """All of the output is the target's. [B, C, H, W] -> [B, C, H, W], None."""
        return output, None


class LearnedRange(Record):
    """Learned for each pixel, between the posterior's variance and beta. Nichol & Dhariwal 2021, eq. 15 and 16."""

    outputs: ClassVar[int] = 2
    kind: Literal["learned_range"] = "learned_range"
    bound_weight: float = Field(1e-3, gt=0)
    """Weight of the variational bound, bits per dimension, beside the squared error in the loss; it teaches the
    variance alone. 0.001 in the paper."""

    def check(self, path: GaussianPath) -> None:
        """ValueError on a path without steps."""
        if not isinstance(path, DiscretePath):
            raise ValueError(
                "learned_range learns the variance of a chain's steps, which a path in continuous time does not have; "
                "use a path of T steps, such as vp_cosine, or variance fixed"
            )

    def split(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """What the target predicts, and the share of log(beta) in the log variance: about 0 to 1, not clipped.

        The network's range for the share is -1 to 1, as in their code. [B, 2C, H, W] -> two of [B, C, H, W].
        """
        target, share = output.chunk(2, dim=1)
        return target, (share + 1) / 2


FIXED_VARIANCE = FixedVariance()

StepVariance = Literal["fixed_small", "fixed_large", "learned"]
"""Of a step of the reverse chain: beta_tilde (the posterior's), beta, or for each pixel between them as learned."""

Variance = Annotated[FixedVariance | LearnedRange, Field(discriminator="kind")]
"""What a network says of its steps' variance: one of them, told apart by `kind`."""
