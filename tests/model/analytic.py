"""Denoisers in closed form, samplers of every kind and setting, and the exact moments of what they make.

For Gaussian data and for mixtures of Gaussians E[x0 | x_t] is a formula, and so is the ODE's solution: samplers are
measured against these instead of against each other.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from annotated_types import Ge, Le
from torch import Tensor

from model import GaussianPath, Path, Prediction, Sampler, State, Stream, VPLinear, normal
from model.denoiser import Denoiser, coefficients
from model.sampler import NoiseSource

from .unions import admits

SAMPLERS: tuple[type[Any], ...] = get_args(get_args(Sampler)[0])
"""Every sampler there is; a new member of the union is tested by every test that walks over these."""
PATHS: list[Any] = [member() for member in get_args(get_args(Path)[0])] + [VPLinear(zero_terminal_snr=True)]
"""Every path there is, and one of T steps on which the image is lost."""

OPEN_ENDED: dict[str, list[dict[str, Any]]] = {
    "steps": [],
    "s_churn": [{"s_churn": 2.0}],
    "s_min": [{"s_churn": 2.0, "s_min": 0.1}],
    "s_max": [{"s_churn": 2.0, "s_max": 5.0}],
    "s_noise": [{"s_churn": 2.0, "s_noise": 1.003}],
    "corrector_steps": [{"corrector_steps": 0}, {"corrector_steps": 2}],
    "snr": [{"snr": 0.05}],
    "rtol": [{"rtol": 1e-7}],
    "atol": [{"atol": 1e-7}],
}
"""What to try of a number that has no two bounds, with the other options that it needs to have an effect."""


class GaussianDenoiser:
    """E[x0 | x_t] and E[eps | x_t] for images that are N(mean, covariance): what perfect training would end in.

    mean: [C, H, W], covariance: [D, D] with D = C H W, both float64; of rank 0 it is data of one image only.
    """

    def __init__(self, path: GaussianPath, mean: Tensor, covariance: Tensor) -> None:
        self.path, self.mean, self.covariance = path, mean, covariance
        variances, self._axes = torch.linalg.eigh(covariance)
        self._variances = variances.clamp(min=0)

    def __call__(self, x_t: Tensor, t: Tensor) -> Prediction:
        alpha, sigma = (each.flatten(1) for each in coefficients(self.path, t, x_t))  # [B, 1]
        mean, axes, variances = (each.to(x_t.dtype) for each in (self.mean.flatten(), self._axes, self._variances))
        along = (x_t.flatten(1) - alpha * mean) @ axes / (alpha**2 * variances + sigma**2)
        x0 = mean + (along * alpha * variances) @ axes.T
        eps = (along * sigma) @ axes.T
        return Prediction(x0.view_as(x_t), eps.view_as(x_t))

    def moments(self, t: float) -> tuple[Tensor, Tensor]:
        """Mean [D] and covariance [D, D] of x_t."""
        alpha, sigma = self.path.at(t)
        noise = sigma**2 * torch.eye(len(self.covariance), dtype=torch.float64)
        return alpha * self.mean.flatten(), alpha**2 * self.covariance + noise

    def log_density(self, x: Tensor, t: float) -> Tensor:
        """The logarithm of p_t(x). -> [B]."""
        mean, covariance = self.moments(t)
        whitened = torch.linalg.solve_triangular(
            torch.linalg.cholesky(covariance), (x.flatten(1) - mean).T, upper=False
        )
        normaliser = torch.logdet(2 * math.pi * covariance)
        log_p: Tensor = -(whitened.square().sum(0) + normaliser) / 2
        return log_p

    def solution(self, x: Tensor, start: float, end: float) -> Tensor:
        """Where the probability-flow ODE carries x from one time to another: along each axis x keeps its quantile."""
        (alpha, sigma), (alpha_end, sigma_end) = self.path.at(start), self.path.at(end)
        growth = (alpha_end**2 * self._variances + sigma_end**2) / (alpha**2 * self._variances + sigma**2)
        along = (x.flatten(1) - alpha * self.mean.flatten()) @ self._axes * growth.sqrt()
        x_end: Tensor = alpha_end * self.mean.flatten() + along @ self._axes.T
        return x_end.view_as(x)


class MixtureDenoiser:
    """The same for a mixture of Gaussians of independent pixels: not linear in x_t.

    weights: [K], means: [K, C, H, W], both float64; std: of a pixel within its component.
    """

    def __init__(self, path: GaussianPath, weights: Tensor, means: Tensor, std: float) -> None:
        self.path, self.weights, self.means, self.std = path, weights, means, std

    def __call__(self, x_t: Tensor, t: Tensor) -> Prediction:
        alpha, sigma = (each.flatten(1) for each in coefficients(self.path, t, x_t))  # [B, 1]
        variance = alpha**2 * self.std**2 + sigma**2
        means = self.means.flatten(1).to(x_t.dtype)
        off = x_t.flatten(1)[:, None] - alpha[:, None] * means  # [B, K, D]
        share = (self.weights.log() - off.square().sum(2) / (2 * variance)).softmax(1).to(x_t.dtype)
        off_mean = torch.einsum("bk,bkd->bd", share, off)
        x0 = share @ means + alpha * self.std**2 / variance * off_mean
        return Prediction(x0.view_as(x_t), (sigma / variance * off_mean).view_as(x_t))

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean [D] and covariance [D, D] of the images."""
        means = self.means.flatten(1)
        mean = self.weights @ means
        between = (self.weights[:, None] * (means - mean)).T @ (means - mean)
        return mean, between + self.std**2 * torch.eye(len(mean), dtype=torch.float64)

    def log_density(self, x: Tensor, t: float) -> Tensor:
        """The logarithm of p_t(x). -> [B]."""
        alpha, sigma = self.path.at(t)
        variance = alpha**2 * self.std**2 + sigma**2
        off = x.flatten(1)[:, None] - alpha * self.means.flatten(1)  # [B, K, D]
        each = -(off.square() / variance + math.log(2 * math.pi * variance)).sum(2) / 2
        return (self.weights.log() + each).logsumexp(1)

    def cumulative(self, x: Tensor, t: float) -> Tensor:
        """P(x_t <= x) of images of one pixel. x: any shape -> the same."""
        alpha, sigma = self.path.at(t)
        std = math.sqrt(alpha**2 * self.std**2 + sigma**2)
        below: Tensor = torch.special.ndtr((x[..., None] - alpha * self.means.flatten()) / std)
        return below @ self.weights

    def solution(self, x: Tensor, start: float, end: float) -> Tensor:
        """Where the ODE carries images of one pixel: each keeps its quantile. By bisection, to the last digits."""
        share = self.cumulative(x, start)
        alpha, sigma = self.path.at(end)
        reach = alpha * (self.means.abs().max() + 10 * self.std) + 10 * sigma
        low, high = -reach * torch.ones_like(x), reach * torch.ones_like(x)
        for _ in range(80):
            middle = (low + high) / 2
            above = self.cumulative(middle, end) > share
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return (low + high) / 2


class WavyDenoiser:
    """A smooth denoiser that no sampler could mistake for a linear one; its image leaves [-1, 1] here and there."""

    def __init__(self, path: GaussianPath) -> None:
        self.path = path

    def __call__(self, x_t: Tensor, t: Tensor) -> Prediction:
        alpha, sigma = coefficients(self.path, t, x_t)
        norm = alpha**2 + sigma**2
        unit = x_t / norm.sqrt()
        wave = 0.5 * torch.sin(2 * unit + 3 * sigma / (alpha + sigma)) + 0.3 * unit.flip(3)
        return Prediction((alpha * x_t - sigma * wave) / norm, (sigma * x_t + alpha * wave) / norm)


class ConstantDenoiser:
    """Predicts the same noise everywhere: with a large one, images far outside [-1, 1]."""

    def __init__(self, path: GaussianPath, eps: float) -> None:
        self.path, self.eps = path, eps

    def __call__(self, x_t: Tensor, t: Tensor) -> Prediction:
        alpha, sigma = coefficients(self.path, t, x_t)
        eps = torch.full_like(x_t, self.eps)
        return Prediction((x_t - sigma * eps) / alpha, eps)


class Counting:
    """A denoiser that keeps the times and the states that it was asked for."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser
        self.times: list[Tensor] = []
        self.states: list[Tensor] = []

    def __call__(self, x_t: Tensor, t: Tensor) -> Prediction:
        self.times.append(t)
        self.states.append(x_t)
        return self.denoiser(x_t, t)


def pixel(path: GaussianPath, mean: float = 0.0, std: float = 1.0) -> GaussianDenoiser:
    """Images of one pixel, N(mean, std^2)."""
    return GaussianDenoiser(path, _full((1, 1, 1), mean), _full((1, 1), std**2))


def only_image(path: GaussianPath, shape: tuple[int, int, int], value: float) -> GaussianDenoiser:
    """All images are one, of this value in every pixel."""
    D = math.prod(shape)
    return GaussianDenoiser(path, _full(shape, value), _full((D, D), 0.0))


def two_pixels(path: GaussianPath) -> GaussianDenoiser:
    """Images of 1 x 1 x 2 pixels, one bright and one dark, that vary together, of variances 0.25 and 0.1."""
    mean, covariance = torch.tensor([0.2, -0.1]), torch.tensor([[0.25, 0.12], [0.12, 0.1]])
    return GaussianDenoiser(path, mean.double().view(1, 1, 2), covariance.double())


def neighbours(path: GaussianPath) -> GaussianDenoiser:
    """Images of 1 x 2 x 3 pixels of unlike means, whose covariance falls with the pixels' distance."""
    rows, columns = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2]]).double()
    distance = (rows[:, None] - rows).abs() + (columns[:, None] - columns).abs()
    return GaussianDenoiser(path, torch.linspace(-0.3, 0.4, 6).double().view(1, 2, 3), 0.16 * 0.7**distance)


def two_humps(path: GaussianPath) -> MixtureDenoiser:
    """Images of one pixel: three in ten about -0.6, the others about 0.5."""
    weights, means = torch.tensor([0.3, 0.7]).double(), torch.tensor([-0.6, 0.5]).double()
    return MixtureDenoiser(path, weights, means.view(2, 1, 1, 1), std=0.2)


def three_blobs(path: GaussianPath) -> MixtureDenoiser:
    """Images of 1 x 1 x 2 pixels about three points of the plane."""
    weights = torch.tensor([0.2, 0.5, 0.3]).double()
    means = torch.tensor([[-0.7, 0.2], [0.5, 0.6], [0.1, -0.6]]).double()
    return MixtureDenoiser(path, weights, means.view(3, 1, 1, 2), std=0.15)


def _full(shape: tuple[int, ...], value: float) -> Tensor:
    return torch.full(shape, value, dtype=torch.float64)


def variants(path: GaussianPath | None = None, members: Any = SAMPLERS, **fixed: Any) -> list[Any]:
    """Every sampler at its defaults and with each of its options varied alone: choices, flags, bounds, OPEN_ENDED.

    `fixed` goes to the samplers that have such an option. With a path, only those that it admits.
    """
    found: dict[Any, None] = {}
    for member in members:
        known = {name: value for name, value in fixed.items() if name in member.model_fields}
        for name, field in member.model_fields.items():
            for options in [{}] if name in known else _options(name, field.annotation, field.metadata):
                found[member(**known | options)] = None
    return [sampler for sampler in found if path is None or admits(sampler, path)]


def _options(name: str, annotation: Any, metadata: list[Any]) -> list[dict[str, Any]]:
    if name in OPEN_ENDED:
        return [{}, *OPEN_ENDED[name]]
    if get_origin(annotation) is Literal:  # of what is learned these denoisers know nothing: test_variance.py
        return [{name: choice} for choice in get_args(annotation) if choice != "learned"]
    if annotation is bool:
        return [{name: False}, {name: True}]
    bounds: list[Any] = [rule.ge if isinstance(rule, Ge) else rule.le for rule in metadata if isinstance(rule, Ge | Le)]
    if len(bounds) != 2:
        raise LookupError(f"option {name} has no two bounds to try; say in OPEN_ENDED what to try of it")
    return [{name: bound} for bound in (bounds[0], sum(bounds) / 2, bounds[1])]


def admitted(samplers: list[Any], paths: list[Any]) -> list[Any]:
    """Each path with each sampler that can walk along it, to be the parameters of a test."""
    pairs = [(sampler, path) for sampler in samplers for path in paths if admits(sampler, path)]
    return [pytest.param(sampler, path, id=f"{name_of(sampler)}-on-{name_of(path)}") for sampler, path in pairs]


def name_of(record: Any) -> str:
    """Test id: the kind and what differs from the defaults, such as ddim-steps=7-eta=1.0."""
    changed = [f"{name}={value}" for name, value in record.model_dump(exclude_defaults=True).items() if name != "kind"]
    return "-".join([record.kind, *changed])


def adds_noise(sampler: Any, path: GaussianPath) -> bool:
    """Whether it asks for noise on its way."""
    asked = list[int]()

    def noise(step: int) -> Tensor:
        asked.append(step)
        return torch.zeros(1, 1, 1, 1, dtype=torch.float64)

    run(sampler, pixel(path), path, noise(0), noise)
    return len(asked) > 1


def run(sampler: Any, denoiser: Denoiser, path: GaussianPath, x: Tensor, noise: NoiseSource) -> list[State]:
    """All states after the initial one."""
    return list(sampler.trajectory(denoiser, path, x, noise))


def images(sampler: Any, denoiser: Denoiser, path: GaussianPath, x: Tensor, noise: NoiseSource) -> Tensor:
    """The last state."""
    return run(sampler, denoiser, path, x, noise)[-1].x


def no_noise(step: int) -> Tensor:
    """For samplers that should ask for none."""
    raise AssertionError(f"draw {step} of noise was asked for")


def seeded(seeds: Tensor, shape: tuple[int, ...], scale: float = 1.0) -> tuple[Tensor, NoiseSource]:
    """Initial noise of standard deviation `scale` and the draws of each seed, float64."""
    x = scale * normal(0, Stream.INITIAL_NOISE, seeds, shape).double()
    return x, lambda step: normal(0, Stream.STEP_NOISE, seeds, shape, step).double()


def exact_moments(
    sampler: Any, denoiser: GaussianDenoiser, begin: Callable[[float], tuple[Tensor, Tensor]] | None = None
) -> list[tuple[float, Tensor, Tensor]]:
    """Time, mean [D] and covariance [D, D] of every state of a sampler that is affine in x and in its noise.

    The state is then mean + sum of C_k z_k over the initial and the later noises z_k. Row 0 gets no noise and finds the
    mean; every other row gets 1 in one pixel of one z_k and nothing else, and finds a column of C_k. No random number
    is drawn, so no tolerance is needed. `begin` gives the moments at a time, those of x_t itself unless told.
    """
    path, shape = denoiser.path, tuple(denoiser.mean.shape)
    D = math.prod(shape)
    start = sampler.start(path)
    mean, covariance = (begin or denoiser.moments)(start)
    drawn = list(_draws(sampler, denoiser, shape))
    rows = torch.eye(1 + D * (1 + len(drawn)), dtype=torch.float64)[:, 1:].unflatten(1, (1 + len(drawn), D))
    x = mean + rows[:, 0] @ torch.linalg.cholesky(covariance).T
    states = run(
        sampler, denoiser, path, x.view(-1, *shape), lambda step: rows[:, 1 + drawn.index(step)].reshape(-1, *shape)
    )
    found = []
    for t, state in states:
        flat = state.flatten(1)
        off = flat[1:] - flat[0]
        found.append((t, flat[0], off.T @ off))
    return found


def _draws(sampler: Any, denoiser: GaussianDenoiser, shape: tuple[int, ...]) -> Iterator[int]:
    """The numbers of the noises that it asks for, each once."""
    zero = torch.zeros(1, *shape, dtype=torch.float64)
    asked = list[int]()

    def noise(step: int) -> Tensor:
        asked.append(step)
        return zero

    run(sampler, denoiser, denoiser.path, zero, noise)
    assert len(set(asked)) == len(asked), f"noise was used twice: {asked}"
    yield from asked


def slope(counts: list[int], errors: list[float]) -> float:
    """Order of convergence: minus the slope of the straight line through log error against log count."""
    x, y = torch.tensor(counts).double().log(), torch.tensor(errors).double().log()
    x = x - x.mean()
    return -float((x * y).sum() / x.square().sum())
