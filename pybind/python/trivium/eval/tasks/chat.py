"""Questions as turns of a chat, for models that were tuned to answer in one."""

from __future__ import annotations

from typing import Any

from trivium._errors import InvalidArgument

TURN = "\0"  # in a prompt's template: the question ends, the answer's first words begin


class Chat:
    """A tokenizer that puts questions into its chat template; the answer's first words open the model's turn, as RULER has it."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def asked(self, question: str, opening: str) -> str:
        """The text of a prompt."""
        turns = [{"role": "user", "content": question}]
        return str(self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)) + opening


def written(tokenizer: Any, prompt: str) -> str:
    """A prompt without its marks; only the last one divides it, since examples come before."""
    question, turn, opening = prompt.rpartition(TURN)
    question = question.replace(TURN, "")
    if isinstance(tokenizer, Chat) and turn:
        return tokenizer.asked(question.rstrip(), opening)
    return question + opening


def choose(tokenizer: Any, chat: bool | None) -> bool:
    """Whether questions go into the chat template: as asked, or else where there is one."""
    there = bool(getattr(tokenizer, "chat_template", None))
    if chat and not there:
        raise InvalidArgument("chat: this model's tokenizer has no chat template: want --no-chat, or a model with one")
    return there if chat is None else chat
