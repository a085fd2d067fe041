"""How figures are written for people, on the terminal and in pages."""

_PREFIXES = "", "k", "M", "G", "T", "P"


def score_words(value: float | None) -> str:
    """`0.9812`, a score in four digits; `not available` where there is none."""
    return "not available" if value is None else f"{value:.4g}"


def count(number: float, unit: str) -> str:
    """`12,345 images`."""
    return f"{number:,.0f} {unit}"


def rate(per_second: float, unit: str) -> str:
    """`1,234 images/s`, with three digits where there are fewer."""
    return f"{per_second:,.0f} {unit}/s" if per_second >= 100 else f"{per_second:.3g} {unit}/s"


def flop_rate(per_second: float) -> str:
    """`41.2 GFLOP/s`: floating-point operations, three digits."""
    return f"{flops(per_second)}/s"


def flops(number: float) -> str:
    """`24.5 MFLOP`: floating-point operations, three digits."""
    return _in_thousands(number, "FLOP")


def size(number_bytes: float) -> str:
    """`24.5 MB`: bytes in powers of 1,000, three digits."""
    return _in_thousands(number_bytes, "B")


def _in_thousands(number: float, unit: str) -> str:
    rounded, power = float(f"{number:.3g}"), 0
    while rounded >= 1000 and power < len(_PREFIXES) - 1:
        rounded, power = rounded / 1000, power + 1
    return f"{rounded:g} {_PREFIXES[power]}{unit}"


def duration(seconds: float) -> str:
    """`3.2 s`, `42 s`, `1 min 23 s`, `2 h 5 min`, `1 d 3 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest_s = divmod(round(seconds), 60)
    hours, rest_minutes = divmod(minutes, 60)
    days, rest_hours = divmod(hours, 24)
    parts = [(days, "d"), (rest_hours, "h"), (rest_minutes, "min"), (rest_s, "s")]
    while len(parts) > 1 and parts[0][0] == 0:
        del parts[0]
    return " ".join(f"{number} {unit}" for number, unit in parts[:2])
