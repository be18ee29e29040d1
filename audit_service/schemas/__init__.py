"""Requests and responses, one file an endpoint family; the same names go through YAML, Python and HTTP."""

from audit_service.schemas.common import (
    MAX_BATCH,
    MAX_GROUPINGS,
    MAX_TOP_K,
    ErrorDetail,
    IndexIdentity,
    ModelIdentity,
    Part,
    Polarity,
    Request,
    Target,
    Tier,
)
from audit_service.schemas.drift import DriftRequest
from audit_service.schemas.engine import EngineItem, EngineRequest, StatusRequest
from audit_service.schemas.explain import (
    Differences,
    ExplainRequest,
    ExplainResponse,
    GroupShare,
    InfluentialExample,
    ModuleChange,
    Quality,
)
from audit_service.schemas.feedback import MAX_FEEDBACK, FeedbackItem, FeedbackRequest
from audit_service.schemas.index import IndexRequest
from audit_service.schemas.jobs import (
    ChangedExample,
    Edit,
    JobAnswer,
    JobProgress,
    JobReference,
    JobRequest,
    JobState,
    JobStatus,
    MeasuredAnswer,
    MeasuredChange,
    Relabel,
    Selection,
)
from audit_service.schemas.predict import Prediction, TextInput
from audit_service.schemas.thumbnail import EngineThumbnailRequest, ThumbnailRequest

__all__ = [
    "MAX_BATCH",
    "MAX_FEEDBACK",
    "MAX_GROUPINGS",
    "MAX_TOP_K",
    "ChangedExample",
    "Differences",
    "DriftRequest",
    "Edit",
    "EngineItem",
    "EngineRequest",
    "EngineThumbnailRequest",
    "ErrorDetail",
    "ExplainRequest",
    "ExplainResponse",
    "FeedbackItem",
    "FeedbackRequest",
    "GroupShare",
    "IndexIdentity",
    "IndexRequest",
    "InfluentialExample",
    "JobAnswer",
    "JobProgress",
    "JobReference",
    "JobRequest",
    "JobState",
    "JobStatus",
    "MeasuredAnswer",
    "MeasuredChange",
    "ModelIdentity",
    "ModuleChange",
    "Part",
    "Polarity",
    "Prediction",
    "Quality",
    "Relabel",
    "Request",
    "Selection",
    "StatusRequest",
    "Target",
    "TextInput",
    "ThumbnailRequest",
    "Tier",
]
