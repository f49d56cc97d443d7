"""What the tests of listeners rest on."""

from __future__ import annotations

import socket

import psutil
import pytest

from tests.listening import address, addresses


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        ("0100007F", "127.0.0.1"),
        ("00000000", "0.0.0.0"),
        ("00000000000000000000000000000000", "::"),
        ("00000000000000000000000001000000", "::1"),
        ("0000000000000000FFFF00000100007F", "127.0.0.1"),
    ],
)
def test_an_address_is_read_as_the_kernel_writes_it(told: str, wanted: str) -> None:
    assert str(address(told)) == wanted


def test_a_socket_is_found_with_its_address_when_it_listens() -> None:
    here = psutil.Process()
    before = len(addresses(here))
    with socket.create_server(("0.0.0.0", 0)), socket.create_server(("127.0.0.1", 0)), socket.socket() as quiet:
        quiet.bind(("127.0.0.1", 0))
        found = addresses(here)
    assert len(found) == before + 2
    assert "0.0.0.0" in map(str, found) and not all(a.is_loopback for a in found)
