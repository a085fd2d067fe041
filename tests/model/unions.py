"""Every member of the unions that a run file chooses from: a new member is tested by all that walk over these."""

from typing import Any, get_args

import pytest

from model import Path, Target, TimeSampling, Weighting
from model.gaussian_path import GaussianPath


def members(union: Any) -> tuple[type[Any], ...]:
    return get_args(get_args(union)[0])


def name_of(component: Any) -> str:
    """Test id: the kind and what differs from its defaults, such as vp_linear-zero_terminal_snr=True."""
    changed = component.model_dump(exclude_defaults=True, exclude={"kind"})
    return "-".join([component.kind, *(f"{key}={value}" for key, value in changed.items())])


def with_defaults(union: Any) -> list[Any]:
    return [member() for member in members(union)]


PATHS: list[GaussianPath] = [
    *with_defaults(Path),
    *(member(zero_terminal_snr=True) for member in members(Path) if "zero_terminal_snr" in member.model_fields),
]
TARGETS = with_defaults(Target)
WEIGHTINGS = with_defaults(Weighting)
SAMPLINGS = with_defaults(TimeSampling)


def admits(component: Any, path: GaussianPath) -> bool:
    """Whether this target or sampler can do with the path."""
    try:
        component.check(path)
    except ValueError:
        return False
    return True


PAIRS = [(path, target) for path in PATHS for target in TARGETS if admits(target, path)]
each_path = pytest.mark.parametrize("path", PATHS, ids=name_of)
each_pair = pytest.mark.parametrize(
    ("path", "target"), PAIRS, ids=[f"{name_of(path)}-{name_of(target)}" for path, target in PAIRS]
)
