"""Bodies whose lists are short: of a list that is too long, no more is read than it takes to know it.

msgspec makes all items of a list, a second's work for fifteen megabytes of them, before it looks at how many there may
be, and nothing else of this process runs meanwhile. The fields of a struct end somewhere.
"""

from __future__ import annotations

from functools import cache, reduce
from operator import or_
from types import UnionType
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin, get_type_hints

from msgspec import UNSET, Meta, Struct, UnsetType, ValidationError, defstruct, structs

SHORT_BYTES = 32 * 1024
"""A body of no more is read in a millisecond, whatever is in it."""

MOST_ITEMS = 1024
"""Of a list in a longer one, where its type tells no bound and its reader no other."""

MOST_FIELDS = 16_384
"""An operator who allows longer lists waits for them."""


class _Cut(Struct, array_like=True):
    """Reads as a list does, and passes over what is beyond the last of its fields."""

    limit: ClassVar[int | None] = None
    """Items that its type allows; there is one field more."""


@cache
def bounded(kind: Any, most: int = MOST_ITEMS) -> Any:
    """`kind`, of whose lists no more than one item is read above what their type allows, or else above `most`.

    What is read as that, `unbounded` makes the kind of.
    """
    if isinstance(kind, type) and issubclass(kind, Struct):
        return _bounded_struct(kind, most)
    origin, args = get_origin(kind), get_args(kind)
    if origin is list:
        return _bounded_list(args[0], Meta(), most)
    if origin is Annotated and get_origin(args[0]) is list:
        return _bounded_list(get_args(args[0])[0], args[1], most)
    if origin in (Union, UnionType):
        return reduce(or_, (bounded(part, most) for part in args))
    return kind


def unbounded(value: Any, place: str = "$") -> Any:
    """What was read as `bounded` as it would be without. Raises ValidationError for more items than a type allows."""
    if isinstance(value, _Cut):
        items = [item for item in structs.astuple(value) if item is not UNSET]
        if value.limit is not None and len(items) > value.limit:
            raise ValidationError(f"Expected `array` of length <= {value.limit} - at `{place}`")
        return [unbounded(item, f"{place}[{n}]") for n, item in enumerate(items)]
    if isinstance(value, Struct):
        for name in value.__struct_fields__:
            setattr(value, name, unbounded(getattr(value, name), f"{place}.{name}"))
    return value


def _bounded_struct(kind: type[Struct], most: int) -> type[Struct]:
    hints = get_type_hints(kind, include_extras=True)
    kinds = {name: bounded(hint, most) for name, hint in hints.items() if name in kind.__struct_fields__}
    if all(kinds[name] == hints[name] for name in kinds):
        return kind
    fields = [(field.name, kinds[field.name], field.default) for field in structs.fields(kind)]
    return defstruct(kind.__name__, fields, bases=(kind,), kw_only=True)


def _bounded_list(item: Any, meta: Meta, most: int) -> Any:
    length = most if meta.max_length is None else meta.max_length
    if length > MOST_FIELDS:
        return Annotated[list[item], meta]
    kind, least = bounded(item, most), meta.min_length or 0
    fields = [(f"_{n}", kind) if n < least else (f"_{n}", kind | UnsetType, UNSET) for n in range(length + 1)]
    return defstruct("List", fields, bases=(_Cut,), namespace={"limit": meta.max_length})
