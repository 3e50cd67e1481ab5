from sqlalchemy.orm import Mapped

from db.models.base import CreatedAt, Timestamp


class SigningSecrets:
    """The columns of what webhooks are signed with: a secret, and for a while the one before it."""

    secret: Mapped[str]
    previous_secret: Mapped[str | None]
    previous_secret_until: Mapped[Timestamp | None]
    created_at: Mapped[CreatedAt]
    updated_at: Mapped[CreatedAt]
