"""diffusers' schedulers and time projection in float64: by their own formulas, which they keep to float32, or by our
path.
"""

import math
import warnings
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from model import GaussianPath
from model.sampler import Point


class Sinusoids(nn.Module):
    """Their time projection in float64: they compute it in float32 whatever the network's dtype."""

    def __init__(self, channels: int, *, sines_first: bool) -> None:
        super().__init__()
        self.half, self.sines_first = channels // 2, sines_first

    def forward(self, t: Tensor) -> Tensor:
        exponents = torch.arange(self.half, dtype=torch.float64) / (self.half - self.sines_first)
        angles = t.double()[:, None] * torch.exp(-math.log(10_000) * exponents).float().double()
        waves = (angles.sin(), angles.cos()) if self.sines_first else (angles.cos(), angles.sin())
        return torch.cat(waves, dim=1)


SCHEDULES = {"vp_linear": "linear", "vp_cosine": "squaredcos_cap_v2"}
"""Our path's kind -> their beta_schedule."""


def theirs(name: str, **options: Any) -> Any:
    """The scheduler of diffusers with this name, whose types say too little."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of numpy, at their np.array(tensor)
        return getattr(diffusers, name)(**options)


def in_float64(scheduler: Any) -> Any:
    """The scheduler, its tables computed again; T of a few thousand loses four digits in float32."""
    config = scheduler.config
    if config.beta_schedule == "linear":
        betas = torch.linspace(config.beta_start, config.beta_end, config.num_train_timesteps, dtype=torch.float64)
    else:
        betas = _cosine_betas(config.num_train_timesteps)
    torch.testing.assert_close(betas.float(), scheduler.betas, rtol=1e-6, atol=0)  # it is their formula
    scheduler.betas, scheduler.alphas = betas, 1 - betas
    scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    return scheduler


def on_points(scheduler: Any, points: list[Point], twice: bool = False) -> Any:
    """A scheduler that steps in sigma / alpha, on our grid; `twice` for two evaluations a step, the last but one.

    Theirs are float32, and interpolated between whole steps.
    """
    levels = torch.tensor([point.sigma / point.alpha for point in points], dtype=torch.float64)
    times = torch.tensor([point.t for point in points[:-1]], dtype=torch.float64)
    if twice:
        levels = torch.cat((levels[:1], levels[1:-1].repeat_interleave(2), levels[-1:]))
        times = torch.cat((times[:1], times[1:].repeat_interleave(2)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of numpy, at their np.array(tensor)
        scheduler.set_timesteps(len(points) - 1)
    assert len(scheduler.sigmas) == len(levels)
    assert len(scheduler.timesteps) == len(times)
    scheduler.sigmas, scheduler.timesteps = levels, times
    scheduler.set_begin_index(0)
    return scheduler


def betas_as_theirs(path: GaussianPath) -> str:
    """Their name of the path's schedule."""
    return SCHEDULES[path.model_dump()["kind"]]


def _cosine_betas(T: int) -> torch.Tensor:
    def alpha_bar(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    return torch.tensor(
        [min(1 - alpha_bar((t + 1) / T) / alpha_bar(t / T), 0.999) for t in range(T)], dtype=torch.float64
    )
