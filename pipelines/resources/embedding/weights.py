"""Weights files: where they are, whether they are the published ones, and how they get there.

Those of the built-in models lie in DeepFace's own folder (`Settings.weights_folder`), so that DeepFace called by hand
reads the same; those that people have added lie beside their definition.
"""

import hashlib
import logging
import os
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pipelines.errors import WeightsError
from pipelines.resources.embedding.definition import models_folder
from pipelines.resources.embedding.files import replacing
from pipelines.resources.embedding.registry import ModelSpec, get_spec
from pipelines.settings import Settings

# DeepFace keeps these addresses beside its TensorFlow code; reading them there would import TensorFlow.
_DOWNLOADS = (
    "https://github.com/serengil/deepface_models/releases/download/v1.0/",
    "https://huggingface.co/serengil/deepface/resolve/main/",
)


@dataclass(frozen=True)
class WeightsStatus:
    """What is known of a model's weights file.

    path: where the file is, or where it is looked for. sha256: of the file as it is, None where there is none.
    state: `verified` (the published file, or the one that was added), `mismatch` (another file) or `missing`.
    """

    name: str
    path: Path
    sha256: str | None
    state: Literal["verified", "mismatch", "missing"]


def weights_status(spec: ModelSpec, settings: Settings) -> WeightsStatus:
    """Where the model's weights are and whether they are the right ones; changes nothing.

    DeepFace's folder goes first, as DeepFace itself looks there; then the installed package that ships the file.
    """
    path = _folder(spec, settings) / spec.weights_file
    packaged = _packaged_file(spec)
    if not path.is_file() and packaged is not None:
        path = packaged
    if not path.is_file():
        return WeightsStatus(spec.name, path, None, "missing")
    sha256 = _file_sha256(path)
    return WeightsStatus(spec.name, path, sha256, "verified" if sha256 == spec.weights_sha256 else "mismatch")


def require_weights(spec: ModelSpec, settings: Settings) -> WeightsStatus:
    """The weights of a model that is about to run, in their folder (a packaged file is copied there).

    Raises WeightsError, naming file, place and command, where they are missing, or where they are not the published
    ones and `Settings.allow_unverified_weights` is off. There is no fallback to another model. A file that was added is
    refused in any case once it has changed: nobody has tried the new one.
    """
    status = weights_status(spec, settings)
    if spec.framework == "onnx" and status.state != "verified":
        what = "is missing" if status.state == "missing" else f"has changed (its sha256 is {status.sha256} now)"
        raise WeightsError(
            f"The file {status.path} of the model {spec.name!r} {what}: put back the one that was added, or add the new "
            "one under another name with `attendansee models add-onnx`."
        )
    if status.state == "missing":
        raise WeightsError(
            f"The weights of the model {spec.name!r} are missing ({status.path}): run `attendansee models fetch "
            f"{spec.name}`, or without internet `attendansee models add {spec.name} FILE` with {spec.weights_file}."
        )
    if status.state == "mismatch" and not settings.allow_unverified_weights:
        raise WeightsError(f"{_not_published(spec, status.path, status.sha256)}: {_remedy(spec)}")
    if status.path.parent != _folder(spec, settings):
        return _install(spec, status.path, settings)
    return status


def add_weights(name: str, file: Path, settings: Settings) -> WeightsStatus:
    """Takes a weights file for a machine without internet: verified, then copied in one step into DeepFace's folder.

    Raises WeightsError where the file cannot be read or is not the published one (see `require_weights`); what was
    there before then stays.
    """
    return _install(get_spec(name), file, settings)


def fetch_weights(name: str, settings: Settings) -> WeightsStatus:
    """Lets DeepFace download the weights into its folder, unless the right ones are there, and verifies them.

    Raises WeightsError where they cannot be had; a file that is not the published one is removed.
    """
    spec = get_spec(name)
    if spec.weights_package is not None:
        return require_weights(spec, settings)
    path = settings.weights_folder / spec.weights_file
    if weights_status(spec, settings).state == "mismatch" and not settings.allow_unverified_weights:
        path.unlink()  # such as the part of a download that was cut off: DeepFace would take it for the whole

    # Its log lines of each failing source would stand above the one sentence that helps.
    os.environ.setdefault("DEEPFACE_LOG_LEVEL", str(logging.ERROR))
    from deepface.commons import weight_utils

    os.environ["DEEPFACE_HOME"] = str(settings.deepface_folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        weight_utils.download_weights_if_necessary(spec.weights_file, [url + spec.weights_file for url in _DOWNLOADS])
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{spec.weights_file} cannot be downloaded to {path.parent} ({type(error.__cause__ or error).__name__}): get "
            f"the file on another machine and run `attendansee models add {spec.name} FILE`."
        ) from error
    status = weights_status(spec, settings)
    if status.state == "mismatch" and not settings.allow_unverified_weights:
        path.unlink()
        raise WeightsError(f"{_not_published(spec, path, status.sha256)} and was removed: {_remedy(spec)}")
    return status


def _folder(spec: ModelSpec, settings: Settings) -> Path:
    return models_folder(settings.home) if spec.framework == "onnx" else settings.weights_folder


def _install(spec: ModelSpec, file: Path, settings: Settings) -> WeightsStatus:
    target = settings.weights_folder / spec.weights_file
    digest = hashlib.sha256()
    try:
        with file.open("rb") as source, replacing(target) as copy:
            while chunk := source.read(1 << 20):
                digest.update(chunk)
                copy.write(chunk)
            if digest.hexdigest() != spec.weights_sha256 and not settings.allow_unverified_weights:
                raise WeightsError(f"{_not_published(spec, file, digest.hexdigest())}: {_remedy(spec)}")
    except OSError as error:
        raise WeightsError(f"{file} cannot be copied to {target}: {error}.") from error
    return weights_status(spec, settings)


def _packaged_file(spec: ModelSpec) -> Path | None:
    """The file inside the installed package that ships it.

    The package is found, not imported: `import face_recognition_models` fails where setuptools has no pkg_resources.
    """
    package = find_spec(spec.weights_package) if spec.weights_package else None
    if package is None or package.origin is None:
        return None
    return Path(package.origin).parent / "models" / spec.weights_file


def _file_sha256(path: Path) -> str:
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=32)
def _sha256(path: Path, size: int, modified: int) -> str:  # noqa: ARG001 (size and time make a changed file a new key)
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _not_published(spec: ModelSpec, path: Path, sha256: str | None) -> str:
    return (
        f"{path} is not the published weights file of the model {spec.name!r} "
        f"(its sha256 is {sha256}, not {spec.weights_sha256})"
    )


def _remedy(spec: ModelSpec) -> str:
    return (
        f"run `attendansee models fetch {spec.name}` or `attendansee models add {spec.name} FILE` with the published "
        "file, or set ATTENDANSEE_ALLOW_UNVERIFIED_WEIGHTS=1 to use weights of your own."
    )
