"""A report as Markdown for a pull request: what changed, whether it is right, what stayed and why.

GitHub's dialect: tables and folded details. Names are code spans, so that nothing in them can act
as markup.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from onnxprune.report.figures import TIMES, change, count, in_bytes, shape, short
from onnxprune.report.sections.bench import Bench, bench, benchmark
from onnxprune.report.sections.fidelity import fidelity
from onnxprune.report.sections.head import base
from onnxprune.report.sections.proof import verdict
from onnxprune.report.sections.search import search
from onnxprune.report.sections.slim import sentence
from onnxprune.report.sections.stayed import stayed
from onnxprune.report.text import quantity

LONGEST = 100
"""Rows of a table: a comment on GitHub holds 65,536 characters."""
REASONS = 8
"""Reasons that are listed."""

Data = Mapping[str, Any]
_SIZES = (("channels", "channels", quantity), ("params", "parameters", quantity),
          ("macs", "MACs", quantity), ("bytes", "file", in_bytes))  # fmt: skip
_ICONS = {"good": "✅", "warn": "⚠️", "bad": "❌"}


def render(report: Data) -> str:
    """The Markdown text of a report.

    Raises:
        KeyError: the schema has none, or a key that it requires is missing.
    """
    parts = PARTS[report["schema"]]
    return "\n\n".join(text for part in parts for text in part(report)) + "\n"


def code(text: object) -> str:
    """A code span: nothing in it is markup."""
    plain = " ".join(str(text).split())
    fence = "`"
    while fence in plain:
        fence += "`"
    gap = " " if "`" in (plain[:1], plain[-1:]) else ""
    return f"{fence}{gap}{plain}{gap}{fence}"


def prose(text: str) -> str:
    """A sentence from elsewhere: nothing in it is markup."""
    return re.sub(r"([\\`*_\[\]<>&#|~])", r"\\\1", " ".join(text.split()))


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """A table; all columns are numbers but the first `words`."""
    ruler = [*["---"] * words, *["---:"] * (len(heads) - words)]
    found = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in (heads, ruler, *found[:LONGEST]))
    left = len(found) - LONGEST
    return text if left <= 0 else f"{text}\n\nand {left:,} more"


def folded(title: str, body: str) -> str:
    """What opens on a click."""
    return f"<details><summary>{title}</summary>\n\n{body}\n\n</details>"


def _title(report: Data) -> Iterator[str]:
    names = [code(base(report[k])) for k in ("model", "out") if report.get(k)]
    yield f"### {' → '.join(names)}"
    yield sentence(report)


def _sizes(report: Data) -> Iterator[str]:
    before, after = report["before"], report.get("after")
    if after is None:
        yield table(("", "size"), ((title, text(before[k])) for k, title, text in _SIZES))
    else:
        rows = (
            (title, text(before[k]), text(after[k]), f"**{change(before[k], after[k])}**")
            for k, title, text in _SIZES
        )
        yield table(("", "before", "after", "change"), rows)


def _verdict(report: Data) -> Iterator[str]:
    found = verdict(report)
    if found is not None:
        bad = report.get("verify", {}).get("first_bad", "")
        text = found.sentence.replace(f" at {bad}", f" at {code(bad)}") if bad else found.sentence
        yield f"{_ICONS[found.tone]} **{found.word}.** {text}"


def _repair(report: Data) -> Iterator[str]:
    layers = report.get("repair", {}).get("layers", ())
    if layers:
        better = [r for r in layers if r["after"] < r["before"]]
        yield f"🔧 **Repaired.** {len(better)} of {count(len(layers), 'layer')} were refitted."
        rows = (
            (code(r["node"]), short(r["before"]), short(r["after"]),
             change(r["before"], r["after"]))
            for r in layers
        )  # fmt: skip
        heads = ("layer", "error, sliced", "refitted", "change")
        yield folded("Errors on held-out samples, layer by layer", table(heads, rows))


def _fidelity(report: Data) -> Iterator[str]:
    found = fidelity(report)
    if found is None:
        return
    if found.outputs:
        yield f"🎯 **Close.** On {found.samples:,} {found.on} samples:"
        rows = ((code(o.name), o.agreement, o.snr, o.kl) for o in found.outputs)
        yield table(("output", "same answer", "signal to noise", "KL, nats"), rows)
    if found.metric:
        name, before, after, difference = found.metric
        yield f"{code(name)}: {before} before, **{after}** after ({difference})."


def _search(report: Data) -> Iterator[str]:
    found = search(report)
    if found is None:
        return
    if found.sentence:
        yield f"🔎 {prose(found.sentence)}"
    if found.trials:
        rows = ((*row, "yes" if within else "no") for *row, within in found.trials)
        heads = ("MACs left", "measured", "", "within")
        yield folded(count(len(found.trials), "trial"), table(heads, rows, words=0))
    if found.widths:
        sizes = ((title, text, macs) for title, macs, text, _share in found.widths)
        yield folded(
            "slim models timed for --align auto", table(("kept counts", "time", "MACs left"), sizes)
        )


def _bench(report: Data) -> Iterator[str]:
    found = bench(report)
    if found is not None:
        yield from _times(found)


def _benchmark(report: Data) -> Iterator[str]:
    names = [code(base(m["name"])) for m in report.get("models", ())]
    yield f"### {' against '.join(names) or 'Benchmark'}"
    found = benchmark(report)
    yield from _times(found)
    if found.machine:
        rows = ((k, code(v)) for k, v in found.machine)
        yield folded("The machine", table(("", ""), rows, words=2))


def _times(found: Bench) -> Iterator[str]:
    for case in found.cases:
        yield f"⏱️ **{case.title}**"
        rows = (
            (code(t.model), f"**{t.median}**", t.speedup and f"**{t.speedup}**", t.interval,
             t.promised)
            for t in case.rows
        )  # fmt: skip
        yield table(("model", "median", "faster", "95 %", "MACs promise"), rows)
        if case.layers:
            layers = (
                (code(x.name), code(x.op), " → ".join(t for _, t, *_ in x.times), x.speedup,
                 prose("; ".join(x.why)))
                for x in case.layers
                if x.times
            )  # fmt: skip
            heads = ("layer", "operator", "time", "faster", "why not more")
            yield folded("Where the time goes", table(heads, layers, words=2))
    for where, why, failed in found.missing:
        yield f"{'❌' if failed else '⚪'} {prose(where)}: {prose(why)}"


def _stayed(report: Data) -> Iterator[str]:
    found = stayed(report)
    if found is None:
        return
    lines = [
        f"* {count(r.channels, 'channel')} in {count(len(r.axes), 'weight axis', 'weight axes')}: "
        f"{prose(r.why)}"
        for r in found.reasons[:REASONS]
    ]
    if len(found.reasons) > REASONS:
        lines.append(f"* and {len(found.reasons) - REASONS} more reasons")
    lines += [f"* no rule: {prose(what)} ({n}{TIMES})" for what, n in found.unknown]
    yield "**Stayed**\n\n" + "\n".join(lines)


def _groups(report: Data) -> Iterator[str]:
    free = [g for g in report.get("groups", ()) if not g["fixed_by"]]
    if free:
        rows = (
            (code(g["name"]), f"{g['channels']:,}", f"{g['kept']:,}",
             str(len({m["tensor"] for m in g["members"]})))
            for g in free
        )  # fmt: skip
        heads = ("created by", "channels", "kept", "weights")
        yield folded(f"{count(len(free), 'group')} of channels", table(heads, rows))


def _layers(report: Data) -> Iterator[str]:
    layers = report.get("layers", ())
    if layers:
        rows = (
            (code(r["name"]), code(r["op"]), shape(r["shape"]), shape(r["shape_after"]),
             quantity(r["macs"]), quantity(r["macs_after"]), change(r["macs"], r["macs_after"]))
            for r in layers
        )  # fmt: skip
        heads = ("layer", "operator", "weight", "after", "MACs", "after", "change")
        yield folded(count(len(layers), "layer"), table(heads, rows, words=4))


def _options(report: Data) -> Iterator[str]:
    options = {k: v for k, v in report.get("options", {}).items() if v not in ("", None)}
    if options:
        rows = [(k.replace("_", "-"), code(v)) for k, v in options.items()]
        rows += [("MACs at", code(report["sizes"]))] if report.get("sizes") else []
        body = table(("option", "value"), [*rows, ("tool", code(report["tool"]))], words=2)
        yield folded("Options", body)


def _notes(report: Data) -> Iterator[str]:
    notes = [*report.get("notes", ()), *report.get("verify", {}).get("notes", ())]
    if notes:
        yield folded(count(len(notes), "note"), "\n".join(f"* {prose(n)}" for n in notes))


PARTS = {
    "onnxprune/report/1": (
        _title, _sizes, _verdict, _repair, _fidelity, _search, _bench, _stayed, _groups, _layers,
        _options, _notes,
    ),
    "onnxprune/bench/1": (_benchmark,),
}  # fmt: skip
"""What is told of each schema, in order."""
