"""Random ONNX graphs of the student's signature, made of the operators that a real one is made of."""
from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper

from sam3d_ros.runtime.signature import COARSE, CROP, CROP_CHANNELS, CROP_SPAN, STUDENT, VOLUME, Signature

OPSET = 20                   # the first with GridSample's modes "linear" and "cubic" and 5-D inputs
HALF_EXTENT = 0.27           # of the ball that every graph finds, in edges


class _Graph:
    """Adds nodes and weights one by one; every method returns the name of its result."""

    def __init__(self, seed: int):
        self.nodes, self.weights = [], []
        self.random = np.random.default_rng(seed)

    def constant(self, array, dtype=np.float32) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def __call__(self, operator: str, *inputs: str, name: str = "", **attributes) -> str:
        name = name or f"{operator.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=f"node_{name}", **attributes))
        return name

    def reshape(self, tensor: str, *shape: int) -> str:
        return self("Reshape", tensor, self.constant(shape, np.int64))

    def columns(self, tensor: str, first: int, last: int, axis: int = -1) -> str:
        index = [self.constant([value], np.int64) for value in (first, last, axis)]
        return self("Slice", tensor, *index)

    def convolution(self, tensor: str, inputs: int, outputs: int, kernel: int = 3, stride: int = 1,
                    dimensions: int = 3) -> str:
        shape = (outputs, inputs) + (kernel,) * dimensions
        weight = self.random.normal(size=shape) / np.sqrt(inputs * kernel ** dimensions)
        return self("Conv", tensor, self.constant(weight), self.constant(0.1 * self.random.normal(size=outputs)),
                    kernel_shape=[kernel] * dimensions, strides=[stride] * dimensions,
                    pads=[kernel // 2] * (2 * dimensions))

    def block(self, tensor: str, inputs: int, outputs: int, stride: int = 1) -> str:
        return self("Relu", self.convolution(tensor, inputs, outputs, stride=stride))

    def twice(self, tensor: str) -> str:
        return self("Resize", tensor, "", self.constant([1, 1, 2, 2, 2]), mode="nearest", nearest_mode="floor",
                    coordinate_transformation_mode="asymmetric")


def student_model(width: int = 2, evidence: int = 16, seed: int = 0, signature: Signature = STUDENT) -> ModelProto:
    """A graph that looks up each view's crop at the voxels' projections, fuses the views and runs a 3-D U-Net.

    width: channels at 32^3 (a real student has 32); evidence: voxels along the edge at which crops are looked up (64).
    Its distance is that of a ball, and a tenth of a voxel of what the network makes of the views on top of it.
    """
    g = _Graph(seed)
    n = evidence
    crops = g.reshape("crops", -1, CROP_CHANNELS, CROP, CROP)
    numbers = g.reshape("views", -1, 11)
    features = g("Relu", g.convolution(crops, CROP_CHANNELS, 4, dimensions=2))

    # Points (3, n^3) of the voxels' centres, turned into each view's camera and projected into its crop.
    axis = (np.arange(n) + 0.5) / n - 0.5
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij")).reshape(3, -1)
    rotated = g("MatMul", g.reshape(g.columns(numbers, 0, 9), -1, 3, 3), g.constant(points))
    distance = g("Unsqueeze", g.columns(numbers, 9, 10), g.constant([2], np.int64))
    depth = g("Clip", g("Add", g.columns(rotated, 2, 3, axis=1), distance), g.constant(0.05), g.constant(1e4))
    across = g("Div", g("Mul", g.columns(rotated, 0, 2, axis=1), g("Mul", distance, g.constant(2 / CROP_SPAN))), depth)
    grid = g.reshape(g("Transpose", across, perm=[0, 2, 1]), -1, n * n, n, 2)
    seen = g("GridSample", g.columns(crops, 0, 3, axis=1), grid, mode="nearest", padding_mode="zeros", align_corners=0)
    looked = g("GridSample", features, grid, mode="linear", padding_mode="border", align_corners=0)
    in_front = g("Clip", g("Mul", g("Sub", g.columns(seen, 0, 1, axis=1), g.reshape(rotated, -1, 3, n * n, n)),
                           g.constant(10.0)), g.constant(-1.0), g.constant(1.0))
    volume = g.reshape(g("Concat", in_front, g.columns(seen, 1, 3, axis=1), looked, axis=1), -1, 9, n, n, n)

    # Views of one object: weighted mean and largest.
    count = g("Gather", g("Shape", "crops"), g.constant([0, 1], np.int64), axis=0)
    shape = g("Concat", count, g.constant([9, n, n, n], np.int64), axis=0)
    views = g("Reshape", volume, shape)
    weight = g.reshape("views", 0, 0, 11, 1, 1, 1)
    views = g("Mul", views, g.columns(weight, 10, 11, axis=2))
    axes = g.constant([1], np.int64)
    fused = g("Concat", g("ReduceMax", views, axes, keepdims=0), g("ReduceSum", views, axes, keepdims=0), axis=1)

    # To 32^3: space to depth from 64^3, else nearest upsampling.
    channels = 18
    if n == VOLUME:
        folded = g.reshape(fused, -1, channels, COARSE, 2, COARSE, 2, COARSE, 2)
        folded = g("Transpose", folded, perm=[0, 1, 3, 5, 7, 2, 4, 6])
        channels *= 8
        fused = g.reshape(folded, -1, channels, COARSE, COARSE, COARSE)
    else:
        for _ in range(int(np.log2(COARSE // n))):
            fused = g.twice(fused)
    level0 = g.block(fused, channels, width)
    level1 = g.block(g.block(level0, width, 2 * width, stride=2), 2 * width, 2 * width)
    level2 = g.block(g.block(level1, 2 * width, 4 * width, stride=2), 4 * width, 4 * width)
    level3 = g.block(g.block(level2, 4 * width, 8 * width, stride=2), 8 * width, 8 * width)
    up = g("Add", g.twice(g.convolution(level3, 8 * width, 4 * width, kernel=1)), level2)
    up = g("Add", g.twice(g.convolution(g.block(up, 4 * width, 4 * width), 4 * width, 2 * width, kernel=1)), level1)
    up = g("Add", g.twice(g.convolution(g.block(up, 2 * width, 2 * width), 2 * width, width, kernel=1)), level0)
    up = g.block(up, width, width)

    # Heads.
    fine = g.reshape(g.convolution(up, width, 8, kernel=1), -1, 1, 2, 2, 2, COARSE, COARSE, COARSE)
    fine = g.reshape(g("Transpose", fine, perm=[0, 1, 5, 2, 6, 3, 7, 4]), -1, 1, VOLUME, VOLUME, VOLUME)
    axis = np.arange(VOLUME) + 0.5 - VOLUME / 2
    ball = np.sqrt(sum(a ** 2 for a in np.meshgrid(axis, axis, axis, indexing="ij"))) - HALF_EXTENT * VOLUME
    g("Add", g.constant(ball[None, None]), g("Mul", g("Tanh", fine), g.constant(0.1)), name="distance")
    g("Clip", g.convolution(up, width, 1, kernel=1), g.constant(-3.0), g.constant(3.0), name="log_std")
    g("Sigmoid", g.convolution(up, width, 3, kernel=1), name="colour")
    pooled = g.reshape(g("GlobalAveragePool", level3), -1, 8 * width)
    numbers = g("Gemm", g("Concat", pooled, "support", axis=1),
                g.constant(0.05 * g.random.normal(size=(10, 8 * width + 5))), g.constant(0.1 * np.ones(10)), transB=1)
    g("Add", numbers, g.constant([0, 0, 1, 1, 0, 0, 0, 0, 0, -1.5]), name="layout")

    graph = helper.make_graph(g.nodes, "student", _values(signature.inputs), _values(signature.outputs), g.weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
    checker.check_model(model)
    return model


def student_inputs(batch: int = 1, views: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs of the student's signature: each view looks at the cube from its front."""
    random = np.random.default_rng(seed)
    shapes = STUDENT.input_shapes(batch=batch, views=views)
    crops = random.uniform(size=shapes["crops"]).astype(np.float32)
    crops[:, :, 1:3] = crops[:, :, 1:3] > 0.5
    crops[:, :, 0] -= 0.5
    numbers = np.zeros(shapes["views"], np.float32)
    numbers[..., :9] = np.eye(3, dtype=np.float32).ravel()
    numbers[..., 9], numbers[..., 10] = 4.0, 1.0
    support = np.tile(np.array([0, -1, 0, 0.3, 1], np.float32), (batch, 1))
    return {"crops": crops, "views": numbers, "support": support}


def _values(tensors: dict[str, tuple]) -> list:
    return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in tensors.items()]
