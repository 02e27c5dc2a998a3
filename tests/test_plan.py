"""Plans: there and back, checked against their model, and damaged in every way."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from models.zoo import ZOO
from onnxprune import pipeline
from onnxprune.axes.view import View
from onnxprune.choose.heads import resolve
from onnxprune.choose.plan import (
    SCHEMA,
    AddedBias,
    Plan,
    check_plan,
    check_tensors,
    from_json,
    plan_of,
    tensor_cuts,
    to_json,
)
from onnxprune.cut.cut import cut
from onnxprune.errors import Unreadable
from onnxprune.graph.files import fingerprint
from tests.choosing import Analysed, analysed, model_of

OPTIONS = {"ratio": 0.5, "include": ["a"], "scope": "layer", "threshold": None}


def planned(a: Analysed) -> tuple[Plan, View]:
    rng = np.random.default_rng(0)
    kept = {g.id: np.sort(rng.permutation(g.size)[: max(1, g.size // 2)]) for g in a.groups}
    view = View.of(a.solution, a.groups, kept)
    sign = fingerprint(a.facts.model.source)
    return plan_of(view, a.groups, kept, sign, options=OPTIONS), view


@pytest.mark.parametrize("name", sorted(ZOO))
def test_there_and_back_gives_the_same_file(name: str) -> None:
    """From the JSON alone: the same analysis, the same groups, the same bytes."""
    plan, view = planned(analysed(ZOO[name](0)))
    again = from_json(to_json(plan))
    assert again == plan
    fresh = analysed(ZOO[name](0))
    solution = resolve(fresh.facts, "whole", 0, again.analysis.frozen)
    check_plan(again, fingerprint(fresh.facts.model.source), fresh.groups)
    replayed = View.of(solution, fresh.groups, again.kept)
    check_tensors(again, replayed)
    assert cut(replayed).model.SerializeToString() == cut(view).model.SerializeToString()


@pytest.mark.parametrize("name", sorted(ZOO))
def test_tensors_say_what_the_cut_does(name: str) -> None:
    a = analysed(ZOO[name](0))
    plan, view = planned(a)
    done = {(w.original, tuple(m.tobytes() for m in w.kept)) for w in cut(view).weights}
    said = set()
    for t in plan.tensors:
        masks = [np.ones(d, bool) for d in t.shape]
        for axis, indices in t.kept.items():
            masks[axis][:] = False
            masks[axis][list(indices)] = True
        said.add((t.name, tuple(m.tobytes() for m in masks)))
    assert said == done


def test_shared_tensors_name_their_nodes() -> None:
    """Where nodes cut one tensor in different ways, each way is told apart."""
    _, view = planned(analysed(ZOO["shared_vectors"](0)))
    keys = [(t.name, t.nodes) for t in tensor_cuts(view)]
    assert len(keys) == len(set(keys))
    assert len({name for name, _ in keys}) < len(keys)


def test_json_is_for_people_and_scripts() -> None:
    plan, _ = planned(analysed(ZOO["mlp"](0)))
    data = json.loads(to_json(plan))
    assert data["schema"] == SCHEMA == "onnxprune/plan/1"
    assert data["options"] == OPTIONS
    t = data["tensors"][0]
    assert set(t) == {"name", "shape", "kept", "nodes"}
    assert all(len(line) < 10_000 for line in to_json(plan).splitlines())


def test_biases_come_back() -> None:
    plan, _ = planned(analysed(ZOO["mlp"](0)))
    plan = Plan(plan.fingerprint, plan.groups, biases=(AddedBias("n", "n_bias"),))
    assert from_json(to_json(plan)).biases == (AddedBias("n", "n_bias"),)


def test_biases_that_a_repair_added_are_told() -> None:
    rng = np.random.default_rng(0)
    weights = {"w1": rng.standard_normal((4, 8)), "w2": rng.standard_normal((8, 3))}
    nodes: list[Any] = [
        ("MatMul", ["x", "w1"], ["h"], {}), ("Relu", ["h"], ["r"], {}),
        ("Gemm", ["r", "w2"], ["y"], {}),
    ]  # fmt: skip
    model = model_of(nodes, {k: v.astype(np.float32) for k, v in weights.items()},
                     ["n", 4], ["n", 3])  # fmt: skip
    calib = [{"x": rng.standard_normal((64, 4)).astype(np.float32)} for _ in range(8)]
    kept = pipeline.slim(model, ratio=0.5, calib=calib)
    assert [(b.node, b.tensor) for b in kept.plan.biases] == [("node_y", "y/bias")]
    assert pipeline.slim(model, ratio=0.5, repair="none").plan.biases == ()


# ---- damage -----------------------------------------------------------------------------------

Damage = Callable[[dict[str, Any]], object]


def group(key: str, value: object) -> Damage:
    return lambda d: d["groups"][0].update({key: value})


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda d: d.update(schema="onnxprune/plan/2"), "not a plan that this version reads"),
        (lambda d: d.pop("schema"), "'schema' must be a text"),
        (lambda d: d.pop("fingerprint"), "'fingerprint' must be a text"),
        (lambda d: d.update(groups={}), "'groups' must be a list"),
        (lambda d: d.update(groups=[1]), "not a JSON object"),
        (lambda d: d.update(options=[]), "'options' must be an object"),
        (lambda d: d["groups"].append(d["groups"][0]), "names a group twice"),
        (group("id", -1), "'id' must be a whole number"),
        (group("id", True), "'id' must be a whole number"),
        (group("name", 3), "'name' must be a text"),
        (group("kept", []), "at least one"),
        (group("kept", [3, 1]), "ascending"),
        (group("kept", [1, 1]), "none twice"),
        (group("kept", [0, 10**6]), "indices below"),
        (group("kept", [-1, 2]), "whole numbers from 0"),
        (group("kept", [0.5]), "whole numbers from 0"),
        (group("kept", "all"), "whole numbers from 0"),
        (group("kept", None), "whole numbers from 0"),
        (lambda d: d["tensors"][0]["kept"].update({"9": [0]}), "an axis below"),
        (lambda d: d["tensors"][0]["kept"].update(x=[0]), "an axis below"),
        (lambda d: d["tensors"][0].update(shape=[-4]), "'shape' must be"),
        (lambda d: d["analysis"].update(whole_groups=1), "true or false"),
        (lambda d: d["analysis"].update(frozen=[["a"]]), "whole numbers"),
        (lambda d: d["analysis"].update(dims={"n": "2"}), "whole number"),
        (lambda d: d["biases"].append({"node": "n"}), "'tensor' must be a text"),
    ],
)
def test_damaged_plans_are_refused_with_the_place(damage: Damage, says: str) -> None:
    plan, _ = planned(analysed(ZOO["mlp"](0)))
    data = json.loads(to_json(plan))
    damage(data)
    with pytest.raises(Unreadable) as e:
        from_json(json.dumps(data), "plan.json")
    assert says in str(e.value)
    assert e.value.exit_code == 3
    assert "plan.json" in str(e.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "\0"])
def test_what_is_no_plan_at_all(text: str) -> None:
    with pytest.raises(Unreadable):
        from_json(text)


def test_a_plan_for_another_model() -> None:
    a = analysed(ZOO["mlp"](0))
    plan, _ = planned(a)
    other = analysed(ZOO["mlp"](1))
    with pytest.raises(Unreadable, match="another model"):
        check_plan(plan, fingerprint(other.facts.model.source), other.groups)


@pytest.mark.parametrize("change", [{"name": "x"}, {"channels": 999}, {"id": 999}])
def test_groups_that_are_not_there(change: dict[str, object]) -> None:
    a = analysed(ZOO["mlp"](0))
    plan, _ = planned(a)
    data = json.loads(to_json(plan))
    data["groups"][0].update(change)
    with pytest.raises(Unreadable, match="groups are not the model's"):
        check_plan(from_json(json.dumps(data)), plan.fingerprint, a.groups)


def test_tensors_that_do_not_follow() -> None:
    a = analysed(ZOO["mlp"](0))
    plan, view = planned(a)
    check_tensors(plan, view)
    data = json.loads(to_json(plan))
    axis, kept = next(iter(data["tensors"][0]["kept"].items()))
    data["tensors"][0]["kept"][axis] = kept[:-1]
    with pytest.raises(Unreadable, match="contradicts itself"):
        check_tensors(from_json(json.dumps(data)), view)
    missing = Plan(plan.fingerprint, plan.groups, plan.analysis, plan.tensors[1:])
    with pytest.raises(Unreadable, match="contradicts itself"):
        check_tensors(missing, view)
