"""A page as a reader's software sees it: an outline by a real parser, and a headless browser."""

import re
import shutil
import subprocess
from dataclasses import dataclass, field
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest

VOID = {"meta", "link", "br", "hr", "img", "input"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--enable-logging=stderr",
    "--virtual-time-budget=5000", "--dump-dom",
)  # fmt: skip


@dataclass
class Element:
    tag: str
    attrs: dict[str, str]
    text: str = ""
    inside: tuple[str, ...] = ()
    """Tags of what it lies in."""


@dataclass
class Outline(HTMLParser):
    """All elements of a page in order; `wrong` says what does not nest."""

    elements: list[Element] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[Element] = []

    @classmethod
    def of(cls, html: str) -> "Outline":
        found = cls()
        found.feed(html)
        found.close()
        found.wrong += [f"<{e.tag}> is never closed" for e in found.open]
        return found

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(
            tag, {k: v or "" for k, v in attrs}, inside=tuple(e.tag for e in self.open)
        )
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        inside = tuple(e.tag for e in self.open)
        self.elements.append(Element(tag, {k: v or "" for k, v in attrs}, inside=inside))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1].tag != tag:
            self.wrong.append(f"</{tag}> in {[e.tag for e in self.open]}")
        else:
            self.open.pop()

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element.text += data

    def all(self, tag: str, **attrs: str) -> list[Element]:
        """Elements of a tag whose attributes (class_ for class) contain these words."""
        wanted = {k.rstrip("_").replace("_", "-"): v for k, v in attrs.items()}
        return [
            e for e in self.elements
            if e.tag == tag and all(v in e.attrs.get(k, "").split() for k, v in wanted.items())
        ]  # fmt: skip

    @property
    def text(self) -> str:
        return " ".join(next(e for e in self.elements if e.tag == "body").text.split())


def browser() -> str:
    """A headless Chromium; skips where there is none."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium on this machine")
    return found


@dataclass(frozen=True)
class Shown:
    """A page after it was opened: its DOM, and what it said on the console."""

    dom: str
    console: tuple[str, ...]


def opened(path: Path) -> Shown:
    """Open a page in a headless browser."""
    profile = path.parent / "profile"
    done = subprocess.run(
        [browser(), *QUIET, f"--user-data-dir={profile}", path.resolve().as_uri()],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return Shown(done.stdout, tuple(re.findall(r'CONSOLE[^"]*"(.*)", source', done.stderr)))


def asked(html: str, folder: Path, width: int, script: str) -> Shown:
    """Open a page in a frame of some width, run a script that sees it as `page`, and show what it
    returns as the text of the DOM's <output>.
    """
    wrapper = folder / "wrapper.html"
    wrapper.write_text(
        f"""<!doctype html><meta charset="utf-8"><output></output>
        <iframe style="width:{width}px;height:800px;border:0" srcdoc="{escape(html)}"></iframe>
        <script>
        const frame = document.querySelector("iframe");
        frame.addEventListener("load", () => {{
          const page = frame.contentDocument;
          const answer = (() => {{ {script} }})();
          document.querySelector("output").textContent = JSON.stringify(answer);
        }});
        </script>""",
        encoding="utf-8",
    )
    return opened(wrapper)
