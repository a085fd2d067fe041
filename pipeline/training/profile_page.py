"""What a profile of training says, in words: one page, every sentence of it computed from the figures."""

import platform
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from model import Precision

from ..figures import count, flop_rate, flops, rate, size
from .speed import speed_in_words

_SHOWN = 12  # operators
_KINDS = {
    "attention": ("scaled_dot_product", "scaleddotproduct", "attention", "bmm", "softmax"),
    "convolution, backward": ("convolution_backward", "convolutionbackward"),
    "convolution": ("convolution", "conv2d"),
    "matrix products": ("aten::mm", "aten::addmm", "addmmbackward", "mmbackward", "aten::linear"),
    "normalisation": ("group_norm", "layer_norm", "batch_norm", "groupnorm", "layernorm"),
    "optimizer and averages": ("optimizer", "aten::_fused_", "aten::_foreach_"),
    "compiled kernels": ("triton", "graph_", "compiled"),
}
"""Kinds of operators by what their names contain; the first that fits. The network calls bmm for attention alone."""
_REST = "everything else"


@dataclass(frozen=True)
class Operator:
    """One operator in a step, as torch's profiler names it."""

    name: str
    calls: float
    seconds: float
    """Its own: without the operators that it calls. On a GPU, of its kernels."""

    @property
    def kind(self) -> str:
        """One of a few."""
        name = self.name.lower()
        return next((kind for kind, parts in _KINDS.items() if any(part in name for part in parts)), _REST)


@dataclass(frozen=True)
class Profile:
    """What was measured."""

    name: str
    """Of the run."""
    device: torch.device
    threads: int
    precision: Precision
    """Of the network."""
    compiled: bool
    images: int
    """Of one worker's step."""
    batch_size: int
    """Of all workers."""
    parameters: int
    flops: Mapping[str, int]
    """Of one image, by operator."""
    figures: Mapping[str, float]
    """As in a point of the curve."""
    step_s: float
    """Of a step without the profiler, with all that happens between steps."""
    profiled_step_s: float
    matmul_flop_per_s: float
    operators: Sequence[Operator]
    """The longest first."""
    waits: float
    """How often in a step the host waits for a GPU."""
    reads: float
    """How often in a step the host reads a number of a tensor."""
    memory_bytes: int

    @property
    def on_gpu(self) -> bool:
        """Whether the device works behind the host's back."""
        return self.device.type == "cuda"

    @property
    def operators_s(self) -> float:
        """Of a step, all operators."""
        return sum(operator.seconds for operator in self.operators)

    def kinds(self) -> dict[str, tuple[float, int]]:
        """Seconds and FLOPs of a step by kind, the longest first."""
        seconds, counted = Counter[str](), Counter[str]()
        for operator in self.operators:
            seconds[operator.kind] += operator.seconds  # type: ignore[assignment]  # typed for whole numbers
        for name, number in self.flops.items():
            counted[Operator(f"aten::{name}", 0, 0).kind] += number * self.images
        return {kind: (taken, counted[kind]) for kind, taken in seconds.most_common()}


def reading(profile: Profile) -> list[str]:
    """What the figures say, a sentence each."""
    return [_time(profile), _data(profile), _waits(profile), _speed(profile)]


def _time(profile: Profile) -> str:
    longest = list(profile.kinds().items())[:3]
    parts = [f"{kind} {_percent(seconds / profile.operators_s)}" for kind, (seconds, _) in longest]
    return f"Of the time in operators: {'; '.join(parts)}."


def _data(profile: Profile) -> str:
    share = profile.figures["data_share"]
    if share < 0.02:
        return f"The reader keeps up: training waits for images {100 * share:.1f} % of the time."
    return f"Training waits for images {_percent(share)} of the time: try data.cache=host or faster storage."


def _waits(profile: Profile) -> str:
    if not profile.on_gpu:
        return "A CPU does nothing behind the host's back, so no step waits for it."
    idle = max(0.0, 1 - profile.operators_s / profile.step_s)
    found = (
        f"The host waits for the GPU {profile.waits:.3g} times in a step; the GPU idles {_percent(idle)} of the time"
    )
    return f"{found}." if idle < 0.1 else f"{found}: try train.compile=true or a larger batch for each worker."


def _speed(profile: Profile) -> str:
    counted_s = sum(seconds for seconds, number in profile.kinds().values() if number)
    fraction = f"A step reaches {_percent(profile.figures['matmul_fraction'])} of the matmul rate"
    if profile.compiled or counted_s == 0:
        return f"{fraction}."
    share = counted_s / profile.operators_s
    return f"{fraction}; {_percent(share)} of the time in operators is in kinds whose FLOPs are counted."


def page(profile: Profile) -> str:
    """Markdown."""
    facts = {
        "device": device_words(profile.device, profile.threads),
        "arithmetic": f"{profile.precision}, {'' if profile.compiled else 'not '}compiled",
        "network": f"{count(profile.parameters, 'parameters')}; {flops(sum(profile.flops.values()))} to learn from one "
        "image, forward and backward",
        "step": f"{1000 * profile.step_s:.3g} ms for {count(profile.images, 'images')} of each "
        f"{profile.batch_size:,}; {1000 * profile.profiled_step_s:.3g} ms under the profiler",
        "speed": rate(profile.figures["images_per_s"], "images"),
        "time and arithmetic": speed_in_words(profile.figures),
        "matmul rate": flop_rate(profile.matmul_flop_per_s),
        "host waits for a GPU": f"{profile.waits:.3g} times in a step",
        "host reads a number of a tensor": f"{profile.reads:.3g} times in a step",
        "most memory": size(profile.memory_bytes),
    }
    total_s = profile.operators_s
    kinds = [
        (kind, _ms(seconds), _percent(seconds / total_s), *_counted(number, seconds))
        for kind, (seconds, number) in profile.kinds().items()
    ]
    operators = [
        (f"`{each.name}`", each.kind, f"{each.calls:.4g}", _ms(each.seconds), _percent(each.seconds / total_s))
        for each in profile.operators[:_SHOWN]
    ]
    parts = [
        f"# Training of {profile.name}: where the time of a step goes",
        "One worker alone, on real images, so communication with other workers is not in it.",
        _table(("what", "figure"), facts.items()),
        "## In words",
        "\n".join(f"- {sentence}" for sentence in reading(profile)),
        "## By kind",
        _table(("kind", "ms a step", "share", "FLOPs a step", "rate"), kinds),
        "## The operators that take most time",
        "Their own time, without that of operators they call.",
        _table(("operator", "kind", "calls a step", "ms a step", "share"), operators),
    ]
    return "\n\n".join(parts) + "\n"


def _table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _counted(number: int, seconds: float) -> tuple[str, str]:
    return (flops(number), flop_rate(number / seconds)) if number else ("", "")


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def device_words(device: torch.device, threads: int) -> str:
    """`NVIDIA H100 80GB HBM3`, or `AMD EPYC, AVX2, 2 threads`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.machine()
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}, {count(threads, 'thread' + 's' * (threads > 1))}"
