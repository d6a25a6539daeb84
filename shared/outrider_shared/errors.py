"""The one error tree.

Every error that Outrider raises on purpose is one of these. Each tells what was wrong, with what value, and what to do.
Foreign errors (gRPC, ONNX Runtime, transformers, the file system) are wrapped where they enter.

    OutriderError
    ├── InputError               the caller's fault; trying the same again is useless
    │   ├── ParameterError       sampling parameters or limits out of range
    │   │   └── UnsupportedError a parameter that other services have and this one does not
    │   ├── GrammarError         a grammar or schema that is malformed, not supported or too complex
    │   ├── PromptError          empty, or a token id outside the vocabulary
    │   │   └── ContextError     longer than the model's context
    │   ├── DraftError           a draft tree that breaks its bounds or names an unknown parent
    │   ├── UnknownModelError    the service does not hold that model
    │   ├── MismatchError        tokenizer, vocabulary or protocol of the two sides differ
    │   ├── ConfigError          flags or files that do not fit together
    ├── ProtocolError            the peer broke the wire contract
    │   └── SessionExistsError   a second stream was opened with an id that is in use
    ├── LimitError               a bound of the service was reached; try again later
    ├── UnavailableError         the other side cannot be reached, or is draining; try again, perhaps elsewhere
    │   └── ClosedWindowError    a download waits for its maintenance window
    ├── DeadlineError            the caller's deadline passed
    ├── PackError                a pack is damaged, altered or of an unknown format
    ├── ModelError               a model that this engine cannot serve exactly
    ├── RefusedError             the other side does not allow this identity to do that
    │   └── TokenError           a request without a token, or with one that nobody has
    ├── StorageError             a disk is full, read-only or failing
    ├── StateError               a signed document of the fleet that must not be applied
    │   ├── SignatureError       nobody trusted signed it, or it was altered
    │   ├── ReplayError          older than what was already applied
    │   └── ConflictError        the number of one that was applied, with another content
    ├── UpdateError              an update that was refused, or failed and was taken back
    │   ├── AlteredError         the bytes are not those that were signed
    │   ├── TruncatedError       the artifact ended before its signed length
    │   ├── EndlessError         the artifact goes on past its signed length
    │   ├── UnlistedError        nobody who may vouch for it lists the artifact
    │   ├── MetadataError        update metadata that cannot be trusted
    │   │   ├── UntrustedError   too few valid signatures (under-signed, or by a revoked key)
    │   │   ├── ExpiredError     past its date
    │   │   └── RollbackError    older than what was seen before
    │   ├── SelfTestError        the new draft fails its golden prompts
    │   └── ProbationError       the new draft failed at work, and the device went back
    └── InternalError            our fault
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterator


class OutriderError(Exception):
    """Base of all errors raised on purpose.

    Args:
        message: What was wrong, with the offending value.
        hint: What the reader can do about it; empty where the message already says it.
        param: The field of a request that it is about; empty where it is about none, or where none is known.

    Attributes:
        code: Stable name of the error kind, the same on the wire, in JSON output and in logs.
        retryable: Whether the same request may succeed later or at another replica.
    """

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "", param: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.param = param

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InputError(OutriderError):
    """The caller asked for something that cannot be done; the same request will fail again."""

    code = "invalid_input"


class ParameterError(InputError):
    """A sampling parameter or a limit is out of its range."""

    code = "invalid_parameter"


class UnsupportedError(ParameterError):
    """A parameter that other services have and that cannot be honoured here."""

    code = "unsupported_parameter"


class GrammarError(InputError):
    """A grammar or JSON schema is malformed, uses what is not supported, or is too complex."""

    code = "invalid_grammar"


class PromptError(InputError):
    """The prompt is empty, too long for the context, or holds a token id outside the vocabulary."""

    code = "invalid_prompt"


class ContextError(PromptError):
    """The prompt is longer than the model's context. The code is the one that OpenAI's clients look for."""

    code = "context_length_exceeded"


class DraftError(InputError):
    """A draft names a parent that does not exist, a token outside the vocabulary, or exceeds the tree's bounds."""

    code = "invalid_draft"


class UnknownModelError(InputError):
    """The service holds no model of that name."""

    code = "unknown_model"


class MismatchError(InputError):
    """Tokenizer, vocabulary or protocol version of the two sides differ."""

    code = "mismatch"


class ConfigError(InputError):
    """Flags, environment or files do not fit together."""

    code = "invalid_config"


class ProtocolError(OutriderError):
    """The peer broke the wire contract: unreadable bytes, or a message out of its order."""

    code = "protocol"


class SessionExistsError(ProtocolError):
    """A second stream was opened with the id of a session that has a live stream."""

    code = "session_exists"


class LimitError(OutriderError):
    """A bound of the service was reached (sessions, KV memory, streams of one device)."""

    code = "limit"
    retryable = True


class UnavailableError(OutriderError):
    """The other side cannot be reached, or is draining."""

    code = "unavailable"
    retryable = True


class ClosedWindowError(UnavailableError):
    """The maintenance window is closed; the download goes on when it opens."""

    code = "window_closed"


class DeadlineError(OutriderError):
    """The caller's deadline passed before the answer was complete."""

    code = "deadline"


class PackError(OutriderError):
    """A pack is truncated, altered, incomplete, or of a format that this version does not read."""

    code = "invalid_pack"


class ModelError(OutriderError):
    """A model that this engine cannot serve exactly, with the reason."""

    code = "unsupported_model"


class RefusedError(OutriderError):
    """The other side does not allow this identity to do that."""

    code = "refused"


class TokenError(RefusedError):
    """A request without a token, or with one that nobody has."""

    code = "unknown_token"


class StorageError(OutriderError):
    """A disk is full, read-only or failing; the same may work when there is room."""

    code = "storage"
    retryable = True


class StateError(OutriderError):
    """A document of the fleet plane that must not be applied."""

    code = "state"


class SignatureError(StateError):
    """A document that no trusted key signed, or that was altered, or that is for somebody else."""

    code = "signature"


class ReplayError(StateError):
    """A document older than the one that was already applied."""

    code = "replay"


class ConflictError(StateError):
    """Two documents with the same number and different content."""

    code = "conflict"


class UpdateError(OutriderError):
    """An update of the draft was refused, or failed and was taken back."""

    code = "update"


class AlteredError(UpdateError):
    """The bytes of an artifact are not those that were signed."""

    code = "artifact_altered"


class TruncatedError(UpdateError):
    """An artifact ended before its signed length."""

    code = "artifact_truncated"


class EndlessError(UpdateError):
    """An artifact or metadata goes on past its length."""

    code = "artifact_endless"


class UnlistedError(UpdateError):
    """No role that may vouch for the artifact lists it."""

    code = "artifact_unlisted"


class MetadataError(UpdateError):
    """Update metadata that cannot be trusted."""

    code = "metadata"


class UntrustedError(MetadataError):
    """Metadata with fewer valid signatures than its role needs."""

    code = "metadata_untrusted"


class ExpiredError(MetadataError):
    """Metadata past its date: the repository is frozen or abandoned, or this clock is wrong."""

    code = "metadata_expired"


class RollbackError(MetadataError):
    """Metadata older than what this device has seen."""

    code = "metadata_rollback"


class SelfTestError(UpdateError):
    """The new draft does not give what its publisher says on golden prompts."""

    code = "self_test"


class ProbationError(UpdateError):
    """The new draft failed at work during probation; the device went back to the one before."""

    code = "probation"


class InternalError(OutriderError):
    """A fault of ours; the session can be resumed elsewhere."""

    code = "internal"
    retryable = True


def _tree(root: type[OutriderError]) -> dict[str, type[OutriderError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found.update(_tree(child))
    return found


@contextlib.contextmanager
def ungrouped() -> Iterator[None]:
    """A task group's error of ours is raised as itself: one sentence for who started it, not a group of them.

    A `raise` within `except*` does that in Python 3.11.7; 3.11.2 (Debian 12) makes another group of it.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        ours, others = group.split(OutriderError)
        if ours is None or others is not None:
            raise
        first: BaseException = ours
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None


def error_from_code(code: str, message: str, *, hint: str = "") -> OutriderError:
    """The typed error for a wire `code`; an unknown code (a newer peer) becomes `InternalError`."""
    return _tree(OutriderError).get(code, InternalError)(message, hint=hint)
