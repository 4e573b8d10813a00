"""Built engines on disk.  An engine is a program: only what this user's sam3d_ros wrote, whole, is ever loaded.

    <key>.engine    magic, then the plan as the library serialised it
    <key>.json      what it was built from and with, its size and SHA-256, what its check said; alone: it was refused
    <key>.kernels   what TensorRT-RTX has compiled for it on this machine
    <name>.timing   the library's timing cache for one device
    cpu.json        which CPU engine is the fastest here;  lock  held while engines are built

The folder is private to its owner (mode 0700).  Files are opened in it without following links, checked by what was
opened rather than by name, and written to a temporary file that is synced and renamed.  What belongs to another user,
can be written by one, or is a link is refused (EngineError ENGINE_CACHE_UNSAFE).  What is damaged counts as absent, and
so does everything where the folder cannot be made.
"""
from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from .engine import EngineError

MAGIC = b"SAM3D-ENGINE-1\n\0"
MAX_PLAN_BYTES = 1 << 30
MAX_DETAILS_BYTES = 1 << 16
MAX_NOTE_BYTES = 1 << 28
_LOCK_POLL_S = 0.2
_ENGINE_FILE = re.compile(r"[0-9a-f]{64}\.(engine|json)")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineKey:
    """Everything that an engine depends on: another value of any of them is another engine.

    model: SHA-256 of the ONNX file; library: as "tensorrt 10.3.0.26"; cuda, driver: versions, empty where the engine
    is built for a device that is not there; device: its name and multiprocessors; capability: as "8.7"; precision:
    fp32, fp16 or int8; profile: smallest, best and largest input shapes; flags: of the builder, and preview features
    """

    model: str
    library: str
    cuda: str
    driver: str
    device: str
    capability: str
    precision: str
    profile: str
    flags: str = ""

    @property
    def digest(self) -> str:
        """Name of the engine's files."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Entry:
    """An engine in the cache: what it was made from, and what else its sidecar says; problem: why it is not loaded.

    One with a key and a problem was refused by its check.
    """

    name: str
    key: EngineKey | None
    details: dict[str, Any]
    bytes: int
    problem: str


class _Damaged(Exception):
    """A file of the cache is not what was written."""


def default_folder() -> Path:
    """SAM3D_CACHE, else sam3d_ros in the user's cache folder; below "~" if the user has no home."""
    if os.environ.get("SAM3D_CACHE"):
        return Path(os.path.expanduser(os.environ["SAM3D_CACHE"]))      # not every launcher does as shells do
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification has paths ignored that depend on where the program was started.
    return Path(base if os.path.isabs(base) else os.path.expanduser("~/.cache")) / "sam3d_ros"


class EngineCache:
    """The engines in a folder, which is made when it is first needed."""

    def __init__(self, folder: Path | None = None):
        self.folder = (folder or default_folder()) / "engines"

    def load(self, key: EngineKey) -> bytes | None:
        """The plan for a key; None if there is none, or one that is damaged or cannot be read (said in the log).

        Raises EngineError ENGINE_CACHE_UNSAFE.
        """
        try:
            with self._opened() as folder:
                _, sidecar = _sidecar(folder, key.digest)
                return None if "refused" in sidecar else _plan(folder, key.digest, sidecar)
        except FileNotFoundError:
            return None
        except (_Damaged, OSError) as problem:
            _log.warning("engine %s in %s is not loaded: %s", key.digest[:12], self.folder, problem)
            return None

    def store(self, key: EngineKey, plan: bytes, details: dict[str, Any]) -> None:
        """Add an engine, or replace the one of the same key; call it while `locked`.

        Raises EngineError ENGINE_CACHE_UNSAFE, ENGINE_NOT_KEPT, ENGINE_BUILD_FAILED if it is too large.
        """
        if len(plan) > MAX_PLAN_BYTES:
            raise EngineError("ENGINE_BUILD_FAILED", f"the engine is larger than {MAX_PLAN_BYTES >> 20} MiB")
        sidecar = _described(key, details) | {"bytes": len(plan), "sha256": hashlib.sha256(plan).hexdigest()}
        with self._kept(), self._opened() as folder:
            self._write(folder, key.digest + ".engine", MAGIC + plan)
            # The sidecar last: an engine without one does not exist.
            self._write(folder, key.digest + ".json", json.dumps(sidecar, indent=1).encode())

    def refuse(self, key: EngineKey, why: str, details: dict[str, Any]) -> None:
        """Remember, in place of an engine, why its check refused it; call it while `locked`.

        Raises EngineError ENGINE_CACHE_UNSAFE, ENGINE_NOT_KEPT.
        """
        # Another version of sam3d_ros may build or check it in another way.
        sidecar = _described(key, details) | {"refused": why, "sam3d_ros": __version__}
        with self._kept(), self._opened() as folder:
            self._write(folder, key.digest + ".json", json.dumps(sidecar, indent=1).encode())
            with contextlib.suppress(FileNotFoundError):
                os.unlink(key.digest + ".engine", dir_fd=folder)

    def refusal(self, key: EngineKey) -> str:
        """Why this version of sam3d_ros refused the engine of a key; empty if it did not.

        Raises EngineError ENGINE_CACHE_UNSAFE.
        """
        try:
            with self._opened() as folder:
                _, sidecar = _sidecar(folder, key.digest)
        except (_Damaged, OSError):
            return ""
        return str(sidecar.get("refused", "")) if sidecar.get("sam3d_ros") == __version__ else ""

    def read_note(self, name: str) -> bytes:
        """What was kept beside the engines under this name; empty if there is nothing that can be read.

        Raises EngineError ENGINE_CACHE_UNSAFE.
        """
        try:
            with self._opened() as folder:
                return _read(folder, name, MAX_NOTE_BYTES)
        except (_Damaged, OSError):
            return b""

    def write_note(self, name: str, data: bytes) -> None:
        """Keep something beside the engines: a timing cache, a measurement.

        Raises EngineError ENGINE_CACHE_UNSAFE, ENGINE_NOT_KEPT.
        """
        with self._kept(), self._opened() as folder:
            try:
                self._write(folder, name, data)
            except FileNotFoundError:
                # Not under the lock, which a build holds for minutes: who took it just now deleted the temporary file.
                self._write(folder, name, data)

    @contextlib.contextmanager
    def locked(self, on_wait: Callable[[], None] = lambda: None, required: bool = False) -> Iterator[None]:
        """Hold the cache against other processes; on_wait is called again and again while one of them has it.

        A cache that cannot be written is not held (said in the log), unless that is required.
        Raises EngineError ENGINE_CACHE_UNSAFE; ENGINE_NOT_KEPT if it cannot be written and is required.
        """
        with contextlib.ExitStack() as held:
            try:
                with self._kept():
                    folder = held.enter_context(self._opened())
                    lock = _open_lock(folder)
                    held.callback(os.close, lock)
            except EngineError as error:
                if required or error.reason != "ENGINE_NOT_KEPT":
                    raise
                _log.warning("the engine cache is not held against other processes: %s", error.detail)
            else:
                while not _try_lock(lock):
                    on_wait()
                    time.sleep(_LOCK_POLL_S)
                _remove_temporary(folder)
            yield

    def entries(self) -> list[Entry]:
        """All engines, each of them read and checked.

        Raises EngineError ENGINE_CACHE_UNSAFE; OSError if the folder cannot be made or read.
        """
        with self._opened() as folder:
            names = sorted({name[:64] for name in os.listdir(folder) if _ENGINE_FILE.fullmatch(name)})
            return [self._entry(folder, name) for name in names]

    def remove(self, wanted: Callable[[Entry], bool] | None = None,
               on_wait: Callable[[], None] = lambda: None) -> list[Entry]:
        """Delete the engines that are wanted, or, if None, all of them and the libraries' timing caches; returns the
        engines deleted.  on_wait: as `locked` has it.

        Raises EngineError ENGINE_CACHE_UNSAFE, OSError.
        """
        with self.locked(on_wait), self._opened() as folder:
            removed = [entry for entry in self.entries() if wanted is None or wanted(entry)]
            names = [entry.name + suffix for entry in removed for suffix in (".json", ".engine", ".kernels")]
            if wanted is None:
                names += [name for name in os.listdir(folder) if name.endswith(".timing")]
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=folder)
            return removed

    def _entry(self, folder: int, name: str) -> Entry:
        try:
            key, sidecar = _sidecar(folder, name)
            if "refused" in sidecar:
                return Entry(name, key, sidecar, 0, str(sidecar["refused"]))
            return Entry(name, key, sidecar, len(_plan(folder, name, sidecar)), "")
        except FileNotFoundError as error:
            return Entry(name, None, {}, 0, f"{error.filename} is missing")
        except _Damaged as damage:
            return Entry(name, None, {}, 0, str(damage))
        except EngineError as error:
            return Entry(name, None, {}, 0, error.detail)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        """Descriptor of the folder, which is this user's alone.

        Raises EngineError ENGINE_CACHE_UNSAFE; OSError if the folder is not there and cannot be made.
        """
        if self.folder.parts[0] == "~":
            raise FileNotFoundError(errno.ENOENT, "this user has no home folder: set SAM3D_CACHE", str(self.folder))
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            self.folder.mkdir(mode=0o700)
        try:
            folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise EngineError("ENGINE_CACHE_UNSAFE", f"{self.folder}: {_reason(error)}") from error
        try:
            state = os.fstat(folder)
            if state.st_uid != os.geteuid():
                raise EngineError("ENGINE_CACHE_UNSAFE", f"{self.folder} belongs to user {state.st_uid}")
            if state.st_mode & 0o077:
                raise EngineError("ENGINE_CACHE_UNSAFE", f"{self.folder} is open to others (mode "
                                                         f"{stat.S_IMODE(state.st_mode):04o}): chmod 700")
            yield folder
        finally:
            os.close(folder)

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """What is written within is there at the next start.  Raises EngineError ENGINE_NOT_KEPT for OSError."""
        try:
            yield
        except OSError as error:
            raise EngineError("ENGINE_NOT_KEPT", f"{self.folder}: {error.strerror or error}") from error

    def _write(self, folder: int, name: str, data: bytes) -> None:
        # Not named after the process: in a container a killed one and its successor have the same number.
        temporary = f".{name}.{secrets.token_hex(8)}.tmp"
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600,
                       dir_fd=folder)
        try:
            with os.fdopen(file, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):        # as `write_note` has it
                os.unlink(temporary, dir_fd=folder)
            raise
        os.fsync(folder)


def _read(folder: int, name: str, limit: int) -> bytes:
    """A file of the folder, if it is this user's alone.  Raises FileNotFoundError, _Damaged, EngineError."""
    try:
        # Not blocking: a named pipe would otherwise wait for a writer.
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise EngineError("ENGINE_CACHE_UNSAFE", f"{name}: {_reason(error)}") from error
    try:
        state = os.fstat(file)
        if not stat.S_ISREG(state.st_mode):
            raise EngineError("ENGINE_CACHE_UNSAFE", f"{name} is not a plain file")
        if state.st_uid != os.geteuid():
            raise EngineError("ENGINE_CACHE_UNSAFE", f"{name} belongs to user {state.st_uid}")
        if state.st_mode & 0o022:
            raise EngineError("ENGINE_CACHE_UNSAFE", f"{name} can be written by others (mode "
                                                     f"{stat.S_IMODE(state.st_mode):04o})")
        if state.st_size > limit:
            raise _Damaged(f"it has {state.st_size} bytes, more than the {limit} allowed")
        with os.fdopen(file, "rb", closefd=False) as stream:
            return stream.read(state.st_size)       # not `limit`, which would ask for as much memory
    finally:
        os.close(file)


def _described(key: EngineKey, details: dict[str, Any]) -> dict[str, Any]:
    """What the sidecar of any engine says."""
    return {"key": dataclasses.asdict(key), "built": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **details}


def _sidecar(folder: int, name: str) -> tuple[EngineKey, dict[str, Any]]:
    """The key of the engine of this name, and what else its sidecar says.

    Raises FileNotFoundError, _Damaged, EngineError.
    """
    try:
        sidecar = json.loads(_read(folder, name + ".json", MAX_DETAILS_BYTES))
    except (ValueError, RecursionError) as error:
        raise _Damaged(f"its sidecar is not JSON: {error}") from error
    if not isinstance(sidecar, dict):
        raise _Damaged("its sidecar is not a JSON object")
    try:
        key = EngineKey(**sidecar.pop("key"))
        built_for = key.digest
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise _Damaged(f"its sidecar is not complete: {error!r}") from error
    if built_for != name:
        raise _Damaged("it was built for something else")
    return key, sidecar


def _plan(folder: int, name: str, sidecar: dict[str, Any]) -> bytes:
    """The plan of this name, which is what its sidecar says.  Raises FileNotFoundError, _Damaged, EngineError."""
    try:
        size, digest = int(sidecar["bytes"]), str(sidecar["sha256"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _Damaged(f"its sidecar is not complete: {error!r}") from error
    data = _read(folder, name + ".engine", MAX_PLAN_BYTES + len(MAGIC))
    if not data.startswith(MAGIC):
        raise _Damaged("it was not written by sam3d_ros")
    plan = data[len(MAGIC):]
    if len(plan) != size:
        raise _Damaged(f"it has {len(plan)} bytes instead of {size}")
    if hashlib.sha256(plan).hexdigest() != digest:
        raise _Damaged("its SHA-256 is not that of the engine that was built")
    return plan


def _reason(error: OSError) -> str:
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return "it is a symbolic link, or not a folder"
    return os.strerror(error.errno)


def _open_lock(folder: int) -> int:
    """Raises EngineError ENGINE_CACHE_UNSAFE if it is a link; OSError."""
    try:
        return os.open("lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise EngineError("ENGINE_CACHE_UNSAFE", f"lock: {_reason(error)}") from error
        raise


def _try_lock(file: int) -> bool:
    """False while another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:        # a file system without locks, as some network ones
        _log.warning("the engine cache is not held against other processes: %s", error)
    return True


def _remove_temporary(folder: int) -> None:
    """Delete what processes left that were killed while they wrote."""
    for name in os.listdir(folder):
        if name.endswith(".tmp"):
            # Notes are written without the lock: it may just have been renamed.
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=folder)
