"""What Postgres knows of languages."""

from sqlalchemy import text
from sqlalchemy.orm import Session

from db.errors import InvalidInput
from db.languages import LANGUAGES, UNSPACED

CONFIGURATIONS = text("SELECT cfgname FROM pg_ts_config WHERE pg_ts_config_is_visible(oid) ORDER BY cfgname")


def text_search_configurations(session: Session) -> list[str]:
    """The names of Postgres's text search configurations, an operator's own among them."""
    return list(session.scalars(CONFIGURATIONS))


def known_language(session: Session, given: str, *, param: str = "language") -> str:
    """The name of a language that is given by name or by its ISO 639-1 code.

    Raises:
        InvalidInput: Postgres has no configuration for it; the message names those there are.
    """
    name = LANGUAGES.get(given.lower(), given.lower())
    known = {*text_search_configurations(session), *UNSPACED}
    if name not in known:
        raise InvalidInput(
            f"{param}: {given!r} is no language that Postgres has words of. Give one of "
            f"{', '.join(sorted(known))} (simple: words as they are written), or leave it out to have it "
            "detected.",
            param=param,
            code="language_not_supported",
        )
    return name
