"""The scores of one model by their names: which of them decides, how sure it is, and how they are written."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..figures import score_words


@dataclass(frozen=True)
class ModelScores:
    """Under one protocol."""

    primary: str
    """Name of the score that decides, lower is better."""
    scores: Mapping[str, float | None]
    """By name; absent or None where a score cannot be had."""

    def score(self, name: str) -> float | None:
        """A score that is a finite number; else None."""
        value = self.scores.get(name)
        return value if value is not None and math.isfinite(value) else None

    @property
    def decisive(self) -> float | None:
        """The score that decides."""
        return self.score(self.primary)

    @property
    def error(self) -> float | None:
        """Its standard error."""
        return self.score(f"{self.primary}_se")

    def shown(self, name: str) -> str:
        """A score with its standard error, where it has one."""
        value, error = self.score(name), self.score(f"{name}_se")
        return score_words(value) if value is None or error is None else f"{score_words(value)} ± {error:.2g}"
