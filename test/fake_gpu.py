"""Stand-ins for the CUDA driver and for TensorRT: the same calls, computed by ONNX Runtime on the processor.

Device memory is a table of buffers, a stream does its work at once or, while it is captured, into a list.
"""
from __future__ import annotations

import ctypes
import sys
import time
import types
import weakref
from enum import IntEnum
from importlib.machinery import ModuleSpec
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime

MAGIC = b"fake plan "
SCRATCH = 1 << 16                   # bytes that a view of an object takes while it is computed
MOST = 16 * 8                       # views of objects, by the profile
OUT_OF_MEMORY, NO_CONTEXT, NOT_SUPPORTED = 2, 201, 801


class FakeCuda:
    """The functions of libcuda that sam3d_ros calls.  `fail`: function -> CUresult that it gives from now on.

    missing: functions that it does not have; memory: bytes of the device; multiprocessors: how many it has; calls: how
    often each function was called
    """

    def __init__(self, name="Fake GPU", capability=(8, 6), driver=12060, memory=8 << 30, multiprocessors=28):
        self.multiprocessors = multiprocessors
        self.name, self.capability, self.driver, self.memory = name, capability, driver, memory
        self.fail: dict[str, int] = {}
        self.missing: set[str] = set()
        self.calls: dict[str, int] = {}
        self.buffers: dict[int, ctypes.Array] = {}
        self.templates: dict[int, list] = {}
        self.graphs: dict[int, list] = {}
        self.captured: list | None = None
        self.streams = 0
        self.current: int | None = None

    def __getattr__(self, function):
        if not function.startswith("cu") or function in self.missing:
            raise AttributeError(function)

        def call(*arguments):
            self.calls[function] = self.calls.get(function, 0) + 1
            if function in self.fail:
                return self.fail[function]
            return getattr(self, "_" + function)(*arguments) or 0

        return call

    @property
    def in_use(self):
        """Whether anything has not been freed, or the context is still that of the thread."""
        return bool(self.buffers or self.templates or self.graphs or self.streams or self.current)

    def submit(self, work):
        """Do work in a stream's order."""
        work() if self.captured is None else self.captured.append(work)

    def _cuInit(self, flags): ...
    def _cuStreamSynchronize(self, stream): ...
    def _cuDevicePrimaryCtxRelease_v2(self, device): ...

    def _cuCtxSetCurrent(self, context):
        self.current = context.value

    def _cuDeviceGet(self, device, index):
        device._obj.value = index.value

    def _cuDeviceGetName(self, text, length, device):
        text.value = self.name.encode()

    def _cuDriverGetVersion(self, version):
        version._obj.value = self.driver

    def _cuDeviceTotalMem_v2(self, memory, device):
        memory._obj.value = self.memory

    def _cuMemGetInfo_v2(self, free, total):
        if not self.current:
            return NO_CONTEXT
        total._obj.value = self.memory
        free._obj.value = self.memory - sum(map(ctypes.sizeof, self.buffers.values()))

    def _cuDeviceGetAttribute(self, value, attribute, device):
        value._obj.value = {75: self.capability[0], 76: self.capability[1], 16: self.multiprocessors}[attribute.value]

    def _cuDevicePrimaryCtxRetain(self, context, device):
        context._obj.value = 1

    def _cuGetErrorName(self, code, text):
        text._obj.value = {OUT_OF_MEMORY: b"CUDA_ERROR_OUT_OF_MEMORY"}.get(code.value)

    def _cuStreamCreate(self, stream, flags):
        self.streams += 1
        stream._obj.value = self.streams

    def _cuStreamDestroy_v2(self, stream):
        self.streams -= 1

    def _allocate(self, pointer, size):
        if sum(map(ctypes.sizeof, self.buffers.values())) + size.value > self.memory:
            return OUT_OF_MEMORY
        buffer = (ctypes.c_char * size.value)()
        self.buffers[ctypes.addressof(buffer)] = buffer
        pointer._obj.value = ctypes.addressof(buffer)

    def _free(self, pointer):
        del self.buffers[pointer.value]

    _cuMemAlloc_v2 = _cuMemAllocHost_v2 = _allocate
    _cuMemFree_v2 = _cuMemFreeHost = _free

    def _copy(self, target, source, size, stream):
        self.submit(lambda: ctypes.memmove(target.value, source.value, size.value))

    _cuMemcpyHtoDAsync_v2 = _cuMemcpyDtoHAsync_v2 = _copy

    def _cuStreamBeginCapture_v2(self, stream, mode):
        self.captured = []

    def _cuStreamEndCapture(self, stream, graph):
        graph._obj.value = len(self.graphs) + 1
        self.templates[graph._obj.value], self.captured = self.captured, None

    def _cuGraphInstantiateWithFlags(self, executable, graph, flags):
        executable._obj.value = graph.value
        self.graphs[graph.value] = self.templates[graph.value]

    def _cuGraphDestroy(self, graph):
        del self.templates[graph.value]

    def _cuGraphExecDestroy(self, executable):
        del self.graphs[executable.value]

    def _cuGraphLaunch(self, graph, stream):
        for work in self.graphs[graph.value]:
            work()


def _called_from_cpp(method, *arguments):
    """A method of Python as the library calls it: what it raises is printed, and cancels a build like False."""
    try:
        return method(*arguments)
    except BaseException as error:
        print("[ERROR] Exception caught:", repr(error), file=sys.stderr)
        return False


def fake_tensorrt(cuda: FakeCuda, name="tensorrt", version="10.3.0"):
    """A module like `tensorrt` (or `tensorrt_rtx`).  Its attributes let it fail:

    parse_error, build_error, load_error, execute_error: what it says then, the last one line by line; no_context;
    no_size: does not tell what memory a context needs; nan: outputs are not numbers; offset: added to the distance;
    half_as_float: claims to compute float16 as float32; step_seconds: each step of a build takes.  builds: how many
    were made; compiled: what TensorRT-RTX has compiled; contexts: weak references to all that were made; freed_in: the
    device's context, None without one, that was current when each of those was freed that have been
    """
    trt = types.ModuleType(name)
    trt.__spec__, trt.__file__, trt.__version__ = ModuleSpec(name, None), f"{name}/__init__.py", version
    trt.parse_error = trt.build_error = trt.load_error = trt.execute_error = ""
    trt.no_context = trt.no_size = trt.nan = trt.half_as_float = False
    trt.offset, trt.builds, trt.step_seconds, trt.compiled, trt.contexts, trt.freed_in = 0.0, 0, 0.0, [], [], []
    made_by = MAGIC + version.encode().ljust(16)
    trt.LayerType = SimpleNamespace(CONVOLUTION="convolution")
    major = int(version.split(".")[0])
    flags = ["EXPLICIT_BATCH"] * (name == "tensorrt" and major < 11) + ["STRONGLY_TYPED"] * (
        name == "tensorrt_rtx" or major >= 9)
    trt.NetworkDefinitionCreationFlag = IntEnum("NetworkDefinitionCreationFlag", flags, start=0)
    # Since 10.10; in TensorRT-RTX from the start, and always on.
    trt.PreviewFeature = SimpleNamespace(PROFILE_SHARING_0806="sharing")
    if name == "tensorrt_rtx" or tuple(map(int, version.split(".")[:2])) >= (10, 10):
        trt.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10 = "resize"
    trt.BuilderFlag = SimpleNamespace(TF32="TF32", REQUIRE_USER_ALLOCATION="REQUIRE_USER_ALLOCATION")
    trt.ProfilingVerbosity = SimpleNamespace(DETAILED="detailed", NONE="none")
    trt.ComputeCapability = SimpleNamespace(SM86="8.6", SM89="8.9", SM120="12.0", CURRENT="here")
    trt.ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user")
    trt.DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO = range(4)

    class IProgressMonitor: ...

    class Network:
        def __init__(self):
            self.model = onnx.ModelProto()

        def read(self, data):
            self.model = onnx.load_model_from_string(data)
            self.layers = [
                SimpleNamespace(type="convolution", get_output=lambda index, name=name: SimpleNamespace(
                    dtype=SimpleNamespace(name=name)))
                for name in ("HALF" if node.input[0].endswith("_half") and not trt.half_as_float else "FLOAT"
                             for node in self.model.graph.node if node.op_type == "Conv")]

        @staticmethod
        def _tensor(value):
            return SimpleNamespace(name=value.name, shape=tuple(
                axis.dim_value if axis.HasField("dim_value") else -1 for axis in value.type.tensor_type.shape.dim))

        num_inputs = property(lambda self: len(self.model.graph.input))
        num_outputs = property(lambda self: len(self.model.graph.output))
        num_layers = property(lambda self: len(self.layers))

        def get_input(self, index):
            return self._tensor(self.model.graph.input[index])

        def get_output(self, index):
            return self._tensor(self.model.graph.output[index])

        def get_layer(self, index):
            return self.layers[index]

    class OnnxParser:
        num_errors = 1

        def __init__(self, network, logger):
            self.network = network

        def parse(self, data):
            if not trt.parse_error:
                self.network.read(data)
            return not trt.parse_error

        def get_error(self, index):
            return SimpleNamespace(desc=lambda: trt.parse_error)

    class Config:
        def __init__(self):
            self.flags, self.capability, self.timing = set(), None, None
            self.resizes = name == "tensorrt_rtx"

        def add_optimization_profile(self, profile):
            self.profile = profile

        def set_flag(self, flag):
            self.flags.add(flag)

        def set_preview_feature(self, feature, on):
            assert feature == "resize" and name == "tensorrt"
            self.resizes = on

        def clear_flag(self, flag):
            assert flag == "TF32"

        def create_timing_cache(self, data):
            if data == b"damaged":
                return None
            return SimpleNamespace(serialize=lambda: data + b"t", fits=not data.startswith(b"other device"))

        def set_timing_cache(self, cache, ignore_mismatch):
            if cache is None:
                raise TypeError("set_timing_cache(): incompatible function arguments")
            self.timing = cache if cache.fits or ignore_mismatch else None
            return self.timing is not None

        def get_timing_cache(self):
            return self.timing

        def set_compute_capability(self, capability, index):
            self.capability = capability

    class Builder:
        def __init__(self, logger):
            if cuda is None:
                logger.log(ILogger.ERROR, "CUDA initialization failure with error: 35")
                raise TypeError("factory function returned nullptr")
            self.logger = logger

        def create_network(self, flags):
            assert flags == 1 << trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
            return Network()

        def create_builder_config(self):
            return Config()

        def create_optimization_profile(self):
            shapes = {}
            return SimpleNamespace(shapes=shapes, set_shape=lambda name, *sizes: shapes.update({name: sizes}))

        def build_serialized_network(self, network, config):
            monitor = config.progress_monitor
            _called_from_cpp(monitor.phase_start, "build", None, 2)
            going_on = _called_from_cpp(monitor.step_complete, "build", 0)
            _called_from_cpp(monitor.phase_start, "kernels", "build", 4)
            for step in range(4):
                if going_on:
                    time.sleep(trt.step_seconds)
                    going_on = _called_from_cpp(monitor.step_complete, "kernels", step)
            _called_from_cpp(monitor.phase_finish, "kernels")
            if not going_on:
                self.logger.log(ILogger.ERROR, "Build canceled by user")
                return None
            if trt.build_error:
                self.logger.log(ILogger.ERROR, trt.build_error)
                return None
            trt.builds += 1
            return made_by + bytes([config.resizes]) + network.model.SerializeToString()

    class Runtime:
        def __init__(self, logger):
            self.logger = logger

        def deserialize_cuda_engine(self, plan):
            if trt.load_error or not plan.startswith(made_by):
                self.logger.log(ILogger.ERROR, trt.load_error or "the plan is of another version")
                return None
            return Engine(plan[len(made_by) + 1:], self.logger, resizes=bool(plan[len(made_by)]))

    class Engine:
        device_memory_size_v2 = MOST * SCRATCH

        def __init__(self, data, logger, resizes):
            options = onnxruntime.SessionOptions()
            options.log_severity_level, options.intra_op_num_threads = 3, 1
            self.session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            self.logger, self.resizes = logger, resizes

        def create_runtime_config(self):
            return trt.RuntimeConfig()

        def create_execution_context(self, strategy):
            if trt.no_context:
                self.logger.log(ILogger.ERROR, "no memory for a context")
                return None
            context = Context(self, strategy)
            trt.contexts.append(weakref.ref(context, lambda reference: trt.freed_in.append(cuda.current)))
            return context

    class RuntimeCache:
        def __init__(self):
            self.compiled = set()

        def serialize(self):
            assert cuda.current
            return " ".join([version, *sorted(self.compiled)]).encode()

        def deserialize(self, data):
            made_by, *compiled = data.decode().split()
            if made_by != version:
                return False
            self.compiled |= set(compiled)
            return True

    class RuntimeConfig:
        kernels = None
        create_runtime_cache = staticmethod(RuntimeCache)

        def set_execution_context_allocation_strategy(self, strategy):
            assert strategy == "user"

        def set_runtime_cache(self, cache):
            self.kernels = cache
            return True

    class Context:
        def __init__(self, engine, strategy):
            self.config = weakref.ref(strategy) if name == "tensorrt_rtx" else None
            self.kernels = getattr(strategy, "kernels", None) or RuntimeCache()
            self.engine, self.shapes, self.addresses, self.scratch = engine, {}, {}, None
            self.scratch_bytes, self.nvtx_verbosity = 0, "detailed"

        def set_input_shape(self, name, shape):
            self.shapes[name] = tuple(shape)
            return True

        def set_tensor_address(self, name, address):
            self.addresses[name] = address

        def update_device_memory_size_for_shapes(self):
            return 0 if trt.no_size else self.needed

        @property
        def needed(self):
            return (int(np.prod(self.shapes["crops"][:2])) if self.engine.resizes else MOST) * SCRATCH

        def set_device_memory(self, address, size):
            assert ctypes.sizeof(cuda.buffers[address]) >= size
            self.scratch, self.scratch_bytes = address, size

        def execute_async_v3(self, stream):
            if trt.execute_error:
                for error in trt.execute_error.splitlines():
                    self.engine.logger.log(ILogger.ERROR, error)
                return False
            assert self.nvtx_verbosity == "none"            # more takes time
            assert self.config is None or self.config() is not None         # it is used, and not kept
            assert self.scratch in cuda.buffers and self.scratch_bytes >= self.needed
            for kernel in ("any", "{}x{}".format(*self.shapes["crops"])):
                if name == "tensorrt_rtx" and kernel not in self.kernels.compiled:
                    trt.compiled.append(kernel)
                    self.kernels.compiled.add(kernel)
            cuda.submit(self._run)
            return True

        def _run(self):
            inputs = {name: self._array(name, shape).copy() for name, shape in self.shapes.items()}
            names = [output.name for output in self.engine.session.get_outputs()]
            for name, value in zip(names, self.engine.session.run(names, inputs), strict=True):
                value = value + trt.offset if name == "distance" else value
                self._array(name, value.shape)[...] = np.nan if trt.nan else value

        def _array(self, name, shape):
            size = int(np.prod(shape))
            return np.frombuffer((ctypes.c_float * size).from_address(self.addresses[name]), np.float32).reshape(shape)

    for item in (ILogger, IProgressMonitor, OnnxParser, Builder, Runtime, RuntimeConfig):
        setattr(trt, item.__name__, item)
    return trt
