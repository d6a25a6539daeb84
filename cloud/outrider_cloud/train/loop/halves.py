"""The order in which the gradients of a step's batches are added, so that one process and two give the same bits."""

from torch import Tensor, nn


class Halves:
    """Gradients of a step's first half, put by until those of the second are there: the order in which two add."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._first: list[Tensor | None] = []

    def put_by(self) -> None:
        """Keep the gradients so far, and begin anew."""
        self._first = [parameter.grad for parameter in self._model.parameters()]
        self._model.zero_grad(set_to_none=True)

    def join(self) -> None:
        """Add the first half to the second."""
        for parameter, first in zip(self._model.parameters(), self._first, strict=True):
            if first is not None:
                parameter.grad = first if parameter.grad is None else first.add_(parameter.grad)
