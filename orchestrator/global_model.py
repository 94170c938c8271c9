"""The global model of a run, as who collects metrics is given it: built when it is first used."""

import torch

from core.interfaces import ModelInterface
from core.messages import Parameters
from core.models import TorchModel
from core.parameters import cloned, require_same_layout


class GlobalModel(ModelInterface):
    """Holds the parameters of the newest round without a copy, and no others.

    Most rounds only hand them on: the sites evaluate them. So they are put into modules when
    somebody computes with the model, and not in each round.

    Args:
        model: Whose modules these are; its own values are let go of.
        parameters: The first parameters.
    """

    def __init__(self, model: TorchModel, parameters: Parameters) -> None:
        self._model = model
        self._parameters = parameters
        self._is_whole = True
        self.hold(parameters)

    def hold(self, parameters: Parameters) -> None:
        """Take these very tensors in place of those before; they have the same layout."""
        if self._is_whole:
            self._model.to("meta")  # where tensors have no memory
            self._is_whole = False
        self._parameters = parameters

    def get_parameters(self) -> Parameters:
        """See `ModelInterface`; copies."""
        return {name: tensor.detach().clone() for name, tensor in self._parameters.items()}

    def set_parameters(self, parameters: Parameters) -> None:
        """See `ModelInterface`.

        Raises:
            ModelError: They are of another layout.
        """
        require_same_layout(parameters, self._parameters, whose=type(self._model).__name__)
        self.hold(cloned(parameters))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See `ModelInterface`."""
        if not self._is_whole:
            self._model.hold(self._parameters)
            self._is_whole = True
        logits: torch.Tensor = self._model(x)
        return logits
