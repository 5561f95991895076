"""``trivium plugin``: write, test, pack, add and look at third-party plugins."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.table import Table

import trivium
from trivium import plugin
from trivium._errors import InvalidArgument, PluginRefused, TriviumError
from trivium.cli._console import Output, OutputOption, err, out, print_json
from trivium.plugin.installed import check, opened
from trivium.plugin.lock import LOCKED
from trivium.plugin.manifest import Manifest, here

app = typer.Typer(no_args_is_help=True, help="Write, test, pack, add and look at third-party plugins.")

Folder = Annotated[Path, typer.Argument(help="of the plugin's sources", exists=True, file_okay=False)]
LockOption = Annotated[Optional[Path], typer.Option("--lock", help="lock file; default: ./plugins.lock if there is one, else the user's")]
LockedOption = Annotated[bool, typer.Option("--locked", help="refuse what the lock file does not have", envvar=LOCKED)]


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="of the plugin, its strategy and its folder")],
    kind: Annotated[str, typer.Option(help="attention, position or merge")],
    select_only: Annotated[bool, typer.Option("--select-only", help="only select blocks: Trivium's kernel attends")] = False,
    folder: Annotated[Optional[Path], typer.Option("--dir", help="where to write; default: ./NAME")] = None,
    source: Annotated[Optional[Path], typer.Option(help="Trivium's Go sources, to refer to instead of copying")] = None,
) -> None:
    """Write a new plugin that builds, is tested, documented and licensed."""
    folder = plugin.new(name, kind, select_only=select_only, folder=folder, source=source)
    out.print(f"wrote {folder}", highlight=False)
    out.print(f"[dim]next:[/] edit {folder}/strategy.go, then: trivium plugin test {folder}", highlight=False)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def test(context: typer.Context, folder: Folder = Path(".")) -> None:
    """Run the conformance suite, and the plugin's own tests. Further arguments go to `go test`."""
    raise typer.Exit(plugin.Project.open(folder).test(context.args))


@app.command()
def dev(folder: Folder = Path("."), once: Annotated[bool, typer.Option("--once", help="build and try once")] = False) -> None:
    """Rebuild at every save, and try the plugin each time. Ctrl-C ends it."""
    project = plugin.Project.open(folder)
    seen: dict[Path, int] = {}
    while True:
        now = {p: p.stat().st_mtime_ns for p in project.folder.rglob("*") if p.suffix in (".go", ".py", ".json", ".proto") and _source(p)}
        if now != seen:
            seen = now
            _try_out(project)
        if once:
            return
        time.sleep(0.3)


def _source(path: Path) -> bool:
    return not {"dist", ".trivium", "third_party", ".git"} & set(path.parts)


def _try_out(project: plugin.Project) -> None:
    began = time.perf_counter()
    try:
        manifest = project.dev()
        built = time.perf_counter()
        with _engine(manifest) as engine:
            for strategy in manifest.strategies:
                out.print(f"{strategy['kind']}.{strategy['name']}: {_smoke(engine, strategy)}", highlight=False)
        out.print(f"[green]built[/] in {built - began:.1f} s, tried in {time.perf_counter() - built:.1f} s", highlight=False)
        out.print(f"[dim]use it:[/] trivium.Engine(plugins=[{str(manifest.path.parent)!r}])", highlight=False, soft_wrap=True)
    except TriviumError as error:
        err.print(f"[red]{type(error).__name__}[/]: {error}", highlight=False, soft_wrap=True)


def _engine(manifest: Manifest) -> trivium.Engine:
    """Open an engine that has the plugin, whose rights the author has written."""
    engine = trivium.Engine(plugins=[manifest.path.parent], lock=None, grant=True)
    refused = [p for p in engine.plugins() if p.state == "refused"]
    if refused:
        engine.close()
        raise PluginRefused(refused[0].reason)
    return engine


def _smoke(engine: trivium.Engine, strategy: dict[str, Any]) -> str:
    import numpy as np

    name = strategy["name"]
    if strategy["kind"] == "attention":
        x = np.random.default_rng(0).standard_normal((1, 4, 256, 32)).astype(np.float32)
        report = trivium.attention(x, x, x, strategy=name, engine=engine, return_report=True)[1]
        return f"density {report.density:.3f}, {report.times.select_ms + report.times.attend_ms:.1f} ms for 256 tokens"
    if strategy["kind"] == "position":
        plan = trivium.position(name).plan(head_dim=64, length=8192, rope_theta=10000.0, train_length=2048, engine=engine)
        return f"{len(plan.bands)} bands for 8192 tokens"
    return "serves (merge: see the conformance suite)"


@app.command()
def bench(
    folder: Folder = Path("."),
    lengths: Annotated[str, typer.Option(help="tokens, separated by commas")] = "512,1024,2048",
    output: OutputOption = Output.text,
) -> None:
    """Time the plugin's attention strategies beside plain attention."""
    import numpy as np

    manifest = plugin.Project.open(folder).dev()
    rows: list[dict[str, Any]] = []
    with _engine(manifest) as engine:
        for length in [int(n) for n in lengths.split(",")]:
            x = np.random.default_rng(0).standard_normal((1, 4, length, 64)).astype(np.float32)
            names = [s["name"] for s in manifest.strategies if s["kind"] == "attention"]
            for name in ["dense", *names]:
                times, density = [], 0.0
                for _ in range(5):
                    began = time.perf_counter()
                    density = trivium.attention(x, x, x, strategy=name, engine=engine, return_report=True)[1].density
                    times.append(time.perf_counter() - began)
                rows.append({"tokens": length, "strategy": name, "ms": round(1e3 * sorted(times)[2], 2), "density": density})
    if output is Output.json:
        print_json(rows)
        return
    table = Table("tokens", "strategy", "ms (p50 of 5)", "density", box=None, pad_edge=False)
    for row in rows:
        table.add_row(str(row["tokens"]), row["strategy"], f"{row['ms']:.2f}", f"{row['density']:.3f}")
    out.print(table)


@app.command()
def pack(
    folder: Folder = Path("."),
    platform: Annotated[Optional[list[str]], typer.Option(help="such as linux-arm64, beside this one; may be repeated")] = None,
    to: Annotated[Optional[Path], typer.Option("--out", help="where to write; default: dist in the folder")] = None,
    output: OutputOption = Output.text,
) -> None:
    """Write what users get: binaries, manifest with checksums, licence and SBOM."""
    packed = plugin.pack(folder, platforms=platform or [], out=to)
    if output is Output.json:
        print_json({"folder": packed.folder, "archive": packed.archive, "sha256": packed.manifest.hashes, "manifest": packed.manifest.sha256})
        return
    out.print(f"wrote {packed.folder} and {packed.archive.name}", highlight=False, soft_wrap=True)
    _show(packed.manifest)


def _show(manifest: Manifest) -> None:
    """Print what somebody agrees to, hashes in full."""
    rows = [("plugin", f"{manifest.name} {manifest.version}"), ("manifest", f"sha256 {manifest.sha256}")]
    for platform, digest in manifest.hashes.items():
        rows.append((platform, f"sha256 {digest}" + (" (this machine)" if platform == here() else "")))
    for strategy in manifest.strategies:
        license = strategy.get("license") or "no licence named"
        rows.append((f"{strategy['kind']}.{strategy['name']}", f"{strategy['summary']} ({strategy.get('version', '')}, {license})"))
    rows.append(("rights", str(manifest.rights)))
    if manifest.interpreter:
        rows.append(("runs with", f"{manifest.interpreter}, and its installed packages"))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        typer.echo(f"{name:{width}}  {value}")


@app.command()
def add(
    path: Annotated[Path, typer.Argument(help="folder or archive that `plugin pack` wrote, or a manifest", exists=True)],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="agree without being asked")] = False,
    lock: LockOption = None,
    locked: LockedOption = False,
) -> None:
    """Show what a plugin is and asks for, ask once, and remember the answer in plugins.lock."""
    with opened(path) as manifest:
        check(manifest)
        _show(manifest)
    before = plugin.added(lock).get(manifest.name)
    same = before is not None and (before.manifest, before.rights) == (manifest.sha256, manifest.rights)
    if before is not None and not same:
        out.print(f"[yellow]it replaces[/] version {before.version or '?'}, manifest {before.manifest}, rights {before.rights}", soft_wrap=True)
    if not (yes or locked or same):
        _ask()
    added = plugin.add(path, lock=lock, locked=locked)
    out.print(f"[green]added[/] {added.name}, recorded in {added.lock}", highlight=False, soft_wrap=True)


def _ask() -> None:
    if not sys.stdin.isatty() and os.environ.get("TRIVIUM_ASK") != "stdin":
        raise PluginRefused("nobody to ask: this is no terminal", hint="pass --yes, or --locked with a lock file that has it")
    if not typer.confirm("It runs as you, confined to the rights above. Add it?"):
        raise PluginRefused("not added")


@app.command("list")
def list_command(lock: LockOption = None, output: OutputOption = Output.text) -> None:
    """List the plugins that were added, and those of installed packages."""
    entries, found = plugin.added(lock), plugin.discover()
    if output is Output.json:
        print_json({"added": {n: e.data() for n, e in entries.items()}, "packages": {f.name: f.folder for f in found}})
        return
    table = Table("plugin", "version", "strategies", "rights", "from", box=None, pad_edge=False)
    for name, entry in sorted(entries.items()):
        table.add_row(name, entry.version, ", ".join(entry.strategies), str(entry.rights), entry.source)
    for package in found:
        table.add_row(package.name, "", "", "", f"package, {package.folder}")
    out.print(table, highlight=False)


@app.command()
def info(name: Annotated[str, typer.Argument(help="a plugin that was added, or a path")], lock: LockOption = None) -> None:
    """Describe a plugin: hashes, strategies, rights."""
    entry = plugin.added(lock).get(name)
    if entry is None and not Path(name).exists():
        raise InvalidArgument(f"{name} was not added, and is no path", hint="trivium plugin list")
    with opened(entry.folder if entry else Path(name)) as manifest:
        _show(manifest)


@app.command()
def schema(strategy: Annotated[str, typer.Argument(help="name or dotted identifier")]) -> None:
    """Print the JSON schema of a strategy's parameters, as trivium.toml may set them."""
    from trivium.settings import schema as schema_of

    print_json(schema_of(trivium.info(strategy)))


@app.command()
def remove(name: str, lock: LockOption = None) -> None:
    """Take a plugin out of the lock file, and off this machine."""
    plugin.remove(name, lock=lock)
    out.print(f"removed {name}")


@app.command()
def verify(lock: LockOption = None, output: OutputOption = Output.text) -> None:
    """Check each plugin of the lock file by its hashes."""
    problems = plugin.verify(lock)
    if output is Output.json:
        print_json(problems)
    else:
        for name, problem in sorted(problems.items()):
            out.print(f"{name}: " + (f"[red]{problem}[/]" if problem else "[green]ok[/]"), highlight=False, soft_wrap=True)
    raise typer.Exit(1 if any(problems.values()) else 0)


@app.command()
def doctor(lock: LockOption = None, output: OutputOption = Output.text) -> None:
    """Start every added plugin, and say what this kernel can confine."""
    lock_path = lock or plugin.default_lock()
    with trivium.Engine(lock=lock_path) as engine:
        checked = engine.check()
    problems = [f"{p['name']}: {p['error']}" for p in checked["plugins"] if p.get("error")]
    if output is Output.json:
        print_json({**checked, "problems": problems})
        raise typer.Exit(1 if problems else 0)
    confinement = checked["confinement"]
    out.print(f"Landlock {confinement['landlock'] or 'missing'} (1 for files, 4 for TCP, 6 for signals and abstract sockets), "
              f"seccomp {'yes' if confinement['seccomp'] else 'missing'}, memory by {confinement['memory']}", highlight=False)  # fmt: skip
    for process in checked["plugins"]:
        state = process.get("error") or process["state"]
        confined = f", confined, rights {process['rights']}" if process.get("confined") else ""
        out.print(f"{process['name']} {process.get('kind', '')}: {state}{confined}", highlight=False, soft_wrap=True)
    raise typer.Exit(1 if problems else 0)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def trace(context: typer.Context) -> None:
    """Run a program with every plugin call logged: trivium plugin trace python script.py."""
    if not context.args:
        raise InvalidArgument("want a program to run")
    raise typer.Exit(subprocess.run(context.args, env={**os.environ, "TRIVIUM_LOG": "debug"}, check=False).returncode)
