import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from pipelines.errors import ModelError
from pipelines.resources.embedding.registry import REGISTRY, get_spec


def test_an_unknown_model_is_refused_with_the_choices() -> None:
    with pytest.raises(ModelError, match=r"'facenett'.*facenet, arcface, facenet512, dlib"):
        get_spec("facenett")


def test_thresholds_are_those_of_deepface() -> None:
    from deepface.config.threshold import thresholds

    for spec in REGISTRY.values():
        assert spec.verification_threshold == thresholds[spec.deepface_name]["cosine"], spec.name


def test_names_can_be_table_and_group_names() -> None:
    assert all(re.fullmatch("[a-z][a-z0-9_]*", name) for name in REGISTRY)


def client_source(client: str) -> str:
    """The source of the module of a DeepFace class; loading the class would download what is missing."""
    package = find_spec("deepface")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent.parent.joinpath(*client.split(".")[:-1]).with_suffix(".py").read_text()


def test_weights_files_are_the_ones_that_deepface_reads() -> None:
    from deepface.modules.modeling import AVAILABLE_MODELS

    for spec in REGISTRY.values():
        clients = AVAILABLE_MODELS["facial_recognition"][spec.deepface_name]
        assert f'file_name="{spec.weights_file}"' in client_source(clients.get("tensorflow") or clients["any"])
        if spec.onnx_file is not None:
            assert f'file_name="{spec.onnx_file}"' in client_source(clients["onnx"])
