"""`onnxprune report`, and `slim --report` in every form."""

import json
from pathlib import Path

import pytest

from onnxprune.errors import Unreadable, UsageError
from onnxprune.report import write as writing
from onnxprune.report.write import check_kind, read, write
from tests.commands import onnxprune
from tests.conftest import ROOT
from tests.page import Outline

DIGITS = ROOT / "models" / "digits_resnet.onnx"
LEAST = {
    "schema": "onnxprune/report/1", "tool": "onnxprune 0", "model": "m.onnx",
    "before": {"params": 1, "macs": 1, "bytes": 1, "nodes": 1, "channels": 1},
}  # fmt: skip


@pytest.fixture
def least(tmp_path: Path) -> Path:
    path = tmp_path / "least.json"
    path.write_text(json.dumps(LEAST))
    return path


def test_slim_writes_every_form(net: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"r{kind}" for kind in (".html", ".md", ".json")]
    reports = [a for p in paths for a in ("--report", p)]
    ended = onnxprune("slim", net, "--ratio", "0.5", *reports)
    assert ended.code == 0
    html, markdown, data = (p.read_text(encoding="utf-8") for p in paths)
    assert "net.slim.onnx" in Outline.of(html).text
    assert markdown.startswith("### `net.onnx`")
    assert set(json.loads(data)["pictures"]) == {"kept", "filters", "maps"}


def test_pictures_are_only_made_for_who_shows_them(net: Path, tmp_path: Path) -> None:
    onnxprune("slim", net, "--ratio", "0.5", "--report", tmp_path / "r.json")
    assert "pictures" not in json.loads((tmp_path / "r.json").read_text())


def test_the_page_is_the_same_from_the_file(net: Path, tmp_path: Path) -> None:
    for name in ("a.html", "a.json"):
        (tmp_path / name).unlink(missing_ok=True)
    onnxprune("slim", net, "--ratio", "0.5", "--dry-run",
              "--report", tmp_path / "a.html", "--report", tmp_path / "a.json")  # fmt: skip
    ended = onnxprune("report", tmp_path / "a.json", "-o", tmp_path / "b.html")
    assert ended.out == f"wrote {tmp_path / 'b.html'}\n"
    assert (tmp_path / "a.html").read_text() == (tmp_path / "b.html").read_text()


def test_nothing_to_prune_has_a_page(fixed: Path, tmp_path: Path) -> None:
    ended = onnxprune("slim", fixed, "--ratio", "0.5", "--report", tmp_path / "r.html")
    assert ended.code == 4
    assert "Nothing was removed." in Outline.of((tmp_path / "r.html").read_text()).text


def test_inspect_has_a_page(net: Path, tmp_path: Path) -> None:
    (tmp_path / "i.json").write_text(onnxprune("inspect", net, "--json").out)
    assert onnxprune("report", tmp_path / "i.json").code == 0
    assert "may go" in Outline.of((tmp_path / "i.html").read_text()).text


def test_html_is_the_default(least: Path) -> None:
    ended = onnxprune("report", least)
    assert ended.code == 0
    assert Outline.of(least.with_suffix(".html").read_text()).all("h1")[0].text == "m.onnx"


def test_a_report_is_not_overwritten_by_itself(least: Path) -> None:
    ended = onnxprune("report", least, "-o", least)
    assert ended.code == 2
    assert json.loads(least.read_text()) == LEAST


@pytest.mark.parametrize("command", ["report", "slim"])
def test_unknown_forms_are_refused(net: Path, least: Path, tmp_path: Path, command: str) -> None:
    how = (
        ["report", least, "-o"]
        if command == "report"
        else ["slim", net, "--ratio", ".5", "--report"]
    )
    ended = onnxprune(*how, tmp_path / "r.pdf")
    assert ended.code == 2
    assert "*.html, *.md, *.json" in ended.err
    assert not (tmp_path / "net.slim.onnx").exists()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        ("[1, 2]", "names no schema"),
        ("{}", "names no schema"),
        ('{"schema": "onnxprune/plan/1"}', "onnxprune/plan/1"),
        ('{"schema": ["x"]}', "['x']"),
        ('{"schema": "onnxprune/report/1"}', "KeyError"),
        (json.dumps({**LEAST, "groups": 7}), "TypeError"),
        (json.dumps({**LEAST, "layers": [{"name": "x"}]}), "KeyError"),
    ],
)
def test_what_is_no_report(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "r.json").write_text(text)
    ended = onnxprune("report", tmp_path / "r.json")
    assert ended.code == 3
    assert why in ended.err
    assert not (tmp_path / "r.html").exists()


def test_a_missing_report(tmp_path: Path) -> None:
    ended = onnxprune("report", tmp_path / "none.json")
    assert ended.code == 3
    with pytest.raises(Unreadable):
        read(tmp_path)


@pytest.mark.parametrize("missing", ["jinja2", "PIL"])
def test_html_says_what_it_needs(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setattr(writing, "find_spec", lambda name: None if name == missing else object())
    ended = onnxprune("slim", net, "--ratio", ".5", "--report", tmp_path / "r.html")
    assert ended.code == 2
    assert "onnxprune[report]" in ended.err
    assert not (tmp_path / "net.slim.onnx").exists()
    check_kind(tmp_path / "r.md")


def test_files_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="can't write"):
        write(LEAST, tmp_path / "no" / "where.md")
