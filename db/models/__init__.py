"""The tables, a file each."""

from db.models.answer import Answer
from db.models.api_key import ApiKey
from db.models.artifact import Artifact
from db.models.attempt import Attempt
from db.models.audit_entry import AuditEntry
from db.models.base import Base
from db.models.checkpoint import Checkpoint
from db.models.chunk import Chunk
from db.models.collection import Collection
from db.models.device import AttemptDevice, Device
from db.models.document import Document
from db.models.event import Event
from db.models.file import File
from db.models.installation import Installation
from db.models.job import Job
from db.models.model import Model, ModelAlias, ModelFile, ModelVersion
from db.models.past_usage import PastUsage
from db.models.project import DEFAULT_PROJECT, Project
from db.models.response import StoredResponse
from db.models.step import Step
from db.models.upload import Upload, UploadPart
from db.models.webhook_delivery import DeliveryTry, WebhookDelivery
from db.models.webhook_endpoint import WebhookEndpoint
from db.models.webhook_secret import WebhookSecret
from db.models.worker import Worker

__all__ = [
    "DEFAULT_PROJECT",
    "Answer",
    "ApiKey",
    "Artifact",
    "Attempt",
    "AttemptDevice",
    "AuditEntry",
    "Base",
    "Checkpoint",
    "Chunk",
    "Collection",
    "DeliveryTry",
    "Device",
    "Document",
    "Event",
    "File",
    "Installation",
    "Job",
    "Model",
    "ModelAlias",
    "ModelFile",
    "ModelVersion",
    "PastUsage",
    "Project",
    "Step",
    "StoredResponse",
    "Upload",
    "UploadPart",
    "WebhookDelivery",
    "WebhookEndpoint",
    "WebhookSecret",
    "Worker",
]
