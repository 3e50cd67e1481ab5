"""Which of tesseract's data reads a language. Without any it takes its default, which is English."""

# By the names of `db.languages`; as tesseract's packages are called.
DATA = {
    "albanian": "sqi", "arabic": "ara", "armenian": "hye", "basque": "eus", "bengali": "ben",
    "bulgarian": "bul", "burmese": "mya", "catalan": "cat", "chinese": "chi_sim", "croatian": "hrv",
    "czech": "ces", "danish": "dan", "dutch": "nld", "english": "eng", "estonian": "est", "finnish": "fin",
    "french": "fra", "georgian": "kat", "german": "deu", "greek": "ell", "hebrew": "heb", "hindi": "hin",
    "hungarian": "hun", "icelandic": "isl", "indonesian": "ind", "irish": "gle", "italian": "ita",
    "japanese": "jpn", "khmer": "khm", "korean": "kor", "lao": "lao", "latvian": "lav", "lithuanian": "lit",
    "macedonian": "mkd", "malay": "msa", "nepali": "nep", "norwegian": "nor", "persian": "fas",
    "polish": "pol", "portuguese": "por", "romanian": "ron", "russian": "rus", "serbian": "srp",
    "slovak": "slk", "slovenian": "slv", "spanish": "spa", "swahili": "swa", "swedish": "swe",
    "tagalog": "tgl", "tamil": "tam", "telugu": "tel", "thai": "tha", "turkish": "tur", "ukrainian": "ukr",
    "urdu": "urd", "vietnamese": "vie", "yiddish": "yid",
}  # fmt: skip


def installed() -> list[str]:
    """The data that tesseract has here."""
    import pytesseract

    names: list[str] = pytesseract.get_languages()
    return names
