"""Networks in 8-bit integers: faster on CPUs, at the price of other vectors.

Static quantization of ONNX Runtime: signed weights with a scale for each channel, unsigned activations with ranges from made
crops, so that no photo is needed. Dynamic quantization was slower than float32 for every network here.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

# Count up when a change here changes the networks that come out: it is in the version of their vectors.
RECIPE = 1
CALIBRATION_CROPS = 64


def quantize(network: Path | bytes, batches: Iterator[dict[str, NDArray[np.float32]]], marks: dict[str, str]) -> bytes:
    """The float32 ONNX network (a file or its content) in 8 bits, as the content of an ONNX file.

    batches: inputs by name, over which the ranges of the activations are taken. marks: metadata to keep in the file.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return next(batches, None)

    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        original, folded, small = folder / "original.onnx", folder / "folded.onnx", folder / "int8.onnx"
        original.write_bytes(network if isinstance(network, bytes) else network.read_bytes())
        # Normalisations become part of the convolutions, which makes FaceNet's 8 bits half as fast again. Shapes need no
        # symbols here, and what infers them is in another package.
        quant_pre_process(str(original), str(folded), skip_symbolic_shape=True)
        quantize_static(
            str(folded),
            str(small),
            Reader(),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            # 7 of 8 bits: without VNNI a CPU adds two products in 16 bits, which would overflow.
            reduce_range=True,
        )
        model = onnx.load(str(small))
    onnx.helper.set_model_props(model, marks)
    return model.SerializeToString()
