"""Addresses (`module:name`) that earlier versions stored, and their current addresses."""

from collections.abc import Mapping
from typing import Any

# Studies and exported files of version 0.1 hold the addresses on the left.
MOVED = {"model.train:Trainer": "model.train.trainer:Trainer"}


def current_address(address: str) -> str:
    """Return the current address of an object, which an earlier version may have stored under another address."""
    return MOVED.get(address, address)


def with_current_addresses(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a study's stored description, or the provenance of an exported file, with current addresses."""
    addresses = {key: tree[key] for key in ("train", "config") if isinstance(tree.get(key), str)}
    return {**tree, **{key: current_address(address) for key, address in addresses.items()}}
