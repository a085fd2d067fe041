"""The mathematics of diffusion models: paths, networks, denoisers, objectives, samplers. No files, no cluster, no
printing.
"""

from .ddpm_unet import DDPMUNet
from .denoiser import Denoiser, EpsDenoiser, Prediction
from .ema import EMA, EMAConfig
from .grids import GRIDS, Grid, time_grid
from .images import to_uint8, to_unit_range
from .objectives import simple_loss
from .paths import Path, VPCosine, VPLinear
from .random import Stream, integers, normal, philox, words
from .record import Record
from .samplers import DDIM, Ancestral, Sampler
from .spec import ModelSpec, Network, generate, trajectory

__all__ = [
    "DDIM",
    "EMA",
    "GRIDS",
    "Ancestral",
    "DDPMUNet",
    "Denoiser",
    "EMAConfig",
    "EpsDenoiser",
    "Grid",
    "ModelSpec",
    "Network",
    "Path",
    "Prediction",
    "Record",
    "Sampler",
    "Stream",
    "VPCosine",
    "VPLinear",
    "generate",
    "integers",
    "normal",
    "philox",
    "simple_loss",
    "time_grid",
    "to_uint8",
    "to_unit_range",
    "trajectory",
    "words",
]
