"""When the rules of a model's weights act: between two optimizer steps, by the global step alone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from elas_lightning.nn.llama import Llama
from elas_lightning.nn.weights.attach import weight_rules
from elas_lightning.nn.weights.decompose import decompose_model
from elas_lightning.nn.weights.rule import Place
from elas_lightning.training.optimizers import reset_moments


class WeightSchedule:
    """What a training loop calls, at four places; nothing here needs to be saved.

    Args:
        model: Its rules may act; a model of plain weights has none.
    """

    def __init__(self, model: Llama) -> None:
        self._model = model
        self._decomposes = model.config.weights.method == "oats"
        self._calibration: list[Tensor] = []

    def enter(self, place: Place) -> None:
        """Before the first step of a run or of its continuation."""
        for rule, parameter in weight_rules(self._model):
            rule.enter(parameter, place)

    def see(self, input_ids: Tensor, place: Place) -> None:
        """With each micro-batch: OATS takes its second moments from the last step's, so a resume has them too."""
        if self._decomposes and place.step == place.total - 1:
            self._calibration.append(input_ids)

    def add_decay(self) -> None:
        """Once the gradient of a step is complete."""
        for rule, parameter in weight_rules(self._model):
            rule.add_decay(parameter)

    def after_step(self, optimizer: torch.optim.Optimizer, place: Place, reduce: Callable[[Tensor], Tensor]) -> None:
        """After an optimizer step.

        Args:
            optimizer: Forgets what the rules say.
            place: Where the run is now.
            reduce: Sums a tensor over all processes.
        """
        for rule, parameter in weight_rules(self._model):
            for stale in rule.after_step(parameter, place):
                if stale.requires_grad:
                    reset_moments(optimizer, [stale])
                else:  # it learns no more: free the memory
                    optimizer.state.pop(stale, None)
                    stale.grad = None
        if self._calibration and place.step == place.total:
            decompose_model(self._model, self._calibration, reduce)
            self._calibration = []
