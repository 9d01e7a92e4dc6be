"""The embedding models there are. An entry here is all it takes to add one: assets, tables and CLI follow from it.

Verification thresholds are DeepFace's own (its config/threshold.py, cosine); they hold for DeepFace's crops. Those of
`dlib` for clustering and assignment were measured on five-point chips. DeepFace's files are published without hashes:
each one here was recorded alike by at least two unrelated projects that had downloaded the file.
"""

from dataclasses import dataclass
from typing import Literal

from pipelines.errors import ModelError
from pipelines.faces.similarity import calibrated_similarity

CropPolicy = Literal["deepface", "five_point_dlib", "five_point_arcface"]


@dataclass(frozen=True)
class ModelSpec:
    """What is known of an embedding model without loading it.

    dimension: length of its vectors. input_size: side of the square crop it takes, in pixels.
    crop_policy: how its crops are cut from the photo; a threshold is valid for one policy only.
    weights_file: DeepFace's name of the file; weights_package: the installed package that ships it, if any.
    weights_sha256: of the published file. onnx_file: what DeepFace's ONNX engine reads; None where the network is
    built in memory. Distances are cosine distances in [0, 2]: two crops of one person lie below
    `verification_threshold`; `clustering_distance` and `assignment_distance` are the defaults of those stages;
    `review_margin` is how much nearer than the runner-up a match must be to need no review.
    """

    name: str
    deepface_name: str
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

    def calibrated(self, cosine_similarity: float) -> float:
        """The similarity on the scale that people see: 0.5 at the model's own verification threshold."""
        return float(calibrated_similarity(1 - cosine_similarity, self.verification_threshold))


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

REGISTRY: dict[str, ModelSpec] = {spec.name: spec for spec in _SPECS}


def get_spec(name: str) -> ModelSpec:
    """The model of that name; raises ModelError listing the choices."""
    if name not in REGISTRY:
        raise ModelError(f"There is no embedding model {name!r}: choose one of {', '.join(REGISTRY)}.")
    return REGISTRY[name]
