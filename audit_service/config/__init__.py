"""Configuration: one YAML a bento, overridden by the environment, checked as a whole."""

from audit_service.config.errors import ConfigError
from audit_service.config.load import load_config
from audit_service.config.monitoring import MonitoringSettings
from audit_service.config.sections import (
    BaseModelSettings,
    DataSections,
    FolderSettings,
    JobSettings,
    ModelSettings,
    ServeSettings,
    TaskSettings,
)
from audit_service.config.settings import AuditConfig

__all__ = [
    "AuditConfig",
    "BaseModelSettings",
    "ConfigError",
    "DataSections",
    "FolderSettings",
    "JobSettings",
    "ModelSettings",
    "MonitoringSettings",
    "ServeSettings",
    "TaskSettings",
    "load_config",
]
