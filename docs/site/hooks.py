"""Pages that are derived: strategies from Info(), the API from docstrings, the command line from its help."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import click
import trivium
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from trivium.catalog import Info, Parameter

MODULES = {
    "trivium": "attention, positions, merging, and what there is",
    "trivium.hf": "under transformers",
    "trivium.strategy": "attention strategies in Python",
    "trivium.conformance": "what every strategy is held to",
    "trivium.viz": "pictures",
    "trivium.pma": "pre-training model averaging",
    "trivium.eval": "comparing strategies",
}
SECTIONS = ("Parameters", "Attributes", "Returns", "Yields", "Raises", "Examples", "Notes")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the derived pages to those that are written by hand."""
    for path, content in [*strategy_pages(), *api_pages(), ("cli.md", cli_page())]:
        files.append(File.generated(config, path, content=content))
    return files


# Strategies


def strategy_pages() -> Iterator[tuple[str, str]]:
    """A page for each strategy and one that lists them."""
    found = trivium.list()
    lines = ["# Strategies", "", "What `trivium.list()` says. Every page is made from the strategy's own `Info()`.", ""]
    for kind in ("attention", "position", "merge"):
        lines += [f"## {kind.capitalize()}", "", "| name | what it does | paper |", "| --- | --- | --- |"]
        lines += [f"| [{i.name}]({page_name(i)}) | {cell(i.summary)} | {paper(i)} |" for i in found if i.kind == kind]
        lines.append("")
    yield "strategies/index.md", "\n".join(lines)
    for info in found:
        yield f"strategies/{page_name(info)}", strategy_page(info)


def page_name(info: Info) -> str:
    return f"{info.kind}-{info.name}.md"


def strategy_page(info: Info) -> str:
    """What one strategy says of itself."""
    lines = [f"# {info.name}", "", f"{info.summary[:1].upper()}{info.summary[1:]}.", ""]
    lines += [f"Paper: {paper(info)}", ""] if info.paper else []
    call = info.signature if len(info.signature) <= 90 else info.signature.replace("(", "(\n    ", 1).replace(", ", ",\n    ")
    lines += ["```text", call, "```", ""]
    if info.parameters:
        lines += ["| parameter | type | default | range | what it does |", "| --- | --- | --- | --- | --- |"]
        lines += [parameter_row(p) for p in info.parameters]
        lines.append("")
    lines += ["## Capabilities", ""]
    lines += [f"* {name.replace('_', ' ')}: {plain(value)}" for name, value in info.capabilities.items() if value not in ("", None, [])]
    lines += ["", "## Notes", "", *(f"* {note}" for note in info.notes)] if info.notes else []
    return "\n".join([*lines, "", f"Version {info.version}, {info.license}."])


def parameter_row(p: Parameter) -> str:
    limits = p.range or ", ".join(f"`{c}`" for c in p.choices)
    unit = f" {p.unit}" if p.unit else ""
    heads = " A list has a value for each query head." if p.per_head else ""
    return f"| `{p.name}` | {p.type} | `{p.default!r}`{unit} | {cell(limits)} | {cell(p.doc)}.{heads} |"


def paper(info: Info) -> str:
    number = info.paper.removeprefix("arXiv:")
    return f"[arXiv {number}](https://arxiv.org/abs/{number})" if info.paper.startswith("arXiv:") else cell(info.paper)


def plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


# API


def api_pages() -> Iterator[tuple[str, str]]:
    """A page for each module and one that lists them."""
    lines = ["# Python", "", "Made from the docstrings. Shapes are in brackets; dimensions are in the order of the axes.", ""]
    lines += [f"* [`{name}`]({name}.md): {what}" for name, what in MODULES.items()]
    yield "api/index.md", "\n".join(lines)
    for name in MODULES:
        yield f"api/{name}.md", module_page(name)


def module_page(name: str) -> str:
    module = __import__(name, fromlist=["_"])
    parts = [f"# {name}", "", docstring(module), ""]
    for public, value in sorted(members(module), key=lambda m: (inspect.isclass(m[1]), m[0].lower())):
        parts += [member(public, value), ""]
    return "\n".join(parts)


def members(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Public functions and classes; of the package those it exports, of a module those it defines."""
    exported = getattr(module, "__all__", None)
    for name in exported or vars(module):
        value = getattr(module, name)
        ours = exported is not None or getattr(value, "__module__", "") == module.__name__
        if not name.startswith("_") and ours and (inspect.isroutine(value) or inspect.isclass(value)):
            yield name, value


def member(name: str, value: Any) -> str:
    """A function, or a class with its public methods."""
    title = f"## {name}\n\n```text\n{signature(name, value)}\n```\n\n{docstring(value)}"
    if not inspect.isclass(value) or issubclass(value, BaseException):
        return title
    methods = []
    for method, found in vars(value).items():
        function = found.fget if isinstance(found, property) else inspect.unwrap(getattr(found, "__func__", found))
        if method.startswith("_") or not inspect.isfunction(function):
            continue
        shown = method if isinstance(found, property) else signature(method, function)
        methods.append(f"### {name}.{method}\n\n```text\n{shown}\n```\n\n{docstring(function)}")
    return "\n\n".join([title, *methods])


def signature(name: str, value: Any) -> str:
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return name
    kept = [p.replace(annotation=p.empty) for n, p in found.parameters.items() if n != "self"]
    text = f"{name}{found.replace(parameters=kept, return_annotation=found.empty)}"
    return text if len(text) <= 100 else text.replace("(", "(\n    ", 1).replace(", ", ",\n    ")


def docstring(value: Any) -> str:
    """A numpy docstring as markdown."""
    text = inspect.getdoc(value) or ""
    if dataclasses.is_dataclass(value) and text.startswith(f"{getattr(value, '__name__', '')}("):
        text = ""  # the one that dataclasses writes
    text = re.sub(r":(?:class|func|meth):`[~!]?([^`]+)`", r"`\1`", text).replace("``", "`")
    lines, out, section, index = text.splitlines(), [], "", 0
    while index < len(lines):
        line = lines[index]
        if index + 1 < len(lines) and line in SECTIONS and set(lines[index + 1]) == {"-"}:
            section, index = line, index + 2
            out += ["", f"**{line}**", ""]
            continue
        out.append(entry(line) if section in SECTIONS[:5] else line)
        index += 1
    return fence("\n".join(out))


def entry(line: str) -> str:
    """A line of a section of names: `name : type`, or its description, which is indented."""
    if not line.strip():
        return line
    if line.startswith(" "):
        return f"    {line.strip()}"
    name, colon, kind = line.partition(" : ")
    return f"* `{name}`" + (f" ({kind})" if colon else "") + "  "


def fence(text: str) -> str:
    """Examples of the interpreter as blocks."""
    out, inside = [], False
    for line in text.splitlines():
        example = line.startswith((">>> ", "... ")) or (inside and bool(line.strip()))
        if example != inside:
            out += ["```text"] if example else ["```"]
        if example or line.strip() or not inside:
            out.append(line)
        inside = example
    return "\n".join([*out, "```"] if inside else out)


# Command line


def cli_page() -> str:
    """Every command, from its own help."""
    from trivium.cli import EXIT_CODES
    from trivium.cli.app import app

    group = typer.main.get_command(app)
    codes = [f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()]
    lines = ["# Command line", "", group.help or "", "", "`trivium --install-completion` teaches the shell its commands and options.", ""]
    lines += ["## Exit status", "", "| status | meaning |", "| --- | --- |", *codes, ""]
    return "\n".join([*lines, *commands(group, "trivium")])


def commands(group: Any, path: str) -> Iterator[str]:
    for name, command in sorted(getattr(group, "commands", {}).items()):
        full = f"{path} {name}"
        context = click.Context(command, info_name=full)
        yield f"## {full}\n\n{inspect.cleandoc(command.help or '')}\n"
        yield from options(command, context)
        yield from commands(command, full)


def options(command: Any, context: Any) -> Iterator[str]:
    rows = []
    for parameter in command.params:
        if parameter.name == "help":
            continue
        spelled = ", ".join(f"`{o}`" for o in parameter.opts) if parameter.param_type_name == "option" else f"`{parameter.name}`"
        rows.append(f"| {spelled} | {cell(getattr(parameter, 'help', '') or '')} |")
    if rows:
        yield "\n".join(["| option | meaning |", "| --- | --- |", *rows, ""])
