"""What tests start processes with keeps its word."""

import socket

import pytest

from tests.processes import reserved_port


def test_a_reserved_port_is_given_to_nobody_else_and_a_server_may_still_listen_there():
    place = ("127.0.0.1", reserved_port())
    with socket.socket() as other, pytest.raises(OSError, match="in use"):
        other.bind(place)
    with socket.create_server(place):  # it sets SO_REUSEADDR, as torch's store does
        pass
