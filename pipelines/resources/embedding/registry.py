"""The embedding models there are: the built-in ones here, and those that people have added in ATTENDANSEE_HOME/models.

Assets, jobs, tables and CLI follow from the registry, which is read once, when a process starts.

Verification thresholds are DeepFace's own (its config/threshold.py, cosine); they hold for DeepFace's crops. Those of
`dlib` for clustering and assignment were measured on five-point chips. DeepFace's files are published without hashes:
each one here was recorded alike by at least two unrelated projects that had downloaded the file.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from pipelines.errors import ModelError
from pipelines.faces.similarity import calibrated_similarity
from pipelines.resources.embedding.definition import ModelDefinition, read_definitions
from pipelines.resources.embedding.preprocessing import DEEPFACE, CropPolicy, Preprocessing
from pipelines.settings import Settings


@dataclass(frozen=True)
class ModelSpec:
    """What is known of an embedding model without loading it.

    framework: what its weights are of; `onnx` for the models that people bring. deepface_name: DeepFace's name of the
    model, None for those. dimension: length of its vectors. input_size: side of the square crop it takes, in pixels.
    crop_policy: how its crops are cut from the photo; a threshold is valid for one policy only.
    weights_file: DeepFace's name of the file; weights_package: the installed package that ships it, if any.
    weights_sha256: of the published file, or of the one that was added. onnx_file: what DeepFace's ONNX engine reads,
    made from a Keras file; None for others. onnx_output: which output is the vector, None for the only one. one_by_one:
    whether the network takes one crop at a time only.

    Distances are cosine distances in [0, 2]: two crops of one person lie below `verification_threshold`;
    `clustering_distance` and `assignment_distance` are the defaults of those stages; `review_margin` is how much nearer
    than the runner-up a match must be to need no review. similarity_slope: of the calibrated scale, per unit of
    distance; None for the scale on which distance 0 has 0.99.
    """

    name: str
    deepface_name: str | None
    dimension: int
    input_size: int
    crop_policy: CropPolicy
    weights_file: str
    weights_sha256: str
    licence: str
    verification_threshold: float
    clustering_distance: float
    assignment_distance: float
    review_margin: float
    onnx_file: str | None = None
    weights_package: str | None = None
    framework: Literal["tensorflow", "dlib", "onnx"] = "tensorflow"
    preprocessing: Preprocessing = DEEPFACE
    onnx_output: str | None = None
    one_by_one: bool = False
    similarity_slope: float | None = None

    @property
    def title(self) -> str:
        """What people call the model."""
        return self.deepface_name or self.name

    def calibrated(self, cosine_similarity: float) -> float:
        """The similarity on the scale that people see: 0.5 at the model's own verification threshold."""
        return float(calibrated_similarity(1 - cosine_similarity, self.verification_threshold, self.similarity_slope))


_SPECS = (
    ModelSpec(
        name="facenet",
        deepface_name="Facenet",
        dimension=128,
        input_size=160,
        crop_policy="deepface",
        weights_file="facenet_weights.h5",
        weights_sha256="90659cc97bfda5999120f95d8e122f4d262cca11715a21e59ba024bcce816d5c",
        onnx_file="facenet_weights.onnx",
        licence=(
            "Converted from davidsandberg/facenet 20170512-110547 (code MIT; no licence for the weights stated). "
            "Trained on MS-Celeb-1M, a set of photos that its makers have withdrawn."
        ),
        verification_threshold=0.40,
        clustering_distance=0.40,
        assignment_distance=0.40,
        review_margin=0.04,
    ),
    ModelSpec(
        name="arcface",
        deepface_name="ArcFace",
        dimension=512,
        input_size=112,
        crop_policy="deepface",
        weights_file="arcface_weights.h5",
        weights_sha256="6336979c0c602cae08d1122a66f4dfb862d059bbcd8ef80306aef2b2249b0c93",
        onnx_file="arcface_weights.onnx",
        licence=(
            "From leondgarse/Keras_insightface (MIT), not InsightFace's own weights, which are for non-commercial "
            "research only. Trained on CASIA-WebFace, a set of photos for research."
        ),
        verification_threshold=0.68,
        clustering_distance=0.68,
        assignment_distance=0.68,
        review_margin=0.07,
    ),
    ModelSpec(
        name="facenet512",
        deepface_name="Facenet512",
        dimension=512,
        input_size=160,
        crop_policy="deepface",
        weights_file="facenet512_weights.h5",
        weights_sha256="3f76b5117a9ca574d536af8199e6720089eb4ad3dc7e93534496d88265de864f",
        onnx_file="facenet512_weights.onnx",
        licence=(
            "Converted from davidsandberg/facenet 20180402-114759 (code MIT; no licence for the weights stated). "
            "Trained on VGGFace2, a set of photos for research."
        ),
        verification_threshold=0.30,
        clustering_distance=0.30,
        assignment_distance=0.30,
        review_margin=0.03,
    ),
    ModelSpec(
        name="dlib",
        deepface_name="Dlib",
        framework="dlib",
        dimension=128,
        input_size=150,
        crop_policy="five_point_dlib",
        weights_file="dlib_face_recognition_resnet_model_v1.dat",
        weights_sha256="55533b28a95800a551ba546ba62fe69625c7e95a7061c338adffead08719da30",
        weights_package="face_recognition_models",
        licence=(
            "CC0 (Davis King, dlib-models). Trained on FaceScrub, the VGG face set and photos from the web, whose own "
            "terms are for research."
        ),
        verification_threshold=0.07,
        clustering_distance=0.06,
        assignment_distance=0.065,
        review_margin=0.01,
    ),
)

BUILT_IN: dict[str, ModelSpec] = {spec.name: spec for spec in _SPECS}


def home_models(home: Path) -> tuple[dict[str, ModelSpec], dict[str, str]]:
    """The models that people have added, and for each one that cannot be used a sentence with the reason, by name."""
    definitions, broken = read_definitions(home)
    broken |= {
        name: f"The model {name!r} in {home / 'models'} is left out, for a built-in one has that name: rename its file."
        for name in definitions.keys() & BUILT_IN.keys()
    }
    return {name: home_spec(name, definitions[name]) for name in definitions if name not in broken}, broken


def home_spec(name: str, definition: ModelDefinition) -> ModelSpec:
    """What a definition says. Its one threshold serves every stage, until `calibrate` knows better."""
    return ModelSpec(
        name=name,
        deepface_name=None,
        framework="onnx",
        dimension=definition.dimension,
        input_size=definition.input_size,
        crop_policy=definition.crop,
        preprocessing=definition.preprocessing,
        weights_file=definition.file,
        weights_sha256=definition.sha256,
        onnx_output=definition.output,
        one_by_one=definition.one_by_one,
        licence=f"Licence: {definition.licence}.",
        verification_threshold=definition.threshold,
        clustering_distance=definition.threshold,
        assignment_distance=definition.threshold,
        review_margin=definition.threshold / 10,  # as the built-in models have it
    )


def _models_of_this_home() -> tuple[dict[str, ModelSpec], dict[str, str]]:
    try:
        home = Settings().home
    except ValidationError:
        # Told in one sentence by whoever asks for the settings next, as every command does; an import cannot.
        return {}, {}
    return home_models(home)


_ADDED, BROKEN = _models_of_this_home()
# One bad file must not keep the others, or the code location, from working.
for _reason in BROKEN.values():
    logging.getLogger(__name__).warning(_reason)

REGISTRY: dict[str, ModelSpec] = BUILT_IN | _ADDED


def get_spec(name: str) -> ModelSpec:
    """The model of that name; raises ModelError listing the choices, or saying why it was left out."""
    if name not in REGISTRY:
        raise ModelError(
            BROKEN.get(name) or f"There is no embedding model {name!r}: choose one of {', '.join(REGISTRY)}."
        )
    return REGISTRY[name]
