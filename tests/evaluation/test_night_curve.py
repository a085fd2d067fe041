"""The plot of a month of nights, as a file that is a picture."""

from pathlib import Path

import pytest
from PIL import Image

from evaluation.errors import EvaluationError
from evaluation.night_curve import NightPoint, night_curve


def nights() -> list[NightPoint]:
    """Two curves: promoted now and then, one without a score, one whose error is not known."""
    scores = [9.0, 8.1, 8.6, 7.0, None, 6.4, 6.8, 14.0, 12.5, 11.0, 11.4, 10.9]
    champions = [9.0, 8.1, 8.1, 7.0, 7.0, 6.4, 6.4, 12.9, 12.9, 11.0, 11.0, 11.0]
    promoted = {1, 2, 4, 6, 10}
    return [
        NightPoint(
            version, score, None if version == 3 else 0.3, version in promoted, held, "a" if version < 8 else "b"
        )
        for version, (score, held) in enumerate(zip(scores, champions, strict=True), start=1)
    ]


def test_a_month_of_nights_is_one_picture(tmp_path: Path) -> None:
    night_curve(nights(), "fid", tmp_path / "nights.png")
    with Image.open(tmp_path / "nights.png") as image:
        assert image.format == "PNG"
        colors = {tuple(color) for _, color in image.convert("RGB").getcolors(1 << 20) or []}
    assert {(0x1F, 0x4E, 0x8C), (0xD9, 0x82, 0x2B)} <= colors  # promoted, and rejected


def test_the_first_night_is_a_picture(tmp_path: Path) -> None:
    night_curve(nights()[:1], "fid", tmp_path / "nights.png")
    assert (tmp_path / "nights.png").stat().st_size > 1000


@pytest.mark.parametrize("points", [[], [NightPoint(1, None, None, False, None, "a")]])
def test_without_a_score_there_is_none(tmp_path: Path, points: list[NightPoint]) -> None:
    with pytest.raises(EvaluationError, match=r"nights.png: none of \d versions has a score"):
        night_curve(points, "fid", tmp_path / "nights.png")
