"""Builds the plugin: the contract's messages by protoc, and everything in one zip file.

    python build.py TARGET
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import zipapp
from pathlib import Path

HERE = Path(__file__).resolve().parent


def protos() -> Path:
    """Find the contract: beside this example in Trivium's sources, or in the installed package."""
    in_sources = HERE.parents[1] / "plugins" / "proto"
    if in_sources.is_dir():
        return in_sources
    from importlib.util import find_spec

    spec = find_spec("trivium")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("the contract was not found: build beside Trivium's sources, or install trivium")
    return Path(spec.submodule_search_locations[0]) / "plugins" / "_sdk" / "proto"


def main(target: str) -> None:
    """Compile and zip."""
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        for include, pattern in ((protos(), "trivium/v1/*.proto"), (HERE, "status.proto")):
            files = [str(p.relative_to(include)) for p in sorted(include.glob(pattern))]
            well_known = os.path.join(os.path.dirname(protoc.__file__), "_proto")
            if protoc.main(["protoc", f"-I{include}", f"-I{well_known}", f"--python_out={work}", *files]) != 0:
                sys.exit("protoc failed")
        for package in ("trivium", "trivium/v1"):  # before an installed trivium on the path
            (work / package / "__init__.py").touch()
        for name in ("__main__.py", "attention.py", "memory.py", "service.py"):
            shutil.copyfile(HERE / name, work / name)
        zipapp.create_archive(work, target)


if __name__ == "__main__":
    main(sys.argv[1])
