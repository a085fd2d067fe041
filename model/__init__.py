"""The mathematics of diffusion models: paths, networks, denoisers, objectives, samplers. No files, no cluster, no
printing.
"""

from .adm_unet import ADMUNet
from .augmentation import AUGMENT_LABELS, AUGMENT_NUMBERS, Augmentation
from .chain_samplers import DDIM, Ancestral, PredictorCorrector
from .conditioning import ClassLabels, Conditioning, Unconditional
from .continuous_paths import VESDE, VPSDE, EDMPath, RectifiedFlow, SubVPSDE
from .cross_attention import CrossAttention
from .ddpm_unet import DDPMUNet
from .denoiser import Denoiser, NetworkDenoiser, Prediction
from .discrete_paths import VPCosine, VPLinear, VPScaledLinear, VPSigmoid
from .dit import DiT
from .ema import EMA, EMAConfig
from .gaussian_path import GaussianPath
from .grids import Grid, time_grid
from .guidance import NO_GUIDANCE, ClassifierFreeGuidance, Guidance, NoGuidance
from .images import to_uint8, to_unit_range
from .multistep_samplers import DPMSolverPP, UniPC
from .ncsnpp import NCSNpp
from .networks import Network
from .objectives import denoising_loss
from .ode_samplers import RK45, Euler, Heun
from .paths import Path
from .random import Stream, normal, philox, uniform, uniforms, words
from .record import Record
from .sampler import State
from .samplers import Sampler
from .simple_unet import SimpleUNet
from .spec import ModelSpec, generate, trajectory
from .targets import Eps, Target
from .times import LossHistory, Times, TimeSampling, UniformTimes
from .weightings import Simple, Weighting

__all__ = [
    "AUGMENT_LABELS",
    "AUGMENT_NUMBERS",
    "DDIM",
    "EMA",
    "NO_GUIDANCE",
    "RK45",
    "VESDE",
    "VPSDE",
    "ADMUNet",
    "Ancestral",
    "Augmentation",
    "ClassLabels",
    "ClassifierFreeGuidance",
    "Conditioning",
    "CrossAttention",
    "DDPMUNet",
    "DPMSolverPP",
    "Denoiser",
    "DiT",
    "EDMPath",
    "EMAConfig",
    "Eps",
    "Euler",
    "GaussianPath",
    "Grid",
    "Guidance",
    "Heun",
    "LossHistory",
    "ModelSpec",
    "NCSNpp",
    "Network",
    "NetworkDenoiser",
    "NoGuidance",
    "Path",
    "Prediction",
    "PredictorCorrector",
    "Record",
    "RectifiedFlow",
    "Sampler",
    "Simple",
    "SimpleUNet",
    "State",
    "Stream",
    "SubVPSDE",
    "Target",
    "TimeSampling",
    "Times",
    "Unconditional",
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
    "uniforms",
    "words",
]
