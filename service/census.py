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
        self._sizes: defaultdict[str, int] = defaultdict(int)
        """Bytes of a state of each model's newest version, also when that is gone."""

    async def count(self) -> None:
        """Count anew, and tell the metrics; of a store that is away, what it held last."""
        for name in self._registry.names_seen():
            loaded, _ = self._registry.versions(name)
            if loaded:
                self._sizes[name] = loaded[-1].spec.state_bytes
            # versions that leave have rows too, and a model that is gone may have records
            running = [model for model in self._residents.models() if model.name == name]
            resident = sum(map(self._residents.count, running))
            with suppress(StoreUnavailable):
                self._num_stored[name] = await self._store.count(name)
            stored = self._num_stored[name]
            if self._store.write_through:
                stored = max(0, stored - resident)
            in_arena = sum(self._residents.count(model) * model.spec.state_bytes for model in running)
            self._tell(name, "arena", resident, in_arena)
            self._tell(name, "store", stored, stored * self._sizes[name])

    def _tell(self, name: str, tier: str, count: int, state_bytes: int) -> None:
        self._metrics.sequences.labels(name, tier).set(count)
        self._metrics.state_bytes.labels(name, tier).set(state_bytes)

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
