"""The mathematics of diffusion models: paths, networks, denoisers, objectives, samplers. No files, no cluster, no
printing.
"""

from .adm_unet import ADMUNet
from .augmentation import AUGMENT_LABELS, AUGMENT_NUMBERS, Augmentation
from .bound import bits_per_dim, bits_per_dim_of_density, bound_term, prior_term
from .chain_samplers import DDIM, Ancestral, PredictorCorrector
from .codec import Codec, IdentityCodec
from .conditioning import ClassLabels, Conditioning, Unconditional
from .continuous_paths import VESDE, VPSDE, EDMPath, RectifiedFlow, SubVPSDE
from .cross_attention import CrossAttention
from .ddpm_unet import DDPMUNet
from .denoiser import Denoiser, NetworkDenoiser, Prediction
from .discrete_paths import DiscretePath, VPCosine, VPLinear, VPScaledLinear, VPSigmoid
from .dit import DiT
from .editing import (
    image_to_image,
    interpolate_images,
    interpolate_seeds,
    invert,
    invertible,
    reconstruct,
    slerp,
    strength_time,
)
from .ema import EMA, WIDEST_SIGMA_REL, EMAProfile, EMAs, ExponentialEMA, PowerFunctionEMA
from .execution import EAGER, Execution
from .flops import evaluation_flops, training_flops
from .gaussian_path import GaussianPath
from .generation import TrainedModel, default_label, generate, last, trajectory
from .grids import Grid, time_grid
from .guidance import NO_GUIDANCE, ClassifierFreeGuidance, ClassifierGuidance, Guidance, NoGuidance
from .images import to_uint8, to_unit_range
from .inpainting import RePaint, inpaint
from .likelihood import (
    Bound,
    LogLikelihood,
    RateDistortion,
    bound_noise,
    dequantised,
    ode_log_likelihood,
    probe_signs,
    rate_distortion,
    variational_bound,
)
from .multistep_samplers import DPMSolverPP, UniPC
from .ncsnpp import NCSNpp
from .networks import Network
from .noisy_classifier import NoisyClassifier
from .objectives import Classifying, Denoising, Objective, denoising_loss
from .ode_samplers import RK45, Euler, Heun
from .paths import Path
from .posthoc_ema import EMASnapshot, Reconstruction, combine_weights, reconstruct_average
from .precision import Precision, autocast, fast_precision, float32_products
from .random import Stream, normal, philox, uniform, uniforms, words
from .record import Record
from .sampler import State
from .samplers import Sampler
from .simple_unet import SimpleUNet
from .spec import ModelSpec
from .targets import Eps, Target
from .times import LossHistory, Times, TimeSampling, UniformTimes
from .variance import FixedVariance, LearnedRange, StepVariance, Variance
from .weightings import Simple, Weighting

__all__ = [
    "AUGMENT_LABELS",
    "AUGMENT_NUMBERS",
    "DDIM",
    "EAGER",
    "EMA",
    "NO_GUIDANCE",
    "RK45",
    "VESDE",
    "VPSDE",
    "WIDEST_SIGMA_REL",
    "ADMUNet",
    "Ancestral",
    "Augmentation",
    "Bound",
    "ClassLabels",
    "ClassifierFreeGuidance",
    "ClassifierGuidance",
    "Classifying",
    "Codec",
    "Conditioning",
    "CrossAttention",
    "DDPMUNet",
    "DPMSolverPP",
    "Denoiser",
    "Denoising",
    "DiT",
    "DiscretePath",
    "EDMPath",
    "EMAProfile",
    "EMASnapshot",
    "EMAs",
    "Eps",
    "Euler",
    "Execution",
    "ExponentialEMA",
    "FixedVariance",
    "GaussianPath",
    "Grid",
    "Guidance",
    "Heun",
    "IdentityCodec",
    "LearnedRange",
    "LogLikelihood",
    "LossHistory",
    "ModelSpec",
    "NCSNpp",
    "Network",
    "NetworkDenoiser",
    "NoGuidance",
    "NoisyClassifier",
    "Objective",
    "Path",
    "PowerFunctionEMA",
    "Precision",
    "Prediction",
    "PredictorCorrector",
    "RateDistortion",
    "RePaint",
    "Reconstruction",
    "Record",
    "RectifiedFlow",
    "Sampler",
    "Simple",
    "SimpleUNet",
    "State",
    "StepVariance",
    "Stream",
    "SubVPSDE",
    "Target",
    "TimeSampling",
    "Times",
    "TrainedModel",
    "Unconditional",
    "UniPC",
    "UniformTimes",
    "VPCosine",
    "VPLinear",
    "VPScaledLinear",
    "VPSigmoid",
    "Variance",
    "Weighting",
    "autocast",
    "bits_per_dim",
    "bits_per_dim_of_density",
    "bound_noise",
    "bound_term",
    "combine_weights",
    "default_label",
    "denoising_loss",
    "dequantised",
    "evaluation_flops",
    "fast_precision",
    "float32_products",
    "generate",
    "image_to_image",
    "inpaint",
    "interpolate_images",
    "interpolate_seeds",
    "invert",
    "invertible",
    "last",
    "normal",
    "ode_log_likelihood",
    "philox",
    "prior_term",
    "probe_signs",
    "rate_distortion",
    "reconstruct",
    "reconstruct_average",
    "slerp",
    "strength_time",
    "time_grid",
    "to_uint8",
    "to_unit_range",
    "training_flops",
    "trajectory",
    "uniform",
    "uniforms",
    "variational_bound",
    "words",
]
