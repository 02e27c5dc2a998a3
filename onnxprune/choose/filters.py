"""Which groups a request means: regular expressions on the names of nodes and tensors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from onnxprune.axes.facts import Facts
from onnxprune.axes.solve import Group, Member
from onnxprune.errors import Unreadable, UsageError


def member_names(member: Member, facts: Facts) -> tuple[str, ...]:
    """The names by which a member is known: its tensor's, "TENSOR, axis K" for that axis of it
    alone (a weight has its own filters on one axis and those before it on another), and those of
    the nodes that read it.

    Nodes that compute constants from constants (a cast, a dequantiser) are passed through, so a
    quantised weight answers to the name of its convolution too.
    """
    model = facts.model
    tensor = model.in_file(member.value)
    names, todo = [tensor, f"{tensor}, axis {member.axis}"], [member.value]
    while todo:
        for node, _ in model.uses.get(todo.pop(), ()):
            names.append(node.label)
            todo += [o for o in node.outputs if o in facts.constant]
    return tuple(dict.fromkeys(names))


def group_names(group: Group, facts: Facts) -> list[tuple[str, ...]]:
    """The names of each of a group's members."""
    return [member_names(m, facts) for m in group.members]


def compiled(patterns: Sequence[str], option: str) -> list[re.Pattern[str]]:
    """Regular expressions; raises UsageError on one that is none."""
    out = []
    for text in patterns:
        try:
            out.append(re.compile(text))
        except re.error as error:
            raise UsageError(
                f"'{text}' is no regular expression", where=option, why=str(error)
            ) from None
    return out


def any_match(patterns: Sequence[re.Pattern[str]], names: Sequence[tuple[str, ...]]) -> bool:
    """Does any pattern occur in any name of any member?"""
    return any(p.search(name) for p in patterns for member in names for name in member)


def ratio_of(
    table: Sequence[tuple[re.Pattern[str], float]], names: Sequence[tuple[str, ...]]
) -> float | None:
    """The ratio that a table has for a group: the first match of each member, the smallest of
    these; None if no member matches.
    """
    found = [
        next((r for p, r in table if any(p.search(name) for name in member)), None)
        for member in names
    ]
    return min((r for r in found if r is not None), default=None)


def load_per_layer(path: str | Path) -> dict[str, float]:
    """A YAML or JSON file: regular expression -> share of channels to remove, first match first.

    Raises:
        Unreadable: no such file, or neither YAML nor JSON.
        UsageError: it is no mapping of regular expressions to numbers in [0, 1).
    """
    import yaml  # late: most runs read no such file

    try:
        text = Path(path).read_text(encoding="utf-8")
        table = json.loads(text) if Path(path).suffix == ".json" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, ValueError, yaml.YAMLError) as error:
        raise Unreadable(
            "the ratios per layer can't be read", where=str(path), why=str(error)[:200]
        ) from None
    hint = "write lines like  'layer1.*conv2': 0.3"
    if not isinstance(table, dict) or not table:
        raise UsageError(
            "the ratios per layer must be a mapping", where=str(path), hint=hint,
            why=f"it holds {'nothing' if not table else type(table).__name__}",
        )  # fmt: skip
    check_per_layer(table.items(), str(path))
    return {str(k): float(v) for k, v in table.items()}


def check_per_layer(table: Iterable[tuple[object, object]], where: str) -> None:
    """Raise UsageError for a pattern that is none, or a ratio outside [0, 1)."""
    patterns = []
    for pattern, ratio in table:
        if not isinstance(pattern, str):
            raise UsageError(
                f"{pattern!r} is no regular expression", where=where, hint="put it in quotes"
            )
        number = isinstance(ratio, (int, float)) and not isinstance(ratio, bool)
        if not number or not 0 <= float(str(ratio)) < 1:
            raise UsageError(
                f"the ratio of '{pattern}' must be a number from 0 to below 1",
                where=where, why=f"it is {ratio!r}",
            )  # fmt: skip
        patterns.append(pattern)
    compiled(patterns, where)
