"""One way into the kernel: ioctl numbers as the headers write them, and a call that never loses an errno.

``_IO``, ``_IOR``, ``_IOW`` and ``_IOWR`` are the macros of ``include/uapi/asm-generic/ioctl.h``.

Two traps of :func:`fcntl.ioctl` are closed here. A ``bytes`` argument makes it return the *buffer* instead of the
call's result, so ``VFIO_GROUP_GET_DEVICE_FD`` loses the descriptor it just made; and an ``int`` argument above
2**31 - 1 overflows. Hence buffers are always mutable, and integers go through libc's own ``ioctl``.
"""

from __future__ import annotations

import ctypes
import fcntl
import os

from vfio_intx.errors import KernelError

_NONE, _WRITE, _READ = 0, 1, 2


def _ioc(direction: int, kind: int, number: int, size: int) -> int:
    if not (0 <= kind < 256 and 0 <= number < 256 and 0 <= size < 1 << 14):
        raise ValueError("ioctl field out of range")
    return direction << 30 | size << 16 | kind << 8 | number


def _IO(kind: int, number: int) -> int:
    return _ioc(_NONE, kind, number, 0)


def _IOR(kind: int, number: int, size: int) -> int:
    return _ioc(_READ, kind, number, size)


def _IOW(kind: int, number: int, size: int) -> int:
    return _ioc(_WRITE, kind, number, size)


def _IOWR(kind: int, number: int, size: int) -> int:
    return _ioc(_READ | _WRITE, kind, number, size)


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong)
_libc.ioctl.restype = ctypes.c_int


def call_value(operation: str, target: str, fd: int, request: int, value: int = 0) -> int:
    """``ioctl(fd, request, value)`` with an integer (or no) argument; the call's result.

    :param value: passed as an unsigned long; anything from 0 to 2**64 - 1.
    :raise KernelError: with *operation*, *target* and errno. Nothing is retried, EINTR included.
    """
    result = _libc.ioctl(fd, request, value)
    if result < 0:
        raise KernelError(operation, target, ctypes.get_errno())
    return int(result)


def call_buffer(operation: str, target: str, fd: int, request: int, buffer: bytearray) -> int:
    """``ioctl(fd, request, &buffer)``; the kernel may write into *buffer*; the call's result.

    :raise KernelError: with *operation*, *target* and errno; *buffer*'s content is then undefined.
    """
    try:
        return int(fcntl.ioctl(fd, request, buffer, True))
    except OSError as error:
        raise KernelError(operation, target, error.errno or 0) from error


def syscall(operation: str, target: str, number: int, *arguments: int) -> int:
    """A raw system call of integer arguments, for calls without a wrapper. :raise KernelError: on failure."""
    _libc.syscall.restype = ctypes.c_long
    result = _libc.syscall(ctypes.c_long(number), *(ctypes.c_long(argument) for argument in arguments))
    if result < 0:
        raise KernelError(operation, target, ctypes.get_errno())
    return int(result)


def close_all(*fds: int | None) -> None:
    """Close each descriptor that is not None or negative. :raise OSError: EBADF, which is a bug of ours."""
    for fd in fds:
        if fd is not None and fd >= 0:
            os.close(fd)
