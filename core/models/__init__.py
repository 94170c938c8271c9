"""The architectures a plan may name, and how to build them."""

from core.models.base import Option, TorchModel
from core.models.registry import (
    ModelDescription,
    available_models,
    broken_models,
    build_model,
    create_model,
    describe_models,
    initial_parameters,
    load_model,
    model_layout,
)

__all__ = [
    "ModelDescription",
    "Option",
    "TorchModel",
    "available_models",
    "broken_models",
    "build_model",
    "create_model",
    "describe_models",
    "initial_parameters",
    "load_model",
    "model_layout",
]
