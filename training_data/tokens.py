"""Conversations as token ids, by the tokenizer's own files. No torch and no transformers.

The text is the chat template's, without the tokens that `encode` adds by itself, as
`apply_chat_template` does and as llama-server does with `add_special: false`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from db.errors import InvalidInput
from training_data.chat_templates import WITHOUT_TEMPLATE, Chat, ChatTemplate, ChatTemplateError
from training_data.json_files import read_json
from training_data.rows import Row, conversations

NAMED_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token")


@dataclass(frozen=True)
class EncodedChat:
    """`answer_mask[i]` is True where `ids[i]` is the assistant's; `offsets[i]`: its characters in `text`."""

    ids: list[int]
    answer_mask: list[bool]
    text: str = ""
    offsets: Sequence[tuple[int, int]] = ()


class ChatTokenizer:
    """A tokenizer with its chat template, read from a folder in Hugging Face's layout.

    Args:
        folder: holds tokenizer.json, tokenizer_config.json and, where there is one, chat_template.jinja.

    Raises:
        FileNotFoundError: there is no tokenizer.json.
        InvalidInput: it, or the chat template, cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        if not (folder / "tokenizer.json").is_file():
            raise FileNotFoundError(folder / "tokenizer.json")
        self.folder = folder
        self.tokenizer = _read_tokenizer(folder / "tokenizer.json")
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.config = read_json(folder / "tokenizer_config.json")
        self.special_tokens = _special_tokens(folder, self.config)
        source, self.template_source = read_template(folder)
        try:
            self.template = ChatTemplate(source, self.special_tokens)
        except ChatTemplateError as error:
            raise InvalidInput(
                f"The base model cannot be trained: {error} ({self.template_source}).", param="base_model"
            ) from error

    def encode_text(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode_chat(self, messages: Chat) -> EncodedChat:
        """Encode a whole conversation, with the mask of what the assistant writes.

        Raises:
            ChatTemplateError: the template refuses the messages.
        """
        rendered = self.template.render_with_answers(messages)
        encoding = self.tokenizer.encode(rendered.text, add_special_tokens=False)
        mask = [False] * len(encoding.ids)
        spans = iter(rendered.answers)
        span = next(spans, None)
        for position, (start, end) in enumerate(encoding.offsets):
            while span is not None and start >= span[1]:
                span = next(spans, None)
            if span is None:
                break
            mask[position] = end > span[0] and start >= span[0]
        return EncodedChat(encoding.ids, mask, rendered.text, encoding.offsets)

    def encode_document(self, text: str, *, ends: bool = True) -> EncodedChat:
        """Encode a text that is learnt as it is; if it `ends`, with the token that says so."""
        encoding = self.tokenizer.encode(text, add_special_tokens=False)
        name = self.special_tokens.get("eos_token", "")
        end = self.tokenizer.token_to_id(name)
        if end is None or not ends:
            return EncodedChat(encoding.ids, [True] * len(encoding.ids), text, encoding.offsets)
        ids = [*encoding.ids, end]
        offsets = [*encoding.offsets, (len(text), len(text) + len(name))]
        return EncodedChat(ids, [True] * len(ids), text + name, offsets)

    @property
    def begins_with(self) -> int | None:
        """The token that the tokenizer itself writes before each text, where it is one that does."""
        name = self.special_tokens.get("bos_token", "")
        written = self.tokenizer.encode("", add_special_tokens=True).ids
        return written[0] if written and written[0] == self.tokenizer.token_to_id(name) else None

    def end_of(self, answer: Sequence[int]) -> int | None:
        """The token that ends an answer: its last special one, with nothing but space behind it."""
        special = {i for i, token in self.tokenizer.get_added_tokens_decoder().items() if token.special}
        eos = self.tokenizer.token_to_id(self.special_tokens.get("eos_token", ""))
        for token in reversed(answer):
            if token in special or token == eos:
                return token
            if self.tokenizer.decode([token], skip_special_tokens=False).strip():
                return None
        return None

    def end_of_answers(self) -> int | None:
        """The token that the template writes at the end of an answer; None where it writes none."""
        chat = self.encode_chat([{"role": "user", "content": "?"}, {"role": "assistant", "content": "."}])
        start, end = last_answer(chat)
        return self.end_of(chat.ids[start:end])

    def encode_prompt(self, messages: Chat) -> list[int]:
        """Encode what the model reads before it answers."""
        return self.encode_text(self.template.render(messages, add_generation_prompt=True))


# Methods that compare last answers, and learn nothing of those before.
LAST_ANSWER_ONLY = frozenset({"dpo", "orpo", "reward", "kto"})


def learnt(chat: EncodedChat, method: str, *, assistant_only: bool = True) -> list[bool]:
    """Which tokens bear the loss of a method."""
    if not assistant_only:
        return [True] * len(chat.ids)
    if method not in LAST_ANSWER_ONLY:
        return chat.answer_mask
    start, end = last_answer(chat)
    return [start <= position < end for position in range(len(chat.ids))]


def last_answer(chat: EncodedChat) -> tuple[int, int]:
    """Where the last answer's tokens begin and end; what a template writes after it is no part of it."""
    end = len(chat.ids) - next((i for i, mine in enumerate(reversed(chat.answer_mask)) if mine), 0)
    start = end
    while start and chat.answer_mask[start - 1]:
        start -= 1
    return start, end


def encode_row(row: Row, tokenizer: ChatTokenizer) -> list[EncodedChat]:
    """A row's conversations with what is learnt of them: one, of a pair two; of a prompt nothing is learnt.

    Raises:
        ChatTemplateError: the template refuses the messages.
    """
    if row.text is not None:
        return [tokenizer.encode_document(row.text, ends=not row.continues)]
    if row.is_prompt:
        text = tokenizer.template.render(row.messages, add_generation_prompt=True)
        encoding = tokenizer.tokenizer.encode(text, add_special_tokens=False)
        return [EncodedChat(encoding.ids, [False] * len(encoding.ids), text, encoding.offsets)]
    return [tokenizer.encode_chat(chat) for chat in conversations(row)]


def read_template(folder: Path) -> tuple[str, str]:
    """Find a tokenizer's chat template.

    Returns:
        its text, and where it came from: a file's name, or the name of a row of ours.
    """
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8"), file.name
    declared = read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(declared, list):  # several, by name
        declared = next((row.get("template") for row in declared if row.get("name") == "default"), None)
    if isinstance(declared, str) and declared:
        return declared, "tokenizer_config.json"
    return WITHOUT_TEMPLATE.template, f"lathe:{WITHOUT_TEMPLATE.name}"


def _read_tokenizer(path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - it is all that the library raises
        raise InvalidInput(
            f"The base model's {path.name} cannot be read: {error}. Fetch it again.", param="base_model"
        ) from None


def _special_tokens(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    declared = {**read_json(folder / "special_tokens_map.json"), **config}
    tokens = {}
    for name in NAMED_TOKENS:
        value = declared.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if isinstance(content, str):
            tokens[name] = content
    return tokens
