"""The gate: whether a new version of a model takes the champion's place. It fails closed.

The new version must be better by more than chance, by the score that decides, and must have paid for it by none of the
others. Every rule is answered with its numbers, and all answers are kept with the version.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import Field

from model import Record

from ..scoring.model_scores import ModelScores


class Gate(Record):
    """What a new version must reach to become champion."""

    standard_errors: float = Field(2.0, ge=0)
    """The score that decides must be lower than the champion's by more than so many combined jackknife errors, ..."""
    margin: float = Field(0.0, ge=0, lt=1)
    """... and by more than this share of the champion's score."""
    most_loss: float = Field(0.1, ge=0, lt=1)
    """Inception Score, precision and recall may be lower than the champion's by no more than this share, and KID higher
    by no more than this share or the spread of its subsets."""
    most_copies: float = Field(0.1, ge=0, le=1)
    """No more than this share of the samples may be copies of training images; 0.01 is what held-out images reach."""
    most_blank: float = Field(0.01, ge=0, le=1)
    """No more than this share of the samples may be of one colour throughout."""


@dataclass(frozen=True, kw_only=True)
class Standing(ModelScores):
    """A version, and how it scored under one protocol."""

    version: int
    protocol_digest: str

    def __str__(self) -> str:
        return "none" if self.decisive is None else self.shown(self.primary)


@dataclass(frozen=True)
class Answer:
    """What one rule says."""

    rule: str
    passed: bool
    why: str
    """With the numbers."""


@dataclass(frozen=True)
class Decision:
    """Whether the version is promoted, and what every rule said."""

    promoted: bool
    verdict: str
    """One sentence."""
    answers: tuple[Answer, ...]

    def to_json(self) -> dict[str, Any]:
        """As it is kept with the version."""
        return asdict(self)


def judge(gate: Gate, new: Standing, champion: int | None, held: Standing | None) -> Decision:
    """Whether `new` takes the place of version `champion`, or becomes the first one where that is None.

    held: what the champion scored under the protocol of `new`; None: it was never scored under it.
    """
    if champion == new.version:
        return Decision(True, f"version {new.version} is the champion", ())
    answers = tuple(_answers(gate, new, champion, held))
    refused = "; ".join(answer.why for answer in answers if not answer.passed)
    if champion is None:
        verdict = f"version {new.version} is the first champion"
        return Decision(
            not refused, verdict if not refused else f"version {new.version} is refused: {refused}", answers
        )
    if refused:
        return Decision(False, f"version {champion} stays champion: {refused}", answers)
    assert held is not None  # or it would have been refused
    return Decision(
        True,
        f"version {new.version} is champion: {new.primary} {new} against {held} of version {champion}",
        answers,
    )


def _answers(gate: Gate, new: Standing, champion: int | None, held: Standing | None) -> Iterator[Answer]:
    yield Answer(
        "finite",
        new.decisive is not None,
        f"version {new.version} has {'no ' if new.decisive is None else ''}{new.primary}",
    )
    yield from _at_most("copies", new, "copy_rate", gate.most_copies, "of the samples are copies of training images")
    yield from _at_most("blank", new, "blank_images", gate.most_blank, "of the samples are of one colour")
    if champion is None or new.decisive is None:
        return
    alike = held is not None and (held.protocol_digest, held.primary) == (new.protocol_digest, new.primary)
    yield Answer(
        "protocol",
        alike,
        f"version {champion} was {'' if alike else 'not '}scored under the protocol of version {new.version}",
    )
    if not alike or held is None:
        return
    yield _better(gate, new, held)
    for name in ("inception_score", "precision", "recall"):
        yield from _not_lost(gate, new, held, name)
    yield from _kernel_distance(gate, new, held)


def _at_most(rule: str, new: Standing, name: str, most: float, what: str) -> Iterator[Answer]:
    """A share that may be no higher, where it is known."""
    share = next((new.score(key) for key in new.scores if key.startswith(name)), None)
    if share is not None:
        yield Answer(rule, share <= most, f"{share:.3f} {what}, {most:g} is the most")


def _better(gate: Gate, new: Standing, held: Standing) -> Answer:
    """By more than chance and the margin. Where the champion has no score, any is better."""
    name = new.primary
    if new.decisive is None or held.decisive is None:
        return Answer("better", new.decisive is not None, f"version {held.version} has no {name}")
    if new.error is None or held.error is None:
        version = new.version if new.error is None else held.version
        return Answer(
            "better",
            False,
            f"how much of a difference is chance is not known, since {name} of version {version} has no standard error "
            "(draw ten chunks or more: lower sample.chunk_images)",
        )
    gain = held.decisive - new.decisive
    chance = gate.standard_errors * math.hypot(new.error, held.error)
    asked = max(chance, gate.margin * abs(held.decisive))
    kind = f"{gate.standard_errors:g} combined standard errors" if asked == chance else f"the margin of {gate.margin:g}"
    numbers = f"{name} {new} of version {new.version} against {held}"
    if gain > asked:
        return Answer("better", True, f"{numbers}: lower by {gain:.3g}, more than {kind}, {asked:.3g}")
    difference = f"lower by {gain:.3g} only" if gain > 0 else "not lower" if gain == 0 else f"higher by {-gain:.3g}"
    return Answer("better", False, f"{numbers}: {difference}, where more than {asked:.3g} is asked ({kind})")


def _not_lost(gate: Gate, new: Standing, held: Standing, kind: str) -> Iterator[Answer]:
    """A score of which higher is better, wherever the champion has one."""
    for name in _named(held, kind):
        if name.endswith("_std"):
            continue
        now, before = new.score(name), held.score(name)
        if before is None:
            continue
        least = before - gate.most_loss * abs(before)
        shown = "missing" if now is None else f"{now:.4g}"
        yield Answer(
            kind, now is not None and now >= least, f"{name} {shown}, where {before:.4g} may fall to {least:.4g}"
        )


def _kernel_distance(gate: Gate, new: Standing, held: Standing) -> Iterator[Answer]:
    """KID, which may be negative and is close to 0 for good models, so that a share of it alone would say little."""
    for name in _named(held, "kid"):
        if name.endswith("_std"):
            continue
        now, before = new.score(name), held.score(name)
        if before is None:
            continue
        spread = math.hypot(*(each.score(f"{name}_std") or 0.0 for each in (new, held)))
        most = before + max(gate.most_loss * abs(before), spread)
        shown = "missing" if now is None else f"{now:.3g}"
        yield Answer(
            "kid", now is not None and now <= most, f"{name} {shown}, where {before:.3g} may rise to {most:.3g}"
        )


def _named(standing: Standing, kind: str) -> list[str]:
    """The scores of this kind, whatever the extractor in their names."""
    return [name for name in standing.scores if name == kind or name.startswith(f"{kind}_")]
