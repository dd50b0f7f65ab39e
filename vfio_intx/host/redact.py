"""Names that tell who a host is: taken out of what leaves it, the same name always by the same mark."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable

_MAC = re.compile(r"(?<![0-9A-Fa-f:])[0-9A-Fa-f]{2}(?:[:-][0-9A-Fa-f]{2}){5}(?![0-9A-Fa-f:])")
_UUID = re.compile(r"(?<![0-9A-Fa-f])[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}(?![0-9A-Fa-f])")
_IPV4 = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])")
_SERIAL = re.compile(r"(?i)(serial(?:[ _]?(?:number|no|nr))?[\"']?\s*[:=]\s*[\"']?)([\w.-]+)")


class Redactor:
    """Replaces MAC addresses, IPv4 addresses, UUIDs, serial numbers and given names.

    Each is replaced by its kind and a short hash under a key that is thrown away: equal names stay equal within one
    report, and nobody can find them out by trying.
    """

    def __init__(self, names: Iterable[str] = (), key: bytes | None = None) -> None:
        self._key = key or secrets.token_bytes(16)
        words = sorted({name for name in names if len(name) > 2}, key=len, reverse=True)
        self._names = (
            re.compile("|".join(rf"(?<![\w-]){re.escape(word)}(?![\w-])" for word in words)) if words else None
        )

    def mark(self, kind: str, text: str) -> str:
        """What stands for *text*."""
        return f"{kind}-{hashlib.blake2s(text.lower().encode(), key=self._key, digest_size=4).hexdigest()}"

    def clean(self, text: str) -> str:
        """*text* without what tells who the host is."""
        text = _SERIAL.sub(lambda match: match[1] + self.mark("serial", match[2]), text)
        for kind, pattern in (("uuid", _UUID), ("mac", _MAC), ("ip", _IPV4)):
            text = pattern.sub(lambda match, kind=kind: self.mark(kind, match[0]), text)  # type: ignore[misc]
        if self._names is not None:
            text = self._names.sub(lambda match: self.mark("name", match[0]), text)
        return text
