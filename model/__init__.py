"""The mathematics of diffusion models: paths, networks, denoisers, objectives, samplers. No files, no cluster, no
printing.
"""

from .chain_samplers import DDIM, Ancestral, PredictorCorrector
from .continuous_paths import VESDE, VPSDE, EDMPath, RectifiedFlow, SubVPSDE
from .ddpm_unet import DDPMUNet
from .denoiser import Denoiser, NetworkDenoiser, Prediction
from .discrete_paths import VPCosine, VPLinear, VPScaledLinear, VPSigmoid
from .ema import EMA, EMAConfig
from .gaussian_path import GaussianPath
from .grids import Grid, time_grid
from .images import to_uint8, to_unit_range
from .multistep_samplers import DPMSolverPP, UniPC
from .objectives import denoising_loss
from .ode_samplers import RK45, Euler, Heun
from .paths import Path
from .random import Stream, normal, philox, uniform, words
from .record import Record
from .sampler import State
from .samplers import Sampler
from .spec import ModelSpec, Network, generate, trajectory
from .targets import Eps, Target
from .times import LossHistory, Times, TimeSampling, UniformTimes
from .weightings import Simple, Weighting

__all__ = [
    "DDIM",
    "EMA",
    "RK45",
    "VESDE",
    "VPSDE",
    "Ancestral",
    "DDPMUNet",
    "DPMSolverPP",
    "Denoiser",
    "EDMPath",
    "EMAConfig",
    "Eps",
    "Euler",
    "GaussianPath",
    "Grid",
    "Heun",
    "LossHistory",
    "ModelSpec",
    "Network",
    "NetworkDenoiser",
    "Path",
    "Prediction",
    "PredictorCorrector",
    "Record",
    "RectifiedFlow",
    "Sampler",
    "Simple",
    "State",
    "Stream",
    "SubVPSDE",
    "Target",
    "TimeSampling",
    "Times",
    "UniPC",
    "UniformTimes",
    "VPCosine",
    "VPLinear",
    "VPScaledLinear",
    "VPSigmoid",
    "Weighting",
    "denoising_loss",
    "generate",
    "normal",
    "philox",
    "time_grid",
    "to_uint8",
    "to_unit_range",
    "trajectory",
    "uniform",
    "words",
]
