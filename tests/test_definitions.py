"""The code location as a whole: light to import, loadable, every asset labelled, nothing changed unnoticed."""

import json
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from pipelines.definitions import defs
from pipelines.resources.embedding.registry import REGISTRY

HEAVY = ("tensorflow", "tf_keras", "deepface", "cv2", "sklearn", "dlib", "mtcnn", "onnxruntime")
SNAPSHOT = Path(__file__).parent / "asset_specs.json"


def test_importing_the_definitions_brings_no_heavy_module() -> None:
    code = f"import sys, pipelines.definitions; print([m for m in {HEAVY!r} if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert loaded.strip() == "[]"


def test_the_definitions_load() -> None:
    dg.Definitions.validate_loadable(defs)


# Sorted, for they come in another order in every process, and processes that share the tests compare their lists.
@pytest.mark.parametrize(
    "spec",
    sorted(defs.resolve_all_asset_specs(), key=lambda spec: spec.key),
    ids=lambda spec: spec.key.to_user_string(),
)
def test_every_asset_says_what_it_is(spec: dg.AssetSpec) -> None:
    assert spec.group_name in {"photos", *REGISTRY}
    assert 0 < len(spec.kinds) <= 3
    assert spec.owners
    assert spec.code_version
    assert spec.tags["domain"] == "attendance"
    assert spec.tags["pii"] == "true"
    assert len(spec.description or "") > 30


def test_asset_specs_are_as_recorded() -> None:
    """A change here changes what people see and what counts as stale; delete the file and run once to record anew."""
    found = {
        spec.key.to_user_string(): {
            "group": spec.group_name,
            "kinds": sorted(spec.kinds),
            "deps": sorted(dep.asset_key.to_user_string() for dep in spec.deps),
            "partitions": spec.partitions_def.name
            if isinstance(spec.partitions_def, dg.DynamicPartitionsDefinition)
            else None,
            "code_version": spec.code_version,
            "description": spec.description,
        }
        for spec in sorted(defs.resolve_all_asset_specs(), key=lambda spec: spec.key)
    }
    if not SNAPSHOT.exists():
        SNAPSHOT.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        pytest.fail(f"{SNAPSHOT.name} was absent and has been recorded: look at it and run again")
    assert found == json.loads(SNAPSHOT.read_text())


def test_each_model_has_its_own_lineage_from_photos_to_attendance() -> None:
    graph = defs.resolve_asset_graph()
    for model in REGISTRY:
        upstream = graph.get_ancestor_asset_keys(dg.AssetKey([model, "session_attendance"]))
        names = {key.to_user_string() for key in upstream}
        assert {"session_images", "face_crops", f"{model}/face_embeddings"} <= names
        assert not [name for name in names for other in REGISTRY if other != model and name.startswith(f"{other}/")]
