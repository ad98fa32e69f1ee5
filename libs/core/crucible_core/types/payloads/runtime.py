"""Payloads of an agent runtime's life: Command, Session, Gateway, Message, Tool; open, and nothing required."""

from typing import Annotated, Any

from msgspec import Meta

from crucible_core.types.payloads.fields import Count, Milliseconds, Object, Payloads, Runtime, Text, Word

ToolName = Annotated[str, Meta(min_length=1, max_length=200, examples=["web_search"])]
Arguments = Annotated[dict[str, Any], Meta(examples=[{"query": "vector clocks"}])]

# ---- Command ---------------------------------------------------------------------------------------------------------


class _Command(Runtime, kw_only=True):
    command: Word | None = None
    arguments: Object | list[Any] | Text | None = None
    sender: Word | Object | None = None


class CommandNew(_Command):
    """A user asked for a new session."""


class CommandReset(_Command):
    """A user asked for the session to be reset."""


class CommandStop(_Command):
    """A user asked for the work to stop."""


class CommandReceived(_Command):
    """A command came in, before it runs."""


class CommandExecuted(_Command, kw_only=True):
    """A command ran."""

    result: Any = None
    duration_ms: Milliseconds | None = None


class CommandFailed(_Command, kw_only=True):
    """A command failed."""

    reason: Text | None = None
    error: Text | Object | None = None
    duration_ms: Milliseconds | None = None


# ---- Session ---------------------------------------------------------------------------------------------------------


class _Session(Runtime, kw_only=True):
    model: Word | None = None
    parent_id: Word | None = None


class SessionStarted(_Session):
    """A session began."""


class SessionResumed(_Session):
    """A session went on after a pause."""


class SessionUpdated(_Session, kw_only=True):
    """A session's settings or state changed."""

    changes: Object | list[Any] | None = None


class SessionReset(_Session, kw_only=True):
    """A session's context was cleared."""

    reason: Text | None = None


class SessionResetting(_Session, kw_only=True):
    """A session's context is about to be cleared."""

    reason: Text | None = None


class SessionCompacting(_Session, kw_only=True):
    """A session's context is about to be compacted."""

    messages: Any = None
    tokens: Count | Object | None = None


class SessionCompacted(_Session, kw_only=True):
    """A session's context was compacted."""

    summary: Text | None = None
    messages: Any = None
    tokens: Count | Object | None = None
    tokens_before: Count | None = None
    tokens_after: Count | None = None
    duration_ms: Milliseconds | None = None


class SessionFailed(_Session, kw_only=True):
    """A session broke off with an error."""

    reason: Text | None = None
    error: Text | Object | None = None


class SessionEnded(_Session, kw_only=True):
    """A session is over."""

    summary: Text | None = None
    messages: Any = None
    tokens: Count | Object | None = None
    reason: Text | None = None
    duration_ms: Milliseconds | None = None


# ---- Gateway ---------------------------------------------------------------------------------------------------------


class _Gateway(Runtime, kw_only=True):
    version: Word | None = None


class GatewayStarting(_Gateway, kw_only=True):
    """The runtime's gateway is about to start."""

    host: Word | None = None
    port: Count | None = None


class GatewayStarted(_Gateway, kw_only=True):
    """The runtime's gateway started."""

    host: Word | None = None
    port: Count | None = None


class GatewayStopping(_Gateway, kw_only=True):
    """The runtime's gateway is about to stop."""

    reason: Text | None = None


class GatewayStopped(_Gateway, kw_only=True):
    """The runtime's gateway stopped."""

    reason: Text | None = None


class GatewayConnected(_Gateway, kw_only=True):
    """A client or channel connected to the runtime's gateway."""

    host: Word | None = None
    client_id: Word | None = None


class GatewayDisconnected(_Gateway, kw_only=True):
    """A client or channel went away from the runtime's gateway."""

    client_id: Word | None = None
    reason: Text | None = None


class GatewayInstalling(_Gateway):
    """A skill or a plugin is about to be installed."""


class GatewayCronChanged(_Gateway, kw_only=True):
    """A timed job was added, changed or removed, or it ran."""

    action: Word | None = None


# ---- Message ---------------------------------------------------------------------------------------------------------


class _Message(Runtime, kw_only=True):
    content: Any = None
    text: str | None = None
    role: Word | None = None
    sender: Word | Object | None = None
    to: Word | list[Word] | Object | None = None
    thread_id: Word | None = None
    reply_to: Word | None = None
    attachments: list[Any] | None = None


class MessageReceived(_Message):
    """A message came in."""


class MessageClaiming(_Message):
    """A message came in, and a plugin may take it before an agent does."""


class MessageTranscribed(_Message, kw_only=True):
    """A message's audio was turned into text."""

    transcript: str | None = None


class MessagePreprocessed(_Message, kw_only=True):
    """A message is ready for the agent: media and links are understood."""

    transcript: str | None = None


class MessageWriting(_Message):
    """A message is about to be written to the session."""


class MessageDispatching(_Message):
    """A message is about to be handed to its channel."""


class MessageReplyDispatching(_Message):
    """The last reply is about to be handed to its channel."""


class MessagePayloadSending(_Message):
    """One part of a reply is about to go out."""


class MessageSending(_Message):
    """A message is about to go out."""


class MessageSent(_Message):
    """A message went out."""


class MessageFailed(_Message, kw_only=True):
    """A message could not be sent."""

    reason: Text | None = None
    error: Text | Object | None = None


# ---- Tool ------------------------------------------------------------------------------------------------------------


class _Tool(Runtime, kw_only=True):
    tool: ToolName | None = None
    call_id: Word | None = None
    arguments: Arguments | None = None
    params: Object | None = None


class ToolBeforeCall(_Tool):
    """A tool is about to be called."""


class ToolAfterCall(_Tool, kw_only=True):
    """A tool was called and answered."""

    result: Any = None
    error: Text | Object | None = None
    duration_ms: Milliseconds | None = None


class ToolFailed(_Tool, kw_only=True):
    """A tool's call failed."""

    reason: Text | None = None
    error: Text | Object | None = None
    duration_ms: Milliseconds | None = None


class ToolDenied(_Tool, kw_only=True):
    """A tool's call was not permitted."""

    reason: Text | None = None


class ToolResultPersisting(_Tool, kw_only=True):
    """A tool's result is about to be written to the session."""

    result: Any = None


class ToolRegistered(_Tool, kw_only=True):
    """A tool became available."""

    description: Text | None = None
    input_schema: Object | None = None


class ToolUnregistered(_Tool, kw_only=True):
    """A tool is no longer available."""

    reason: Text | None = None


COMMAND: Payloads = {
    "New": CommandNew,
    "Reset": CommandReset,
    "Stop": CommandStop,
    "Received": CommandReceived,
    "Executed": CommandExecuted,
    "Failed": CommandFailed,
}
SESSION: Payloads = {
    "Started": SessionStarted,
    "Resumed": SessionResumed,
    "Updated": SessionUpdated,
    "Reset": SessionReset,
    "Resetting": SessionResetting,
    "Compacting": SessionCompacting,
    "Compacted": SessionCompacted,
    "Failed": SessionFailed,
    "Ended": SessionEnded,
}
GATEWAY: Payloads = {
    "Starting": GatewayStarting,
    "Started": GatewayStarted,
    "Stopping": GatewayStopping,
    "Stopped": GatewayStopped,
    "Connected": GatewayConnected,
    "Disconnected": GatewayDisconnected,
    "Installing": GatewayInstalling,
    "CronChanged": GatewayCronChanged,
}
MESSAGE: Payloads = {
    "Received": MessageReceived,
    "Claiming": MessageClaiming,
    "Transcribed": MessageTranscribed,
    "Preprocessed": MessagePreprocessed,
    "Writing": MessageWriting,
    "Dispatching": MessageDispatching,
    "ReplyDispatching": MessageReplyDispatching,
    "PayloadSending": MessagePayloadSending,
    "Sending": MessageSending,
    "Sent": MessageSent,
    "Failed": MessageFailed,
}
TOOL: Payloads = {
    "BeforeCall": ToolBeforeCall,
    "AfterCall": ToolAfterCall,
    "Failed": ToolFailed,
    "Denied": ToolDenied,
    "ResultPersisting": ToolResultPersisting,
    "Registered": ToolRegistered,
    "Unregistered": ToolUnregistered,
}
