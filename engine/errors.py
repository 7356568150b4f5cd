"""Errors for users: one line each that names the value, the limit and the remedy.

The commands print the message and exit with status 2; a traceback is a bug. `foreseeable` finds such a line for errors of
the system and of libraries, which depend on the machine and not on this program.
"""

import errno
import os


class HeadraceError(Exception):
    """Base of all errors for users. `str(error)` is a single line."""


class KnobError(HeadraceError, ValueError):
    """A knob that does not exist, is out of range, or has no effect."""


class CheckpointError(HeadraceError):
    """A checkpoint that is missing, truncated, not a Mixture of Experts, or of an unknown architecture."""


class JudgeError(HeadraceError):
    """Evaluation texts that cannot be read or are too short to measure with."""


class FigureError(HeadraceError, ValueError):
    """A figure that is not finite, or logits that are not; names the figure and what it is a figure of."""


class ReadError(HeadraceError):
    """An expert that could not be read; names file, layer and expert. No logits are computed from it."""


def did_you_mean(name: str, known: list[str]) -> str:
    """A hint for an unknown name: the most similar known name, or all of them if none is similar."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else "choose one of: " + ", ".join(known)


def first_line(e: BaseException) -> str:
    """The first line of an error's message, at most 200 characters; its type if it has none."""
    return (str(e).strip().splitlines() or [type(e).__name__])[0][:200]


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_ALLOWED = (errno.EACCES, errno.EPERM)
MANY_FILES = (errno.EMFILE, errno.ENFILE)
NO_SUCH_CALL = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)
GONE = (
    errno.EIO,
    errno.ESTALE,
    errno.ENODEV,
    errno.ENXIO,
    errno.ETIMEDOUT,
    errno.ENOTCONN,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
)
REMEDIES = {
    FULL: "make room on its disk",
    NOT_ALLOWED: "change its permissions, or name another place",
    MANY_FILES: "raise the limit of open files, for example with ulimit -n 4096",
    NO_SUCH_CALL: "its file system lacks this call; use a folder on a local disk",
    GONE: "its disk or network share does not answer; check it, then run the same command again",
    (errno.EROFS,): "its file system is read-only; name another place",
    (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG): "check the path",
    (errno.ENOMEM,): "end other programs, or let this one use less memory",
    (errno.EAGAIN,): "no more processes or threads can be started; raise the limit with ulimit -u, or end other programs",
}
OUT_OF_MEMORY = "memory is exhausted; lower cache_gb or the length of the context, or end other programs"
MEMORY_SIGNS = (
    "out of memory",
    "outofmemory",
    "insufficient memory",
    "unable to allocate",
    "attempting to allocate",
    "bad_alloc",
)
NO_HOME = "Could not determine home directory"


def foreseeable(e: BaseException) -> str | None:
    """One line for an error that a machine or a user's files can cause: what failed, why, and what helps. None for any other
    error, which is a defect of this program."""
    text = str(e).lower()
    if isinstance(e, HeadraceError):
        return str(e)
    if isinstance(e, MemoryError) or (isinstance(e, RuntimeError) and any(sign in text for sign in MEMORY_SIGNS)):
        return OUT_OF_MEMORY
    if isinstance(e, OSError) and e.errno is not None:
        return _system_error(e)
    if isinstance(e, RuntimeError) and NO_HOME in str(e):
        return "this account has no home folder, so ~ has no meaning; set HOME, or give whole paths"
    if isinstance(e, RuntimeError) and "can't start new thread" in text:
        return f"no thread can be started; {REMEDIES[errno.EAGAIN,]}"
    if isinstance(e, ImportError) and (e.name or "").partition(".")[0] in ("mlx", "mlx_lm"):
        return (
            f"MLX cannot be loaded ({first_line(e)}); it needs Apple silicon with macOS 14 or later and a Python for arm64, "
            "or Linux: pip install mlx[cpu] or mlx[cuda12]"
        )
    if isinstance(e, ImportError):
        return f"a package cannot be loaded ({first_line(e)}); install Headrace again: pip install -e ."
    if isinstance(e, UnicodeError):
        return f"a text or a file name is not UTF-8 ({first_line(e)}); rename it, or save it as UTF-8"
    return None


def _system_error(e: OSError) -> str | None:
    remedy = next((remedy for numbers, remedy in REMEDIES.items() if e.errno in numbers), None)
    if remedy is None and e.filename is None:
        return None
    reason = e.strerror or os.strerror(e.errno or 0)
    if e.filename is None and e.errno == errno.ENOENT:
        return "the current folder was removed; change to another one"
    what = f"{shown(e.filename)}: " if e.filename is not None else ""
    return f"{what}{reason}; {remedy or 'check the path'}"


def shown(name: object) -> str:
    """A file's name as text that can be printed anywhere; bytes that are not UTF-8 are escaped."""
    text = os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else str(name)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
