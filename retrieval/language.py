"""Which language a text is in, told by py3langid from samples of it: a longer look tells the same.

Not by a reader: the identifier takes 230 MiB of address space, of the 512 that a file may use up; and a
sample of bounded length can do no harm.
"""

from functools import cache
from typing import Any

from db.languages import LANGUAGES, SIMPLE

SAMPLES = 8
SAMPLE_CHARACTERS = 1000
NO_LANGUAGE = "zxx"  # ISO 639-2: numbers, tables, logs
# Of a normalised probability; a few words can be anything.
MIN_CONFIDENCE = 0.5


def detect(text: str) -> str:
    """The name of a text's language, or `simple` if it is in none that is known."""
    code, confidence = _identifier().classify(_sample(text))
    return LANGUAGES.get(code, SIMPLE) if confidence >= MIN_CONFIDENCE else SIMPLE


def _sample(text: str) -> str:
    if len(text) <= SAMPLES * SAMPLE_CHARACTERS:
        return text
    stride = len(text) // SAMPLES
    return "\n".join(text[start : start + SAMPLE_CHARACTERS] for start in range(0, stride * SAMPLES, stride))


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    # Of all 140 it takes code for Icelandic and two words of Chinese for Wu.
    identifier.set_languages({*LANGUAGES, NO_LANGUAGE} & set(identifier.labels))
    return identifier
