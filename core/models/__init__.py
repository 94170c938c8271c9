"""The architectures a plan may name, and how to build them."""

from core.models.base import Option, TorchModel
from core.models.registry import available_models, build_model, initial_parameters, load_model

__all__ = [
    "Option",
    "TorchModel",
    "available_models",
    "build_model",
    "initial_parameters",
    "load_model",
]
