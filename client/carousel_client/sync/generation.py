"""What a model generates, as it comes or at once."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType

import httpx

from carousel_client.core.calls import connection_failed
from carousel_client.core.results import Generated, GeneratedStep
from carousel_client.core.rollouts import Rollout
from carousel_client.sync.transport import Transport


class Generation:
    """Iterate over its steps as they come, or ask for the `result()` or the `text()`. Nothing is sent before.

    Leaving the loop early ends the work on the server: at the latest when the iterator is closed, as `with` does.
    """

    def __init__(self, transport: Transport, rollout: Rollout) -> None:
        self._transport, self._rollout = transport, rollout
        self._steps: Iterator[GeneratedStep] | None = None
        self._response: httpx.Response | None = None

    def __iter__(self) -> Iterator[GeneratedStep]:
        self._steps = self._steps or self._read()
        return self._steps

    def __enter__(self) -> Generation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Wait for no more."""
        if self._response is not None:
            self._response.close()

    def result(self) -> Generated:
        """All of it; what was iterated over until now is read to its end."""
        if self._steps is not None:
            for _ in self._steps:
                pass
        return self._transport.run(self._rollout.whole())

    def text(self) -> str:
        """Of a token model."""
        return self.result().text or ""

    def _read(self) -> Iterator[GeneratedStep]:
        rollout = self._rollout
        self._response = self._transport.run(rollout.begin())
        try:
            for piece in self._response.iter_bytes():
                yield from rollout.feed(piece)
        except httpx.TransportError as error:
            if rollout.result is None:
                raise connection_failed(error) from error
        finally:
            self._response.close()
        rollout.end()
