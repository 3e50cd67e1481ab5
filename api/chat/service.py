"""Which backend answers for a model, to a caller."""

from sqlalchemy import select

from api.unit_of_work import Unit
from db.errors import NotFound
from db.models import Model, ModelVersion
from serving.backends.roster import Backends
from serving.backends.routing import find_destination
from serving.backends.target import Target


def target_of(unit: Unit, backends: Backends, reference: str) -> Target:
    """Find who answers for `reference`: a model of the project, or one that a backend has by itself.

    Raises:
        NotFound, Unavailable: as `find_destination`.
    """
    return backends.target(find_destination(unit.session, unit.project_id, backends.configs, reference))


def newest_model(unit: Unit) -> str:
    """The name that was published last: what /generate asks unless it is told.

    Raises:
        NotFound: nothing has been published yet.
    """
    query = (
        select(Model.name)
        .join(ModelVersion, Model.current_version_id == ModelVersion.id)
        .where(Model.project_id == unit.project_id)
        .order_by(ModelVersion.created_at.desc())
        .limit(1)
    )
    name = unit.session.scalars(query).first()
    if name is None:
        raise NotFound(
            "No model has been published yet: fine-tune one first.", param="model", code="model_not_ready"
        )
    return name
