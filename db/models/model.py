from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from db.models.base import Base, CreatedAt, JSONObject


class Model(Base):
    """A name that answers: an alias to its newest published version.

    A catalogue row has a `recipe` (params of a `pretrain` job) and gets its first version when a job
    first needs it.
    """

    __tablename__ = "models"
    __table_args__ = (UniqueConstraint("project_id", "name"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    recipe: Mapped[JSONObject | None]
    current_version_id: Mapped[str | None] = mapped_column(
        ForeignKey("model_versions.id", use_alter=True, name="fk_models_current_version_id_model_versions")
    )
    created_at: Mapped[CreatedAt]

    current_version: Mapped["ModelVersion | None"] = relationship(
        foreign_keys=[current_version_id], post_update=True, lazy="joined"
    )


class ModelVersion(Base):
    """One immutable publication of a model.

    `weights` is a folder in Hugging Face's layout, relative to the storage root, for models that can
    be fine-tuned further. `checkpoint_id` is what was exported; it may be gone since.
    """

    __tablename__ = "model_versions"
    __table_args__ = (
        UniqueConstraint("model_id", "number"),
        Index("ix_model_versions_job_id", "job_id"),
        Index(
            "ix_model_versions_checkpoint_id", "checkpoint_id", postgresql_where="checkpoint_id IS NOT NULL"
        ),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id", ondelete="CASCADE"))
    number: Mapped[int]
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id", ondelete="SET NULL"))
    checkpoint_id: Mapped[str | None]
    base_model: Mapped[str | None]
    weights: Mapped[str | None]
    details: Mapped[JSONObject]
    # Of one that was created from another: system, messages, parameters, template.
    prompting: Mapped[JSONObject | None]
    created_at: Mapped[CreatedAt]

    aliases: Mapped[list["ModelAlias"]] = relationship(
        order_by="ModelAlias.created_at", cascade="all, delete-orphan", passive_deletes=True
    )
    files: Mapped[list["ModelFile"]] = relationship(
        order_by="ModelFile.position", lazy="selectin", cascade="all, delete-orphan", passive_deletes=True
    )


class ModelAlias(Base):
    """Another name of one version: OpenAI's `ft:…`, with which no name of a model begins."""

    __tablename__ = "model_aliases"
    __table_args__ = (
        CheckConstraint("name LIKE 'ft:%'", name="name"),
        Index("ix_model_aliases_version_id", "version_id"),
    )

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    version_id: Mapped[str] = mapped_column(ForeignKey("model_versions.id", ondelete="CASCADE"))
    created_at: Mapped[CreatedAt]


class ModelFile(Base):
    """One quantization of a version, as a backend serves it. Position 0 answers to the bare name."""

    __tablename__ = "model_files"
    __table_args__ = (
        UniqueConstraint("version_id", "quantization"),
        Index("ix_model_files_backend_name", "backend_name"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    version_id: Mapped[str] = mapped_column(ForeignKey("model_versions.id", ondelete="CASCADE"))
    position: Mapped[int]
    quantization: Mapped[str]
    backend: Mapped[str]
    backend_name: Mapped[str]
    bytes: Mapped[int]
    sha256: Mapped[str]
    verification: Mapped[JSONObject | None]
    created_at: Mapped[CreatedAt]
