"""The IPv4 address of a network interface, which no file tells where there is no route (SIOCGIFADDR, netdevice(7))."""

from __future__ import annotations

import fcntl

SIOCGIFADDR = 0x8915
_IFNAMSIZ = 16
#: ``struct ifreq``: the name, then a ``struct sockaddr_in``, in which the address comes after family and port.
_IFREQ_SIZE, _ADDRESS = 40, slice(20, 24)


def ipv4_address(interface: str) -> str | None:
    """Its first IPv4 address, in the network namespace of this process; None where it has none or is not there."""
    import socket

    name = interface.encode("utf-8", "surrogateescape")
    if len(name) >= _IFNAMSIZ:
        return None
    request = bytearray(name.ljust(_IFREQ_SIZE, b"\0"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
        try:
            fcntl.ioctl(probe, SIOCGIFADDR, request, True)
        except OSError:
            return None
    return socket.inet_ntoa(bytes(request[_ADDRESS]))
