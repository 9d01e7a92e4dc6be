"""A Keras network as an ONNX graph, layer by layer.

tf2onnx does the same in 50 to 110 seconds for the networks here; this takes a few, since it knows only the layers that
they have.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipelines.errors import ModelError
from pipelines.resources.embedding.onnx_graph import GraphBuilder

if TYPE_CHECKING:
    import onnx


def keras_onnx(network: Any, metadata: dict[str, str]) -> "onnx.ModelProto":
    """The Keras 2 functional model `network` (images in, vectors out) with the same input: (n, size, size, 3) float32.

    Between the first and the last layer tensors are channels-first, as ONNX has them. Raises ModelError for a layer
    that is not known here.
    """
    graph = GraphBuilder()
    tensors: dict[str, str] = {}
    for layer in network.layers:
        parents = layer.inbound_nodes[0].inbound_layers
        inputs = [tensors[parent.name] for parent in (parents if isinstance(parents, list) else [parents])]
        tensors[layer.name] = _convert(graph, layer, inputs)
    _, size, _, _ = network.input_shape
    return graph.model(tensors[network.layers[-1].name], size, network.output_shape[1], metadata)


def _convert(graph: GraphBuilder, layer: Any, inputs: list[str]) -> str:  # noqa: PLR0911, PLR0912 (a return a layer)
    weights = layer.get_weights()
    match type(layer).__name__:
        case "InputLayer":
            return graph.add("Transpose", ["images"], perm=[0, 3, 1, 2])
        case "Dropout":
            return inputs[0]
        case "Conv2D":
            kernel, *bias = weights
            constants = [graph.constant(kernel.transpose(3, 2, 0, 1)), *map(graph.constant, bias)]
            convolved = graph.add("Conv", [*inputs, *constants], strides=layer.strides, **_padding(layer))
            return _activate(graph, layer.activation, convolved)
        case "BatchNormalization":
            # Without `scale` Keras keeps no gamma: it is 1. ONNX wants scale, bias, mean, variance.
            beta, mean, variance = weights[-3:]
            gamma = weights[0] if layer.scale else np.ones_like(beta)
            constants = [graph.constant(value) for value in (gamma, beta, mean, variance)]
            return graph.add("BatchNormalization", [*inputs, *constants], epsilon=float(layer.epsilon))
        case "Activation":
            return _activate(graph, layer.activation, inputs[0])
        case "PReLU":
            # x where x > 0, slope * x elsewhere. Not as PRelu, for which ONNX Runtime would leave its fast layout.
            slope = weights[0].ravel()
            positive = _scale_channels(graph, graph.add("Relu", inputs), 1 - slope)
            return graph.add("Add", [_scale_channels(graph, inputs[0], slope), positive])
        case "ZeroPadding2D":
            return inputs[0]  # the convolution after it does the padding
        case "MaxPooling2D" if layer.padding == "valid":
            return graph.add("MaxPool", inputs, kernel_shape=layer.pool_size, strides=layer.strides)
        case "Concatenate":
            return graph.add("Concat", inputs, axis=1)
        case "Add":
            return graph.add("Add", inputs)
        case "Lambda" if set(layer.arguments) == {"scale"}:
            return _scale_channels(graph, inputs[0], np.full(layer.output_shape[-1], float(layer.arguments["scale"])))
        case "GlobalAveragePooling2D":
            return graph.add("Flatten", [graph.add("GlobalAveragePool", inputs)])
        case "Flatten":
            # Keras flattens channels last.
            return graph.add("Flatten", [graph.add("Transpose", inputs, perm=[0, 2, 3, 1])])
        case "Dense":
            kernel, *bias = weights
            product = graph.add("Gemm", [*inputs, graph.constant(kernel), *map(graph.constant, bias)])
            return _activate(graph, layer.activation, product)
        case kind:
            raise ModelError(
                f"The layer {layer.name} ({kind}) cannot be written to ONNX: set ATTENDANSEE_ENGINE=tensorflow."
            )


def _padding(convolution: Any) -> dict[str, Any]:
    """A convolution's padding as ONNX attributes, that of a layer ZeroPadding2D before it included.

    With a node of its own for the padding ONNX Runtime would leave its fast layout.
    """
    before = convolution.inbound_nodes[0].inbound_layers
    if type(before).__name__ != "ZeroPadding2D":
        return {"auto_pad": {"valid": "VALID", "same": "SAME_UPPER"}[convolution.padding]}
    (top, bottom), (left, right) = before.padding
    return {"pads": [top, left, bottom, right]}


def _scale_channels(graph: GraphBuilder, x: str, scale: NDArray[np.floating]) -> str:
    """Each channel times its own number, as a normalisation: ONNX Runtime folds that into a convolution or runs it fast."""
    zeros, ones = graph.constant(np.zeros(len(scale))), graph.constant(np.ones(len(scale)))
    return graph.add("BatchNormalization", [x, graph.constant(scale), zeros, zeros, ones], epsilon=0.0)


def _activate(graph: GraphBuilder, activation: Any, x: str) -> str:
    match activation.__name__:
        case "linear":
            return x
        case "relu":
            return graph.add("Relu", [x])
        case name:
            raise ModelError(f"The activation {name} cannot be written to ONNX: set ATTENDANSEE_ENGINE=tensorflow.")
