"""Runs a command to which the kernel refuses something, as some file systems and containers do.

``python -m support.seccomp maps COMMAND…``: no file can be mapped into shared memory, as on 9p and virtiofs.
``python -m support.seccomp threads COMMAND…``: no thread can be started, as where a limit of processes is reached.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000
_SYSCALLS = {"x86_64": (9, 56, 435), "aarch64": (222, 220, 435)}  # mmap, clone, clone3
_ARGUMENTS = 16  # where they begin, 8 bytes each
_CLONE_THREAD, _PROT_WRITE, _MAP_SHARED, _NO_FILE = 0x10000, 2, 1, 0xFFFFFFFF


def possible() -> bool:
    """Return whether this kernel can be told to refuse."""
    return sys.platform == "linux" and platform.machine() in _SYSCALLS


def _op(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, value)


def _argument(number: int) -> bytes:
    return _op(_LOAD, _ARGUMENTS + 8 * number)


def _refuse(what: str) -> None:
    mmap, clone, clone3 = _SYSCALLS[platform.machine()]
    if what == "maps":
        program = [
            _op(_LOAD, 0),
            _op(_EQUAL, mmap, 0, 6),
            _argument(2),
            _op(_ANY_BIT, _PROT_WRITE, 0, 4),
            _argument(3),
            _op(_ANY_BIT, _MAP_SHARED, 0, 2),
            _argument(4),
            _op(_EQUAL, _NO_FILE, 0, 1),
            _op(_RETURN, _ALLOW),
            _op(_RETURN, _REFUSE | errno.ENODEV),
        ]
    else:
        program = [
            _op(_LOAD, 0),
            _op(_EQUAL, clone3, 4, 0),  # its flags are in memory: let the caller take clone instead
            _op(_EQUAL, clone, 0, 2),
            _argument(0),
            _op(_ANY_BIT, _CLONE_THREAD, 2, 0),
            _op(_RETURN, _ALLOW),
            _op(_RETURN, _REFUSE | errno.ENOSYS),
            _op(_RETURN, _REFUSE | errno.EAGAIN),
        ]
    code = ctypes.create_string_buffer(b"".join(program))
    filters = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(program), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, set_seccomp, filter_mode = 38, 22, 2
    for call in ((no_new_privileges, 1, 0, 0, 0), (set_seccomp, filter_mode, ctypes.byref(filters), 0, 0)):
        if libc.prctl(*call):
            raise OSError(ctypes.get_errno(), "the kernel takes no filter")


if __name__ == "__main__":
    _refuse(sys.argv[1])
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - the command to run
