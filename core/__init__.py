"""The contracts of the federation: six interfaces, seven enumerations, nine errors."""

from core.enums import (
    AggregationMethod,
    DataDistribution,
    DataSiteStatus,
    ExperimentStatus,
    FederatedAlgorithm,
    ModelType,
    PrivacyLevel,
)
from core.exceptions import (
    AggregationError,
    CommunicationError,
    ConfigurationError,
    DataError,
    DataSiteError,
    ExperimentError,
    FederatedLearningError,
    ModelError,
    SecurityError,
)
from core.interfaces import (
    CommunicationInterface,
    DataSiteInterface,
    FederatedAlgorithmInterface,
    MetricsCollectorInterface,
    ModelInterface,
    OrchestratorInterface,
)

__all__ = [
    "AggregationError",
    "AggregationMethod",
    "CommunicationError",
    "CommunicationInterface",
    "ConfigurationError",
    "DataDistribution",
    "DataError",
    "DataSiteError",
    "DataSiteInterface",
    "DataSiteStatus",
    "ExperimentError",
    "ExperimentStatus",
    "FederatedAlgorithm",
    "FederatedAlgorithmInterface",
    "FederatedLearningError",
    "MetricsCollectorInterface",
    "ModelError",
    "ModelInterface",
    "ModelType",
    "OrchestratorInterface",
    "PrivacyLevel",
    "SecurityError",
]
