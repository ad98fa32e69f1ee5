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
    reason: Text | None = None
    error: Text | Object | None = None
    duration_ms: Milliseconds | None = None
    at: Moment | None = None
    metadata: Object | None = None


# ---- Agent -----------------------------------------------------------------------------------------------------------


class _Agent(_Runtime, kw_only=True):
    agent_id: AgentId | None = None
    role: Word | None = None
    capabilities: list[Any] | None = None
    to: Word | list[Word] | None = None
    content: Any = None
    action: Word | None = None
    tool: Word | Object | None = None
    arguments: Object | None = None
    result: Any = None


class AgentRegistered(_Agent):
    """An agent became known."""


class AgentUnregistered(_Agent):
    """An agent is known no more."""


class AgentJoinedRoom(_Agent):
    """An agent entered a room."""


class AgentLeftRoom(_Agent):
    """An agent left a room."""


class AgentActionExecuted(_Agent):
    """An agent did something."""


class AgentMessageSent(_Agent):
    """An agent sent a message."""


class AgentMessageReceived(_Agent):
    """An agent was sent a message."""


class AgentToolCreated(_Agent):
    """An agent made a tool."""


class AgentToolUsed(_Agent):
    """An agent used a tool."""


class _Turn(_Agent, kw_only=True):
    run_id: Word | None = None
    parent_id: Word | None = None
    prompt: Any = None
    messages: Any = None
    files: Any = None
    provider: Word | None = None
    model: Word | Object | None = None
    success: bool | None = None
    tokens: Count | Object | None = None


class AgentBootstrapping(_Turn):
    """The files that an agent begins with are about to be put into its context."""


class AgentStarting(_Turn):
    """An agent is about to start on a prompt."""


class AgentRunStarting(_Turn):
    """A run of an agent is about to be let through, or held back."""


class AgentModelResolving(_Turn):
    """The model of a turn is about to be chosen."""


class AgentTurnPreparing(_Turn):
    """A turn is about to be prepared, with what waits to be put into it."""


class AgentPromptBuilding(_Turn):
    """The prompt of a turn is about to be built."""


class AgentHeartbeatPreparing(_Turn):
    """The prompt of a heartbeat is about to be built."""


class AgentModelCallStarted(_Turn):
    """A model was called."""


class AgentModelCallEnded(_Turn):
    """A model's call is over."""


class AgentLlmInput(_Turn):
    """What a model is given."""


class AgentLlmOutput(_Turn):
    """What a model answered."""


class AgentReplying(_Turn):
    """An agent is about to be asked for its reply."""


class AgentFinalizing(_Turn):
    """An agent's answer is about to be taken as its last."""


class AgentEnded(_Turn):
    """An agent is done with a prompt."""


class AgentFailed(_Turn):
    """An agent broke off with an error."""


class AgentRecalling(_Turn):
    """Memories are about to be looked up for a turn."""


class AgentRecalled(_Turn):
    """Memories were looked up for a turn."""


class AgentSubagentSpawning(_Turn):
    """An agent is about to start another."""


class AgentSubagentSpawned(_Turn):
    """An agent started another."""


class AgentSubagentDelivering(_Turn):
    """It is about to be decided where another agent's result goes."""


class AgentSubagentEnded(_Turn):
    """Another agent that an agent started is done."""


# ---- Command ---------------------------------------------------------------------------------------------------------


class _Command(_Runtime, kw_only=True):
    command: Word | None = None
    arguments: Object | list[Any] | Text | None = None
    sender: Word | Object | None = None
    result: Any = None


class CommandNew(_Command):
    """A user asked for a new session."""


class CommandReset(_Command):
    """A user asked for the session to be reset."""


class CommandStop(_Command):
    """A user asked for the work to stop."""


class CommandReceived(_Command):
    """A command came in, before it runs."""


class CommandExecuted(_Command):
    """A command ran."""


class CommandFailed(_Command):
    """A command failed."""


# ---- Session ---------------------------------------------------------------------------------------------------------


class _Session(_Runtime, kw_only=True):
    model: Word | None = None
    parent_id: Word | None = None
    summary: Text | None = None
    messages: Count | list[Any] | None = None
    tokens: Count | None = None
    tokens_before: Count | None = None
    tokens_after: Count | None = None


class SessionStarted(_Session):
    """A session began."""


class SessionResumed(_Session):
    """A session went on after a pause."""


class SessionUpdated(_Session):
    """A session's settings or state changed."""


class SessionReset(_Session):
    """A session's context was cleared."""


class SessionResetting(_Session):
    """A session's context is about to be cleared."""


class SessionCompacting(_Session):
    """A session's context is about to be compacted."""


class SessionCompacted(_Session):
    """A session's context was compacted."""


class SessionFailed(_Session):
    """A session broke off with an error."""


class SessionEnded(_Session):
    """A session is over."""


# ---- Gateway ---------------------------------------------------------------------------------------------------------


class _Gateway(_Runtime, kw_only=True):
    host: Word | None = None
    port: Count | None = None
    version: Word | None = None
    client_id: Word | None = None


class GatewayStarting(_Gateway):
    """The runtime's gateway is about to start."""


class GatewayStarted(_Gateway):
    """The runtime's gateway started."""


class GatewayStopping(_Gateway):
    """The runtime's gateway is about to stop."""


class GatewayStopped(_Gateway):
    """The runtime's gateway stopped."""


class GatewayConnected(_Gateway):
    """A client or channel connected to the runtime's gateway."""


class GatewayDisconnected(_Gateway):
    """A client or channel went away from the runtime's gateway."""


class GatewayInstalling(_Gateway):
    """A skill or a plugin is about to be installed."""


class GatewayCronChanged(_Gateway):
    """A timed job was added, changed or removed, or it ran."""


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
    transcript: str | None = None


class MessageReceived(_Message):
    """A message came in."""


class MessageClaiming(_Message):
    """A message came in, and a plugin may take it before an agent does."""


class MessageTranscribed(_Message):
    """A message's audio was turned into text."""


class MessagePreprocessed(_Message):
    """A message is ready for the agent: media and links are understood."""


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


class MessageFailed(_Message):
    """A message could not be sent."""


# ---- Tool ------------------------------------------------------------------------------------------------------------


class _Tool(_Runtime, kw_only=True):
    tool: ToolName | None = None
    call_id: Word | None = None
    arguments: Arguments | None = None
    params: Object | None = None
    result: Any = None


class ToolBeforeCall(_Tool):
    """A tool is about to be called."""


class ToolAfterCall(_Tool):
    """A tool was called and answered."""


class ToolFailed(_Tool):
    """A tool's call failed."""


class ToolDenied(_Tool):
    """A tool's call was not permitted."""


class ToolResultPersisting(_Tool):
    """A tool's result is about to be written to the session."""


class ToolRegistered(_Tool):
    """A tool became available."""


class ToolUnregistered(_Tool):
    """A tool is no longer available."""


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
