"""Every operator of the tables: its golden facts, and a witness that they are true."""

from __future__ import annotations

import pytest
import witness
from witness import Case, Unrunnable, cases

from onnxprune.axes.movers import MOVERS
from onnxprune.axes.rules import ELEMENTWISE, PINNED, SPECS
from onnxprune.axes.sequences import SEQUENCES
from onnxprune.axes.special import SPECIAL

CASES = cases()
IDS = [f"{c.line}-{'-'.join(n.op_type for n in c.nodes)}" for c in CASES]
RUNNABLE = [pytest.param(c, id=i) for c, i in zip(CASES, IDS, strict=True) if c.can_run]


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_facts(case: Case) -> None:
    assert witness.describe(case) == case.expected


@pytest.mark.parametrize("zero", [False, True], ids=["free", "zero"])
@pytest.mark.parametrize("case", RUNNABLE)
def test_cut_is_the_operator_on_less(case: Case, zero: bool) -> None:
    shrunk = sum(
        witness.check_cut(case, policy, zero, seed)
        for policy in ("whole", "dims")
        for seed in range(3)
    )
    assert shrunk or zero or not case.may_shrink


@pytest.mark.parametrize("case", RUNNABLE)
def test_channels_are_independent(case: Case) -> None:
    witness.check_independence(case)


def test_every_operator_has_a_case() -> None:
    tables = {*SPECS, *ELEMENTWISE, *SPECIAL, *(("", op) for op in MOVERS)}
    tables |= {("", op) for op in (*SEQUENCES, "Shape", "Size", "Range", "If", "Loop", "Scan")}
    told = {op for c in CASES for op in c.operators}
    assert sorted(tables - told) == []


def test_no_operator_is_in_two_tables() -> None:
    tables = [set(SPECS), set(ELEMENTWISE), set(SPECIAL), {("", op) for op in MOVERS}, set(PINNED)]
    for k, a in enumerate(tables):
        for b in tables[k + 1 :]:
            assert not a & b


@pytest.mark.parametrize(("domain", "op"), [("", "NoSuchOperator"), ("com.example", "Relu")])
def test_unknown_operators_are_pinned_and_reported(domain: str, op: str) -> None:
    name = f"{domain}.{op}" if domain else op
    facts, _ = witness.facts_for(Case(f"@17 y = {name}(x) | x f[2,3]"))
    assert next(iter(facts.unknown)) == f"{name}: has no rule"
    assert any(p.why == f"{name} has no rule" for p in facts.labels.pins)


def test_the_witness_can_fail() -> None:
    """A coupling that is wrong, or left out, does not pass."""
    case = Case("@17 y = Gather <axis=1> (x, I) | x f[2,5], I i64[5] = 4 3 2 1 0")
    facts, arrays = witness.facts_for(case)
    assert witness.check_independence(case) > 0
    facts.axes["y"][1] = facts.axes["x"][1]  # as if nothing had been reversed
    with pytest.raises(AssertionError, match="moves at"):
        witness.independent(case, facts, arrays)


def test_unrunnable_is_told() -> None:
    case = Case("@17 y = com.example.Relu(x) | x f[2,3]")
    with pytest.raises(Unrunnable):
        witness.check_independence(case)
