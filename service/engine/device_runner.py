"""Runs the ONNX file on states that stay on the device: inputs go there, outputs come back, states do neither."""

from __future__ import annotations

from math import prod
from time import perf_counter

import numpy as np
import onnxruntime as ort
import structlog
from numpy.typing import NDArray

from service.engine.device_rows import MOST_NUMBERS, DeviceRows, DeviceStates
from service.engine.model_runner import ModelRunner, RunOutput
from service.engine.request import Array, Batched
from service.engine.state_arena import Arena
from service.errors import ModelInvalid

log = structlog.get_logger(__name__)


class DeviceRunner(ModelRunner):
    """A ModelRunner whose arena is on the device."""

    @property
    def keeps_states(self) -> bool:
        """Are there states, and does the device do with them what it was asked for?"""
        return bool(self.spec.states) and not self.on_cpu

    def rows(self, num_slots: int) -> Arena:
        """On the host after all, where the device fails at a trial. Raises ModelInvalid for more than it can count."""
        if not self.keeps_states:
            return super().rows(num_slots)
        most = MOST_NUMBERS // max(prod(state.row_shape) for state in self.spec.states)
        if num_slots > most:
            raise ModelInvalid(
                f"A device keeps the states of {most} sequences of this model at most, and {num_slots} are asked for. "
                "Set CAROUSEL_MAX_RESIDENT_SEQUENCES lower, or CAROUSEL_DEVICE_STATES=0."
            )
        try:
            rows = DeviceRows(self.spec.states, num_slots, self.device)
            fault = rows.find_fault()
        except Exception as error:  # onnxruntime raises a class of its own for each cause, all unrelated
            fault = " ".join(str(error).split())[:300]
        if fault is None:
            return rows
        log.warning("states_stay_on_the_host", model=self.spec.name, device=self.device, reason=fault)
        return super().rows(num_slots)

    def run(self, inputs: Array, states: Batched) -> RunOutput:
        if not isinstance(states, DeviceStates):
            return super().run(inputs, states)
        begin = perf_counter()
        binding = self._session.io_binding()
        binding.bind_cpu_input(self._input, inputs)
        for name, value in zip(self._state_inputs, states.values, strict=True):
            binding.bind_ortvalue_input(name, value)
        outputs, *after = self._fetch
        binding.bind_output(outputs, "cpu")
        for name in after:
            binding.bind_output(name, self.device, 0)
        with self._no_denormals:
            self._session.run_with_iobinding(binding)
        y, *values = binding.get_outputs()
        return RunOutput(y.numpy(), DeviceStates(values), perf_counter() - begin)

    def _enter(self, states: list[NDArray[np.float32]]) -> Batched:
        if not self.keeps_states:
            return states
        return DeviceStates([ort.OrtValue.ortvalue_from_numpy(state, self.device, 0) for state in states])

    def _shapes(self, states: Batched) -> list[tuple[int, ...]]:
        if not isinstance(states, DeviceStates):
            return super()._shapes(states)
        return [tuple(value.shape()) for value in states.values]
