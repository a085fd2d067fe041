"""Terms of the variational bound against Bayes' rule written out, torch.distributions and all grey levels."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from model import DiscretePath, VPCosine, VPLinear, bits_per_dim, bits_per_dim_of_density, bound_term, prior_term
from model.bound import log_variances, step_log_variance

from .reference import in_float64, theirs
from .unions import PATHS, name_of

DISCRETE: list[Any] = [path for path in PATHS if isinstance(path, DiscretePath)]
each_path = pytest.mark.parametrize("path", DISCRETE, ids=name_of)
each_variance = pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned"])
SHAPE = (1, 2, 3)
LEVELS = torch.arange(256, dtype=torch.float64) / 127.5 - 1


def draws(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """An image, what might be predicted of it, and the learned share of log(beta)."""
    x0, predicted = (torch.rand(count, *SHAPE, dtype=torch.float64) * 2 - 1 for _ in range(2))
    return x0, predicted, torch.rand(count, *SHAPE, dtype=torch.float64) * 1.4 - 0.2


def variance_of(variance: str, share: Tensor) -> Any:
    return share if variance == "learned" else variance


def bayes(path: DiscretePath, t: Tensor, x_t: Tensor, x0: Tensor) -> Normal:
    """q(x_{t-1} | x_t, x0) as the product of q(x_t | x_{t-1}) and q(x_{t-1} | x0), for t >= 1."""
    alpha_bar, before = (path.alpha_bar(each).view(-1, 1, 1, 1) for each in (t, t - 1))
    a = alpha_bar / before
    precision = a / (1 - a) + 1 / (1 - before)
    mean = (a.sqrt() / (1 - a) * x_t + before.sqrt() / (1 - before) * x0) / precision
    return Normal(mean, precision.rsqrt().expand_as(mean))


@each_path
@each_variance
def test_terms_are_the_divergence_of_the_step_from_bayes_rule(path: DiscretePath, variance: str) -> None:
    """Of the posterior that knows the image from the one that believes the prediction, with the step's variance."""
    t = torch.tensor([1, 2, 10, path.T // 2, path.T - 2, path.T - 1], dtype=torch.float64)
    x0, predicted, share = draws(len(t))
    x_t = path.alpha(t).view(-1, 1, 1, 1) * x0 + path.sigma(t).view(-1, 1, 1, 1) * torch.randn_like(x0)
    posterior, believed = bayes(path, t, x_t, x0), bayes(path, t, x_t, predicted)
    beta = (1 - path.alpha_bar(t) / path.alpha_bar(t - 1)).view(-1, 1, 1, 1)
    small = posterior.variance
    std = {
        "fixed_small": small.sqrt(),
        "fixed_large": beta.sqrt(),
        "learned": (beta**share * small ** (1 - share)).sqrt(),
    }
    step = Normal(believed.mean, std[variance].expand_as(believed.mean))
    expected = kl_divergence(posterior, step).sum((1, 2, 3))
    found = bound_term(path, x0, t, predicted, variance_of(variance, share))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)
    backwards = kl_divergence(step, posterior).sum((1, 2, 3))
    if variance != "fixed_small":
        assert not torch.allclose(found, backwards, rtol=1e-6, atol=1e-12)


@each_path
@each_variance
def test_a_perfect_prediction_costs_what_the_variance_does_and_a_wrong_one_more(
    path: DiscretePath, variance: str
) -> None:
    t = torch.tensor([1, 5, path.T - 1], dtype=torch.float64)
    x0, predicted, share = draws(len(t))
    perfect, wrong = (bound_term(path, x0, t, each, variance_of(variance, share)) for each in (x0, predicted))
    assert (wrong > perfect).all()
    if variance == "fixed_small":
        assert (perfect == 0).all()
    else:
        assert (perfect > 0).all()


@each_path
@each_variance
def test_single_precision_loses_no_more_than_its_own_digits(path: DiscretePath, variance: str) -> None:
    """1,000 terms are added up: what each loses by rounding must be little beside their sum, about 3 bits/dim."""
    t = torch.arange(path.T, dtype=torch.float64)
    x0, predicted, share = (each.expand(path.T, *SHAPE) for each in draws(1))
    predicted = x0 + 0.01 * (predicted - x0)
    exact = bound_term(path, x0, t, predicted, variance_of(variance, share))
    single = bound_term(path, x0.float(), t, predicted.float(), variance_of(variance, share.float()))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double().sum(), exact.sum(), rtol=1e-5, atol=1e-5)


@each_path
def test_a_learned_share_of_none_and_of_all_is_the_small_and_the_large_variance(path: DiscretePath) -> None:
    t = torch.tensor([0, 1, 7, path.T - 1], dtype=torch.float64)
    x0, predicted, _ = draws(len(t))
    for share, fixed in ((torch.zeros_like(x0), "fixed_small"), (torch.ones_like(x0), "fixed_large")):
        later = slice(0 if fixed == "fixed_small" else 1, None)  # at t = 0 see the next test
        torch.testing.assert_close(
            step_log_variance(path, t, share)[later], step_log_variance(path, t, fixed)[later].expand_as(x0[later])
        )
        torch.testing.assert_close(
            bound_term(path, x0, t, predicted, share)[later], bound_term(path, x0, t, predicted, fixed)[later]
        )


@each_path
def test_at_the_image_itself_the_small_variance_is_that_of_one_step_later(path: DiscretePath) -> None:
    """The posterior has none there. fixed_large takes it, too; a learned one ranges from it to the first beta."""
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    small, large = log_variances(path, zero)
    after, first_beta = log_variances(path, one)[0], (1 - path.alpha_bar(zero)).log()
    torch.testing.assert_close(small, after)
    torch.testing.assert_close(large, first_beta)
    for fixed in ("fixed_small", "fixed_large"):
        assert step_log_variance(path, zero, fixed).item() == pytest.approx(after.item())  # type: ignore[arg-type]  # one of the two
    share = torch.full((1, 1, 1, 1), 0.3, dtype=torch.float64)
    assert step_log_variance(path, zero, share).item() == pytest.approx(0.3 * first_beta.item() + 0.7 * after.item())


@pytest.mark.parametrize("path", [VPLinear(), VPCosine()], ids=name_of)
def test_learned_variances_are_those_of_diffusers(path: Any) -> None:
    """At t = 0 theirs is the posterior's, none, clipped to 1e-20; ours that of t = 1, as in the authors' code."""
    schedule = {"vp_linear": "linear", "vp_cosine": "squaredcos_cap_v2"}[path.kind]
    scheduler = in_float64(theirs("DDPMScheduler", beta_schedule=schedule, variance_type="learned_range"))
    share = torch.rand(1, *SHAPE, dtype=torch.float64)
    for step in (1, 2, 100, 998, 999):
        ours = step_log_variance(path, torch.tensor([step], dtype=torch.float64), share)
        torch.testing.assert_close(ours, scheduler._get_variance(step, predicted_variance=2 * share - 1))


@pytest.mark.parametrize("path", [VPLinear(), VPCosine(), VPLinear(T=10)], ids=name_of)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_of_all_grey_levels_sum_to_one(path: Any, dtype: torch.dtype) -> None:
    """Wherever the mean is, in range or far out, and however wide the step."""
    for mean in (-30.0, -1.2, -1.0, -0.997, 0.1234, 0.99, 1.0, 1.004, 30.0):
        for share in (0.0, 1.0, -3.0):
            nats = cost_of_levels(path, mean, share, dtype)
            assert (-nats.double()).exp().sum().item() == pytest.approx(1, abs=1e-9 if dtype == torch.float64 else 2e-6)


def cost_of_levels(path: Any, mean: float, share: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """Of all 256 grey levels of one pixel. [256]."""
    x0 = LEVELS.to(dtype).view(-1, 1, 1, 1)
    t = torch.zeros(256, dtype=torch.float64)
    return bound_term(path, x0, t, torch.full_like(x0, mean), torch.full_like(x0, share))


def test_grey_levels_have_the_probability_of_their_interval_and_the_outermost_all_that_is_beyond() -> None:
    path, mean = VPLinear(T=10), -0.999
    std = (0.5 * step_log_variance(path, torch.zeros(1, dtype=torch.float64), "fixed_small")).exp().item()
    normal = Normal(torch.tensor(mean, dtype=torch.float64), std)
    below = normal.cdf(LEVELS[:-1] + 1 / 255)
    expected = torch.cat((below[:1], below.diff(), 1 - below[-1:]))
    found = (-cost_of_levels(path, mean, 0.0)).exp()
    seen = expected > 1e-10
    assert 5 < seen.sum() < 200
    torch.testing.assert_close(found[seen], expected[seen], rtol=1e-5, atol=0)
    assert found[0] > 0.5  # a level that had its interval alone would have less
    assert (normal.cdf(LEVELS[0] + 1 / 255) - normal.cdf(LEVELS[0] - 1 / 255)) < 0.9 * found[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_tails_are_alike_and_keep_their_digits(dtype: torch.dtype) -> None:
    """To 1e-10: in float32 neither 1 - 1e-10 nor (1 + erf) / 2 has any digit of it left."""
    path = VPLinear(T=10)
    std = (0.5 * step_log_variance(path, torch.zeros(1, dtype=torch.float64), "fixed_small")).exp().item()
    levels = torch.tensor([100, 155])  # mirrored at the middle
    for away in (3.0, 5.0, 6.3):
        means = LEVELS[levels] + torch.tensor([away * std, -away * std], dtype=torch.float64)
        x0, mean = (each.to(dtype).view(-1, 1, 1, 1) for each in (LEVELS[levels], means))
        left, right = bound_term(path, x0, torch.zeros(2, dtype=torch.float64), mean, "fixed_small").tolist()
        near, far = away - 1 / 255 / std, away + 1 / 255 / std
        exact = -math.log((math.erfc(near / math.sqrt(2)) - math.erfc(far / math.sqrt(2))) / 2)
        assert left == pytest.approx(exact, rel=2e-5 if dtype == torch.float32 else 1e-9)
        assert right == pytest.approx(exact, rel=2e-5 if dtype == torch.float32 else 1e-9)


@each_path
@each_variance
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("decoder", ["discretized", "continuous"])
def test_gradients_and_values_are_finite_also_far_out(
    path: DiscretePath, variance: str, dtype: torch.dtype, decoder: Any
) -> None:
    t = torch.tensor([0, 0, 0, 1, path.T // 2, path.T - 1], dtype=torch.float64)
    x0, predicted, share = (each.to(dtype) for each in draws(len(t)))
    x0[0], predicted[1], predicted[2], share[2] = 1.0, 300.0, x0[2], -2.0
    predicted, share = predicted.requires_grad_(), share.requires_grad_()
    nats = bound_term(path, x0, t, predicted, variance_of(variance, share), decoder)
    nats.sum().backward()  # type: ignore[no-untyped-call]  # torch's
    assert nats.isfinite().all()
    assert predicted.grad is not None
    assert predicted.grad.isfinite().all()
    assert predicted.grad[3:].abs().min() > 0
    if variance == "learned":
        assert share.grad is not None
        assert share.grad.isfinite().all()


@each_path
def test_a_continuous_image_costs_its_density_and_narrow_levels_hardly_differ(path: DiscretePath) -> None:
    t = torch.zeros(4, dtype=torch.float64)
    x0, predicted, share = draws(4)
    std = (0.5 * step_log_variance(path, t, share)).exp()
    expected = -Normal(predicted, std).log_prob(x0).sum((1, 2, 3))
    torch.testing.assert_close(bound_term(path, x0, t, predicted, share, "continuous"), expected)


def test_a_grey_level_costs_its_density_times_its_width_where_it_is_narrow() -> None:
    """2 / 255 wide: a density of pixels in [-1, 1] is log2(127.5) bits/dim short of a probability of grey levels."""
    path = VPLinear(T=2, beta_start=0.2, beta_end=0.3)
    t, x0 = torch.zeros(4, dtype=torch.float64), draws(4)[0] * 0.9
    x0 = ((x0 + 1) * 127.5).round() / 127.5 - 1
    predicted = x0 + 0.1
    levels, density = (
        bound_term(path, x0, t, predicted, "fixed_small", decoder) for decoder in ("discretized", "continuous")
    )
    torch.testing.assert_close(bits_per_dim(levels, 6), bits_per_dim_of_density(-density, 6), rtol=0, atol=2e-4)
    torch.testing.assert_close(
        bits_per_dim_of_density(-density, 6) - bits_per_dim(density, 6), torch.full((4,), math.log2(127.5)).double()
    )


def test_a_uniform_grey_level_is_eight_bits_and_a_uniform_density_as_many() -> None:
    assert bits_per_dim(math.log(256) * 5, 5) == pytest.approx(8)
    width = 2 + 2 / 255  # of pixels spread over their levels' width
    assert bits_per_dim_of_density(-math.log(width) * 5, 5) == pytest.approx(8)


@each_path
def test_the_prior_term_is_the_divergence_of_the_noisiest_image_from_pure_noise(path: DiscretePath) -> None:
    x0 = draws(3)[0]
    alpha, sigma = path.at(path.t_max)
    noise = Normal(torch.zeros_like(x0), 1.0)
    expected = kl_divergence(Normal(alpha * x0, sigma), noise).sum((1, 2, 3))
    torch.testing.assert_close(prior_term(path, x0), expected, rtol=1e-6, atol=1e-12)
    assert (prior_term(path, x0) == 0).all() == path.loses_image
