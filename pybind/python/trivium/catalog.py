"""What there is: strategies, their parameters, and the machine."""

from __future__ import annotations

import json
import platform
import sys
from dataclasses import dataclass, field
from typing import Any, Literal

from trivium import _bridge
from trivium._engine import Engine, Plugin, default_engine
from trivium._errors import TriviumError

Kind = Literal["attention", "position", "merge"]


@dataclass(frozen=True)
class Parameter:
    """One parameter of a strategy; ``range`` is its interval in mathematical notation."""

    name: str
    type: str
    default: Any
    doc: str
    unit: str = ""
    range: str = ""
    choices: tuple[str, ...] = ()
    per_head: bool = False


@dataclass(frozen=True)
class Info:
    """What a strategy is: the source of its help, validation and documentation."""

    name: str
    kind: str
    summary: str
    license: str
    version: str
    parameters: tuple[Parameter, ...]
    capabilities: dict[str, Any]
    paper: str = ""
    notes: tuple[str, ...] = ()
    plugin: str = ""

    @property
    def id(self) -> str:
        """The dotted identifier, such as ``attention.flexprefill``."""
        return self.name if self.name.startswith("python.") else f"{self.kind}.{self.name}"

    @property
    def signature(self) -> str:
        """The strategy as a call with its defaults."""
        return f"{self.name}({', '.join(f'{p.name}={p.default!r}' for p in self.parameters)})"

    def __str__(self) -> str:
        lines = [f"{self.id} {self.version}: {self.summary}"]
        if self.paper:
            lines.append(f"Paper: {self.paper}")
        lines += ["", self.signature, ""]
        for p in self.parameters:
            limits = p.range or (" | ".join(p.choices))
            about = f" ({', '.join(x for x in (limits, p.unit) if x)})" if limits or p.unit else ""
            lines.append(f"  {p.name} : {p.type}, default {p.default!r}{about}\n      {p.doc}")
        lines += [f"  Note: {n}" for n in self.notes]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        from trivium._html import info_html

        return info_html(self)


def list_strategies(kind: Kind | None = None, *, engine: Engine | None = None) -> list[Info]:
    """List the strategies of a kind, or all of them, sorted by kind and name.

    No plugin process is started for it.
    """
    handle = (engine or default_engine()).handle
    return [_info(i) for i in json.loads(_bridge.call("Catalog", handle, kind or ""))]


def info(id: str, *, engine: Engine | None = None) -> Info:
    """Describe a strategy by name or dotted identifier.

    Raises
    ------
    UnknownStrategy
        With the nearest name as a hint.
    """
    if id.startswith("python."):
        from trivium.strategy import lookup

        return lookup(id).info()
    handle = (engine or default_engine()).handle
    return _info(json.loads(_bridge.call("Describe", handle, id)))


def _info(data: dict[str, Any]) -> Info:
    parameters = tuple(
        Parameter(
            name=p["name"],
            type=p["type"],
            default=p["default"],
            doc=p["doc"],
            unit=p.get("unit", ""),
            range=p.get("range", ""),
            choices=tuple(p.get("choices", ())),
            per_head=p.get("per_head", False),
        )
        for p in data["parameters"] or ()
    )
    return Info(
        name=data["name"],
        kind=data["kind"],
        summary=data["summary"],
        license=data["license"],
        version=data["version"],
        parameters=parameters,
        capabilities=data["capabilities"],
        paper=data.get("paper", ""),
        notes=tuple(data.get("notes", ())),
        plugin=data.get("plugin", ""),
    )


def plugins() -> list[Plugin]:
    """List the plugin processes of the shared engine: name, pid, state, restarts."""
    return default_engine().plugins()


def stats() -> dict[str, Any]:
    """Count what the shared engine did.

    ``bytes_copied`` is the memory of callers that had to be copied to where a plugin
    can see it, and back; tensors of :func:`trivium.empty` add nothing to it.
    ``device_bytes_copied`` is the same on CUDA devices, where only memory that cannot be
    shared with other processes is copied.
    """
    cuda = sys.modules.get("trivium._cuda")
    return {**default_engine().stats(), "device_bytes_copied": 0 if cuda is None else cuda.copied_bytes()}


def _kernels() -> dict[str, str]:
    """The backend that a call really runs on, and what it makes of ``precision="high"``."""
    import numpy as np

    from trivium._attention import attention

    x = np.ones((1, 1, 64, 16), dtype=np.float32)
    report = attention(x, x, x, strategy="dense", precision="high", return_report=True)[1]
    halves = report.precision == "high"
    return {"kernels": report.backend, "precision high": "halves of bfloat16" if halves else "not available: computed as highest"}


@dataclass(frozen=True)
class Doctor:
    """What this machine and installation can do; ``problems`` have a next step each."""

    versions: dict[str, str]
    machine: dict[str, Any]
    plugins: tuple[dict[str, Any], ...] = ()
    problems: tuple[str, ...] = field(default=())

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def _devices(plugins: list[dict[str, Any]]) -> dict[str, str]:
    """The accelerators that attention runs on, or what is missing, taken out of the plugins' answers."""
    found: dict[str, str] = {}
    for plugin in plugins:
        for device in plugin.pop("devices", ()):
            parts = [device.get(k, "") for k in ("model", "driver", "compiler", "missing")]
            if device.get("cache"):
                parts.append(f"kernels kept in {device['cache']}")
            found[device.get("name", "cuda")] = ", ".join(part for part in parts if part)
    return found


def doctor() -> Doctor:
    """Check the installation: start every built-in plugin and run a small call on it."""
    from importlib.metadata import version

    versions = {"trivium": version("trivium"), "python": platform.python_version()}
    for module in ("numpy", "pyarrow", "torch", "transformers"):
        if module in sys.modules or module in ("numpy", "pyarrow"):
            versions[module] = version(module)
    problems: list[str] = []
    machine: dict[str, Any] = {}
    started: list[dict[str, Any]] = []
    try:
        checked = _bridge.run("doctor", {"engine": default_engine().handle}, timeout=60)
        machine = {**checked["machine"], **_kernels()}
        started = checked["plugins"]
        machine.update(_devices(started))
        problems += [f"{p['name']}: {p['error']}" for p in started if p.get("error")]
    except TriviumError as error:
        problems.append(str(error))
    return Doctor(versions, machine, tuple(started), tuple(problems))
