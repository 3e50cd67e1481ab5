"""The languages that documents are told apart by: ISO 639-1 codes, and names as Postgres has them.

A name is also that of the text search configuration which stems the language's words and leaves out those
that say nothing; `configuration_of` tells which takes its place where Postgres has none of that name.
"""

import re
from collections.abc import Collection

SIMPLE = "simple"  # Postgres's configuration that takes words as they are written
LANGUAGES = {
    "ar": "arabic", "bg": "bulgarian", "bn": "bengali", "ca": "catalan", "cs": "czech", "da": "danish",
    "de": "german", "el": "greek", "en": "english", "es": "spanish", "et": "estonian", "eu": "basque",
    "fa": "persian", "fi": "finnish", "fr": "french", "ga": "irish", "he": "hebrew", "hi": "hindi",
    "hr": "croatian", "hu": "hungarian", "hy": "armenian", "id": "indonesian", "is": "icelandic",
    "it": "italian", "ja": "japanese", "ka": "georgian", "km": "khmer", "ko": "korean", "lo": "lao",
    "lt": "lithuanian", "lv": "latvian", "mk": "macedonian", "ms": "malay", "my": "burmese",
    "nb": "norwegian", "ne": "nepali", "nl": "dutch", "nn": "norwegian", "no": "norwegian",
    "pl": "polish", "pt": "portuguese", "ro": "romanian", "ru": "russian", "sk": "slovak",
    "sl": "slovenian", "sq": "albanian", "sr": "serbian", "sv": "swedish", "sw": "swahili",
    "ta": "tamil", "te": "telugu", "th": "thai", "tl": "tagalog", "tr": "turkish", "uk": "ukrainian",
    "ur": "urdu", "vi": "vietnamese", "yi": "yiddish", "zh": "chinese",
}  # fmt: skip
# Written without spaces, or, as Korean, with endings in the same word: found by pairs of characters.
UNSPACED = frozenset({"burmese", "chinese", "japanese", "khmer", "korean", "lao", "thai"})

# The same as in the database's `chunk_words`.
UNSPACED_CHARACTER = re.compile(
    "[\u0e01-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]"
)


def is_unspaced(character: str) -> bool:
    """Whether it is of a script that puts no spaces between words, and is indexed by pairs."""
    return UNSPACED_CHARACTER.fullmatch(character) is not None


def configuration_of(language: str, configurations: Collection[str]) -> str:
    """The text search configuration for a language, of those that Postgres has."""
    return language if language in configurations else SIMPLE
