"""What is compared in a sweep, under which names, and what each combination has reached."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..files import digest
from ..models.warm_start import WarmStart
from ..runfile.configfile import flatten
from ..stage import Facts, Run
from ..terminal import Terminal
from .combinations import Combination

SIGMA_REL = "sample.sigma_rel"  # the x axis of a plot of its own
_ALONG = ("steps", "rtol", "atol")  # keys that only move a sampler along its line of the plot


@dataclass(frozen=True)
class Point:
    """What one combination reached."""

    settings: Mapping[str, str]
    sampled: Facts
    scored: Facts
    scored_ms: int
    """When it was scored, Unix time: logged again at this time, it is no second point."""

    @property
    def evaluations(self) -> float:
        """Measured calls of the network for each image."""
        return float(self.sampled["network_evaluations"])

    @property
    def sigma_rel(self) -> float | None:
        """Relative width of the average that was drawn from; None: the average of `train.ema`."""
        value: float | None = self.sampled["sigma_rel"]
        return value

    @property
    def name(self) -> str:
        """Of the score that decides, lower is better."""
        return str(self.scored["primary_score"])

    def score(self, suffix: str = "") -> float | None:
        """The score that decides, or another one whose name begins with it; None where it cannot be had."""
        value: float | None = self.scored["scores"].get(self.name + suffix)
        return value

    @property
    def row(self) -> dict[str, Any]:
        """The point in the table."""
        return {
            **self.settings,
            "network_evaluations": self.evaluations,
            **({} if self.sigma_rel is None else {"reconstruction_error": self.sampled["reconstruction_error"]}),
            "images": self.sampled["images"],
            "images_per_s": self.sampled["images_per_s"],
            "primary_score": self.name,
            **self.scored["scores"],
            "protocol_digest": self.scored["protocol_digest"],
        }


@dataclass
class Sweep:
    """All combinations, each as a run, and the place of their comparison."""

    combinations: Sequence[Combination]
    terminal: Terminal
    warm_start: WarmStart | None = None
    """What the one training starts from, looked up once for all runs; None: each run looks up its own."""

    @cached_property
    def runs(self) -> list[Run]:
        """One for each combination."""
        brief = Terminal(self.terminal.console, brief=True)
        return [Run(combination.config, brief, warm_start=self.warm_start) for combination in self.combinations]

    @cached_property
    def key(self) -> str:
        """Digest of all that decides the table."""
        return digest([[dict(one.settings), run.key] for one, run in zip(self.combinations, self.runs, strict=True)])

    @property
    def folder(self) -> Path:
        """Where table, plot and configuration lie."""
        return self.runs[0].output / f"{self.runs[0].config.name}-sweep-{self.key[:8]}"

    @cached_property
    def short_names(self) -> dict[str, str]:
        """Dotted keys that have several values, in the order given -> the fewest last words that tell them apart.

        `sample.sampler.kind` is `sampler`.
        """
        keys = dict.fromkeys(key for combination in self.combinations for key in combination.settings)
        return {key: _short(key, list(keys)) for key in keys}

    @cached_property
    def flat(self) -> list[dict[str, str]]:
        """The whole configuration of each combination, dotted key -> value."""
        return [flatten(combination.config.model_dump(mode="json", by_alias=True)) for combination in self.combinations]

    @property
    def params(self) -> dict[str, str]:
        """MLflow params: every key, with all its values where there are several."""
        keys = dict.fromkeys(key for one in self.flat for key in one)
        return {key: ", ".join(dict.fromkeys(one[key] for one in self.flat if key in one)) for key in keys}

    @property
    def implied(self) -> list[dict[str, str]]:
        """Of each combination, the keys that it does not set and that differ all the same, such as defaults."""
        keys = dict.fromkeys(key for one in self.flat for key in one)
        differing = [key for key in keys if len({one.get(key) for one in self.flat}) > 1]
        return [
            {key: one.get(key, "") for key in differing if key not in combination.settings}
            for one, combination in zip(self.flat, self.combinations, strict=True)
        ]

    def words(self, settings: Mapping[str, str]) -> str:
        """Settings in a few words: `ddim, steps 20`."""
        return ", ".join(
            value if key.endswith(".kind") else f"{self.short_names[key]} {value}" for key, value in settings.items()
        )

    def series(self, point: Point) -> str:
        """Name of the line of the plot that the point is on."""
        settings = {key: value for key, value in point.settings.items() if key.rpartition(".")[2] not in _ALONG}
        return self.words(settings)

    def series_of_lengths(self, point: Point) -> str:
        """Name of its line in a plot over lengths: what else is swept."""
        return self.words({key: value for key, value in point.settings.items() if key != SIGMA_REL})


def _short(key: str, keys: Sequence[str]) -> str:
    named = [other.removesuffix(".kind") for other in keys]
    words = key.removesuffix(".kind").split(".")
    for count in range(1, len(words) + 1):
        end = ".".join(words[-count:])
        if sum(f".{other}".endswith(f".{end}") for other in named) == 1:
            return end
    return key
