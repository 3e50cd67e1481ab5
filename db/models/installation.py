from sqlalchemy import CheckConstraint
from sqlalchemy.orm import Mapped, mapped_column

from db.models.base import Base, CreatedAt


class Installation(Base):
    """The one storage root that belongs to this database, by the id written inside it."""

    __tablename__ = "installation"
    __table_args__ = (CheckConstraint("only_row", name="one_row"),)

    only_row: Mapped[bool] = mapped_column(primary_key=True, default=True)
    storage_id: Mapped[str]
    created_at: Mapped[CreatedAt]
