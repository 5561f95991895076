"""Load a model folder from disk, and only from disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trivium._errors import CheckpointError
from trivium.demo.progress import quiet_transformers


def load_model(folder: Path, dtype: str) -> tuple[Any, Any]:
    """The model, in eval mode, and its tokenizer.

    Parameters
    ----------
    folder : Path
        A Hugging Face folder.
    dtype : str
        Name of a torch dtype, such as ``"float32"``.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: no config.json: want a Hugging Face model folder")
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return model.eval(), tokenizer
