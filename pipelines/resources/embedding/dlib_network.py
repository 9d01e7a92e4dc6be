"""dlib's face recognition network as an ONNX graph, so that it runs in batches; dlib itself takes crops one by one.

The network is the ResNet of dlib's example `dnn_face_recognition_ex.cpp` (Davis King; after He et al., "Deep Residual
Learning for Image Recognition", 2016): a 7x7 convolution, five stages of residual blocks, a linear layer to 128.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import WeightsError
from pipelines.resources.embedding.onnx_graph import GraphBuilder

_SIZE, _DIMENSION = 150, 128
# Channels, number of blocks, and whether the first block halves height and width.
_STAGES = ((32, 3, False), (64, 4, True), (128, 3, True), (256, 3, True), (256, 1, True))
_MEAN_RGB = np.array([122.782, 117.001, 104.298], np.float32)


class _Convolution(NamedTuple):
    weight: NDArray[np.float32]  # (out, in, k, k)
    bias: NDArray[np.float32]  # (out,)


def dlib_onnx(weights: Path) -> bytes:
    """The network of dlib's `dlib_face_recognition_resnet_model_v1.dat` as a serialised ONNX model.

    It takes what DeepFace feeds its networks, (n, 150, 150, 3) float32 BGR in [0, 1], and like DeepFace's Dlib client
    turns that into whole numbers first. Raises WeightsError where the file does not hold this network.
    """
    in_order, linear = _read(weights)
    convolutions = iter(in_order)
    graph = GraphBuilder()

    pixels = graph.add("Floor", [graph.add("Mul", ["images", graph.constant(np.array([255.0]))])])
    rgb = graph.add("Gather", [pixels, graph.constant(np.array([2, 1, 0]))], axis=3)
    centred = graph.add("Sub", [rgb, graph.constant(_MEAN_RGB)])
    scaled = graph.add("Div", [centred, graph.constant(np.array([256.0]))])
    x = graph.add("Transpose", [scaled], perm=[0, 3, 1, 2])

    x = _relu(graph, _convolve(graph, x, next(convolutions), stride=2))
    x = graph.add("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2])
    height, channels = 35, 32
    for stage_channels, blocks, halves in _STAGES:
        for block in range(blocks):
            down = halves and block == 0
            y = _relu(graph, _convolve(graph, x, next(convolutions), stride=2 if down else 1))
            y = _convolve(graph, y, next(convolutions))
            if down:
                x = graph.add("AveragePool", [x], kernel_shape=[2, 2], strides=[2, 2])
                y_height, height = (height - 3) // 2 + 1, height // 2
                # dlib adds tensors of unlike shape as if the smaller one went on with zeros.
                y = _zero_pad(graph, y, 0, height - y_height)
                x = _zero_pad(graph, x, stage_channels - channels, 0)
            x = _relu(graph, graph.add("Add", [x, y]))
        channels = stage_channels
    pooled = graph.add("Flatten", [graph.add("GlobalAveragePool", [x])])
    output = graph.add("MatMul", [pooled, graph.constant(linear)])
    return graph.model(output, _SIZE, _DIMENSION, metadata={}).SerializeToString()


def _convolve(graph: GraphBuilder, x: str, convolution: _Convolution, stride: int = 1) -> str:
    kernel = convolution.weight.shape[2]
    # dlib pads a convolution only where its stride is 1.
    padding = kernel // 2 if stride == 1 else 0
    inputs = [x, graph.constant(convolution.weight), graph.constant(convolution.bias)]
    return graph.add("Conv", inputs, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[padding] * 4)


def _relu(graph: GraphBuilder, x: str) -> str:
    return graph.add("Relu", [x])


def _zero_pad(graph: GraphBuilder, x: str, channels: int, pixels: int) -> str:
    """Zero channels at the end, zero pixels at the right and below."""
    if not channels and not pixels:
        return x
    return graph.add("Pad", [x, graph.constant(np.array([0, 0, 0, 0, 0, channels, pixels, pixels]))])


def _read(path: Path) -> tuple[list[_Convolution], NDArray[np.float32]]:
    """The convolutions in forward order, the affine layer after each folded in, and the (256, 128) matrix at the end.

    dlib writes a layer's parameters as one float32 tensor after a header of five packed whole numbers: version 2,
    samples, channels, rows, columns. A convolution's tensor holds filters then biases, an affine one's scales then
    shifts. The shapes are known from the architecture, so each header is searched for after the end of the tensor
    before it.
    """
    data = path.read_bytes()
    position = 0

    def tensor(samples: int, channels: int = 1) -> NDArray[np.float32]:
        nonlocal position
        header = b"".join(_packed(number) for number in (2, samples, channels, 1, 1))
        found = data.find(header, position)
        start, position = found + len(header), found + len(header) + 4 * samples * channels
        if found < 0 or position > len(data):
            raise WeightsError(
                f"{path} does not hold dlib's face recognition network: `attendansee models add dlib FILE`."
            )
        return np.frombuffer(data, "<f4", samples * channels, start)

    def convolution(outputs: int, inputs: int, kernel: int) -> _Convolution:
        parameters = tensor(outputs * inputs * kernel * kernel + outputs)
        scale, shift = np.split(tensor(2 * outputs), 2)
        weight = parameters[:-outputs].reshape(outputs, inputs, kernel, kernel)
        return _Convolution(weight * scale[:, None, None, None], parameters[-outputs:] * scale + shift)

    convolutions = [convolution(32, 3, 7)]
    channels = 32
    for stage_channels, blocks, _ in _STAGES:
        for _block in range(blocks):
            convolutions += [convolution(stage_channels, channels, 3), convolution(stage_channels, stage_channels, 3)]
            channels = stage_channels
    return convolutions, tensor(256, _DIMENSION).reshape(256, _DIMENSION)


def _packed(number: int) -> bytes:
    """A whole number as dlib writes it: how many bytes, then the bytes, lowest first."""
    size = (number.bit_length() + 7) // 8
    return bytes([size]) + number.to_bytes(size, "little")
