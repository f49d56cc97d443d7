"""The tree hash against the vectors of Certificate Transparency's reference implementation, and its definition."""

from __future__ import annotations

import hashlib

import pytest

from udfs.policy.merkle import Tree

# google/certificate-transparency (Apache-2.0), its tree tests: eight leaves, the root of the first n of them.
LEAVES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def defined(leaves: list[bytes]) -> bytes:
    """RFC 6962, 2.1, word for word."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + defined(leaves[:k]) + defined(leaves[k:])).digest()


@pytest.mark.parametrize("count", range(9))
def test_the_root_is_that_of_the_reference_when_leaves_are_put_at_once_or_one_by_one(count: int) -> None:
    named = {f"{place:03}": leaf for place, leaf in enumerate(LEAVES[:count])}
    at_once, one_by_one = Tree(), Tree()
    at_once.put(named)
    for name, leaf in reversed(named.items()):
        one_by_one.put({name: leaf})
    assert at_once.root() == one_by_one.root() == ROOTS[count]
    assert len(at_once) == count


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13, 31, 32, 33])
def test_the_root_is_as_defined_when_leaves_change(count: int) -> None:
    leaves = [f"leaf {place}".encode() for place in range(count)]
    tree = Tree()
    tree.put({f"{place:03}": leaf for place, leaf in enumerate(leaves)})
    for changed in ({0}, {count - 1}, {count // 2, count // 3}):
        for place in changed:
            leaves[place] += b"'"
        tree.put({f"{place:03}": leaves[place] for place in changed})
        assert tree.root() == defined(leaves).hex()


def test_leaves_stand_in_the_order_of_their_names_bytes_when_put_in_any() -> None:
    names = ["z", "é", "a", "Z", "\U0001f600", "\ufffd"]
    tree = Tree()
    for name in names:
        tree.put({name: name.encode()})
    assert tree.root() == defined(sorted(name.encode() for name in names)).hex()
