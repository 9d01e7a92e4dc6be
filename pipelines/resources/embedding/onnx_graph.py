"""Writing a network down as an ONNX graph, node by node."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx

# Old enough for every ONNX Runtime in use, new enough for all that the networks here need.
_OPSET, _IR_VERSION = 17, 8


class GraphBuilder:
    """Collects nodes and constants of a network that takes images and gives vectors.

    Tensors go by name. The graph's input is `images`, float32 (n, size, size, 3) as DeepFace's ONNX clients feed it.
    """

    def __init__(self) -> None:
        self._nodes: list[Any] = []
        self._constants: list[Any] = []

    def add(self, operator: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Appends a node with one output and returns the output's name."""
        from onnx import helper

        name = f"{operator}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, value: NDArray[Any]) -> str:
        """Puts a constant into the graph and returns its name; floats become float32."""
        from onnx import numpy_helper

        name = f"constant_{len(self._constants)}"
        array = np.ascontiguousarray(value, np.float32 if value.dtype.kind == "f" else value.dtype)
        self._constants.append(numpy_helper.from_array(array, name))
        return name

    def model(self, output: str, input_size: int, dimension: int, metadata: dict[str, str]) -> "onnx.ModelProto":
        """The checked model whose result is the tensor `output`, float32 (n, dimension)."""
        import onnx
        from onnx import TensorProto, helper

        graph = helper.make_graph(
            self._nodes,
            "embedding",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["n", input_size, input_size, 3])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", dimension])],
            self._constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
        helper.set_model_props(model, metadata)
        onnx.checker.check_model(model, full_check=True)
        return model
