"""The model that is measured, and the tokens its prompts are cut from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trivium._errors import CheckpointError, InvalidArgument
from trivium.eval.subject import EMMA, SMOLLM2, Loaded, Subject
from trivium.hf.rotary import train_length

TOKENS = "text.safetensors"  # beside a model without a tokenizer: its text, under "tokens"
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


@dataclass(frozen=True)
class Target:
    """A loaded model with the task that suits it.

    Attributes
    ----------
    loaded : Loaded
        Model, tokenizer (None where the folder has none) and text.
    subject : Subject
    folder : Path or None
        Where the model lies; None for what is not a folder.
    task : str
        ``passkey`` with a tokenizer, else ``copy``.
    train_length : int
        Tokens the model was trained for.
    """

    loaded: Loaded
    subject: Subject
    folder: Path | None
    task: str
    train_length: int


def open_target(
    model: str, *, text: str | None = None, device: str = "cpu", dtype: str = "auto", say: Any = lambda what: None
) -> Target:
    """Load a model folder, or ``smollm2``, and its text.

    Parameters
    ----------
    text : str, optional
        A UTF-8 file, ``emma``, or safetensors with ``tokens``; default: the model's own
        ``text.safetensors`` where it has one, else *Emma*.
    """
    folder = None if model == SMOLLM2 else Path(model).expanduser()
    if folder is not None and not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: no config.json: want a Hugging Face model folder")
    if text is None:
        own = folder is not None and (folder / TOKENS).is_file() and not _has_tokenizer(folder)
        text = str(folder / TOKENS) if own and folder is not None else EMMA
    subject = Subject(model, text, device, dtype).pinned()
    if text.endswith(".safetensors"):
        if folder is None:
            raise InvalidArgument(f"text {text}: tokens are for a model folder: want a UTF-8 file")
        loaded = _with_tokens(folder, Path(text), subject, say)
    else:
        loaded = subject.load(say)
    length = train_length(loaded.model.config)
    if length is None:
        raise InvalidArgument(f"{model}: its config has no max_position_embeddings: want a model with rope")
    task = "copy" if loaded.tokenizer is None else "passkey"
    return Target(loaded, subject, _folder_of(folder, loaded.model), task, length)


def _folder_of(folder: Path | None, model: Any) -> Path | None:
    if folder is not None:
        return folder if folder.is_dir() else None
    path = Path(str(getattr(model, "name_or_path", "")))
    return path if path.is_dir() else None


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in TOKENIZERS)


def _with_tokens(folder: Path, text: Path, subject: Subject, say: Any) -> Loaded:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    say(f"loading {folder.name}")
    try:
        tokens = load_file(text)["tokens"].flatten().tolist()
    except (OSError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{text}: {error}: want safetensors with 'tokens'") from error
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, subject.dtype), local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True) if _has_tokenizer(folder) else None
    return Loaded(model.eval().to(subject.device), tokenizer, tokens)
