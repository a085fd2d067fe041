"""`scheduler_config.json` of diffusers' DDPMScheduler and DDIMScheduler: the path, the target and the sampler.

Each key is theirs, with the default that diffusers gives it where a file leaves it out. The file does not say in how
many steps images are drawn; diffusers' pipelines do, by default all of DDPM's, and 50 of DDIM.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal, cast, get_args

import numpy as np
from pydantic import Field, ValidationInfo, field_validator

from model import (
    DDIM,
    Ancestral,
    DiscretePath,
    FixedVariance,
    LearnedRange,
    ModelSpec,
    Path,
    Sampler,
    VPCosine,
    VPLinear,
    VPScaledLinear,
    VPSigmoid,
    time_grid,
)

from ..runfile.schema import value_words
from .diffusers_unet import TheirConfig

_ALWAYS = {"thresholding": False, "clip_sample_range": 1.0, "steps_offset": 0, "set_alpha_to_one": True}
_SCHEDULES: dict[str, type[DiscretePath]] = {
    "linear": VPLinear,
    "scaled_linear": VPScaledLinear,
    "sigmoid": VPSigmoid,
    "squaredcos_cap_v2": VPCosine,
}
_TARGETS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_DDIM_STEPS = 50  # as DDIMPipeline takes by default

Spacing = Literal["leading", "trailing", "linspace"]


class Scheduler(TheirConfig):
    """A scheduler whose steps one of our samplers takes."""

    class_name: Literal["DDPMScheduler", "DDIMScheduler"] = Field(alias="_class_name")
    num_train_timesteps: int = Field(1000, ge=2, le=100_000)
    beta_start: float = Field(1e-4, ge=1e-12, lt=1)
    beta_end: float = Field(0.02, gt=0, lt=1)
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = "linear"
    trained_betas: None = None
    variance_type: Literal["fixed_small", "fixed_small_log", "fixed_large", "learned_range"] = "fixed_small"
    clip_sample: bool = True
    clip_sample_range: float = 1.0
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    thresholding: bool = False
    dynamic_thresholding_ratio: float = 0.995  # of thresholding
    sample_max_value: float = 1.0  # of thresholding
    timestep_spacing: Spacing = "leading"
    steps_offset: int = 0
    rescale_betas_zero_snr: bool = False
    set_alpha_to_one: bool = True

    @field_validator(*_ALWAYS)
    @classmethod
    def _as_in_all_of_ours(cls, value: Any, info: ValidationInfo) -> Any:
        expected = _ALWAYS[str(info.field_name)]
        if value != expected:
            raise ValueError(
                f"found {value_words(value)}, expected {value_words(expected)}; our samplers know no other"
            )
        return value

    @field_validator("beta_end")
    @classmethod
    def _noise_grows(cls, end: float, info: ValidationInfo) -> float:
        if end < info.data.get("beta_start", 0):
            raise ValueError(f"found {end}, expected at least beta_start, {info.data['beta_start']}")
        return end

    @field_validator("timestep_spacing")
    @classmethod
    def _each_step_ends_where_the_next_begins(cls, spacing: Spacing, info: ValidationInfo) -> Spacing:
        T = info.data.get("num_train_timesteps")
        if T and info.data.get("class_name") == "DDIMScheduler" and not _ddim_steps(spacing, T):
            raise ValueError(
                f"found {spacing!r}, by which no steps of DDIMScheduler end where the next begin; expected 'leading'"
            )
        return spacing

    @field_validator("rescale_betas_zero_snr")
    @classmethod
    def _target_tells_the_image(cls, rescaled: bool, info: ValidationInfo) -> bool:
        if rescaled and info.data.get("prediction_type") == "epsilon":
            raise ValueError(
                "found true, expected false with prediction_type epsilon: the noise does not tell the image at the "
                "last step, where nothing is left of it"
            )
        return rescaled

    @property
    def path(self) -> DiscretePath:
        """How images become noise."""
        ends = {"beta_start": self.beta_start, "beta_end": self.beta_end}
        schedule: Any = _SCHEDULES[self.beta_schedule]
        path: DiscretePath = schedule(
            T=self.num_train_timesteps,
            zero_terminal_snr=self.rescale_betas_zero_snr,
            **({} if schedule is VPCosine else ends),
        )
        return path

    @property
    def target(self) -> dict[str, str]:
        """What the network predicts."""
        return {"kind": _TARGETS[self.prediction_type]}

    @property
    def variance(self) -> FixedVariance | LearnedRange:
        """Whether the network also predicts the variance of each step."""
        learned = self.class_name == "DDPMScheduler" and self.variance_type == "learned_range"
        return LearnedRange() if learned else FixedVariance()

    @property
    def sampler(self) -> Ancestral | DDIM:
        """Ours that takes the same steps: all of DDPM's, or 50 of DDIM's where so many fit, else fewer."""
        T, grid, clip = self.num_train_timesteps, self.timestep_spacing, "x0" if self.clip_sample else "none"
        if self.class_name == "DDIMScheduler":
            return DDIM.model_validate({"steps": _ddim_steps(grid, T), "grid": grid, "clip": clip})
        variances = {"fixed_small_log": "fixed_small", "learned_range": "learned"}
        variance = variances.get(self.variance_type, self.variance_type)
        return Ancestral.model_validate({"steps": T, "grid": grid, "variance": variance, "clip": clip})

    def written(self) -> dict[str, Any]:
        """The file, without the key that only the other class has."""
        foreign = {"DDPMScheduler": "set_alpha_to_one", "DDIMScheduler": "variance_type"}[self.class_name]
        return self.model_dump(mode="json", by_alias=True, exclude={foreign})


def scheduler_of(spec: ModelSpec, sampler: Sampler) -> Scheduler:
    """What makes diffusers draw as this sampler does, of a model without `foreign_steps`."""
    path = spec.path
    assert isinstance(path, DiscretePath)
    assert isinstance(sampler, Ancestral | DDIM)
    ends = {name: getattr(path, name) for name in ("beta_start", "beta_end") if hasattr(path, name)}
    variance = "fixed_small" if isinstance(sampler, DDIM) else sampler.variance
    return Scheduler.model_validate(
        {
            "_class_name": "DDIMScheduler" if isinstance(sampler, DDIM) else "DDPMScheduler",
            "num_train_timesteps": path.T,
            "beta_schedule": _schedule(path),
            **ends,
            "variance_type": "learned_range" if variance == "learned" else variance,
            "clip_sample": sampler.clip != "none",
            "prediction_type": _prediction(spec),
            "timestep_spacing": _spacing(path, sampler),
            "rescale_betas_zero_snr": path.zero_terminal_snr,
        }
    )


def _schedule(path: Path) -> str | None:
    return next((name for name, kind in _SCHEDULES.items() if isinstance(path, kind)), None)


def _prediction(spec: ModelSpec) -> str | None:
    return next((name for name, kind in _TARGETS.items() if kind == spec.target.kind), None)


def foreign_steps(spec: ModelSpec, sampler: Sampler) -> Iterator[str]:
    """What diffusers' schedulers cannot express of a model and its sampler, each with its cure where there is one."""
    path = spec.path
    if _schedule(path) is None:
        yield f"path: the schedules of diffusers are {', '.join(_SCHEDULES)}, and this model has {path.kind}"
    if isinstance(path, VPCosine) and path != VPCosine(T=path.T, zero_terminal_snr=path.zero_terminal_snr):
        yield "path: squaredcos_cap_v2 has s 0.008 and beta_max 0.999, and this model has others"
    if _prediction(spec) is None:
        yield f"target: the predictions of diffusers are {', '.join(_TARGETS)}, and this model's is {spec.target.kind}"
    if not isinstance(sampler, Ancestral | DDIM):
        yield (
            f"sampler: DDPMPipeline and DDIMPipeline know ancestral and ddim, and this model has {sampler.kind}; give "
            "sampler.kind=ancestral, or sampler.kind=ddim sampler.grid=leading"
        )
        return
    learned = isinstance(spec.variance, LearnedRange)
    if sampler.clip.startswith("dynamic"):
        yield f"sampler.clip: diffusers clips to [-1, 1] or not at all, this model has {sampler.clip}; give x0 or none"
    if isinstance(sampler, DDIM) and learned:
        yield (
            "variance: DDIMScheduler takes no network that predicts variances; give sampler.kind=ancestral "
            "sampler.variance=learned"
        )
    if isinstance(sampler, DDIM) and _schedule(path) == "sigmoid":
        yield "path: DDIMScheduler has no sigmoid schedule; give sampler.kind=ancestral"
    if isinstance(sampler, Ancestral) and learned and sampler.variance != "learned":
        yield f"sampler.variance: DDPMScheduler uses what the network predicts, not {sampler.variance}; give learned"
    if isinstance(path, DiscretePath) and _spacing(path, sampler) is None:
        yield (
            f"sampler.grid: {sampler.steps} steps by {sampler.grid} are none of diffusers' "
            f"{', '.join(get_args(Spacing))}; give sampler.grid=leading"
        )


def _spacing(path: DiscretePath, sampler: Ancestral | DDIM) -> Spacing | None:
    """The rule by which diffusers takes exactly the steps of this sampler; of several, the one of the same name."""
    times = time_grid(sampler.grid, path, sampler.steps)
    for spacing in sorted(get_args(Spacing), key=lambda name: name != sampler.grid):
        if _their_times(spacing, path.T, sampler.steps) != times:
            continue
        if isinstance(sampler, DDIM):
            same = _meet(times, path.T // sampler.steps)
        else:  # DDPMScheduler adds noise in the last step, too, unless it begins at the cleanest time
            same = times[-1] == 0 or sampler.variance == "fixed_small"
        if same:
            return cast(Spacing, spacing)
    return None


def _their_times(spacing: Spacing, T: int, steps: int) -> list[float]:
    """Where the steps begin, from the noisiest. Their `set_timesteps`, after Lin et al. 2023, table 2."""
    match spacing:
        case "leading":
            times = np.arange(0.0, steps)[::-1] * (T // steps)
        case "trailing":
            times = np.round(np.arange(T, 0, -T / steps)) - 1
        case "linspace":
            times = np.linspace(0, T - 1, steps).round()[::-1]
    return [float(t) for t in times]


def _ddim_steps(spacing: Spacing, T: int) -> int | None:
    """As many steps as fit, at most 50; None: no two do."""
    fitting = (n for n in range(min(_DDIM_STEPS, T), 1, -1) if _meet(_their_times(spacing, T, n), T // n))
    return next(fitting, None)


def _meet(times: Sequence[float], stride: int) -> bool:
    """Whether steps of DDIMScheduler, which are all as long, end where the next begin, and the last one at the data."""
    return all(now - after == stride for now, after in pairwise(times)) and times[-1] < stride
