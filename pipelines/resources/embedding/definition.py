"""Models that people bring: one YAML file each in ATTENDANSEE_HOME/models, with the ONNX file beside it.

Such a file says all that the registry says of a built-in model. `attendansee models add-onnx` writes it; its threshold
and licence may be edited by hand.
"""

import hashlib
import re
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipelines.errors import ModelError
from pipelines.resources.embedding.files import replacing
from pipelines.resources.embedding.preprocessing import Channels, CropPolicy, Layout, Normalization, Preprocessing

# Count up when a change in how crops are prepared for these models changes vectors.
_PREPARATION = 1
# Also the name of a table, of jobs and of a Dagster group; `photos` is the group of what all models share.
_NAME = re.compile(r"(?!photos$)[a-z][a-z0-9_]{0,39}")


class ModelDefinition(BaseModel):
    """What one YAML file holds; the model's name is the file's.

    file: the ONNX file in the same folder. dimension: length of a vector; a row of the database holds no more than 2000.
    input_size: side of the square crop, in pixels. channels, layout, normalization: see `Preprocessing`.
    output: the network's output that is the vector; None where it has only one. one_by_one: whether it takes one crop at
    a time only. crop: how crops are cut. threshold: the cosine distance up to which two crops are one person.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    file: str = Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    dimension: int = Field(ge=2, le=2000)
    input_size: int = Field(ge=16, le=1024)
    channels: Channels
    layout: Layout
    normalization: Normalization
    output: str | None = None
    one_by_one: bool = False
    crop: CropPolicy
    threshold: float = Field(gt=0, lt=2)
    licence: str = "not stated"

    @property
    def preprocessing(self) -> Preprocessing:
        """What the network is fed; whatever changes its vectors is in the version."""
        parts = [self.channels, self.layout, self.normalization, str(self.input_size), str(_PREPARATION)]
        if self.output is not None:
            parts.append(hashlib.sha256(self.output.encode()).hexdigest()[:6])
        return Preprocessing("_".join(parts).lower(), self.channels, self.layout, self.normalization)


def models_folder(home: Path) -> Path:
    """Where the definitions and their ONNX files are, below ATTENDANSEE_HOME."""
    return home / "models"


def check_name(name: str) -> None:
    """Raise ModelError for a name that no model can have."""
    if not _NAME.fullmatch(name):
        raise ModelError(
            f"The model name {name!r} cannot be used: take lower-case letters, digits and '_', a letter first, at most 40, "
            "and not 'photos'."
        )


def read_definitions(home: Path) -> tuple[dict[str, ModelDefinition], dict[str, str]]:
    """The definitions by name, and for each file that cannot be used a sentence with the reason, by name too."""
    found: dict[str, ModelDefinition] = {}
    broken: dict[str, str] = {}
    for path in sorted(filter(Path.is_file, models_folder(home).glob("*.yaml"))):
        try:
            check_name(path.stem)
            found[path.stem] = ModelDefinition.model_validate(yaml.safe_load(path.read_bytes()))
        except (ModelError, OSError, ValueError, yaml.YAMLError) as error:  # ValueError: such as 30 February
            broken[path.stem] = (
                f"The model {path.stem!r} is left out, for {path} cannot be used ({plain_reason(error)}): correct the file, or "
                f"run `attendansee models remove {path.stem}`."
            )
    return found, broken


def write_definition(home: Path, name: str, definition: ModelDefinition, network: bytes) -> Path:
    """Store a model: first the ONNX file, then the YAML file that makes it one; returns the latter's path."""
    folder = models_folder(home)
    path = folder / f"{name}.yaml"
    text = yaml.safe_dump(definition.model_dump(), sort_keys=False, allow_unicode=True)
    try:
        with replacing(folder / definition.file) as stream:
            stream.write(network)
        with replacing(path) as stream:
            stream.write(text.encode())
    except OSError as error:
        raise ModelError(f"The model {name!r} cannot be stored in {folder}: {error.strerror}.") from error
    return path


def remove_definition(home: Path, name: str) -> None:
    """Delete a model's files; the YAML file first, so that no half of it remains a model."""
    folder = models_folder(home)
    for suffix in ("yaml", "onnx", "int8.onnx"):
        (folder / f"{name}.{suffix}").unlink(missing_ok=True)


def remove_all_definitions(home: Path) -> None:
    """Delete every model that has been added, and the folder unless something else is in it."""
    found, broken = read_definitions(home)
    for name in (*found, *broken):
        remove_definition(home, name)
    folder = models_folder(home)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def plain_reason(error: Exception) -> str:
    """What an error says, on one line."""
    if isinstance(error, ValidationError):
        return "; ".join(
            ": ".join(part for part in (".".join(map(str, problem["loc"])), problem["msg"]) if part)
            for problem in error.errors()
        )
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return " ".join(str(error).split())
