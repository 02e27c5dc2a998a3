"""The README promises nothing that is not there: commands, options, numbers, links, code."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import onnx
import pytest

from onnxprune import errors
from onnxprune.choose.criteria import CRITERIA
from onnxprune.cli.main import COMMANDS, cli
from tests.commands import onnxprune
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def options() -> set[str]:
    """Every option of every command."""
    context = click.Context(cli)
    found = (cli.get_command(context, name).params for name in COMMANDS)
    return {text for params in found for p in params for text in (*p.opts, *p.secondary_opts)}


def block(after: str, kind: str = "") -> str:
    """The first fenced block after some words."""
    return README.split(after, 1)[1].split(f"```{kind}\n", 1)[1].split("```", 1)[0]


def test_every_option_exists() -> None:
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) - {"--help"}
    assert len(named) > 20
    assert named <= options()


def test_every_command_is_shown_and_exists() -> None:
    shown = re.findall(r"^    onnxprune (\w+)", README, re.MULTILINE)
    assert set(shown) == set(COMMANDS)


def test_every_criterion_is_named() -> None:
    line = next(line for line in README.splitlines() if line.startswith("* `--criterion`"))
    named = set(re.findall(r"`([a-z0-9-]+)`", line)) - {"--criterion"}
    assert named == set(CRITERIA)


def test_links_lead_somewhere() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_exit_codes() -> None:
    codes = {int(code) for code in re.findall(r"^\| (\d) \|", README, re.MULTILINE)}
    kinds = (errors.CheckFailed, errors.UsageError, errors.Unreadable, errors.NothingToPrune)
    assert codes == {0, *(kind.exit_code for kind in kinds)}


def test_nothing_is_left_to_fill_in() -> None:
    assert re.findall(r"^@[A-Z]+@$", README, re.MULTILINE) == []


def test_the_first_command_ends_as_shown(tmp_path: Path) -> None:
    line = next(line for line in README.splitlines() if "onnxprune slim models/" in line)
    words = shlex.split(line.split("onnxprune slim ", 1)[1])
    out = tmp_path / "out.onnx"
    ended = onnxprune("slim", ROOT / words[0], *words[1:], "-o", out)
    assert ended.code == 0
    shown = block("ends with").strip().splitlines()
    assert len(shown) > 5
    assert shown[-1] == f"wrote {words[0].replace('.onnx', '.slim.onnx')}"
    assert numbers_aside(" ".join(shown[:-1])) in numbers_aside(ended.out)


def numbers_aside(text: str) -> str:
    """Without line breaks, and without how far rounding went on this machine."""
    return re.sub(r"relative error \S+", "relative error", " ".join(text.split()))


def test_the_python_example_runs(tmp_path: Path) -> None:
    model = onnx.load(ROOT / "models" / "digits_resnet.onnx")
    onnx.save(model, tmp_path / "model.onnx")
    done = subprocess.run(
        [sys.executable, "-c", block("From Python", "python")],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model.slim.onnx").exists()
    sentence, macs = done.stdout.splitlines()
    assert "proven" in sentence
    assert float(macs) > 0.5


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`python -m ([\w.]+)`", README))))
def test_scripts_that_make_the_numbers_are_there(name: str) -> None:
    assert (ROOT / Path(*name.split(".")).with_suffix(".py")).exists()
