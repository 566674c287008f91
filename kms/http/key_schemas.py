"""The shapes of `/v1/keys`, for the OpenAPI document. None of them can hold a secret."""

from datetime import timedelta
from typing import Any, ClassVar, Final, Literal

from pydantic import Field

from kms.http import examples
from kms.http.schemas import Shape
from kms.keys.epochs import LATELY

_LATER: Final = "2026-12-01T00:00:00.000000Z"
_LATELY: Final = LATELY // timedelta(seconds=1)


class EpochBody(Shape):
    """A version of the root. Times are RFC 3339, UTC."""

    epoch: int
    state: Literal["scheduled", "current", "available", "retired"] = Field(
        description="current: given to guests that ask for no epoch; available: to those that ask for it"
    )
    made_at: str
    made_by: str
    active_from: str
    retired_at: str | None
    retired_by: str | None

    example: ClassVar[dict[str, Any]] = {
        "epoch": 1,
        "state": "available",
        "made_at": examples.AT,
        "made_by": "root",
        "active_from": examples.AT,
        "retired_at": None,
        "retired_by": None,
    }


_NEXT: Final = {**EpochBody.example, "epoch": 2, "state": "scheduled", "active_from": _LATER}
_RETIRED: Final = {**EpochBody.example, "state": "retired", "retired_at": _LATER, "retired_by": "alice"}


class GenerationBody(Shape):
    """A generation of the KMS identity."""

    generation: int
    identity: str | None = Field(
        description="Ed25519 public key, 32 bytes, base64url; null while the root does not answer"
    )
    made_at: str | None = Field(description="null for the first, which is as old as the root")
    made_by: str | None

    example: ClassVar[dict[str, Any]] = {
        "generation": 1,
        "identity": examples.PUBLIC_KEY,
        "made_at": None,
        "made_by": None,
    }


class GenerationsBody(Shape):
    """The KMS identity: guests have it in their measured images."""

    generation: int = Field(description="the newest; a server uses it once it was started again")
    generations: list[GenerationBody]

    example: ClassVar[dict[str, Any]] = {"generation": 1, "generations": [GenerationBody.example]}


class KeysAnswer(Shape):
    """The epochs of the root, oldest first, and the generations of the identity."""

    epochs: list[EpochBody]
    current: int | None = Field(description="null where every epoch is retired or yet to come")
    root: str | None = Field(description="why the root does not answer now; null where it does")
    not_adopted: list[int] | None = Field(
        description="versions of the root that exist at its provider, and that no key is made of; null while"
        " it does not answer"
    )
    identity: GenerationsBody

    example: ClassVar[dict[str, Any]] = {
        "epochs": [{**EpochBody.example, "state": "current"}, _NEXT],
        "current": 1,
        "root": None,
        "not_adopted": [],
        "identity": GenerationsBody.example,
    }


class RotateBody(Shape):
    """When the next epoch is to be current."""

    at: str | None = Field(None, description="RFC 3339, UTC; absent: now", examples=[_LATER])

    example: ClassVar[dict[str, Any]] = {"at": _LATER}


class EpochAnswer(Shape):
    """An epoch that was made, or given another time."""

    epoch: EpochBody

    example: ClassVar[dict[str, Any]] = {"epoch": _NEXT}


class RetireBody(Shape):
    """How an epoch is to be retired."""

    seen_within_seconds: int = Field(
        _LATELY, ge=1, description="guests that were not seen for longer do not count"
    )
    force: bool = Field(False, description="though guests are left behind")

    example: ClassVar[dict[str, Any]] = {"seen_within_seconds": _LATELY, "force": False}


_GUEST: Final = {
    "app_id": examples.APP_ID,
    "instance_id": "1f" * 16,
    "chip_id": examples.CHIP,
    "last_seen": examples.AT,
}
_DAMAGED: Final = Field(description="records that cannot be read any more: their guests are not counted")
_COMPLETE: Final = Field(description="false: there are more records than are read at once, and older")


class KeyLeftBody(Shape):
    """A key as a guest asked for it."""

    name: str
    scope: str

    example: ClassVar[dict[str, Any]] = {"name": "disk", "scope": "app"}


class GuestLeftBody(Shape):
    """A guest that was seen lately with keys that it did not take of a newer epoch since."""

    app_id: str
    instance_id: str | None
    chip_id: str | None
    last_seen: str
    epochs: list[int] = Field(description="those that it took these keys of")
    keys: list[KeyLeftBody] = Field(description="32 of them at most")

    example: ClassVar[dict[str, Any]] = {
        **_GUEST,
        "epochs": [1],
        "keys": [KeyLeftBody.example],
    }


class RetiredAnswer(Shape):
    """An epoch whose keys nobody gets any more, and whom that leaves behind: nobody, unless it was forced."""

    epoch: EpochBody
    guests: list[GuestLeftBody] = Field(description="those that were seen last")
    count: int = Field(description="how many guests there are")
    pinned: list[str] | None = Field(
        description="ids of apps that the policy in force pins to it; null where that cannot be told"
    )
    damaged: int = _DAMAGED
    complete: bool = _COMPLETE

    example: ClassVar[dict[str, Any]] = {
        "epoch": _RETIRED,
        "guests": [GuestLeftBody.example],
        "count": 1,
        "pinned": [],
        "damaged": 0,
        "complete": True,
    }


class RotationGuestBody(Shape):
    """A guest, and when it last took which epoch."""

    app_id: str
    instance_id: str | None
    chip_id: str | None
    epochs: dict[str, str] = Field(description="the last time, by epoch")
    epoch: int = Field(description="it took every one of its keys of this epoch last, or of a newer one")
    last_seen: str

    example: ClassVar[dict[str, Any]] = {
        **_GUEST,
        "epochs": {"1": examples.AT},
        "epoch": 1,
    }


class RotationAnswer(Shape):
    """Which epochs guests took."""

    since: str
    guests: list[RotationGuestBody] = Field(description="those that are furthest behind come first")
    count: int = Field(description="how many guests there are")
    by_epoch: dict[str, int] = Field(description="how many of them are of this epoch")
    records: int = Field(description="decisions that were read")
    damaged: int = _DAMAGED
    complete: bool = _COMPLETE

    example: ClassVar[dict[str, Any]] = {
        "since": examples.AT,
        "guests": [RotationGuestBody.example],
        "count": 1,
        "by_epoch": {"1": 1},
        "records": 12,
        "damaged": 0,
        "complete": True,
    }


class RotateIdentityBody(Shape):
    """An object without members."""

    example: ClassVar[dict[str, Any]] = {}


class NewGenerationAnswer(Shape):
    """The new generation of the identity."""

    generation: int
    identity: str = Field(description="Ed25519 public key, 32 bytes, base64url")

    example: ClassVar[dict[str, Any]] = {"generation": 2, "identity": examples.PUBLIC_KEY}
