"""Every error that crosses a function, a service or the wire, named by what the caller can do about it.

CrucibleError
├── MalformedError        400  the bytes are not what they claim to be: mend the syntax
├── UnauthenticatedError  401  no key, or not one of ours: send a valid key
├── ForbiddenError        403  the key may not do this: use another key
├── NotFoundError         404  nothing has that name: check the name
├── NotAcceptableError    406  no form of the answer that was asked for: accept another
├── TooSlowError          408  the request did not arrive in time: send it faster
├── ConflictError         409  somebody was first: read again and retry
├── TooLargeError         413  over a size limit: send less
├── UnsupportedError      415  a content type that is not read here: send another
├── InvalidError          422  well-formed but refused: mend the named fields
├── DeniedError           422  a Pre hook denied it: the reason says why
├── LimitedError          429  too much at once: wait `retry_after` seconds
└── UnavailableError      503  something needed is away: wait `retry_after` seconds
    ├── StorageFullError     507  no free storage: free some, or wait
    └── UnknownOutcomeError  503  no answer came: it may have been done; the same request again does it once

The HTTP statuses are shown for orientation; the mapping itself lives in `crucible_kit.http.asgi`.
"""

from typing import Any, ClassVar, Self

import msgspec


class FieldError(msgspec.Struct, frozen=True, omit_defaults=True):
    """One field that was refused. `path` is dotted, from the root of what was sent (`payload.tags.0`)."""

    path: str
    message: str
    suggestion: str | None = None


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error as it travels between services; `extra` holds members of the problem document such as `hook`."""

    code: str
    detail: str
    errors: tuple[FieldError, ...] = ()
    extra: dict[str, Any] = {}


class CrucibleError(Exception):
    """The root. `detail` is one sentence for a person; `extra` is merged into the problem document."""

    code: ClassVar[str] = "internal"

    def __init__(self, detail: str, *, errors: tuple[FieldError, ...] | list[FieldError] = (), **extra: Any) -> None:
        super().__init__(detail)
        self.detail = detail
        self.errors = tuple(errors)
        self.extra = extra

    @classmethod
    def field(cls, path: str, message: str, suggestion: str | None = None, *, detail: str = "") -> Self:
        """The error of one field, with the nearest value that is right; `detail` says more than path and message."""
        hint = f' (did you mean "{suggestion}"?)' if suggestion else ""
        return cls(detail or f"{path}: {message}{hint}", errors=[FieldError(path, message, suggestion)])

    def problem(self) -> Problem:
        return Problem(self.code, self.detail, self.errors, self.extra)

    def as_value(self) -> Self:
        """Itself, to be kept and not raised: `without_frames`."""
        without_frames(self)
        return self


def without_frames(error: BaseException) -> None:
    """Takes the frames away that an error, and all that it came from, came through. Where one of them keeps the error,
    all that they and their callers hold, payloads too, would stay until the garbage collector comes."""
    rest: BaseException | None = error
    while rest is not None:
        rest.__traceback__ = None
        before, rest = rest, rest.__cause__ or rest.__context__
        before.__cause__ = before.__context__ = None


class MalformedError(CrucibleError):
    code = "malformed"


class UnauthenticatedError(CrucibleError):
    code = "unauthenticated"


class ForbiddenError(CrucibleError):
    code = "forbidden"


class NotFoundError(CrucibleError):
    code = "not_found"


class NotAcceptableError(CrucibleError):
    code = "not_acceptable"


class TooSlowError(CrucibleError):
    code = "too_slow"


class ConflictError(CrucibleError):
    code = "conflict"


class TooLargeError(CrucibleError):
    code = "too_large"


class UnsupportedError(CrucibleError):
    code = "unsupported"


class InvalidError(CrucibleError):
    code = "invalid"


class DeniedError(CrucibleError):
    """A Pre hook's denial; `extra` has `hook` and `reason`."""

    code = "denied"


class LimitedError(CrucibleError):
    """`extra["retry_after"]` is in seconds."""

    code = "limited"


class UnavailableError(CrucibleError):
    """`extra["retry_after"]` is in seconds. Of what was asked for, nothing was done."""

    code = "unavailable"


class StorageFullError(UnavailableError):
    """Nothing that needs storage is taken until there is some."""

    code = "storage_full"


class UnknownOutcomeError(UnavailableError):
    """It was sent, and no answer came: it may have been done, or not."""

    code = "outcome_unknown"


def untried(error: CrucibleError) -> CrucibleError:
    """The error of a request that was not tried because of `error`: its outcome is known."""
    return UnavailableError(error.detail, **error.extra) if isinstance(error, UnknownOutcomeError) else error


def _tree(root: type[CrucibleError]) -> dict[str, type[CrucibleError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


BY_CODE = _tree(CrucibleError)


def from_problem(problem: Problem) -> CrucibleError:
    """The exception that `problem` describes; a code that this version does not know becomes the root."""
    kind = BY_CODE.get(problem.code, CrucibleError)
    return kind(problem.detail, errors=problem.errors, **problem.extra)
