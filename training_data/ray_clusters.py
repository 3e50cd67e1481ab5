"""The operator's file of Ray clusters, LATHE_RAY_CLUSTERS: where fine-tunes may train on several machines.

A request names a cluster, and only one of these. The fields are called as those of ray.train's ScalingConfig,
RunConfig and FailureConfig are.
"""

import importlib.util
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from db.errors import InvalidInput
from db.operator_file import checked, read_toml

SETTING = "LATHE_RAY_CLUSTERS"
PARAM = "cluster"
INSTALL = ".venv/bin/pip install -e '.[worker,ray]'"
ADDRESS = re.compile(r"auto|(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}")


class RayCluster(BaseModel):
    """Machines that train together.

    Args:
        address: of the cluster's head as `ray.init` takes it, or `auto` for the one that this machine is in.
        projects: which may name it; None: all.
        num_workers: processes of one training, each with the whole model and its share of every batch.
        resources_per_worker: what Ray reserves for each; a CPU by default, and with `use_gpu` a GPU.
        storage_path: a folder that each machine has, where Ray keeps its run's state and workers what they
            fetch; None: the folder for temporary files.
        max_failures: how often lost workers are started again, from the newest checkpoint.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
    address: str
    projects: list[str] | None = None
    # As ScalingConfig has them
    num_workers: int = Field(ge=1, le=4096)
    use_gpu: bool = False
    resources_per_worker: dict[str, Annotated[float, Field(ge=0)]] = {}
    placement_strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    accelerator_type: str | None = None
    # As RunConfig has it
    storage_path: Path | None = None
    # As FailureConfig has it
    max_failures: int = Field(default=3, ge=0, le=1000)

    @field_validator("address")
    @classmethod
    def _a_head(cls, address: str) -> str:
        if address.startswith("ray://"):
            raise ValueError(
                "must be the head's HOST:PORT, such as 10.0.0.5:6379, or auto: Ray Train is not driven "
                "through a Ray client. The worker of Lathe that trains has to be on a machine of the cluster"
            )
        if not ADDRESS.fullmatch(address):
            raise ValueError("must be the head's HOST:PORT, such as 10.0.0.5:6379, or auto")
        return address

    @field_validator("storage_path")
    @classmethod
    def _a_folder(cls, path: Path | None) -> Path | None:
        if path is not None and not path.is_absolute():
            raise ValueError("must be an absolute folder, which each machine has: /srv/lathe")
        return path

    @model_validator(mode="after")
    def _consistent(self) -> "RayCluster":
        gpus = self.resources_per_worker.get("GPU")
        if gpus is not None and (gpus != 1 or not self.use_gpu):
            raise ValueError(
                "resources_per_worker.GPU can only be 1, with use_gpu: each worker trains on one; raise "
                "num_workers for more"
            )
        if self.accelerator_type is not None and not self.use_gpu:
            raise ValueError("accelerator_type is of GPUs: set use_gpu = true, or leave it out")
        return self

    @property
    def reserved(self) -> dict[str, float]:
        """What Ray reserves for each worker, by its own rule."""
        given = self.resources_per_worker or {"GPU" if self.use_gpu else "CPU": 1.0}
        return {**given, **({"GPU": 1.0} if self.use_gpu else {})}

    @property
    def threads(self) -> int:
        """Those that a worker computes with."""
        return max(1, int(self.reserved.get("CPU", 1)))


def read_clusters(path: Path | None) -> dict[str, RayCluster]:
    """All clusters by name.

    Raises:
        InvalidInput: the file cannot be read, or an entry is wrong; the message names it and its field.
    """
    tables = read_toml(path, SETTING)
    return {name: checked(RayCluster, SETTING, name, name, table) for name, table in tables.items()}


def find_cluster(path: Path | None, name: str, *, project_id: str) -> RayCluster:
    """A cluster by its name.

    Raises:
        InvalidInput: the project has none by that name, or the file is wrong.
    """
    mine = {
        each: cluster
        for each, cluster in read_clusters(path).items()
        if cluster.projects is None or project_id in cluster.projects
    }
    if name not in mine:
        there = f"There are: {', '.join(mine)}." if mine else f"The operator has named none ({SETTING})."
        raise InvalidInput(
            f"{PARAM}: there is no cluster {name!r}. {there}", param=PARAM, code="cluster_not_found"
        )
    return mine[name]


def require_ray(clusters: dict[str, RayCluster]) -> None:
    """See that Ray is there where clusters are named.

    Raises:
        InvalidInput: it is not; the message says how to get it.
    """
    if clusters and importlib.util.find_spec("ray") is None:
        raise InvalidInput(
            f"{SETTING} names {', '.join(clusters)}, and Ray is not installed where the worker runs: "
            f"{INSTALL}, or leave the setting out.",
            param=SETTING,
        )
