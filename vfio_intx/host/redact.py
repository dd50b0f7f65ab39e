"""Names that tell who a host is: taken out of what leaves it, the same name always by the same mark."""

from __future__ import annotations

import hashlib
import ipaddress
import re
import secrets
from collections.abc import Iterable

_MAC = re.compile(r"(?<![0-9A-Fa-f:])[0-9A-Fa-f]{2}(?:[:-][0-9A-Fa-f]{2}){5}(?![0-9A-Fa-f:])")
_UUID = re.compile(r"(?<![0-9A-Fa-f])[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}(?![0-9A-Fa-f])")
_IPV4 = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])")
#: What may be an IPv6 address; whether it is one is not for an expression to say (0000:00:10.0 is none).
_MAYBE_IPV6 = re.compile(r"(?<!\w)(?<!::)[0-9A-Fa-f:]{2,}(?:\.\d{1,3}){0,3}(?!\w)")
_SERIAL = re.compile(r"(?i)(serial(?:[ _]?(?:number|no|nr))?[\"']?\s*[:=]\s*[\"']?)([\w.-]+)")


def _either(words: Iterable[str], before: str, after: str) -> re.Pattern[str] | None:
    """Any of *words*, the longest first, None where there are none."""
    longest_first = sorted(words, key=len, reverse=True)
    return re.compile(f"{before}(?:{'|'.join(map(re.escape, longest_first))}){after}") if longest_first else None


class Redactor:
    """Replaces MAC and IP addresses, UUIDs, serial numbers and given names.

    Each is replaced by its kind and a short hash under a key that is thrown away: equal names stay equal within one
    report, and nobody can find them out by trying.

    :param names: of the host; shorter ones than three characters would be found everywhere and are left alone.
    :param interfaces: network interfaces, which are also found where handlers are named after them
        (``eth0-TxRx-0``); names of one character are left alone.
    """

    def __init__(self, names: Iterable[str] = (), interfaces: Iterable[str] = (), key: bytes | None = None) -> None:
        self._key = key or secrets.token_bytes(16)
        self._names = _either({name for name in names if len(name) > 2}, r"(?<![\w-])", r"(?![\w-])")
        self._interfaces = _either({name for name in interfaces if len(name) > 1}, r"(?<!\w)", r"(?!\w)")

    def mark(self, kind: str, text: str) -> str:
        """What stands for *text*."""
        return f"{kind}-{hashlib.blake2s(text.lower().encode(), key=self._key, digest_size=4).hexdigest()}"

    def clean(self, text: str) -> str:
        """*text* without what tells who the host is."""
        text = _SERIAL.sub(lambda match: match[1] + self.mark("serial", match[2]), text)
        text = _MAYBE_IPV6.sub(self._ipv6, text)  # before the IPv4 address that one may end with
        patterns = (
            ("uuid", _UUID), ("mac", _MAC), ("ip", _IPV4), ("name", self._names), ("nic", self._interfaces)
        )  # fmt: skip
        for kind, pattern in patterns:
            if pattern is not None:
                text = pattern.sub(lambda match, kind=kind: self.mark(kind, match[0]), text)  # type: ignore[misc]
        return text

    def _ipv6(self, match: re.Match[str]) -> str:
        found = match[0]
        # A colon may follow, as in "fe80::1: refused".
        for address in (found, found.removesuffix(":")):
            try:
                if not ipaddress.IPv6Address(address).is_unspecified:
                    return self.mark("ip", address) + found[len(address) :]
            except ValueError:
                continue
        return found
