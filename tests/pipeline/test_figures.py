"""How figures are written for people."""

import pytest

from pipeline.figures import count, duration, flop_rate, flops, rate, score_words, size


@pytest.mark.parametrize(("value", "words"), [(0.98123, "0.9812"), (12_345.6, "1.235e+04"), (None, "not available")])
def test_a_score_has_four_digits_where_there_is_one(value: float | None, words: str) -> None:
    assert score_words(value) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0.0 s"),
        (3.24, "3.2 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (83, "1 min 23 s"),
        (3_599.7, "1 h 0 min"),
        (7_500, "2 h 5 min"),
        (97_200, "1 d 3 h"),
    ],
)
def test_a_duration_is_told_in_its_two_largest_units(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_counts_and_rates_carry_their_unit() -> None:
    assert count(12_345, "images") == "12,345 images"
    assert rate(1_234.5, "images") == "1,234 images/s"
    assert rate(3.14159, "images") == "3.14 images/s"


@pytest.mark.parametrize(
    ("number", "words"),
    [(0, "0 FLOP"), (999, "999 FLOP"), (24_506_368, "24.5 MFLOP"), (1.5e9, "1.5 GFLOP"), (9.9999e14, "1 PFLOP")],
)
def test_operations_and_bytes_are_told_in_three_digits(number: float, words: str) -> None:
    assert flops(number) == words
    assert size(number) == words.replace("FLOP", "B")
    assert flop_rate(number) == f"{words}/s"
