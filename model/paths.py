"""The choice of Gaussian paths."""

from typing import Annotated

from pydantic import Field

from .continuous_paths import VESDE, VPSDE, EDMPath, RectifiedFlow, SubVPSDE
from .discrete_paths import VPCosine, VPLinear, VPScaledLinear, VPSigmoid

Path = Annotated[
    VPLinear | VPCosine | VPSigmoid | VPScaledLinear | VPSDE | SubVPSDE | VESDE | EDMPath | RectifiedFlow,
    Field(discriminator="kind"),
]
"""One of them, told apart by `kind`."""
