"""What devices are known to do: what we measured on them, and where we measured nothing, what their makers publish.

A `Measurement` names the file in tests/benchmarks/results/ that it was taken from, and a test compares them. To add a
device: measure it (tests/benchmarks/gpu.py), commit the record, and add its rows here.

Published peaks are those of dense products, half of what data sheets print where they count with sparsity; links are
one way, half of what they print for both.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from model import Precision

from ..errors import ConfigError

Work = Literal["train", "sample"]

ASSUMED_SHARE = 0.25
"""Of a published peak, reached where nothing was measured."""
ASSUMED_NETWORK_BYTES_PER_S = 12.5e9
"""Between hosts, each way, of each host: 100 Gbit/s."""
ASSUMED_HOP_S = 20e-6
"""Of one message between two devices, of any size."""
DECODED_BYTES_PER_S = 7_153 * 32 * 32 * 3
"""Pixels that one core decodes from PNGs in the order of training: reader-2cpu-2026-11-26.json, the median."""
STARTS_SOURCE = "plan-2cpu-2026-11-27.json"
STARTS_S = {
    "start": 22.1,
    "prepare": 5.2,
    "train": 71.5,
    "guide": 71.5,
    "reference": 34.3,
    "sample": 24.1,
    "evaluate": 2.8,
    "register": 3.0,
}
"""Of each stage, seconds beside the work that grows with it: processes, imports, files."""
STARTED_AT_S = 3.98
"""Until a process had started in a trial on that machine."""
CLASSIFIER_S = 0.00024
"""There, of the scoring classifier's training, for each image of 8x8 pixels."""
_ALIKE = 2.0
"""A network of so many times the counted operations of a measured one, or less, is taken to run alike."""


@dataclass(frozen=True)
class Measurement:
    """What one device reached with one network."""

    work: Work
    network: str
    """Its kind."""
    flops: float
    """Counted, for one image: of a training step, or of one call of the network."""
    precision: Precision
    flop_per_s: float
    """Of one device; counted operations, all that a step does beside included in the time."""
    source: str
    """File in tests/benchmarks/results/, whose name ends in the date."""


@dataclass(frozen=True)
class Device:
    """One kind of device."""

    name: str
    title: str
    per_host: int
    """Devices of one host, which reach each other faster than those of another."""
    link_bytes_per_s: float
    """Between two devices of a host, each way, published."""
    peak_flop_per_s: Mapping[Precision, float] = field(default_factory=dict)
    """Of dense matrix products, published; empty where nothing is."""
    published: str = ""
    """Where the figures are from."""
    measured: tuple[Measurement, ...] = ()


@dataclass(frozen=True)
class Rate:
    """What one device is taken to reach."""

    flop_per_s: float
    because: str
    """Where that is from, in words."""
    measured: bool
    """Whether on this kind of device with a network alike."""


_STEP, _TRAINING, _SAMPLING = (
    f"{name}-2cpu-2026-11-27.json" for name in ("step", "training", "sampling")
)  # two cores each, of which a row has one
_UNET, _UNET_CALL, _DIGITS = 37_323_931_648, 12_443_713_536, 24_506_368

DEVICES = {
    device.name: device
    for device in (
        Device(
            "epyc-core",
            "one core of AMD EPYC with AVX2, shared",
            per_host=2,
            link_bytes_per_s=2e9,
            measured=(
                Measurement("train", "ddpm_unet", _DIGITS, "fp32", 814.9 / 2 * _DIGITS, _TRAINING),
                Measurement("train", "ddpm_unet", _UNET, "fp32", 2.173 / 2 * _UNET, _STEP),
                Measurement("sample", "ddpm_unet", _UNET_CALL, "fp32", 5 * 1.391 / 2 * _UNET_CALL, _SAMPLING),
            ),
        ),
        Device(
            "a100",
            "NVIDIA A100 SXM, 80 GB",
            per_host=8,
            link_bytes_per_s=300e9,
            peak_flop_per_s={"bf16": 312e12, "tf32": 156e12, "fp32": 19.5e12},
            published="NVIDIA A100 data sheet, 2021, without sparsity",
        ),
        Device(
            "h100",
            "NVIDIA H100 SXM, 80 GB",
            per_host=8,
            link_bytes_per_s=450e9,
            peak_flop_per_s={"bf16": 989e12, "tf32": 494e12, "fp32": 67e12},
            published="NVIDIA H100 data sheet, 2023, without sparsity",
        ),
        Device(
            "h200",
            "NVIDIA H200 SXM, 141 GB",
            per_host=8,
            link_bytes_per_s=450e9,
            peak_flop_per_s={"bf16": 989e12, "tf32": 494e12, "fp32": 67e12},
            published="NVIDIA H200 data sheet, 2024, without sparsity",
        ),
        Device(
            "l4",
            "NVIDIA L4, 24 GB",
            per_host=8,
            link_bytes_per_s=32e9,
            peak_flop_per_s={"bf16": 121e12, "tf32": 60e12, "fp32": 30.3e12},
            published="NVIDIA L4 data sheet, 2023, without sparsity",
        ),
        Device(
            "l40s",
            "NVIDIA L40S, 48 GB",
            per_host=8,
            link_bytes_per_s=32e9,
            peak_flop_per_s={"bf16": 362e12, "tf32": 183e12, "fp32": 91.6e12},
            published="NVIDIA L40S data sheet, 2023, without sparsity",
        ),
    )
}


def device_named(name: str) -> Device:
    """ConfigError, with the list, where there is none of this name."""
    if name not in DEVICES:
        raise ConfigError(f"--device {name}: unknown; expected one of {', '.join(DEVICES)}, or none for this machine")
    return DEVICES[name]


def rate_of(device: Device, work: Work, network: str, flops: float, precision: Precision) -> Rate:
    """What one device is taken to reach with a network of so many operations for one image.

    That of the measured network with the most similar number of operations; where none of this work was measured, a
    share of the published peak.
    """
    rows = [row for row in device.measured if row.work == work]
    if rows:
        row = min(rows, key=lambda row: (row.network != network, abs(math.log(row.flops / flops))))
        alike = (row.network, row.precision) == (network, precision) and 1 / _ALIKE <= flops / row.flops <= _ALIKE
        of = f"{row.network} of {row.flops / 1e9:.3g} GFLOP an image in {row.precision}, {row.source}"
        return Rate(row.flop_per_s, f"as measured of {of}", alike)
    peak = device.peak_flop_per_s[precision]
    assumed = f"{ASSUMED_SHARE:.0%} of the published {peak / 1e12:g} TFLOP/s in {precision} ({device.published})"
    return Rate(ASSUMED_SHARE * peak, f"assumed: {assumed}", measured=False)


def exchange_s(device: Device, devices: int, sent_bytes: float, messages: int = 1) -> float:
    """Seconds to send what an all-reduce has each device send, `sent_bytes`, around a ring through all hosts.

    As slow as its slowest link, which beyond one host is the hosts' network; each of `messages` buckets waits for a
    tree of hops on its way there and back. Nothing of it was measured beyond one host.
    """
    if devices == 1:
        return 0.0
    slowest = device.link_bytes_per_s
    if devices > device.per_host:
        slowest = min(slowest, ASSUMED_NETWORK_BYTES_PER_S)
    return sent_bytes / slowest + messages * 2 * math.ceil(math.log2(devices)) * ASSUMED_HOP_S
