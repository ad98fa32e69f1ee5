"""Payloads of agents, and of the turns that they take: open, and nothing required."""

from typing import Annotated, Any

from msgspec import Meta

from crucible_core.types.payloads.fields import Count, Milliseconds, Object, Payloads, Runtime, Text, Word

AgentId = Annotated[str, Meta(min_length=1, max_length=200, examples=["agent_researcher"])]


class _Agent(Runtime, kw_only=True):
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


class _Prompted(_Turn, kw_only=True):
    prompt: Any = None


class _Told(_Prompted, kw_only=True):
    messages: Any = None


class AgentBootstrapping(_Turn, kw_only=True):
    """The files that an agent begins with are about to be put into its context."""

    files: Any = None


class AgentStarting(_Told, kw_only=True):
    """An agent is about to start on a prompt."""


class AgentRunStarting(_Prompted, kw_only=True):
    """A run of an agent is about to be let through, or held back."""


class AgentModelResolving(_Prompted, kw_only=True):
    """The model of a turn is about to be chosen."""


class AgentTurnPreparing(_Told, kw_only=True):
    """A turn is about to be prepared, with what waits to be put into it."""


class AgentPromptBuilding(_Told, kw_only=True):
    """The prompt of a turn is about to be built."""


class AgentHeartbeatPreparing(_Prompted, kw_only=True):
    """The prompt of a heartbeat is about to be built."""


class AgentModelCallStarted(_Told, kw_only=True):
    """A model was called."""


class AgentModelCallEnded(_Turn, kw_only=True):
    """A model's call is over."""

    result: Any = None
    tokens: Count | Object | None = None
    success: bool | None = None
    error: Text | Object | None = None
    duration_ms: Milliseconds | None = None


class AgentLlmInput(_Told, kw_only=True):
    """A request to a model."""


class AgentLlmOutput(_Turn, kw_only=True):
    """A model's answer."""

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


class AgentRecalling(_Told, kw_only=True):
    """Memories are about to be looked up for a turn."""


class AgentRecalled(_Turn, kw_only=True):
    """Memories were looked up for a turn."""

    prompt: Any = None
    messages: Any = None
    result: Any = None


class AgentSubagentSpawning(_Prompted, kw_only=True):
    """An agent is about to start another."""


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
