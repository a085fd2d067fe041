"""The gate: each of its rules decides alone, and what it cannot know it refuses."""

import math
from dataclasses import replace

import pytest

from pipeline.registration.gate import Decision, Gate, Standing, judge

HELD = Standing(
    "fid",
    {
        "fid": 20.0,
        "fid_se": 0.3,
        "inception_score_mean": 9.0,
        "inception_score_std": 0.2,
        "kid": 0.01,
        "kid_std": 0.001,
        "precision": 0.7,
        "recall": 0.6,
        "copy_rate": 0.02,
        "blank_images": 0.0,
    },
    version=1,
    protocol_digest="p" * 64,
)
BETTER = replace(HELD, version=2, scores={**HELD.scores, "fid": 18.0, "fid_se": 0.4})


def new(**scores: float | None) -> Standing:
    return replace(BETTER, scores={**BETTER.scores, **scores})


def judged(standing: Standing, held: Standing | None = HELD, gate: Gate | None = None) -> Decision:
    return judge(gate or Gate(), standing, 1, held)


def refused(decision: Decision) -> list[str]:
    return [answer.rule for answer in decision.answers if not answer.passed]


def test_what_is_better_beyond_chance_is_promoted_and_every_answer_is_kept() -> None:
    decision = judged(BETTER)
    assert decision.promoted
    assert decision.verdict == "version 2 is champion: fid 18 ± 0.4 against 20 ± 0.3 of version 1"
    rules = ["finite", "copies", "blank", "protocol", "better", "inception_score", "precision", "recall", "kid"]
    assert [answer.rule for answer in decision.answers] == rules
    assert decision.answers[4].why == (
        "fid 18 ± 0.4 of version 2 against 20 ± 0.3: lower by 2, more than 2 combined standard errors, 1"
    )
    assert decision.to_json()["answers"][0] == {"rule": "finite", "passed": True, "why": "version 2 has fid"}


@pytest.mark.parametrize(
    ("rule", "scores", "why"),
    [
        ("finite", {"fid": None}, "version 2 has no fid"),
        ("finite", {"fid": math.nan}, "version 2 has no fid"),
        ("finite", {"fid": -math.inf}, "version 2 has no fid"),
        ("copies", {"copy_rate": 0.2}, "0.200 of the samples are copies of training images, 0.1 is the most"),
        ("blank", {"blank_images": 0.5}, "0.500 of the samples are of one colour, 0.01 is the most"),
        (
            "better",
            {"fid": 19.5},
            "fid 19.5 ± 0.4 of version 2 against 20 ± 0.3: lower by 0.5 only, where more than 1 is asked (2 combined "
            "standard errors)",
        ),
        (
            "better",
            {"fid": 21.0},
            "fid 21 ± 0.4 of version 2 against 20 ± 0.3: higher by 1, where more than 1 is asked (2 combined standard "
            "errors)",
        ),
        (
            "better",
            {"fid": 20.0},
            "fid 20 ± 0.4 of version 2 against 20 ± 0.3: not lower, where more than 1 is asked (2 combined standard "
            "errors)",
        ),
        (
            "better",
            {"fid_se": None},
            "how much of a difference is chance is not known, since fid of version 2 has no standard error (draw ten "
            "chunks or more: lower sample.chunk_images)",
        ),
        (
            "inception_score",
            {"inception_score_mean": 8.0},
            "inception_score_mean 8, where 9 may fall to 8.1",
        ),
        ("precision", {"precision": 0.5}, "precision 0.5, where 0.7 may fall to 0.63"),
        ("precision", {"precision": None}, "precision missing, where 0.7 may fall to 0.63"),
        ("recall", {"recall": 0.4}, "recall 0.4, where 0.6 may fall to 0.54"),
        ("kid", {"kid": 0.02}, "kid 0.02, where 0.01 may rise to 0.0114"),
        ("kid", {"kid": math.nan}, "kid missing, where 0.01 may rise to 0.0114"),
    ],
)
def test_each_rule_decides_alone(rule: str, scores: dict[str, float | None], why: str) -> None:
    decision = judged(new(**scores))
    assert not decision.promoted
    assert refused(decision) == [rule]
    assert decision.verdict == f"version 1 stays champion: {why}"


@pytest.mark.parametrize("held", [None, replace(HELD, protocol_digest="q" * 64), replace(HELD, primary="kid")])
def test_unlike_protocols_are_never_compared(held: Standing | None) -> None:
    decision = judged(BETTER, held)
    assert refused(decision) == ["protocol"]
    assert decision.verdict == ("version 1 stays champion: version 1 was not scored under the protocol of version 2")


def test_a_champion_without_a_standard_error_is_named() -> None:
    held = replace(HELD, scores={**HELD.scores, "fid_se": None})
    assert "fid of version 1 has no standard error" in judged(BETTER, held).verdict


def test_the_margin_is_asked_where_it_is_more_than_chance() -> None:
    decision = judged(BETTER, gate=Gate(margin=0.2))
    assert decision.verdict == (
        "version 1 stays champion: fid 18 ± 0.4 of version 2 against 20 ± 0.3: lower by 2 only, where more than 4 is "
        "asked (the margin of 0.2)"
    )
    assert judged(BETTER, gate=Gate(margin=0.05)).promoted


def test_all_that_is_refused_is_told() -> None:
    decision = judged(new(fid=21.0, recall=0.1, copy_rate=0.9))
    assert refused(decision) == ["copies", "better", "recall"]
    assert decision.verdict.count(";") == 2


def test_where_the_champion_has_no_score_any_is_better() -> None:
    held = replace(HELD, scores={**HELD.scores, "fid": None})
    decision = judged(BETTER, held)
    assert decision.promoted
    assert decision.verdict == "version 2 is champion: fid 18 ± 0.4 against none of version 1"


def test_the_first_version_is_champion_unless_it_is_no_good() -> None:
    first = judge(Gate(), BETTER, None, None)
    assert (first.promoted, first.verdict) == (True, "version 2 is the first champion")
    blank = judge(Gate(), new(blank_images=1.0), None, None)
    assert (blank.promoted, blank.verdict) == (
        False,
        "version 2 is refused: 1.000 of the samples are of one colour, 0.01 is the most",
    )
    assert not judge(Gate(), new(fid=None), None, None).promoted


def test_the_champion_stays_what_it_is() -> None:
    assert judge(Gate(), replace(BETTER, version=1), 1, HELD) == Decision(True, "version 1 is the champion", ())


def test_scores_of_another_extractor_are_found_by_their_names() -> None:
    suffixed = {
        f"{name}_classifier" if name in ("precision", "copy_rate") else name: v for name, v in HELD.scores.items()
    }
    held = replace(HELD, scores=suffixed)
    worse = replace(BETTER, scores={**suffixed, "fid": 10.0, "precision_classifier": 0.1, "copy_rate_classifier": 0.5})
    assert refused(judged(worse, held)) == ["copies", "precision"]
