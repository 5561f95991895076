"""Write a new plugin: a Go module that builds, is tested, documented and licensed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from trivium._errors import InvalidArgument, PluginMissing

MODULE = "github.com/trivium-ml/trivium"
SDK = Path(__file__).parent.parent / "plugins" / "_sdk"  # the underscore hides it from Go
VENDORED = "third_party/trivium"
KINDS = ("attention", "position", "merge")

TEST = """package main

import (
	"testing"

	"github.com/trivium-ml/trivium/plugins/sdk/sdktest"
)

// The test binary is the plugin that its own test starts.
func TestMain(m *testing.M) { sdktest.Main(m, config()) }

func TestConformance(t *testing.T) { sdktest.Run(t, config()) }
"""

README = """# {name}

A {kind} strategy for [Trivium](https://{module}), in a plugin process of its own.

    trivium plugin test .      # the conformance suite
    trivium plugin dev .       # rebuild and try it at every save
    trivium plugin bench .     # beside plain attention
    trivium plugin pack .      # binary, manifest, checksums and SBOM, in dist/
    trivium plugin add dist/{name}-0.1.0

Then, from Python: {usage}

`strategy.go` is what there is to change. `Info()` there names the parameters; what it says
is validation, documentation and signature everywhere. `plugin.json` has the version and the
rights that the plugin asks for: none, unless you add some ("gpu", "net", "processes",
"read": [...], "write": [...], "memory_mib": ...).

{where}
"""

USAGE = {
    "attention": '`trivium.attention(q, k, v, strategy="{name}")`.',
    "position": '`trivium.attention(q, k, v, position=trivium.position("{name}", train_length=2048, rope_theta=10000.0))`.',
    "merge": '`trivium.merge([a, b], out, method="{name}")`.',
}

VENDORED_TEXT = """Trivium's Go module is not published yet: the part of it that plugins import lies in
`third_party/trivium` (Apache-2.0) and is named by a `replace` line in `go.mod`. Once it is
published, remove both and run `go mod tidy`."""

LINKED_TEXT = """`go.mod` names Trivium's sources at {source} by a `replace` line, since its Go module is not
published yet."""


def new(
    name: str, kind: str, *, select_only: bool = False, folder: Path | None = None, source: Path | None = None
) -> Path:
    """Write a new plugin and give its folder.

    Parameters
    ----------
    name : str
        Of the plugin, its strategy and its folder: lower-case letters, digits and dashes.
    kind : str
        attention, position or merge.
    select_only : bool
        The attention strategy only selects blocks; Trivium's kernel attends.
    folder : Path, optional
        Where to write; default: ``./name``. It must not exist, or be empty.
    source : Path, optional
        Trivium's Go sources, to refer to instead of copying what is needed.

    Raises
    ------
    InvalidArgument
        When the name or kind will not do, or the folder is taken.
    """
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,62}", name):
        raise InvalidArgument(f"name {name!r}: want lower-case letters, digits and dashes, at most 63, first a letter")
    if kind not in KINDS:
        raise InvalidArgument(f"kind {kind!r}: want {', '.join(KINDS)}")
    if select_only and kind != "attention":
        raise InvalidArgument(f"--select-only with a {kind} strategy: only attention strategies select")
    folder = folder or Path(name)
    if folder.exists() and any(folder.iterdir()):
        raise InvalidArgument(f"{folder} is not empty", hint="choose another --dir")
    module = _module(source)
    folder.mkdir(parents=True, exist_ok=True)
    _write_sources(folder, name, "select" if select_only else kind)
    replacement = f"./{VENDORED}" if source is None else str(module)
    if source is None:
        shutil.copytree(module, folder / VENDORED)
    (folder / "go.mod").write_text(go_mod(name, module, replacement))
    shutil.copyfile(module / "go.sum", folder / "go.sum")
    shutil.copyfile(module / "LICENSE", folder / "LICENSE")
    where = VENDORED_TEXT if source is None else LINKED_TEXT.format(source=module)
    usage = USAGE[kind].format(name=name)
    (folder / "README.md").write_text(README.format(name=name, kind=kind, module=MODULE, usage=usage, where=where))
    (folder / "plugin.json").write_text(json.dumps({"name": name, "version": "0.1.0", "rights": {}}, indent=2) + "\n")
    (folder / ".gitignore").write_text("/dist/\n/.trivium/\n")
    return folder


def _module(source: Path | None) -> Path:
    module = SDK / "module" if source is None else source.resolve()
    mod = module / "go.mod"
    if not mod.is_file() or f"module {MODULE}\n" not in mod.read_text():
        raise PluginMissing(f"{module} does not have Trivium's Go module", hint="reinstall trivium, or name its sources with --source")
    return module


def _write_sources(folder: Path, name: str, template: str) -> None:
    for file in ("main.go", "strategy.go"):
        text = (SDK / "template" / template / file).read_text()
        (folder / file).write_text(text.replace("plugin-name", name))
    (folder / "conformance_test.go").write_text(TEST)


def go_mod(name: str, module: Path, replacement: str) -> str:
    """Write a go.mod that needs no network to resolve: every requirement is Trivium's own."""
    text = (module / "go.mod").read_text()
    version = re.search(r"^go (\S+)$", text, re.MULTILINE)
    required = re.findall(r"^\t(\S+ v\S+)", text, re.MULTILINE)
    lines = "\n".join(f"\t{line} // indirect" for line in required)
    go = version[1] if version else "1.26.0"
    return (
        f"module example.com/{name}\n\ngo {go}\n\nrequire {MODULE} v0.0.0\n\nrequire (\n{lines}\n)\n\n"
        f"replace {MODULE} => {replacement}\n"
    )
