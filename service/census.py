"""How many sequences there are, where, and whether there is room for one more. What the metrics tell of them."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress

from service.errors import NoRoom, StoreUnavailable
from service.metrics import Metrics
from service.registry import LoadedModel, Registry
from service.residence import Residence
from service.settings import Settings
from service.stores.store import Key, Store


class Census:
    """Of those in a store, counted now and then, and by what this process does meanwhile."""

    def __init__(
        self, registry: Registry, settings: Settings, metrics: Metrics, store: Store, residence: Residence
    ) -> None:
        self._registry = registry
        self._settings = settings
        self._metrics = metrics
        self._store = store
        self._residents = residence.residents
        self._num_stored: defaultdict[str, int] = defaultdict(int)

    async def count(self) -> None:
        """Count anew, and tell the metrics; of a store that is away, what it held last."""
        gauge, state_bytes = self._metrics.sequences, self._metrics.state_bytes
        for name in self._registry.names():
            loaded, _ = self._registry.versions(name)
            size = loaded[-1].spec.state_bytes if loaded else 0
            resident = sum(self._residents.count(model) for model in loaded)
            with suppress(StoreUnavailable):
                self._num_stored[name] = await self._store.count(name)
            stored = self._num_stored[name]
            if self._store.write_through:
                stored = max(0, stored - resident)
            for tier, count in (("arena", resident), ("store", stored)):
                gauge.labels(name, tier).set(count)
                state_bytes.labels(name, tier).set(count * size)

    async def require_room(self, model: LoadedModel) -> None:
        """Raises NoRoom when as many sequences of the model are held as the operator allows."""
        limit, name = self._settings.max_sequences, model.name
        if self._store.write_through:
            held = self._num_stored[name]
        else:
            held = self._residents.count(model) + await self._store.count(name)
        if held >= limit:
            raise NoRoom(
                f"{limit} sequences of {name!r} are held already. End some, or try again later.",
                limit=limit,
                retry_after=1,
            )

    def begun(self, model: LoadedModel) -> None:
        self._num_stored[model.name] += 1
        self._metrics.sequences_created.labels(model.name).inc()

    def ended(self, key: Key, reason: str) -> None:
        self._num_stored[key[1]] = max(0, self._num_stored[key[1]] - 1)
        self._metrics.sequences_ended.labels(key[1], reason).inc()
