"""The decisions about a tenant's layers. They stand in the tenant's own entry, because their limits are over all of its layers.

Pure: no Faust, no clock, no I/O. A `Shelf` says which versions of a layer there are; what is in them stands in the topic of layers (four
thousand of them would not fit one record), where a published version never changes.

What this core can't see: which functions use a version (other keys, other owners); the gateway checks it before it sends delete-layer. A function
that is bound at that very moment goes on: its configuration holds the hash of the content, and the collector keeps what a configuration names.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from schemas.limits import LAYERS_PER_TENANT, VERSIONS_PER_LAYER


@dataclass(frozen=True, slots=True)
class Shelf:
    """One layer. `last` is the highest number given, so that none comes twice as long as the layer is there."""

    name: str
    last: int
    versions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why it can't be."""

    code: str
    message: str


Shelves = tuple[Shelf, ...]


def publish(shelves: Shelves, name: str) -> tuple[Shelves, int] | Refusal:
    """One more version of a layer, which may be new: the shelves then, and its number."""
    shelf = _find(shelves, name)
    if shelf is None and len(shelves) >= LAYERS_PER_TENANT:
        return Refusal("LimitExceeded.Layers", f"a tenant has at most {LAYERS_PER_TENANT} layers; delete one first")
    shelf = shelf or Shelf(name, 0, ())
    if len(shelf.versions) >= VERSIONS_PER_LAYER:
        return Refusal(
            "LimitExceeded.LayerVersions",
            f"layer {name!r} has {VERSIONS_PER_LAYER} versions, which is the limit; delete some",
        )
    number = shelf.last + 1
    grown = replace(shelf, last=number, versions=(*shelf.versions, number))
    return (*(s for s in shelves if s.name != name), grown), number


def delete(shelves: Shelves, name: str, version: int) -> Shelves | Refusal:
    """Without one version; with its last one the layer goes too."""
    shelf = _find(shelves, name)
    if shelf is None or version not in shelf.versions:
        return Refusal("ResourceNotFound.LayerVersion", f"layer {name!r} has no version {version}")
    others = tuple(s for s in shelves if s.name != name)
    left = tuple(n for n in shelf.versions if n != version)
    return (*others, replace(shelf, versions=left)) if left else others


def _find(shelves: Shelves, name: str) -> Shelf | None:
    return next((s for s in shelves if s.name == name), None)
