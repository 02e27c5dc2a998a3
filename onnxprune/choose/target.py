"""A budget as it is asked for: `macs=50%`, `params=1.2M`, `bytes=4MB`, `latency=8ms`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from onnxprune.errors import UsageError

Quantity = Literal["macs", "params", "bytes", "latency"]

_COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_UNITS: dict[Quantity, dict[str, float]] = {
    "macs": _COUNTS,
    "params": _COUNTS,
    "bytes": {**_COUNTS, **{f"{unit}b": size for unit, size in _COUNTS.items()}},
    "latency": {"": 1.0, "us": 1e-3, "ms": 1.0, "s": 1e3},
}
"""What a unit stands for; times are in milliseconds."""

_FORMS = "a share (50%, 0.5) or an amount: macs=300M, params=1.2M, bytes=4MB, latency=8ms"


@dataclass(frozen=True, slots=True)
class Target:
    """What may remain of a quantity: an amount (latency in milliseconds) or a share."""

    quantity: Quantity
    value: float
    is_share: bool

    def amount(self, original: float) -> float:
        """The largest amount that a model may have whose original has `original`."""
        return self.value * original if self.is_share else self.value

    def __str__(self) -> str:
        if self.is_share:
            return f"{self.quantity}={100 * self.value:.10g}%"
        return f"{self.quantity}={self.value:.10g}{'ms' if self.quantity == 'latency' else ''}"


def parse_target(text: str) -> Target:
    """KEY=VALUE: a value with % or a bare number up to 1 is a share, anything else an amount.

    K, M and G are decimal; a latency without a unit is in milliseconds.

    Raises:
        UsageError: it is none of these.
    """
    where = f"--target {text}"
    key, equals, value = (part.strip().lower() for part in text.partition("="))
    quantity = next((q for q in get_args(Quantity) if q == key), None)
    if quantity is None or not equals:
        raise UsageError(
            "a target is KEY=VALUE" if not equals else f"nothing is called '{key}'", where=where,
            hint=f"one of {', '.join(get_args(Quantity))}, and {_FORMS}",
        )  # fmt: skip
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)(e[+-]?\d+)?\s*([a-zµ]*|%)", value)
    unit = match[3].replace("µ", "u") if match else ""
    if match is None or unit not in {"%", *_UNITS[quantity]}:
        raise UsageError(f"'{value}' is no amount of {quantity}", where=where, hint=_FORMS)
    number = float(match[1] + (match[2] or ""))
    is_share = unit == "%" or (not unit and number <= 1)
    number *= 0.01 if unit == "%" else _UNITS[quantity][unit]
    if not 0 < number < float("inf") or (is_share and number > 1):
        why = "it is what remains of the original" if is_share else "nothing would remain"
        raise UsageError("no such target", where=where, why=why, hint=_FORMS)
    return Target(quantity, number, is_share)
