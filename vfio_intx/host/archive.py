"""The snapshot inside an archive of ``report``, which comes from a stranger: it is read in memory, within bounds."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib

from vfio_intx.errors import UsageError

_MEMBER = "vfio-intx-report/snapshot.json"


def unpack(raw: bytes, name: str, longest: int) -> bytes:
    """The bytes of the snapshot in an archive's bytes; nothing is written to disk.

    :param name: the archive's, for the message.
    :param longest: what is inside may have so many bytes in all.
    :raise UsageError: if the archive is damaged, too large, or has no snapshot.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as file:
            inside = file.read(longest + 1)
        if len(inside) > longest:
            raise UsageError(f"{name} unpacks to more than {longest >> 20} MiB; no report is so large")
        with tarfile.open(fileobj=io.BytesIO(inside), mode="r:") as archive:
            member = archive.getmember(_MEMBER)
            content = archive.extractfile(member) if member.isfile() else None  # it follows links, also in a circle
            if content is None:
                raise UsageError(f"{name}: {_MEMBER} is no regular file")
            return content.read()
    except KeyError:
        raise UsageError(f"{name} holds no {_MEMBER}", hint="vfio-intx report makes such an archive") from None
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{name} is no whole archive: {str(error)[:200]}", hint="have it sent again") from error
