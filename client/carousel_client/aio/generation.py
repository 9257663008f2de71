"""What a model generates, as it comes or at once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType

import httpx

from carousel_client.aio.transport import AsyncTransport
from carousel_client.core.calls import connection_failed
from carousel_client.core.results import Generated, GeneratedStep
from carousel_client.core.rollouts import Rollout


class AsyncGeneration:
    """Iterate over its steps as they come, or await the `result()` or the `text()`. Nothing is sent before.

    Leaving the loop early ends the work on the server: at the latest when the iterator is closed, as `async with` does.
    """

    def __init__(self, transport: AsyncTransport, rollout: Rollout) -> None:
        self._transport, self._rollout = transport, rollout
        self._steps: AsyncIterator[GeneratedStep] | None = None
        self._response: httpx.Response | None = None

    def __aiter__(self) -> AsyncIterator[GeneratedStep]:
        self._steps = self._steps or self._read()
        return self._steps

    async def __aenter__(self) -> AsyncGeneration:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Wait for no more."""
        if self._response is not None:
            await self._response.aclose()

    async def result(self) -> Generated:
        """All of it; what was iterated over until now is read to its end."""
        if self._steps is not None:
            async for _ in self._steps:
                pass
        return await self._transport.run(self._rollout.whole())

    async def text(self) -> str:
        """Of a token model."""
        return (await self.result()).text or ""

    async def _read(self) -> AsyncIterator[GeneratedStep]:
        rollout = self._rollout
        self._response = await self._transport.run(rollout.begin())
        try:
            async for piece in self._response.aiter_bytes():
                for step in rollout.feed(piece):
                    yield step
        except httpx.TransportError as error:
            if rollout.result is None:
                raise connection_failed(error) from error
        finally:
            await self._response.aclose()
        rollout.end()
