"""The names of the sample data that a testbed can make."""

from enum import Enum


class SampleKind(Enum):
    """Which table is made and divided."""

    AI4I = "ai4i"
    VIBRATION = "vibration"
