"""diffusers' schedulers with float64 tables, by the formulas of their own that they store as float32."""

import math

import torch
from diffusers import DDIMScheduler, DDPMScheduler

Scheduler = DDIMScheduler | DDPMScheduler
SCHEDULES = {"vp_linear": "linear", "vp_cosine": "squaredcos_cap_v2"}
"""Our path's kind -> their beta_schedule."""


def in_float64(scheduler: Scheduler) -> Scheduler:
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


def _cosine_betas(T: int) -> torch.Tensor:
    def alpha_bar(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    return torch.tensor(
        [min(1 - alpha_bar((t + 1) / T) / alpha_bar(t / T), 0.999) for t in range(T)], dtype=torch.float64
    )
