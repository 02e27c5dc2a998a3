"""A report as one HTML file: no network, no dependency, light and dark, on paper too.

A section is a pure function from report data to what it shows, and a template. The page of a
schema is its list of sections; a section that does not apply is left out.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from onnxprune.report.sections import bench as benching
from onnxprune.report.sections import criteria, sensitivity, slim
from onnxprune.report.sections.bench import bench
from onnxprune.report.sections.fidelity import fidelity
from onnxprune.report.sections.groups import groups
from onnxprune.report.sections.head import Head
from onnxprune.report.sections.network import network
from onnxprune.report.sections.pictures import pictures
from onnxprune.report.sections.proof import proof
from onnxprune.report.sections.repair import repair
from onnxprune.report.sections.run import run
from onnxprune.report.sections.search import search
from onnxprune.report.sections.stayed import stayed

Data = Mapping[str, Any]


@dataclass(frozen=True)
class Section:
    """`template` draws what `view` makes of the data; nothing where that is None."""

    id: str
    title: str
    view: Callable[[Data], object | None]

    @property
    def template(self) -> str:
        return f"sections/{self.id}.html"


@dataclass(frozen=True)
class Page:
    """What a schema's report looks like."""

    head: Callable[[Data], Head]
    sections: tuple[Section, ...]


PAGES = {
    "onnxprune/report/1": Page(
        slim.head,
        (
            Section("network", "The network", network),
            Section("groups", "Groups and scores", groups),
            Section("pictures", "What the weights look like", pictures),
            Section("stayed", "What stayed, and why", stayed),
            Section("proof", "The proof", proof),
            Section("repair", "The repair", repair),
            Section("fidelity", "How close it stays", fidelity),
            Section("search", "The search", search),
            Section("bench", "How fast it is", bench),
            Section("run", "The run", run),
        ),
    ),
    "onnxprune/bench/1": Page(
        benching.head,
        (Section("bench", "How fast they are", benching.benchmark), Section("run", "The run", run)),
    ),
    "onnxprune/criteria/1": Page(
        criteria.head,
        (
            Section("agreement", "Do the criteria agree?", criteria.agreement),
            Section("spreads", "Can they tell the channels apart?", criteria.spreads),
            Section("scores", "Scores, group by group", criteria.groups),
            Section("run", "The run", run),
        ),
    ),
    "onnxprune/sensitivity/1": Page(
        sensitivity.head,
        (
            Section("curves", "What each group is worth", sensitivity.curves),
            Section("run", "The run", run),
        ),
    ),
}


def render(data: Data) -> str:
    """The HTML page of a report.

    Raises:
        KeyError: the schema is unknown, or a key that it requires is missing.
    """
    page = PAGES[data["schema"]]
    environment = _environment()
    script = _asset(environment, "page.js")
    seal = b64encode(sha256(script.encode()).digest()).decode("ascii")
    sections = [(s, view) for s in page.sections if (view := s.view(data)) is not None]
    return environment.get_template("page.html").render(
        head=page.head(data),
        sections=sections,
        style=Markup(_asset(environment, "page.css")),
        script=Markup(script),
        seal=seal,
    )


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("onnxprune.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip


def _asset(environment: Environment, name: str) -> str:
    """A file beside the templates, as it is."""
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0].strip()
