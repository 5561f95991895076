"""The Python of the documentation runs, page by page, from top to bottom."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs" / name for name in ("index.md", "concepts.md")] + sorted((ROOT / "docs" / "howto").glob("*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def snippets(page: Path) -> str:
    """All blocks of a page as one program, at the lines where they stand."""
    text, lines = page.read_text(), [""] * page.read_text().count("\n")
    for block in BLOCK.finditer(text):
        first = text.count("\n", 0, block.start(1))
        for index, line in enumerate(block.group(1).splitlines()):
            lines[first + index] = line
    return "\n".join(lines)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = snippets(page)
    monkeypatch.chdir(tmp_path)
    exec(compile(program, str(page), "exec"), {"__name__": "__main__"})


def test_pages_have_snippets() -> None:
    """A page whose fences are misspelled would pass unseen."""
    without = [page.stem for page in PAGES if not BLOCK.search(page.read_text())]
    assert without in ([], ["plugin"]), "a how-to shows how; that of plugins is of the shell"


def test_the_installed_package_is_documented() -> None:
    """No strategy, error or command is missing from what is built."""
    site = ROOT / "build" / "site"
    if not site.is_dir():
        pytest.skip("the site is built by `make docs`")
    import trivium

    pages = {path.stem for path in (site / "strategies").glob("*.html")}
    assert {f"{i.kind}-{i.name}" for i in trivium.list()} <= pages
    commands = (site / "cli.html").read_text()
    assert all(f"trivium {name}" in commands for name in ("list", "info", "doctor", "merge", "demo"))
