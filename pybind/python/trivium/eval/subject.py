"""What is evaluated: a model and a text, on a device."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from trivium._errors import DeviceUnavailable, InvalidArgument
from trivium.eval.tasks.corpus import Corpus

SMOLLM2, EMMA = "smollm2", "emma"
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Loaded:
    """A subject in memory."""

    model: Any
    tokenizer: Any
    text: list[int]  # a Corpus, or plain ids


@dataclass(frozen=True)
class Subject:
    """A model, the text that prompts are cut from, and where it runs.

    Attributes
    ----------
    model : str
        A Hugging Face folder, a GGUF file, or ``smollm2``: the demo's model.
    text : str
        A UTF-8 file, or ``emma``: the novel that ships with the demo.
    device : str
        ``cpu``, ``cuda`` or ``cuda:N``.
    dtype : str
        ``float32``, ``bfloat16``, ``float16``; ``auto``: bfloat16 where the device is fast at it.
    threads : int, optional
        torch's threads. Sums are rounded in another order with another number, so runs to be
        compared bit by bit want the same; default: as torch is set.
    """

    model: str = SMOLLM2
    text: str = EMMA
    device: str = "cpu"
    dtype: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InvalidArgument(f"dtype {self.dtype!r}: want one of {', '.join(DTYPES)}")
        if self.device != "cpu" and not self.device.startswith("cuda"):
            raise InvalidArgument(f"device {self.device!r}: want cpu, cuda or cuda:N")

    @staticmethod
    def keys() -> tuple[str, ...]:
        """The keys of a plan file that belong here."""
        return tuple(f.name for f in fields(Subject))

    def pinned(self) -> Subject:
        """The same with nothing left to the machine: what records are compared by."""
        import torch

        return Subject(self.model, self.text, self.device, self._dtype(), self.threads or torch.get_num_threads())

    def prepare(self, say: Any = lambda what: None) -> None:
        """Fetch or convert what :meth:`load` would, once, before several processes load it."""
        self._folder(say)

    def load(self, say: Any = lambda what: None) -> Loaded:
        """Read the model and the text; ``say`` is told what is being done."""
        import torch

        if self.device != "cpu" and not torch.cuda.is_available():
            raise DeviceUnavailable(f"device {self.device!r}: torch sees no CUDA device", hint="use --device cpu")
        if self.threads:
            torch.set_num_threads(self.threads)
        model, tokenizer = self._model(say)
        say("reading the text")
        return Loaded(model.to(self.device), tokenizer, Corpus(tokenizer, self._string()))

    def _dtype(self) -> str:
        if self.dtype != "auto":
            return self.dtype
        from trivium.demo.machine import default_dtype

        return default_dtype() if self.device == "cpu" else "bfloat16"

    def _model(self, say: Any) -> tuple[Any, Any]:
        from trivium.demo.model import load_model

        folder = self._folder(say)
        say(f"loading {folder.name}")
        return load_model(folder, self._dtype())

    def _folder(self, say: Any) -> Path:
        """The model as a Hugging Face folder; a GGUF file is converted once, and the folder kept."""
        from trivium.demo.download import from_gguf, smollm2

        if self.model == SMOLLM2:
            return smollm2(say)
        path = Path(self.model).expanduser()
        return from_gguf(path, self._dtype(), say) if path.suffix == ".gguf" else path

    def _string(self) -> str:
        if self.text == EMMA:
            from trivium.demo.prompt import book

            return book()
        path = Path(self.text).expanduser()
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidArgument(f"text {self.text}: {error}: want a file of UTF-8 text, or {EMMA}") from error
