"""The operations from a terminal: what they say of parameters that cannot be used."""

import re

import pytest
from click.testing import CliRunner

from pipelines.cli import main
from pipelines.services.parameters import MAX_ID

IDS = f"1 to {MAX_ID}"


@pytest.mark.parametrize(
    ("arguments", "name", "allowed"),
    [
        (["assign-crop", "1", "--k", "x"], "k", "1 to 20"),
        (["assign-crop", "1", "--k", "1.5"], "k", "1 to 20"),
        (["assign-crop", "1", "--k", "21"], "k", "1 to 20"),
        (["assign-crop", "1", "--similarity-threshold", "high"], "similarity_threshold", "0 to 1"),
        (["assign-crop", "1", "--similarity-threshold", "nan"], "similarity_threshold", "0 to 1"),
        (["cluster-session-crops", "1", "--max-clusters", "many"], "max_clusters", "1 to 200"),
        (["assign-crop", "x"], "crop_id", IDS),
        (["assign-crop", "0"], "crop_id", IDS),
        (["generate-embeddings-batch", "1", "x"], "face_crop_ids.1", IDS),
        (["generate-embeddings-batch", "0"], "face_crop_ids.0", IDS),
        (["assign-session-crops", "x"], "session_id", IDS),
        (["assign-class-crops", "x"], "class_id", IDS),
    ],
)
def test_a_wrong_value_is_refused_with_the_parameters_name_and_range(database, arguments, name, allowed):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert re.fullmatch(
        rf"Error: The parameter {re.escape(name)} cannot be used: .*\(allowed: {allowed}\)\.\n", result.output
    )
