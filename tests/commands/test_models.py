"""`attendansee models ...` as people type it, and a model of one's own from its file to a class's attendance."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from click.testing import CliRunner, Result
from dagster._core.execution.backfill import BulkActionStatus
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from pipelines.backfill import Plan, launch_backfill
from pipelines.cli import main
from pipelines.database import catalog
from pipelines.database.embedding_tables import embedding_dimensions
from pipelines.demo_photos import make_demo_photos
from pipelines.errors import ModelError, WeightsError
from pipelines.faces.alignment import ARCFACE_112, five_point_chip
from pipelines.instance import prepare_dagster_home
from pipelines.resources.database import Database
from pipelines.resources.embedding.made_crops import made_crops
from pipelines.resources.embedding.model import load_model
from pipelines.resources.embedding.onnx_file import read_onnx_model
from pipelines.resources.embedding.registry import BUILT_IN, ModelSpec, get_spec, home_models, home_spec
from pipelines.resources.embedding.weights import require_weights, weights_status
from pipelines.settings import get_settings

SIDE, DIMENSION = 112, 64
Shape = list[int | str]


def made_network(
    shape: Shape | None = None,
    *,
    last: Callable[[list[Any]], list[str]] = lambda nodes: ["vector"],
    elements: int = TensorProto.FLOAT,
    more_inputs: tuple[str, ...] = (),
    dimension: int = DIMENSION,
) -> bytes:
    """A small network with seeded weights: a convolution, a ReLU, a linear layer.

    shape: of its input, by default any number of NCHW crops. last: adds nodes after the tensor `vector` and says which
    tensors are the outputs.
    """
    shape = shape or ["n", 3, SIDE, SIDE]
    rng = np.random.default_rng(0)
    convolution = rng.normal(0, 0.1, (16, 3, 5, 5)).astype(np.float32)
    features = 16 * 14 * (14 if shape[3] != 96 else 12)
    linear = rng.normal(0, 0.05, (features, dimension)).astype(np.float32)
    nodes = [helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT)]
    if len(shape) == 4 and shape[3] == 3:
        nodes.append(helper.make_node("Transpose", ["float"], ["channels_first"], perm=[0, 3, 1, 2]))
    else:
        nodes.append(helper.make_node("Identity", ["float"], ["channels_first"]))
    nodes += [
        helper.make_node("Conv", ["channels_first", "convolution"], ["edges"], strides=[8, 8], pads=[2, 2, 2, 2]),
        helper.make_node("Relu", ["edges"], ["features"]),
        helper.make_node("Flatten", ["features"], ["flat"]),
        helper.make_node("MatMul", ["flat", "linear"], ["vector"]),
    ]
    outputs = last(nodes)
    graph = helper.make_graph(
        nodes,
        "made",
        [
            helper.make_tensor_value_info("image", elements, shape),
            *(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in more_inputs),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(convolution, "convolution"), numpy_helper.from_array(linear, "linear")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("nowhere", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def after(operator: str, *, domain: str = "", inputs: tuple[str, ...] = ("vector",), **attributes: Any) -> Any:
    """One more node after the vector."""

    def add(nodes: list[Any]) -> list[str]:
        nodes.append(helper.make_node(operator, list(inputs), ["out"], domain=domain, **attributes))
        return ["out"]

    return add


def reshaped(*shape: int) -> Any:
    """The vector in another shape, whatever the number of crops."""

    def add(nodes: list[Any]) -> list[str]:
        value = numpy_helper.from_array(np.array(shape, np.int64))
        nodes.append(helper.make_node("Constant", [], ["shape"], value=value))
        nodes.append(helper.make_node("Reshape", ["vector", "shape"], ["out"]))
        return ["out"]

    return add


def zeros(nodes: list[Any]) -> list[str]:
    nodes.append(helper.make_node("Sub", ["vector", "vector"], ["out"]))
    return ["out"]


def constant(nodes: list[Any]) -> list[str]:
    nodes.append(helper.make_node("Sub", ["vector", "vector"], ["nothing"]))
    nodes.append(helper.make_node("Exp", ["nothing"], ["out"]))
    return ["out"]


def random(nodes: list[Any]) -> list[str]:
    nodes.append(helper.make_node("RandomNormalLike", ["vector"], ["out"]))
    return ["out"]


def takes_vectors() -> bytes:
    weight = numpy_helper.from_array(np.eye(3, DIMENSION, dtype=np.float32), "weight")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["row", "weight"], ["vector"])],
        "made",
        [helper.make_tensor_value_info("row", TensorProto.FLOAT, ["n", 3])],
        [helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["n", DIMENSION])],
        [weight],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def external_data() -> bytes:
    model = onnx.load_model_from_string(made_network())
    tensor = model.graph.initializer[1]
    onnx.external_data_helper.set_external_data(tensor, "weights.bin")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    return model.SerializeToString()


def listed_initializers() -> bytes:
    """As files of ONNX's first versions have it: weights are among the inputs."""
    model = onnx.load_model_from_string(made_network())
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return model.SerializeToString()


def attendansee(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False, env={"COLUMNS": "400"})


def fresh(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, which reads the registry anew."""
    command = [sys.executable, "-c", "from pipelines.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def fresh_python(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)


OPTIONS = ("--dimension", DIMENSION, "--threshold", 0.3, "--normalization", "symmetric")


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ATTENDANSEE_HOME without models."""
    folder = tmp_path / "home"
    monkeypatch.setenv("ATTENDANSEE_HOME", str(folder))
    get_settings.cache_clear()
    yield folder
    get_settings.cache_clear()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "face model.onnx"
    path.write_bytes(made_network())
    return path


@pytest.fixture
def tiny(database: Database, own_home: Path, file: Path) -> ModelSpec:
    """The model `tiny`, added."""
    result = attendansee("models", "add-onnx", "tiny", file, "--input", SIDE, *OPTIONS, "--licence", "CC0 [of my own]")
    assert result.exit_code == 0, result.output
    return home_models(own_home)[0]["tiny"]


@pytest.mark.slow
def test_a_model_of_ones_own_takes_a_class_from_photos_to_attendance(
    database: Database, tiny: ModelSpec, own_home: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    make_demo_photos(photos)
    done = fresh("run", photos, "--model", "tiny")
    assert done.returncode == 0, done.stderr
    assert "Attendance of Demo101 (tiny)" in done.stdout
    assert "present" in done.stdout

    with database.connection() as connection:
        rows = connection.execute(
            """SELECT i.path, f.landmarks, e.version, e.embedding FROM embeddings_tiny e
            JOIN face_crops f ON f.id = e.crop_id JOIN images i ON i.id = f.image_id ORDER BY f.id"""
        ).fetchall()
        (crops,) = connection.execute("SELECT count(*) FROM face_crops").fetchone()
        assert catalog.active_models(connection) == {"Demo101": "tiny"}
    assert len(rows) == crops > 20
    assert {version for _, _, version, _ in rows} == {
        f"tiny-five_point_arcface-rgb_nchw_symmetric_112_1-onnx-{tiny.weights_sha256[:12]}"
    }
    # Each vector is what ONNX Runtime gives for the chip, prepared by hand.
    session = onnxruntime.InferenceSession(made_network(), providers=["CPUExecutionProvider"])
    for path, landmarks, _, stored in rows[:8]:
        photo = np.asarray(Image.open(photos / path).convert("RGB"))
        chip = five_point_chip(photo, np.array(landmarks, np.float32).reshape(5, 2), ARCFACE_112, SIDE)
        image = ((chip.astype(np.float32) - 127.5) / 127.5).transpose(2, 0, 1)
        (expected,) = session.run(None, {"image": image[None]})[0]
        np.testing.assert_allclose(stored.to_numpy(), expected / np.linalg.norm(expected), atol=1e-5)

    register = fresh("attendance", "Demo101", "--format", "json")
    assert json.loads(register.stdout)["model"] == "tiny"
    # A second run has nothing to do, and the model counts now: it is not to be removed.
    assert "0 of 4 sessions processed" in fresh("run", photos).stderr
    refused = attendansee("models", "remove", "tiny", "--yes")
    assert refused.exit_code == 1
    assert "tiny is the active model of Demo101" in refused.stderr
    assert weights_status(tiny, get_settings()).state == "verified"


def test_a_model_of_ones_own_has_a_lineage_like_the_others(tiny: ModelSpec) -> None:
    done = fresh_python(
        "import json\n"
        "import dagster as dg\n"
        "from pipelines.definitions import defs\n"
        "dg.Definitions.validate_loadable(defs)\n"
        "specs = {s.key.to_user_string(): s for s in defs.resolve_all_asset_specs()}\n"
        "own = specs['tiny/face_embeddings']\n"
        "print(json.dumps([sorted(specs), [job.name for job in defs.resolve_all_job_defs()], sorted(own.kinds),"
        " own.description, own.group_name]))\n"
    )
    assert done.returncode == 0, done.stderr
    assets, jobs, kinds, description, group = json.loads(done.stdout)
    names = {name.split("/")[1] for name in assets if name.startswith("dlib/")}
    assert {name.split("/")[1] for name in assets if name.startswith("tiny/")} == names
    assert {"process_session_tiny", "class_attendance_tiny"} <= set(jobs)
    assert (kinds, group) == (["onnx", "pgvector", "python"], "tiny")
    assert "64-D, tiny" in description
    assert "None" not in description
    # And commands take its name.
    assert "tiny" in fresh("run", "--help").stdout


def test_what_was_added_is_copied_and_listed(tiny: ModelSpec, own_home: Path, file: Path, database: Database) -> None:
    definition = yaml.safe_load((own_home / "models" / "tiny.yaml").read_text())
    assert definition["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (own_home / "models" / "tiny.onnx").read_bytes() == file.read_bytes()
    assert {path.name for path in (own_home / "models").iterdir()} == {"tiny.yaml", "tiny.onnx"}
    assert (tiny.verification_threshold, tiny.dimension, tiny.one_by_one) == (0.3, DIMENSION, False)
    listed = attendansee("models").stdout
    for words in ("tiny", "64", "verified", "CC0 [of my own]", "dlib"):
        assert words in listed
    with database.connection() as connection:
        assert embedding_dimensions(connection)["tiny"] == DIMENSION
    again = attendansee("models", "add-onnx", "tiny", file, *OPTIONS)
    assert (again.exit_code, "There is a model 'tiny' already" in again.stderr) == (1, True)


def test_insightfaces_terms_are_said_where_its_weights_can_be_chosen(
    database: Database, own_home: Path, file: Path
) -> None:
    assert "research" in " ".join(attendansee("models", "add-onnx", "--help").stdout.split())
    added = attendansee("models", "add-onnx", "buffalo", file, *OPTIONS).stdout
    assert "Licence: not stated" in added
    assert "InsightFace's are for non-commercial research only" in added


REFUSED_FILES = {
    "text": (b"This is no network.", "is not an ONNX file"),
    "empty": (b"", "is not an ONNX file"),
    "cut off": (made_network()[:-5000], "is not an ONNX file"),
    "weights elsewhere": (external_data(), "weights lie in another file"),
    "unknown operator": (made_network(last=after("Magic", domain="nowhere")), "ONNX Runtime cannot load it"),
    "two inputs": (made_network(more_inputs=("scale",)), "2 inputs (image, scale)"),
    "two dimensions": (takes_vectors(), "2 dimensions"),
    "half precision": (made_network(elements=TensorProto.FLOAT16), "tensor(float16)"),
    "batches of 8": (made_network([8, 3, SIDE, SIDE]), "batches of 8 crops only"),
    "grey": (made_network(["n", 1, SIDE, SIDE]), "neither the second nor the last is 3 colours"),
    "not square": (made_network(["n", 3, SIDE, 96]), "96 x 112 pixels"),
    "any size": (made_network(["n", 3, "h", "w"]), "give --input"),
    "any layout": (made_network(["n", "c", "h", "w"]), "give --layout"),
    "another dimension": (made_network(dimension=32), "32 numbers for a crop, not 64"),
    "feature map": (made_network(last=after("Identity", inputs=("features",))), "3136 numbers for a crop, not 64"),
    "two outputs": (made_network(last=lambda nodes: ["vector", "flat"]), "2 outputs (vector, flat)"),
    "not finite": (made_network(last=after("Sqrt")), "not finite"),
    "zeros": (made_network(last=zeros), "a vector of zeros"),
    "constant": (made_network(last=constant), "the same vector for every crop"),
    "random": (made_network(last=random), "another vector each time"),
    "fails": (made_network(last=reshaped(7, 7)), "it fails on a crop"),
}


@pytest.mark.parametrize("what", REFUSED_FILES)
def test_a_file_that_cannot_be_a_model_is_refused_with_the_reason(what: str, own_home: Path, tmp_path: Path) -> None:
    content, reason = REFUSED_FILES[what]
    file = tmp_path / "bad.onnx"
    file.write_bytes(content)
    result = attendansee("models", "add-onnx", "tiny", file, *OPTIONS)
    assert result.exit_code == 1, result.output
    assert f"{file} cannot be used" in result.stderr
    assert reason in result.stderr
    assert result.stderr.strip().count("\n") == 0, "one sentence"
    assert not own_home.exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--input", 160], "112 pixels a side, not 160"),
        (["--layout", "NHWC"], "which is not NHWC"),
        (["--output", "embedding"], "no output 'embedding'; there is vector"),
    ],
)
def test_what_is_said_of_a_file_must_be_so(options: list[object], reason: str, own_home: Path, file: Path) -> None:
    result = attendansee("models", "add-onnx", "tiny", file, *OPTIONS, *options)
    assert (result.exit_code, reason in result.stderr) == (1, True), result.stderr
    assert not own_home.exists()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("dlib", "built-in"),
        ("photos", "not 'photos'"),
        ("Ada", "lower-case"),
        ("ada-face", "lower-case"),
        ("1a", "a letter first"),
        ("a" * 41, "at most 40"),
        ("../a", "lower-case"),
        ("a; DROP TABLE students", "lower-case"),
    ],
)
def test_a_name_that_cannot_be_a_models_is_refused(name: str, reason: str, own_home: Path, file: Path) -> None:
    result = attendansee("models", "add-onnx", name, file, *OPTIONS)
    assert (result.exit_code, reason in result.stderr) == (1, True), result.stderr
    assert not own_home.exists()


def test_a_file_that_is_not_there_is_named(own_home: Path, tmp_path: Path) -> None:
    result = attendansee("models", "add-onnx", "tiny", tmp_path / "nowhere.onnx", *OPTIONS)
    assert result.exit_code == 1
    assert "nowhere.onnx cannot be read: No such file" in result.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--dimension", 3000), "3000"),
        (("--threshold", 0), "0<x<2"),
        (("--threshold", "nan"), "Invalid value for '--threshold': nan is not a number."),
        (("--normalization", "imagenet"), "imagenet"),
        (("--crop", "loose"), "loose"),
    ],
)
def test_an_option_out_of_its_range_is_told(
    options: tuple[object, ...], words: str, own_home: Path, file: Path
) -> None:
    result = attendansee("models", "add-onnx", "tiny", file, *OPTIONS, *options)
    assert (result.exit_code, words in result.stderr) == (2, True), result.stderr


ACCEPTED: dict[str, tuple[bytes, dict[str, Any], bool]] = {
    "any number of crops": (made_network(), {}, False),
    "one crop at a time": (made_network([1, 3, SIDE, SIDE]), {}, True),
    "one crop, though it says any number": (made_network(last=reshaped(1, DIMENSION)), {}, True),
    "colours last": (made_network(["n", SIDE, SIDE, 3]), {}, False),
    "any size": (made_network(["n", 3, "h", "w"]), {"input_size": SIDE}, False),
    "any shape": (made_network(["n", "c", "h", "w"]), {"input_size": SIDE, "layout": "NCHW"}, False),
    "two outputs": (made_network(last=lambda nodes: ["flat", "vector"]), {"output": "vector"}, False),
    "four dimensions": (made_network(last=reshaped(-1, DIMENSION, 1, 1)), {}, False),
    "weights among the inputs": (listed_initializers(), {}, False),
}


@pytest.mark.parametrize("what", ACCEPTED)
def test_networks_of_many_kinds_give_the_same_vectors(what: str, own_home: Path, tmp_path: Path) -> None:
    content, options, one_by_one = ACCEPTED[what]
    file = own_home / "models" / "own.onnx"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    definition, network = read_onnx_model(
        "own", file, dimension=DIMENSION, normalization="raw", threshold=0.3, channels="BGR", **options
    )
    assert network == content
    assert definition.one_by_one == one_by_one
    spec = home_spec("own", definition)
    model = load_model(spec, "onnx", 3, require_weights(spec, get_settings()))
    crops = list(made_crops(5, SIDE, seed=8))
    session = onnxruntime.InferenceSession(made_network(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"image": np.stack(crops)[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32)})
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(np.array(model.embed(crops)), expected, atol=1e-5)


def test_a_changed_or_missing_file_is_refused_before_any_work(
    tiny: ModelSpec, own_home: Path, tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody has tried the other file: not even those may use it who allow weights of their own.
    monkeypatch.setenv("ATTENDANSEE_ALLOW_UNVERIFIED_WEIGHTS", "1")
    (tmp_path / "photos" / "A" / "s").mkdir(parents=True)
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "photos" / "A" / "s" / "a.png")
    path = own_home / "models" / "tiny.onnx"
    path.write_bytes(made_network(dimension=32))
    for reason in ("has changed", "is missing"):
        done = fresh("run", tmp_path / "photos", "--model", "tiny")
        assert done.returncode == 1
        assert f"{path} of the model 'tiny' {reason}" in done.stderr.replace("\n", " ")
        assert "Traceback" not in done.stderr
        with pytest.raises(WeightsError, match=reason):
            require_weights(tiny, get_settings())
        path.unlink(missing_ok=True)
    with database.connection() as connection:
        assert connection.execute("SELECT count(*) FROM images").fetchone() == (0,)


BROKEN = {
    "no_yaml": "file: [",
    "empty": "",
    "no_date": "licence: 2026-02-30",
    "wrong_fields": "file: a.onnx\ndimension: -1\nfoo: 1\n",
    "elsewhere": None,  # made in the test: a file outside the folder
    "dlib": None,  # a built-in model's name
    "Bad Name": None,
}


@pytest.mark.slow
def test_broken_definitions_are_told_and_everything_else_goes_on(tiny: ModelSpec, own_home: Path) -> None:
    folder = own_home / "models"
    good = (folder / "tiny.yaml").read_text()
    for name, text in BROKEN.items():
        changed = good.replace("tiny.onnx", "../tiny.onnx") if name == "elsewhere" else good
        (folder / f"{name}.yaml").write_text(changed if text is None else text)
    (folder / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    names = {*BROKEN, "binary"}

    done = fresh_python(
        "import dagster as dg\n"
        "from pipelines.definitions import defs\n"
        "from pipelines.resources.embedding.registry import REGISTRY\n"
        "dg.Definitions.validate_loadable(defs)\n"
        "print(','.join(REGISTRY))\n"
    )
    assert done.stdout.strip() == ",".join([*BUILT_IN, "tiny"]), done.stderr
    for name in names:
        (line,) = [line for line in done.stderr.splitlines() if line.startswith(f"The model {name!r} ")]
        assert "is left out, for " in line
    assert "Traceback" not in done.stderr

    listed = attendansee("models").stdout
    assert listed.count("BROKEN") == len(names)
    assert "dimension: Input should be greater than or equal to 2" in listed
    refused = fresh("backfill", "--model", "empty")
    assert refused.returncode == 1
    (line,) = [line for line in refused.stderr.splitlines() if "'empty'" in line]
    assert line.startswith("The model 'empty' is left out, for ")
    assert len(refused.stderr.splitlines()) == len(names), "a sentence for each broken definition, and nothing else"
    # Asking for it tells the reason too.
    program = "from pipelines.resources.embedding.registry import get_spec; get_spec('empty')"
    assert "The model 'empty' is left out" in fresh_python(program).stderr
    assert fresh("models", "remove", "Bad Name", "--yes").returncode == 0
    assert not (folder / "Bad Name.yaml").exists()
    # A file of that name does not endanger the built-in model.
    assert "built-in" in fresh("models", "remove", "dlib", "--yes").stderr
    assert get_spec("dlib").framework == "dlib"


def test_migrate_gives_a_database_the_table_that_it_lacks(tiny: ModelSpec, database: Database) -> None:
    with database.connection() as connection:
        connection.execute("DROP TABLE embeddings_tiny")
    assert fresh("migrate").returncode == 0
    with database.connection() as connection:
        assert embedding_dimensions(connection)["tiny"] == DIMENSION
        (storage,) = connection.execute(
            """SELECT attstorage FROM pg_attribute
            WHERE attrelid = 'embeddings_tiny'::regclass AND attname = 'embedding'"""
        ).fetchone()
    assert storage == "p"


def test_removing_takes_the_vectors_and_leaves_what_people_said(
    tiny: ModelSpec, own_home: Path, made_class: Any, database: Database
) -> None:
    made_class.enrol("m", "ann")
    crop_ids = list(made_class.session("m__1", [["ann"]]).values())
    with database.connection() as connection:
        catalog.adopt_model(connection, "m", "dlib")
        connection.execute(
            "INSERT INTO embeddings_tiny (crop_id, version, embedding) VALUES (%s, 'v', %s)",
            [crop_ids[0], np.ones(DIMENSION, np.float32)],
        )
    (own_home / "models" / "tiny.int8.onnx").write_bytes(b"made of it")
    assert attendansee("models", "remove", "tiny").exit_code == 1, "nobody said yes"
    assert home_models(own_home)[0]
    removed = attendansee("models", "remove", "tiny", "--yes")
    assert removed.exit_code == 0, removed.stderr
    assert list((own_home / "models").iterdir()) == []
    with database.connection() as connection:
        assert "tiny" not in embedding_dimensions(connection)
        assert connection.execute("SELECT count(*) FROM decisions").fetchone() == (1,)
        assert connection.execute("SELECT count(*) FROM embeddings_dlib").fetchone() == (2,)
    gone = attendansee("models", "remove", "tiny", "--yes")
    assert (gone.exit_code, "No model 'tiny' was added" in gone.stderr) == (1, True)


def test_a_model_that_a_backfill_works_with_is_not_removed(tiny: ModelSpec, own_home: Path, made_class: Any) -> None:
    made_class.session("m__1", [["ann"]])
    prepare_dagster_home(get_settings())
    with dg.DagsterInstance.get() as instance:
        backfill_id = launch_backfill(instance, Plan(["m__1"], ["m"], 0, {}), "tiny")
        refused = attendansee("models", "remove", "tiny", "--yes")
        instance.update_backfill(instance.get_backfill(backfill_id).with_status(BulkActionStatus.CANCELED))
    assert refused.exit_code == 1
    assert refused.stderr.startswith(f"Error: The backfill {backfill_id} of tiny has not ended")
    assert refused.stderr.count("\n") == 1
    assert set(home_models(own_home)[0]) == {"tiny"}
    assert attendansee("models", "remove", "tiny", "--yes").exit_code == 0


def test_the_model_of_new_classes_is_not_removed(tiny: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTENDANSEE_MODEL", "tiny")
    get_settings.cache_clear()
    result = attendansee("models", "remove", "tiny", "--yes")
    assert (result.exit_code, "ATTENDANSEE_MODEL" in result.stderr) == (1, True)


def test_vectors_of_another_dimension_keep_their_table(
    tiny: ModelSpec, own_home: Path, made_class: Any, database: Database, tmp_path: Path
) -> None:
    crop_ids = list(made_class.session("m__1", [["ann"]]).values())
    with database.connection() as connection:
        connection.execute(
            "INSERT INTO embeddings_tiny (crop_id, version, embedding) VALUES (%s, 'v', %s)",
            [crop_ids[0], np.ones(DIMENSION, np.float32)],
        )
    for path in (own_home / "models").iterdir():  # as if another home had made the table
        path.unlink()
    file = tmp_path / "other.onnx"
    file.write_bytes(made_network(dimension=32))
    options = ("--dimension", 32, "--threshold", 0.3, "--normalization", "raw")
    refused = attendansee("models", "add-onnx", "tiny", file, *options)
    assert (refused.exit_code, "vectors of 64 numbers" in refused.stderr) == (1, True)
    assert not home_models(own_home)[0]
    with database.connection() as connection:
        connection.execute("DELETE FROM embeddings_tiny")
    assert attendansee("models", "add-onnx", "tiny", file, *options).exit_code == 0
    with database.connection() as connection:
        assert embedding_dimensions(connection)["tiny"] == 32


def test_a_model_of_ones_own_runs_in_8_bits_too(tiny: ModelSpec, own_home: Path) -> None:
    settings = get_settings()
    weights = require_weights(tiny, settings)
    crops = list(made_crops(6, SIDE, seed=4))
    full, small = (np.array(load_model(tiny, engine, 4, weights).embed(crops)) for engine in ("onnx", "onnx-int8"))
    assert (own_home / "models" / "tiny.int8.onnx").is_file()
    assert 0.98 < np.sum(full * small, axis=1).min() < 0.999999


def test_convert_makes_the_file_of_a_keras_model_alone(tiny: ModelSpec) -> None:
    assert "its network is built in memory" in attendansee("models", "convert", "dlib").stderr
    assert "it came as one" in fresh("models", "convert", "tiny").stderr
    assert "models fetch arcface" in attendansee("models", "convert", "arcface").stderr
    made = fresh("models", "convert", "tiny", "--int8")
    assert (made.returncode, "tiny.int8.onnx" in made.stdout) == (0, True), made.stderr
    assert "Its vectors are others (lowest cosine to float32 0.9" in made.stderr
    assert "evaluate it" in made.stderr


def test_erase_takes_added_models_and_nothing_else_in_their_folder(tiny: ModelSpec, own_home: Path) -> None:
    (own_home / "models" / "somebody else's.bin").write_bytes(b"zoo")
    assert attendansee("erase", "--yes").exit_code == 0
    assert [path.name for path in (own_home / "models").iterdir()] == ["somebody else's.bin"]


def test_a_wrong_setting_is_told_in_a_sentence_at_the_start(own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ATTENDANSEE_ENGINE", "foo")
    done = fresh("models")
    assert done.returncode == 1
    assert "ATTENDANSEE_ENGINE='foo' cannot be used" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_definition_out_of_range_is_refused_by_python_too(own_home: Path, file: Path) -> None:
    with pytest.raises(ModelError, match="threshold"):
        read_onnx_model("own", file, dimension=DIMENSION, normalization="raw", threshold=3)
