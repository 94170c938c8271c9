"""The enumerations shared by sites, orchestrator and configuration files.

String-valued members are what YAML files and messages spell. The two status
enumerations use `auto()`: store and send their `.name`, never the number.
"""

from enum import Enum, auto


class FederatedAlgorithm(Enum):
    """How a round turns client updates into the next global model."""

    FEDAVG = "fedavg"
    FEDPROX = "fedprox"
    FEDDYN = "feddyn"
    FEDNOVA = "fednova"


class ModelType(Enum):
    """The architecture families a plan may name."""

    CNN = "cnn"
    LSTM = "lstm"
    HYBRID = "hybrid"


class DataDistribution(Enum):
    """How the testbed divides one table among its factories."""

    IID = "iid"
    NON_IID_QUANTITY = "non_iid_quantity"
    NON_IID_FEATURE = "non_iid_feature"
    NON_IID_LABEL = "non_iid_label"


class ExperimentStatus(Enum):
    """Where a run stands; it moves only in the orchestrator's experiment module."""

    PENDING = auto()
    RUNNING = auto()
    COMPLETED = auto()
    FAILED = auto()
    CANCELLED = auto()


class DataSiteStatus(Enum):
    """What a site can do for the federation right now."""

    OFFLINE = auto()
    ONLINE = auto()
    BUSY = auto()
    ERROR = auto()


class AggregationMethod(Enum):
    """How the updates of one round are combined, parameter by parameter."""

    WEIGHTED_AVERAGE = "weighted_average"
    SIMPLE_AVERAGE = "simple_average"
    MEDIAN = "median"


class PrivacyLevel(Enum):
    """What is done to an update before it leaves its site.

    `BASIC` gives no formal guarantee; see the README's table of levels.
    """

    NONE = "none"
    BASIC = "basic"
    DIFFERENTIAL_PRIVACY = "differential_privacy"
    SECURE_AGGREGATION = "secure_aggregation"


class Compression(Enum):
    """In which form parameters travel; see `core.compression`.

    Under `FP16` and `INT8` a site rounds what it sends, and keeps what it rounded off.
    """

    NONE = "none"
    ZSTD = "zstd"
    FP16 = "fp16"
    INT8 = "int8"

    @property
    def is_lossy(self) -> bool:
        """Whether something is rounded off, which sites keep for the next round."""
        return self in {Compression.FP16, Compression.INT8}
