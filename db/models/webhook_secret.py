from sqlalchemy import ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base, Timestamp
from db.models.signing import SigningSecrets


class WebhookSecret(SigningSecrets, Base):
    """What a project's own webhooks, those of its jobs' `webhook_url`, are signed with."""

    __tablename__ = "webhook_secrets"

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    read_at: Mapped[Timestamp | None]  # it is shown once
