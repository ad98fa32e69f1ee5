"""Payloads of an agent runtime's life: Agent, Command, Session, Gateway, Message, Tool; open, and nothing required."""

from typing import Annotated, Any

from msgspec import Meta

from .fields import Count, Milliseconds, Moment, Object, Open, Payloads, Text, Word

AgentId = Annotated[str, Meta(min_length=1, max_length=200, examples=["agent_researcher"])]
ToolName = Annotated[str, Meta(min_length=1, max_length=200, examples=["web_search"])]
Arguments = Annotated[dict[str, Any], Meta(examples=[{"query": "vector clocks"}])]


class _Runtime(Open, kw_only=True):
    """What every event of a runtime may tell of where it happened."""

    id: Word | None = None
    name: Word | None = None
    agent_id: Word | None = None
    session_id: Word | None = None
    room_id: Word | None = None
    channel: Word | None = None
    at: Moment | None = None
    metadata: Object | None = None


# ---- Agent -----------------------------------------------------------------------------------------------------------


class _Agent(_Runtime, kw_only=True):
    agent_id: AgentId | None = None


class AgentRegistered(_Agent, kw_only=True):
    """An agent became known."""

    role: Word | None = None
    capabilities: list[Any] | None = None


class AgentUnregistered(_Agent, kw_only=True):
    """An agent is known no more."""

    reason: Text | None = None


class AgentJoinedRoom(_Agent):
    """An agent entered a room."""


class AgentLeftRoom(_Agent, kw_only=True):
    """An agent left a room."""

    reason: Text | None = None


class AgentActionExecuted(_Agent, kw_only=True):
    """An agent did something."""

    action: Word | None = None
    arguments: Object | None = None
    result: Any = None
    error: Text | Object | None = None
    duration_ms: Milliseconds | None = None


class AgentMessageSent(_Agent, kw_only=True):
    """An agent sent a message."""

    to: Word | list[Word] | None = None
    content: Any = None


class AgentMessageReceived(_Agent, kw_only=True):
    """An agent was sent a message."""

    sender: Word | Object | None = None
    content: Any = None


class AgentToolCreated(_Agent, kw_only=True):
    """An agent made a tool."""

    tool: Word | Object | None = None
    description: Text | None = None
    input_schema: Object | None = None


class AgentToolUsed(_Agent, kw_only=True):
    """An agent used a tool."""

    tool: Word | Object | None = None
    arguments: Object | None = None
    result: Any = None
    error: Text | Object | None = None
    duration_ms: Milliseconds | None = None


class _Turn(_Agent, kw_only=True):
    run_id: Word | None = None
    parent_id: Word | None = None
    provider: Word | None = None
    model: Word | Object | None = None


class AgentBootstrapping(_Turn, kw_only=True):
    """The files that an agent begins with are about to be put into its context."""

    files: Any = None


class AgentStarting(_Turn, kw_only=True):
    """An agent is about to start on a prompt."""

    prompt: Any = None
    messages: Any = None


class AgentRunStarting(_Turn, kw_only=True):
    """A run of an agent is about to be let through, or held back."""

    prompt: Any = None


class AgentModelResolving(_Turn, kw_only=True):
    """The model of a turn is about to be chosen."""

    prompt: Any = None


class AgentTurnPreparing(_Turn, kw_only=True):
    """A turn is about to be prepared, with what waits to be put into it."""

    prompt: Any = None
    messages: Any = None


class AgentPromptBuilding(_Turn, kw_only=True):
    """The prompt of a turn is about to be built."""

    prompt: Any = None
    messages: Any = None


class AgentHeartbeatPreparing(_Turn, kw_only=True):
    """The prompt of a heartbeat is about to be built."""

    prompt: Any = None


class AgentModelCallStarted(_Turn, kw_only=True):
    """A model was called."""

    prompt: Any = None
    messages: Any = None


class AgentModelCallEnded(_Turn, kw_only=True):
    """A model's call is over."""

    result: Any = None
    tokens: Count | Object | None = None
    success: bool | None = None
    error: Text | Object | None = None
    duration_ms: Milliseconds | None = None


class AgentLlmInput(_Turn, kw_only=True):
    """What a model is given."""

    prompt: Any = None
    messages: Any = None


class AgentLlmOutput(_Turn, kw_only=True):
    """What a model answered."""

    content: Any = None
    result: Any = None
    tokens: Count | Object | None = None
    duration_ms: Milliseconds | None = None


class AgentReplying(_Turn, kw_only=True):
    """An agent is about to be asked for its reply."""

    to: Word | list[Word] | None = None
    content: Any = None


class AgentFinalizing(_Turn, kw_only=True):
    """An agent's answer is about to be taken as its last."""

    content: Any = None
    messages: Any = None


class AgentEnded(_Turn, kw_only=True):
    """An agent is done with a prompt."""

    messages: Any = None
    result: Any = None
    success: bool | None = None
    tokens: Count | Object | None = None
    error: Text | Object | None = None
    duration_ms: Milliseconds | None = None


class AgentFailed(_Turn, kw_only=True):
    """An agent broke off with an error."""

    reason: Text | None = None
    error: Text | Object | None = None
    duration_ms: Milliseconds | None = None


class AgentRecalling(_Turn, kw_only=True):
    """Memories are about to be looked up for a turn."""

    prompt: Any = None
    messages: Any = None


class AgentRecalled(_Turn, kw_only=True):
    """Memories were looked up for a turn."""

    prompt: Any = None
    messages: Any = None
    result: Any = None


class AgentSubagentSpawning(_Turn, kw_only=True):
    """An agent is about to start another."""

    prompt: Any = None


class AgentSubagentSpawned(_Turn):
    """An agent started another."""


class AgentSubagentDelivering(_Turn, kw_only=True):
    """It is about to be decided where another agent's result goes."""

    to: Word | list[Word] | None = None
    content: Any = None


class AgentSubagentEnded(_Turn, kw_only=True):
    """Another agent that an agent started is done."""

    result: Any = None
    success: bool | None = None
    error: Text | Object | None = None
    duration_ms: Milliseconds | None = None


# ---- Command ---------------------------------------------------------------------------------------------------------


class _Command(_Runtime, kw_only=True):
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


class _Session(_Runtime, kw_only=True):
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


class _Gateway(_Runtime, kw_only=True):
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


class _Message(_Runtime, kw_only=True):
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


class _Tool(_Runtime, kw_only=True):
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


AGENT: Payloads = {
    "Registered": AgentRegistered,
    "Unregistered": AgentUnregistered,
    "JoinedRoom": AgentJoinedRoom,
    "LeftRoom": AgentLeftRoom,
    "ActionExecuted": AgentActionExecuted,
    "MessageSent": AgentMessageSent,
    "MessageReceived": AgentMessageReceived,
    "ToolCreated": AgentToolCreated,
    "ToolUsed": AgentToolUsed,
    "Bootstrapping": AgentBootstrapping,
    "Starting": AgentStarting,
    "RunStarting": AgentRunStarting,
    "ModelResolving": AgentModelResolving,
    "TurnPreparing": AgentTurnPreparing,
    "PromptBuilding": AgentPromptBuilding,
    "HeartbeatPreparing": AgentHeartbeatPreparing,
    "ModelCallStarted": AgentModelCallStarted,
    "ModelCallEnded": AgentModelCallEnded,
    "LlmInput": AgentLlmInput,
    "LlmOutput": AgentLlmOutput,
    "Replying": AgentReplying,
    "Finalizing": AgentFinalizing,
    "Ended": AgentEnded,
    "Failed": AgentFailed,
    "Recalling": AgentRecalling,
    "Recalled": AgentRecalled,
    "SubagentSpawning": AgentSubagentSpawning,
    "SubagentSpawned": AgentSubagentSpawned,
    "SubagentDelivering": AgentSubagentDelivering,
    "SubagentEnded": AgentSubagentEnded,
}
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
