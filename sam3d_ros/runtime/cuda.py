"""The few CUDA driver calls that an engine needs, through ctypes: nothing has to be installed beside the driver.

TensorRT works in the device's primary context, and so does this module.
"""
from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_ulonglong, c_void_p
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

LIBRARY = "libcuda.so.1"
# Where the version of the kernel's driver stands: on desktops, on Jetsons.
_VERSION_FILES = (Path("/proc/driver/nvidia/version"), Path("/etc/nv_tegra_release"))
_MAJOR, _MINOR = 75, 76                     # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_MULTIPROCESSORS = 16                       # CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
_NON_BLOCKING = 1                           # CU_STREAM_NON_BLOCKING: not ordered with the default stream
_THREAD_LOCAL = 1                           # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
_NOT_FOUND = 500                            # CUDA_ERROR_NOT_FOUND


class CudaError(RuntimeError):
    """A CUDA call failed, with this CUresult."""

    def __init__(self, call: str, code: int, name: str):
        super().__init__(f"{call}: {name or f'error {code}'}")


def load_driver() -> Any | None:
    """The driver's library; None on a machine without it."""
    try:
        return ctypes.CDLL(LIBRARY)
    except OSError:
        return None


class Device:
    """The first CUDA device.  Memory, streams and graphs are freed by `close`, in the reverse order of their making,
    and with them what else was given to `at_close`.

    name: as "Orin"; capability: (major, minor); multiprocessors: how many, by which alone devices of one name may
    differ: Jetsons from Orin Nano to AGX Orin, and one of them in another power mode; cuda: version that the driver
    offers, as "12.6"; driver: the kernel driver's own version, as its file says it; memory: bytes
    """

    def __init__(self, library: Any):
        self._library = library
        self._undo: list[Callable[[], None]] = []
        self._call("cuInit", c_uint(0))
        handle, context, text, version, memory = c_int(), c_void_p(), ctypes.create_string_buffer(256), c_int(), \
            c_size_t()
        self._call("cuDeviceGet", byref(handle), c_int(0))
        self._call("cuDeviceGetName", text, c_int(len(text)), handle)
        self._call("cuDriverGetVersion", byref(version))
        self._call("cuDeviceTotalMem_v2", byref(memory), handle)
        self.name = text.value.decode()
        self.cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
        self.driver = next((file.read_text().partition("\n")[0] for file in _VERSION_FILES if file.is_file()), "")
        self.capability = (self._attribute(_MAJOR, handle), self._attribute(_MINOR, handle))
        self.multiprocessors = self._attribute(_MULTIPROCESSORS, handle)
        self.memory = memory.value
        self._call("cuDevicePrimaryCtxRetain", byref(context), handle)
        # Last of all: another library that uses CUDA in this thread then takes a context that there still is.
        self._undo.append(partial(self._call, "cuCtxSetCurrent", c_void_p()))
        self._undo.append(partial(self._call, "cuDevicePrimaryCtxRelease_v2", handle))
        self._context = context
        self.make_current()

    def make_current(self) -> None:
        """Let the calling thread use this device; each thread must do so once."""
        self._call("cuCtxSetCurrent", self._context)

    def at_close(self, undo: Callable[[], None]) -> None:
        """Have `close` call this, after it has freed what is made from here on."""
        self._undo.append(undo)

    def close(self) -> None:
        """Free everything.  After a failed kernel the driver refuses that: the rest is freed when the process ends."""
        self._undo.append(self.make_current)
        while self._undo:
            with contextlib.suppress(CudaError):
                self._undo.pop()()

    def memory_in_use(self) -> int:
        """Bytes of the device's memory that all programs together have taken; of a Jetson's, which is the processor's,
        too."""
        free, total = c_size_t(), c_size_t()
        self.make_current()
        self._call("cuMemGetInfo_v2", byref(free), byref(total))
        return total.value - free.value

    def new_stream(self) -> int:
        """Handle of a stream of its own."""
        stream = c_void_p()
        self._call("cuStreamCreate", byref(stream), c_uint(_NON_BLOCKING))
        self._undo.append(partial(self._call, "cuStreamDestroy_v2", stream))
        return stream.value

    def allocate(self, size: int) -> int:
        """Address of `size` bytes on the device."""
        pointer = c_ulonglong()
        self._call("cuMemAlloc_v2", byref(pointer), c_size_t(size))
        self._undo.append(partial(self._call, "cuMemFree_v2", pointer))
        return pointer.value

    def pinned(self, shape: tuple[int, ...]) -> np.ndarray:
        """Float32 array in page-locked memory, which the device reads and writes without the processor's help."""
        pointer, size = c_void_p(), 4 * int(np.prod(shape))
        self._call("cuMemAllocHost_v2", byref(pointer), c_size_t(size))
        self._undo.append(partial(self._call, "cuMemFreeHost", pointer))
        buffer = (ctypes.c_float * (size // 4)).from_address(pointer.value)
        return np.frombuffer(buffer, np.float32).reshape(shape)

    def to_device(self, address: int, array: np.ndarray, stream: int) -> None:
        """Copy a contiguous array to the device, in the stream's order."""
        self._call("cuMemcpyHtoDAsync_v2", c_ulonglong(address), c_void_p(array.ctypes.data), c_size_t(array.nbytes),
                   c_void_p(stream))

    def from_device(self, array: np.ndarray, address: int, stream: int) -> None:
        """Copy from the device into a contiguous array, in the stream's order."""
        self._call("cuMemcpyDtoHAsync_v2", c_void_p(array.ctypes.data), c_ulonglong(address), c_size_t(array.nbytes),
                   c_void_p(stream))

    def synchronise(self, stream: int) -> None:
        """Wait until all work of the stream is done."""
        self._call("cuStreamSynchronize", c_void_p(stream))

    def capture(self, stream: int, work: Callable[[], None]) -> int:
        """Record what `work` puts into the stream, without doing it; handle of a graph for `launch`."""
        graph, executable = c_void_p(), c_void_p()
        self._call("cuStreamBeginCapture_v2", c_void_p(stream), c_int(_THREAD_LOCAL))
        try:
            try:
                work()
            finally:
                self._call("cuStreamEndCapture", c_void_p(stream), byref(graph))
            self._call("cuGraphInstantiateWithFlags", byref(executable), graph, c_ulonglong(0))
        finally:
            if graph:
                self._call("cuGraphDestroy", graph)
        self._undo.append(partial(self._call, "cuGraphExecDestroy", executable))
        return executable.value

    def launch(self, graph: int, stream: int) -> None:
        """Do the work of a captured graph."""
        self._call("cuGraphLaunch", c_void_p(graph), c_void_p(stream))

    def _attribute(self, attribute: int, handle: c_int) -> int:
        value = c_int()
        self._call("cuDeviceGetAttribute", byref(value), c_int(attribute), handle)
        return value.value

    def _call(self, function: str, *arguments: Any) -> None:
        try:
            call = getattr(self._library, function)
        except AttributeError:
            raise CudaError(function, _NOT_FOUND, "this driver is too old to have it") from None
        code = call(*arguments)
        if code:
            text = c_char_p()
            self._library.cuGetErrorName(c_int(code), byref(text))
            raise CudaError(function, code, (text.value or b"").decode())
