"""JSON from outside, read key by key: what is wrong is said with its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from onnxprune.errors import Unreadable


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class Reader:
    """A JSON object and where it stands; every method raises Unreadable on what it can't take."""

    data: Mapping[str, Any]
    where: str

    def __post_init__(self) -> None:
        if not isinstance(self.data, dict):
            raise Unreadable(
                "not a JSON object", where=self.where, why=f"it is a {type(self.data).__name__}"
            )

    @property
    def keys(self) -> list[str]:
        return list(self.data)

    def wrong(self, key: str, wanted: str) -> Unreadable:
        why = f"it is {self.data[key]!r:.60}" if key in self.data else "it is missing"
        return Unreadable(f"'{key}' must be {wanted}", where=self.where, why=why)

    def _get(self, key: str, wanted: str, test: Callable[[Any], bool]) -> Any:
        if key not in self.data or not test(self.data[key]):
            raise self.wrong(key, wanted)
        return self.data[key]

    def text(self, key: str) -> str:
        return str(self._get(key, "a text", lambda v: isinstance(v, str)))

    def boolean(self, key: str) -> bool:
        return bool(self._get(key, "true or false", lambda v: isinstance(v, bool)))

    def integer(self, key: str) -> int:
        return int(self._get(key, "a whole number from 0", lambda v: _is_int(v) and v >= 0))

    def integers(self, key: str) -> tuple[int, ...]:
        def fits(value: Any) -> bool:
            return isinstance(value, list) and all(_is_int(v) and v >= 0 for v in value)

        return tuple(self._get(key, "a list of whole numbers from 0", fits))

    def indices(self, key: str, size: int) -> tuple[int, ...]:
        """Sorted indices below `size`, at least one, none twice."""
        found = self.integers(key)
        ordered = all(a < b for a, b in pairwise(found))
        if not found or not ordered or found[-1] >= size:
            raise self.wrong(key, f"ascending indices below {size}, none twice, at least one")
        return found

    def texts(self, key: str) -> tuple[str, ...]:
        def fits(value: Any) -> bool:
            return isinstance(value, list) and all(isinstance(v, str) for v in value)

        return tuple(self._get(key, "a list of texts", fits))

    def lists(self, key: str) -> list[tuple[int, ...]]:
        rows = self._get(key, "a list of lists", lambda v: isinstance(v, list))
        return [Reader({key: row}, f"{self.where}, {key}[{k}]").integers(key)
                for k, row in enumerate(rows)]  # fmt: skip

    def table(self, key: str) -> Reader:
        return Reader(self._get(key, "an object", lambda v: isinstance(v, dict)),
                      f"{self.where}, {key}")  # fmt: skip

    def rows(self, key: str) -> list[Reader]:
        rows = self._get(key, "a list", lambda v: isinstance(v, list))
        return [Reader(row, f"{self.where}, {key}[{k}]") for k, row in enumerate(rows)]
