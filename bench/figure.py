"""The README's figure: the speed-up that MACs promise, and what was measured of it.

    python -m bench.figure results/suite.jsonl -o docs/speed.svg [--provider cpu] [--batch 1]

Bars for each network and alignment: solid as far as measured (with the 95 % interval), pale as far
as the multiply-accumulates promise (a notch where more was measured). An SVG with a card behind it,
readable on light and dark pages, made with what the HTML report is made with. Rows are those of the
machine that the last row for this provider and batch comes from.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from bench.networks import NETWORKS
from bench.rows import OURS, Row, read
from onnxprune.errors import PruneError, UsageError
from onnxprune.report.figures import TIMES, LinearAxis

WIDTH, LEFT, RIGHT = 860, 168, 120
"""Pixels: of the card, of the names with their margin, of what the longest bar leaves for text."""
TOP, BAR, GAP, STEP, FOOT = 100, 13, 3, 46, 64
"""Where the bars begin; a bar, the gap between two, from network to network, and below them."""
TITLES = {
    "resnet18": "ResNet-18", "resnet50": "ResNet-50", "vgg16": "VGG-16",
    "mobilenet_v2": "MobileNetV2", "mobilenet_v3_large": "MobileNetV3-large",
    "efficientnet_b0": "EfficientNet-B0", "densenet121": "DenseNet-121", "vit_small": "ViT-S/16",
    "bert": "BERT (MiniLM-L6)", "unet": "U-Net", "yolo": "YOLOv8n", "lstm": "LSTM, 3 layers",
}  # fmt: skip
VARIANTS = {"align auto": ("auto", "--align auto"), "align 1": ("one", "--align 1 (the default)")}
"""Tone and what the legend says, from top to bottom."""


@dataclass(frozen=True)
class Bar:
    """One alignment of one network; places and lengths in pixels."""

    tone: str
    y: float
    middle: float
    promised: float
    measured: float
    low: float
    high: float
    end: float
    text: str
    label: str


@dataclass(frozen=True)
class Network:
    name: str
    y: float
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Entry:
    """One of the legend."""

    tone: str
    x: int
    text: str


@dataclass(frozen=True)
class Figure:
    """All that the template draws, in pixels."""

    title: str
    subtitle: str
    description: str
    machine: str
    height: int
    bottom: int
    same: float
    """Where the original is: a speed-up of 1."""
    ticks: tuple[tuple[float, str], ...]
    legend: tuple[Entry, ...]
    networks: tuple[Network, ...]
    width: int = WIDTH
    left: int = LEFT
    top: int = TOP
    bar: int = BAR


def chosen(rows: Iterable[Row], provider: str, batch: int) -> list[Row]:
    """The rows to draw: of one machine, measured and with a promise; raises UsageError."""
    mine = [
        row for row in rows
        if (row.provider, row.batch) == (provider, batch) and row.variant in OURS
        and row.interval is not None and row.promised
    ]  # fmt: skip
    if not mine:
        raise UsageError(
            f"nothing was measured on {provider} at batch {batch}", hint="python -m bench.suite"
        )
    return [row for row in mine if row.where == mine[-1].where]


def figure(rows: Sequence[Row]) -> Figure:
    """Where everything lies, for rows of one provider, batch and machine."""
    longest = max(max(r.promised or 0, r.high or 0) for r in rows)
    axis = LinearAxis.over([0.0, longest])
    span = WIDTH - LEFT - RIGHT

    def x(value: float) -> float:
        return round(LEFT + span * axis.at(value) / 100, 1)

    names = {name: k for k, name in enumerate(NETWORKS)}
    order = sorted(dict.fromkeys(r.network for r in rows), key=lambda n: names.get(n, len(names)))
    networks = tuple(
        _network([r for r in rows if r.network == name], TOP + k * STEP, x)
        for k, name in enumerate(order)
    )
    bottom = TOP + len(networks) * STEP
    first = rows[0]
    labels = "; ".join(f"{n.name}: " + ", ".join(b.label for b in n.bars) for n in networks)
    runtime = str(first.machine.get("onnxruntime", "")).partition(" ")[0]
    return Figure(
        title="How much faster a network is without half of its channels",
        subtitle=f"onnxprune slim --ratio 0.5 on ONNX Runtime, {first.provider.upper()}, "
        f"batch {first.batch}: times as fast as the original",
        description=f"Speed-up of slimmed networks, measured and promised by MACs. {labels}.",
        machine=f"{first.where}; ONNX Runtime {runtime}; whiskers are 95 % intervals, "
        "percentages the share of the promise",
        height=bottom + FOOT, bottom=bottom, same=x(1.0),
        ticks=tuple((LEFT + round(span * at / 100), f"{text} {TIMES}") for at, text in axis.ticks),
        legend=_legend(rows), networks=networks,
    )  # fmt: skip


def _network(rows: Sequence[Row], top: int, x: Callable[[float], float]) -> Network:
    by = {row.variant: row for row in rows}
    mine = [by[variant] for variant in VARIANTS if variant in by]
    # Less than all bars stand in the middle of the network's place.
    start = top + (STEP - len(mine) * (BAR + GAP)) / 2
    bars = tuple(_bar(row, start + k * (BAR + GAP), x) for k, row in enumerate(mine))
    name = mine[0].network
    return Network(TITLES.get(name, name), top + STEP / 2 + 4, bars)


def _bar(row: Row, y: float, x: Callable[[float], float]) -> Bar:
    assert row.interval is not None
    low, high = row.interval
    promised, speedup = row.promised or 0.0, row.speedup or 0.0
    reached = f"{row.reached:.0f} %"
    tone, how = VARIANTS[row.variant]
    label = f"{how.partition(' (')[0]} {speedup:.2f} ({low:.2f} to {high:.2f}) of {promised:.2f}"
    return Bar(
        tone, y, y + BAR / 2, round(x(promised) - LEFT, 1), round(x(speedup) - LEFT, 1), x(low),
        x(high), x(max(promised, high)), f"{speedup:.2f} {TIMES}  ({reached})", label,
    )  # fmt: skip


def _legend(rows: Sequence[Row]) -> tuple[Entry, ...]:
    there = {row.variant for row in rows}
    entries = [VARIANTS[v] for v in VARIANTS if v in there]
    return tuple(
        Entry(tone, LEFT + 260 * k, f"{text}: measured, promised")
        for k, (tone, text) in enumerate(entries)
    )


def render(found: Figure) -> str:
    """The figure as SVG."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("figure.svg").render(f=found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--provider", default="cpu")
    parser.add_argument("--batch", type=int, default=1)
    args = parser.parse_args()
    try:
        rows = chosen(read(args.results).values(), args.provider, args.batch)
    except PruneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    args.out.write_text(render(figure(rows)), encoding="utf-8")
    print(args.out)


if __name__ == "__main__":
    main()
