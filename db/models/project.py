from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base, CreatedAt

DEFAULT_PROJECT = "default"


class Project(Base):
    """Owns every row that users make."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(primary_key=True)
    created_at: Mapped[CreatedAt]
