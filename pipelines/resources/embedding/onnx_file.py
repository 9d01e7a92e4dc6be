"""Trying out an ONNX file that somebody brings, before it becomes a model: what it takes, what it gives."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from pydantic import ValidationError

from pipelines.errors import ModelError
from pipelines.resources.embedding.definition import ModelDefinition, plain_reason
from pipelines.resources.embedding.made_crops import made_crops
from pipelines.resources.embedding.onnx_runtime import onnx_engine, onnx_session
from pipelines.resources.embedding.preprocessing import Channels, CropPolicy, Layout, Normalization

_CROPS = 4
# Vectors of one crop, alone and among others.
_LEAST_COSINE = 0.9999


def read_onnx_model(
    name: str,
    file: Path,
    *,
    dimension: int,
    normalization: Normalization,
    threshold: float,
    crop: CropPolicy = "five_point_arcface",
    channels: Channels = "RGB",
    layout: Layout | None = None,
    input_size: int | None = None,
    output: str | None = None,
    licence: str = "not stated",
) -> tuple[ModelDefinition, bytes]:
    """The definition of a model that an ONNX file is to become, and the file's content; made crops have gone through it.

    See `ModelDefinition` for the parameters. layout and input_size are needed where the file leaves them open. Raises
    ModelError with the reason where the file, or what is said of it, cannot be used.
    """
    try:
        network = file.read_bytes()
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {plain_reason(error)}.") from error
    _check_content(file, network)
    try:
        session = onnx_session(network)
    except Exception as error:  # noqa: BLE001 (ONNX Runtime has a class of its own for each way to fail)
        _refuse(file, f"ONNX Runtime cannot load it, {plain_reason(error)}")
    shape = _image_shape(file, session)
    layout = _layout(file, shape, layout)
    try:
        definition = ModelDefinition(
            file=f"{name}.onnx",
            sha256=hashlib.sha256(network).hexdigest(),
            dimension=dimension,
            input_size=_side(file, shape, layout, input_size),
            channels=channels,
            layout=layout,
            normalization=normalization,
            output=_output(file, session, output),
            crop=crop,
            threshold=threshold,
            licence=licence,
        )
    except ValidationError as error:
        raise ModelError(f"The model {name!r} cannot be defined so: {plain_reason(error)}.") from error
    one_by_one = _try(file, session, definition, fixed=shape[0] == 1)
    return definition.model_copy(update={"one_by_one": one_by_one}), network


def _refuse(file: Path, reason: str) -> NoReturn:
    raise ModelError(f"{file} cannot be used: {reason}.")


def _check_content(file: Path, network: bytes) -> None:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped] # it ships no types

    try:
        graph = onnx.load_model_from_string(network).graph
    except DecodeError:
        _refuse(file, "it is not an ONNX file")
    if not graph.node:
        _refuse(file, "it is not an ONNX file, or has no network in it")
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in graph.initializer):
        _refuse(file, "its weights lie in another file; save it as one (onnx.save_model does, once it is loaded)")


def _image_shape(file: Path, session: Any) -> Sequence[int | str | None]:
    """The shape of the network's one input: four numbers, or names where it is open."""
    inputs = session.get_inputs()
    if len(inputs) != 1:
        names = ", ".join(one.name for one in inputs) or "none"
        _refuse(file, f"it has {len(inputs)} inputs ({names}), where a face model has one, the image")
    (image,) = inputs
    if image.type != "tensor(float)":
        _refuse(file, f"its input {image.name} is {image.type}; export it with 32-bit floats, tensor(float)")
    if len(image.shape) != 4:
        _refuse(file, f"its input {image.name} has {len(image.shape)} dimensions {image.shape}, where images have 4")
    batch = image.shape[0]
    if isinstance(batch, int) and batch > 1:
        _refuse(file, f"it takes batches of {batch} crops only; export it for any number of crops, or for one")
    return image.shape


def _layout(file: Path, shape: Sequence[int | str | None], stated: Layout | None) -> Layout:
    places: dict[Layout, int] = {"NCHW": 1, "NHWC": 3}
    open_ones = [layout for layout, place in places.items() if not isinstance(shape[place], int)]
    fitting = [layout for layout, place in places.items() if shape[place] == 3] or open_ones
    if stated is not None:
        if stated not in fitting:
            _refuse(file, f"it takes images of shape {list(shape)}, which is not {stated} with 3 colours")
        return stated
    if not fitting:
        _refuse(file, f"it takes images of shape {list(shape)}, of which neither the second nor the last is 3 colours")
    if len(fitting) == 2:
        _refuse(file, f"it takes images of shape {list(shape)}, which leaves open where the colours are; give --layout")
    return fitting[0]


def _side(file: Path, shape: Sequence[int | str | None], layout: Layout, stated: int | None) -> int:
    sides = shape[2:4] if layout == "NCHW" else shape[1:3]
    fixed = {side for side in sides if isinstance(side, int)}
    if len(fixed) == 2:
        _refuse(file, f"it takes images of {sides[1]} x {sides[0]} pixels, and crops are square")
    if not fixed and stated is None:
        _refuse(file, "it takes images of any size; give --input, the side of the crops it was trained with")
    if fixed and stated is not None and fixed != {stated}:
        _refuse(file, f"it takes images of {fixed.pop()} pixels a side, not {stated}")
    return stated or int(fixed.pop())


def _output(file: Path, session: Any, stated: str | None) -> str | None:
    names = [one.name for one in session.get_outputs()]
    if stated is not None and stated not in names:
        _refuse(file, f"it has no output {stated!r}; there is {', '.join(names)}")
    if stated is None and len(names) > 1:
        _refuse(file, f"it has {len(names)} outputs ({', '.join(names)}); say with --output which is the vector")
    return stated if len(names) > 1 else None


def _try(file: Path, session: Any, definition: ModelDefinition, *, fixed: bool) -> bool:
    """Run made crops through the network; returns whether it takes them one by one only, as `fixed` ones do."""
    crops = made_crops(_CROPS, definition.input_size, seed=2)
    images = np.stack([definition.preprocessing.image(crop, definition.input_size) for crop in crops])
    alone = onnx_engine(session, definition.output, one_by_one=True)
    try:
        vectors, again = alone(images), alone(images)
    except Exception as error:  # noqa: BLE001 (as above)
        _refuse(file, f"it fails on a crop, {plain_reason(error)}")
    if vectors.shape[1] != definition.dimension:
        _refuse(file, f"it gives {vectors.shape[1]} numbers for a crop, not {definition.dimension}")
    if not np.isfinite(vectors).all():
        _refuse(file, "it gives numbers that are not finite; is the normalization right?")
    if not vectors.any(axis=1).all():
        _refuse(file, "it gives a vector of zeros; is the normalization right?")
    if not np.ptp(vectors, axis=0).any():
        _refuse(file, "it gives the same vector for every crop")
    if not _agree(vectors, again):
        _refuse(file, "it gives another vector each time for the same crop; export it for inference, not for training")
    if fixed:
        return True
    try:
        together = onnx_engine(session, definition.output)(images)
    except Exception:  # noqa: BLE001 (a network that says it takes any number and has 1 written in somewhere)
        return True
    return together.shape != vectors.shape or not _agree(vectors, together)


def _agree(a: np.ndarray, b: np.ndarray) -> bool:
    cosines = np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return bool((cosines >= _LEAST_COSINE).all())
