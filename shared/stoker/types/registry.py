"""Models, versions, aliases, lineage."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from stoker.types.base import Name, Resource, Spec, Strict, Time, now


class ModelSpec(Spec):
    """A registered model: a name under which versions are kept."""

    kind: Literal["model"]
    name: Name
    description: str = ""
    tags: dict[str, str] = {}


class Model(Resource):
    """A model, kept. Aliases are movable names of versions."""

    kind: ClassVar[str] = "model"
    plural: ClassVar[str] = "models"

    spec: ModelSpec
    latest: int = Field(default=0, description="number of the newest version; 0 before the first")
    aliases: dict[str, int] = {}


class Lineage(Strict):
    """Where a version's weights come from. What is unknown is None: nothing is guessed."""

    source: str = Field(default="", description="the folder that was registered")
    run: str | None = None
    code_commit: str | None = None
    code_digest: str | None = None
    dataset_version: str | None = None
    dataset_digest: str | None = None
    base_version: str | None = None
    params: dict[str, str | int | float | bool] = {}
    metrics: dict[str, float] = Field(default={}, description="last value of each metric of the run")
    environment: dict[str, Any] = {}


class Version(Resource):
    """Immutable weights with their lineage, named ``model@number``; ``digest`` is the hash of the manifest."""

    kind: ClassVar[str] = "version"
    plural: ClassVar[str] = "versions"

    model: str
    number: int
    digest: str
    files: int
    bytes: int
    folder: str = Field(description="absolute path of a read-only folder with the files")
    lineage: Lineage = Lineage()


class Evaluation(Resource):
    """What was found of a version by some examination, named ``model@number:metric``; a later one takes its place.

    A gate is one that has ``passed`` or not: a version that failed one is refused by rollouts.
    """

    kind: ClassVar[str] = "evaluation"
    plural: ClassVar[str] = "evaluations"

    model: str
    number: int
    metric: str
    score: float | None = None
    passed: bool | None = Field(default=None, description="None: it is a figure, and no gate")
    note: str = ""
    by: str = Field(description="who said so")
    at: Time = Field(default_factory=now)


class RecordEvaluation(Strict):
    """Body of a request to record what was found of a version: a score, whether it passed, or both."""

    score: float | None = None
    passed: bool | None = None
    note: str = ""

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.score is None and self.passed is None:
            raise ValueError("an evaluation has a score, or passed or failed, or both")
        return self


class RegisterVersion(Strict):
    """Body of a request to register a folder as the next version of a model."""

    path: str = Field(description="absolute path of the folder")
    lineage: Lineage = Lineage()
    aliases: list[Name] = []
