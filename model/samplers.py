"""The choice of samplers."""

from typing import Annotated

from pydantic import Field

from .chain_samplers import DDIM, Ancestral, PredictorCorrector
from .multistep_samplers import DPMSolverPP, UniPC
from .ode_samplers import RK45, Euler, Heun

Sampler = Annotated[
    DDIM | Ancestral | Euler | Heun | DPMSolverPP | UniPC | PredictorCorrector | RK45, Field(discriminator="kind")
]
"""One of them, told apart by `kind`."""
