"""What a conversation asks for, as texts to search for."""

from typing import Any

from db.errors import InvalidInput

# "And in winter?" means nothing without what was asked before.
FOLLOW_UP_CHARACTERS = 40
# An embedding model reads some 250 tokens; of a long message the question is most often its end.
QUESTION_CHARACTERS = 1000


def question_of(messages: Any) -> str:
    """The last thing that the user said, with what they said before it when it is short.

    Raises:
        InvalidInput: the user says nothing, or the messages are none.
    """
    said = _said_by_user(messages)
    if not said or not said[-1].strip():
        raise InvalidInput(
            "messages: with collections or documents, the last message of the user must hold a question as "
            "text.",
            param="messages",
        )
    question = said[-1].strip()
    if len(question) < FOLLOW_UP_CHARACTERS and len(said) > 1:
        question = f"{said[-2].strip()[-QUESTION_CHARACTERS:]}\n{question}".strip()
    return question[-QUESTION_CHARACTERS:]


def _said_by_user(messages: Any) -> list[str]:
    if not isinstance(messages, list) or not all(
        isinstance(message, dict) and isinstance(message.get("role"), str) for message in messages
    ):
        raise InvalidInput("messages must be a list of objects, each with a role.", param="messages")
    if not all(isinstance(message.get("content"), str | list | None) for message in messages):
        raise InvalidInput("messages: content must be text, or a list of parts.", param="messages")
    return [_text(message.get("content")) for message in messages if message["role"] == "user"]


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    return "\n".join(text for text in texts if isinstance(text, str))
