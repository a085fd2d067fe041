"""All 256 grey levels survive the way into the network's range and back; values between them go to the nearest."""

import torch

from model import to_uint8, to_unit_range

LEVELS = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1)


def test_every_grey_level_survives_the_round_trip() -> None:
    assert torch.equal(to_uint8(to_unit_range(LEVELS)), LEVELS)


def test_range_is_minus_one_to_one_in_float32() -> None:
    x = to_unit_range(LEVELS)
    assert (x.min().item(), x.max().item(), x.dtype) == (-1.0, 1.0, torch.float32)


def test_channels_move_to_the_front_and_back() -> None:
    images = torch.randint(0, 256, (2, 4, 5, 3), dtype=torch.uint8)
    x = to_unit_range(images)
    assert x.shape == (2, 3, 4, 5)
    assert torch.equal(to_uint8(x[:, 1:2])[..., 0], images[..., 1])
    assert torch.equal(to_uint8(x), images)
    assert to_uint8(x).is_contiguous()


def test_values_are_rounded_not_truncated() -> None:
    """Truncation, kept here as the known mistake, darkens by half a level on average."""
    x = torch.rand(1, 1, 200, 200) * 2 - 1
    exact = (x + 1) * 127.5
    truncated = exact.to(torch.uint8).float()
    assert abs((to_uint8(x).float() - exact.permute(0, 2, 3, 1)).mean()) < 0.01
    assert (truncated - exact).mean() < -0.45


def test_level_is_the_nearest_one() -> None:
    x = torch.tensor([0.4, 0.6, 254.4, 254.6]).view(1, 1, 1, 4) / 127.5 - 1
    assert to_uint8(x).flatten().tolist() == [0, 1, 254, 255]


def test_values_outside_the_range_go_to_its_ends() -> None:
    x = torch.tensor([-100.0, -1.001, 1.001, 100.0]).view(1, 1, 2, 2)
    assert to_uint8(x).flatten().tolist() == [0, 0, 255, 255]
