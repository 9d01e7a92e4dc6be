"""The one settings class: environment variables `ATTENDANSEE_*` and `DATABASE_URL`, every default in the README."""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from pipelines.errors import AttendanseeError

PROJECT_ROOT = Path(__file__).resolve().parent.parent


def _default_home() -> Path:
    """`.attendansee` beside pyproject.toml in a checkout, else in the current folder; needs no HOME."""
    root = PROJECT_ROOT if (PROJECT_ROOT / "pyproject.toml").is_file() else Path.cwd()
    return root / ".attendansee"


class Settings(BaseSettings):
    """Everything a deployment can set, read from the environment once per process (see `get_settings`)."""

    model_config = SettingsConfigDict(env_prefix="ATTENDANSEE_", populate_by_name=True, extra="ignore")

    home: Path = Field(default_factory=_default_home, description="Folder for database, crops, weights, Dagster files.")
    database_url: str | None = Field(
        default=None,
        validation_alias="DATABASE_URL",
        description="PostgreSQL with pgvector >= 0.8; unset starts the embedded server.",
    )
    photos: str | None = Field(default=None, description="Photo root that the sensor watches: a path or fsspec URL.")
    model: str = Field(default="dlib", description="Embedding model of classes that have not chosen one.")
    engine: Literal["auto", "onnx", "onnx-int8", "tensorflow"] = Field(
        default="auto",
        description="What runs the embedding networks; auto is onnx, made from the weights at first use. onnx-int8 is "
        "faster and gives other vectors: evaluate it first.",
    )
    deepface_home: Path | None = Field(
        default=None,
        validation_alias="DEEPFACE_HOME",
        description="DeepFace's folder (weights in .deepface/weights below it); default HOME_FOLDER/deepface.",
    )
    allow_unverified_weights: bool = Field(
        default=False, description="Accept weights files whose sha256 is not the published one (tests, own training)."
    )
    batch_size: int = Field(default=8, ge=1, le=256, description="Crops per forward pass of an embedding network.")
    detector: str = Field(default="mtcnn", description="mtcnn (called directly) or a DeepFace backend name.")
    min_face_px: int = Field(
        default=20, ge=8, le=1000, description="Smallest face side searched for, in pixels (of the scaled photo)."
    )
    detection_max_side: int = Field(
        default=4096, ge=256, le=20000, description="Photos are scaled down to this longer side for detection."
    )
    max_megapixels: float = Field(default=150, gt=0, description="Photos with more pixels are refused.")
    quality_min_size: float = Field(default=24, ge=0, description="Crops with a shorter box side are not clustered.")
    quality_min_sharpness: float = Field(
        default=0.15, ge=0, description="Crops less sharp than this are not clustered."
    )
    quality_min_confidence: float = Field(default=0.85, ge=0, le=1, description="Detector confidence to be clustered.")
    quality_max_yaw: float = Field(
        default=60, ge=0, le=90, description="Degrees of turn up to which crops are clustered."
    )
    watch: bool = Field(default=False, description="Start the sensors switched on, as `attendansee up --watch` does.")
    settle_seconds: float = Field(default=5, ge=0, description="A photo younger than this is still being written.")
    api_token: SecretStr | None = Field(
        default=None, description="Bearer token of the HTTP API; unset serves this machine alone, without one."
    )
    thumbnails_in_ui: bool = Field(
        default=False,
        description="Put small pictures of faces into Dagster's event log, where they stay until it is deleted.",
    )
    broker_url: SecretStr | None = Field(
        default=None,
        description="Redis of the scale-out profile, redis://HOST:6379/0; unset executes every run on this machine.",
    )
    sessions_per_run: int = Field(
        default=25, ge=1, description="Sessions that one run of a backfill takes; fewer spread it over more workers."
    )
    dagster_url: str = Field(
        default="http://127.0.0.1:3000", description="Dagster's webserver, which launches what the HTTP API asks for."
    )

    @property
    def detection_configuration(self) -> str:
        """Names the settings that decide which photos are read and which faces are found in them and used."""
        names = {name for name in Settings.model_fields if name.startswith(("detect", "quality", "min_", "max_"))}
        return hashlib.sha256(self.model_dump_json(include=names).encode()).hexdigest()[:8]

    @property
    def deepface_folder(self) -> Path:
        """What DEEPFACE_HOME is set to before DeepFace is imported."""
        return self.deepface_home or self.home / "deepface"

    @property
    def weights_folder(self) -> Path:
        """Where DeepFace looks for weights files."""
        return self.deepface_folder / ".deepface" / "weights"

    @property
    def crops_folder(self) -> Path:
        """Where the photo store keeps crop files."""
        return self.home / "crops"

    @property
    def dagster_home(self) -> Path:
        """DAGSTER_HOME of every command of ours."""
        return self.home / "dagster"


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The process's settings; tests that change the environment call `get_settings.cache_clear()`.

    Raises AttendanseeError naming each variable that cannot be used, and why.
    """
    try:
        return Settings()
    except ValidationError as error:
        reasons = []
        for problem in error.errors():
            name = str(problem["loc"][0])
            variable = name if name.isupper() else f"ATTENDANSEE_{name.upper()}"
            reasons.append(f"{variable}={problem['input']!r} cannot be used ({problem['msg']}): correct or unset it.")
        raise AttendanseeError(" ".join(reasons)) from error
