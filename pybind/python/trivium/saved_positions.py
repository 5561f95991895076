"""S and W that were found for a model, in a file beside its weights."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trivium._errors import CheckpointError
from trivium._files import replace

FILE = "trivium-position.json"
EDITION = 1


@dataclass(frozen=True)
class Saved:
    """STRING's parameters for one model.

    Attributes
    ----------
    shift, local : int
        S and W.
    train_length : int
        The trained length that they were searched for; others do not use them.
    helps : bool
        Whether the search found a gain over plain rope.
    measured : dict
        What the search saw.
    """

    shift: int
    local: int
    train_length: int
    helps: bool
    measured: dict[str, Any] = field(default_factory=dict)

    @property
    def params(self) -> dict[str, Any]:
        """Parameters of ``trivium.position("string", ...)``."""
        return {"shift": self.shift, "local": self.local}


def save(folder: str | os.PathLike[str], found: Saved) -> Path:
    """Write the file beside a model, in one step."""
    path = Path(folder) / FILE
    replace(path, json.dumps({"edition": EDITION, "string": asdict(found)}, indent=1) + "\n")
    return path


def load(folder: str | os.PathLike[str]) -> Saved | None:
    """Read what was saved beside a model; None where there is nothing.

    Raises
    ------
    CheckpointError
        For a file that is there and cannot be read: it is never passed over in silence.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["edition"] != EDITION:
            raise ValueError(f"edition {content['edition']!r}, want {EDITION}")
        found = Saved(**content["string"])
        if not all(isinstance(n, int) and not isinstance(n, bool) for n in (found.shift, found.local, found.train_length)):
            raise ValueError("shift, local and train_length: want whole numbers")
        if not 0 <= found.local <= found.shift or found.shift < 1 or found.train_length < 1:
            raise ValueError(f"shift {found.shift}, local {found.local}: want 0 <= local <= shift")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: {error}: want what `trivium effective-length` writes", hint=f"remove {path} to go back to the defaults"
        ) from error
    return found
