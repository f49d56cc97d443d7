"""The Merkle tree hash of RFC 6962, section 2.1 (SHA-256; leaves and nodes told apart by a first byte)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping


class Tree:
    """A tree over named leaves, in the order of the names' bytes (UTF-8).

    Kept in memory: two hashes and a name a leaf. A changed leaf costs as many hashes as the tree is high,
    new ones cost a new tree.
    """

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._levels: list[list[bytes]] = [[]]

    def __len__(self) -> int:
        return len(self._places)

    def put(self, leaves: Mapping[str, bytes]) -> None:
        """Set the content of these leaves."""
        hashed = {name: hashlib.sha256(b"\x00" + leaf).digest() for name, leaf in leaves.items()}
        level = self._levels[0]
        if hashed.keys() <= self._places.keys():
            touched = {self._places[name] for name in hashed}
        else:
            hashed = dict(zip(self._places, level, strict=True)) | hashed
            self._places = {name: place for place, name in enumerate(sorted(hashed))}
            self._levels = [level := [b""] * len(hashed)]
            touched = set(range(len(hashed)))
        for name, leaf_hash in hashed.items():
            level[self._places[name]] = leaf_hash
        self._hash_above(touched)

    def _hash_above(self, touched: set[int]) -> None:
        """A node without a neighbour on its right stands for itself one level up.

        So the left subtree of every node is full, with the largest power of two of leaves below n.
        """
        height = 0
        while len(level := self._levels[height]) > 1:
            height += 1
            if height == len(self._levels):
                self._levels.append([b""] * ((len(level) + 1) // 2))
            touched = {place // 2 for place in touched}
            for place in touched:
                pair = level[2 * place : 2 * place + 2]
                above = hashlib.sha256(b"\x01" + pair[0] + pair[1]).digest() if len(pair) == 2 else pair[0]
                self._levels[height][place] = above

    def root(self) -> str:
        """The tree's hash in hexadecimal; that of an empty tree is the hash of nothing."""
        return (self._levels[-1][0] if self._places else hashlib.sha256().digest()).hex()
