"""Text as it is kept: NFC, without what is no text, words whole again.

NFC and not NFKC: compatibility forms carry meaning (x², ½, ™, full-width CJK), and a citation is to be found
in the document as it is written there. Three blocks are decomposed all the same, since there the form is the
typesetter's and not the author's: Latin ligatures, Arabic and Hebrew presentation forms, and Kangxi radicals,
which PDF fonts often name in place of the characters that look like them.
"""

import re
import unicodedata

TYPESET_FORMS = re.compile("[\u2f00-\u2fdf\ufb00-\ufdff\ufe70-\ufefc]")
NUL = "\0"
# What is neither text nor layout. U+FEFF is a byte order mark that was left in the middle.
NO_TEXT = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\ufeff\ufffe\uffff\ud800-\udfff]")
OTHER_LINE_END = re.compile("[\x0c\x85\u2028\u2029]")
TRAILING_SPACES = re.compile(r"[ \t]+(?=\n)")
MANY_EMPTY_LINES = re.compile(r"\n{3,}")
LETTER = re.compile("[^\\W\\d_]")
# pdfium gives U+FFFE for a hyphen at the end of a line, and no line end. The letter before is looked at last:
# to begin at each letter of a page took half of the time of all cleaning.
PDFIUM_HYPHEN = "\ufffe"
BREAK_BEFORE_LETTER = re.compile("(?:\ufffe|[-\u2010\u00ad]\n)(?=([^\\W\\d_]))")
SOFT_HYPHEN = "\u00ad"


def clean(text: str) -> tuple[str, int]:
    """Bring text into the form it is kept in.

    Returns:
        the text, and how many NUL characters were dropped.
    """
    nuls = text.count(NUL)
    text = NO_TEXT.sub("", _with_line_ends(text))
    if not text.isascii():
        text = TYPESET_FORMS.sub(lambda form: unicodedata.normalize("NFKC", form[0]), text)
        text = unicodedata.normalize("NFC", text.replace(SOFT_HYPHEN, ""))
    if " \n" in text or "\t\n" in text:
        text = TRAILING_SPACES.sub("", text)
    return MANY_EMPTY_LINES.sub("\n\n", text).strip(), nuls


def join_broken_words(text: str) -> str:
    """Put together the words that a page's lines break: only where a small letter follows, so that a list of
    names or a date keeps its hyphens."""
    text = BREAK_BEFORE_LETTER.sub(_joined, _with_line_ends(text))
    return text.replace(PDFIUM_HYPHEN, "-")


def _joined(match: re.Match[str]) -> str:
    start = match.start()
    if not start or not LETTER.match(match.string, start - 1):
        return match[0]
    return "" if match[1].islower() else "-"


def _with_line_ends(text: str) -> str:
    """The text with one kind of line end."""
    return OTHER_LINE_END.sub("\n", text.replace("\r\n", "\n").replace("\r", "\n"))
