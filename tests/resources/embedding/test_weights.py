import functools
import hashlib
import http.server
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.errors import WeightsError
from pipelines.resources.embedding import weights
from pipelines.resources.embedding.registry import REGISTRY, ModelSpec, get_spec
from pipelines.settings import Settings

CONTENT = b"the published weights"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(deepface_home=tmp_path / "deepface home")


@pytest.fixture
def facenet(monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """`facenet` as if CONTENT were its published weights."""
    spec = replace(get_spec("facenet"), weights_sha256=hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setitem(REGISTRY, "facenet", spec)
    return spec


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder served over HTTP in the place of DeepFace's release page."""
    folder = tmp_path / "release"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(weights, "_DOWNLOADS", (f"http://127.0.0.1:{server.server_port}/",))
        yield folder
        server.shutdown()
        thread.join()


def put(spec: ModelSpec, settings: Settings, content: bytes) -> Path:
    path = settings.weights_folder / spec.weights_file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_missing_weights_are_named_with_place_and_command(facenet: ModelSpec, settings: Settings) -> None:
    status = weights.weights_status(facenet, settings)
    assert (status.state, status.sha256) == ("missing", None)
    with pytest.raises(WeightsError) as caught:
        weights.require_weights(facenet, settings)
    for part in (
        "'facenet'",
        str(settings.weights_folder),
        "facenet_weights.h5",
        "models add facenet FILE",
        "models fetch facenet",
    ):
        assert part in str(caught.value)


def test_the_published_file_is_verified(facenet: ModelSpec, settings: Settings) -> None:
    path = put(facenet, settings, CONTENT)
    status = weights.require_weights(facenet, settings)
    assert (status.state, status.path, status.sha256) == ("verified", path, facenet.weights_sha256)


def test_another_file_is_refused_unless_allowed(facenet: ModelSpec, settings: Settings) -> None:
    put(facenet, settings, b"something else")
    with pytest.raises(WeightsError, match=r"not the published .*ATTENDANSEE_ALLOW_UNVERIFIED_WEIGHTS"):
        weights.require_weights(facenet, settings)
    allowed = settings.model_copy(update={"allow_unverified_weights": True})
    status = weights.require_weights(facenet, allowed)
    assert (status.state, status.sha256) == ("mismatch", hashlib.sha256(b"something else").hexdigest())


def test_a_file_that_changes_is_hashed_again(facenet: ModelSpec, settings: Settings) -> None:
    put(facenet, settings, CONTENT)
    assert weights.weights_status(facenet, settings).state == "verified"
    put(facenet, settings, CONTENT + b"!")
    assert weights.weights_status(facenet, settings).state == "mismatch"


def test_adding_copies_the_published_file(facenet: ModelSpec, settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "downloaded elsewhere.h5"
    file.write_bytes(CONTENT)
    assert weights.add_weights("facenet", file, settings).state == "verified"
    assert (settings.weights_folder / "facenet_weights.h5").read_bytes() == CONTENT


def test_adding_another_file_leaves_everything_as_it_was(
    facenet: ModelSpec, settings: Settings, tmp_path: Path
) -> None:
    before = put(facenet, settings, CONTENT)
    file = tmp_path / "broken.h5"
    file.write_bytes(CONTENT[:-1])
    with pytest.raises(WeightsError, match=r"broken\.h5 is not the published"):
        weights.add_weights("facenet", file, settings)
    assert before.read_bytes() == CONTENT
    assert list(settings.weights_folder.iterdir()) == [before]


def test_adding_a_file_that_is_not_there_says_so(facenet: ModelSpec, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"nowhere\.h5 cannot be copied"):
        weights.add_weights("facenet", tmp_path / "nowhere.h5", settings)


def test_fetching_downloads_and_verifies(facenet: ModelSpec, settings: Settings, release: Path) -> None:
    (release / "facenet_weights.h5").write_bytes(CONTENT)
    assert weights.fetch_weights("facenet", settings).state == "verified"


def test_fetching_replaces_a_download_that_was_cut_off(facenet: ModelSpec, settings: Settings, release: Path) -> None:
    put(facenet, settings, CONTENT[:5])
    (release / "facenet_weights.h5").write_bytes(CONTENT)
    assert weights.fetch_weights("facenet", settings).state == "verified"


def test_fetching_removes_a_file_that_is_not_the_published_one(
    facenet: ModelSpec, settings: Settings, release: Path
) -> None:
    (release / "facenet_weights.h5").write_bytes(b"<html>Please log in</html>")
    with pytest.raises(WeightsError, match="was removed"):
        weights.fetch_weights("facenet", settings)
    assert list(settings.weights_folder.iterdir()) == []


def test_fetching_without_the_file_there_advises_to_add_it(
    facenet: ModelSpec, settings: Settings, release: Path
) -> None:
    with pytest.raises(WeightsError, match=r"cannot be downloaded.*models add facenet FILE"):
        weights.fetch_weights("facenet", settings)


def test_dlibs_weights_come_from_their_package_which_is_not_imported(settings: Settings) -> None:
    spec = get_spec("dlib")
    status = weights.weights_status(spec, settings)
    assert status.state == "verified"
    assert not settings.deepface_folder.exists()
    assert weights.require_weights(spec, settings).path == settings.weights_folder / spec.weights_file
    assert weights.fetch_weights("dlib", settings).state == "verified"
    assert "face_recognition_models" not in sys.modules


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(TypeError), weights.replacing(path) as stream:
        stream.writelines([b"new", "no bytes"])  # type: ignore[list-item]
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("file", b"old")]
