"""Payloads of what is known: Memory, Graph and File."""

from .fields import (
    Closed,
    Content,
    Count,
    Ids,
    MemoryId,
    Milliseconds,
    Moment,
    NodeId,
    Object,
    OtherId,
    OtherNodeId,
    OtherPath,
    Path,
    Payloads,
    Redacted,
    References,
    Tag,
    Tags,
    Text,
    Title,
    Word,
    Words,
)

# ---- Memory ----------------------------------------------------------------------------------------------------------


class _MemoryFields(Closed, kw_only=True):
    content: Content | None = None
    title: Title | None = None
    tags: Tags | None = None
    entities: Words | None = None
    links: References | None = None
    metadata: Object | None = None
    path: OtherPath | None = None
    hash: Word | None = None
    tag: Word | None = None
    source: Word | None = None
    target: Word | None = None
    type: Word | None = None
    weight: float | None = None
    score: float | None = None
    reason: Text | None = None
    query: Text | None = None
    changed: Words | None = None
    merged: Ids | None = None
    into: Word | None = None
    count: Count | None = None
    world_id: Word | None = None
    room_id: Word | None = None
    created_at: Moment | None = None
    updated_at: Moment | None = None


class _Memory(_MemoryFields, kw_only=True):
    id: MemoryId


class MemoryCreated(_Memory, kw_only=True):
    """A memory was made."""

    content: Content


class MemoryUpdated(_Memory):
    """A memory changed; the payload has the new values of what changed."""


class MemoryDeleted(_Memory):
    """A memory was removed."""


class _MemoryLink(_MemoryFields, kw_only=True):
    id: MemoryId | None = None
    target: OtherId

    def __post_init__(self) -> None:
        if self.id is None and self.source is None:
            raise ValueError("required: `id` (or `source`), the memory at the link's near end")


class MemoryLinked(_MemoryLink):
    """A memory (`id`, or `source`) was linked to another (`target`)."""


class MemoryUnlinked(_MemoryLink):
    """A memory (`id`, or `source`) is no longer linked to another (`target`)."""


class MemoryTagged(_Memory, kw_only=True):
    """A tag was put on a memory."""

    tag: Tag


class MemoryUntagged(_Memory, kw_only=True):
    """A tag was taken off a memory."""

    tag: Tag


class MemoryAccessed(_Memory):
    """A memory was read."""


class MemoryConsolidated(_Memory):
    """A memory took over what others (`merged`) held."""


class MemoryPruned(_Memory):
    """A memory was dropped by a retention rule."""


class MemoryRedacted(Redacted):
    """The payload of a Memory event was erased; `envelope` is what is left of it."""


# ---- Graph -----------------------------------------------------------------------------------------------------------


class _Graph(Closed, kw_only=True):
    id: NodeId | None = None
    label: Text | None = None
    name: Text | None = None
    kind: Word | None = None
    type: Word | None = None
    source: Word | None = None
    target: Word | None = None
    weight: float | None = None
    score: float | None = None
    directed: bool | None = None
    tags: Tags | None = None
    properties: Object | None = None
    metadata: Object | None = None
    reason: Text | None = None
    nodes: Ids | None = None
    edges: Ids | None = None
    path: Ids | None = None
    length: Count | None = None
    members: Ids | None = None
    size: Count | None = None
    algorithm: Word | None = None
    metrics: Object | None = None
    duration_ms: Milliseconds | None = None


class GraphNodeAdded(_Graph, kw_only=True):
    """A node joined the graph."""

    id: NodeId


class GraphNodeRemoved(_Graph, kw_only=True):
    """A node left the graph."""

    id: NodeId


class GraphEdgeCreated(_Graph, kw_only=True):
    """Two nodes were joined by an edge."""

    source: NodeId
    target: OtherNodeId


class GraphEdgeRemoved(_Graph, kw_only=True):
    """An edge between two nodes was removed."""

    source: NodeId
    target: OtherNodeId


class GraphPathDiscovered(_Graph):
    """A path between two nodes was found."""


class GraphCommunityDetected(_Graph):
    """A group of closely joined nodes was found."""


class GraphMetricsComputed(_Graph):
    """Measures of the graph were computed."""


class GraphRedacted(Redacted):
    """The payload of a Graph event was erased; `envelope` is what is left of it."""


# ---- File ------------------------------------------------------------------------------------------------------------


class _File(Closed, kw_only=True):
    path: Path
    content: Content | None = None
    hash: Word | None = None
    size: Count | None = None
    mtime: Moment | None = None
    mime: Word | None = None
    encoding: Word | None = None
    root: OtherPath | None = None
    old_path: OtherPath | None = None
    new_path: OtherPath | None = None
    name: Text | None = None
    extension: Text | None = None
    title: Title | None = None
    tags: Tags | None = None
    metadata: Object | None = None
    memory_id: Word | None = None
    status: Word | None = None
    reason: Text | None = None
    error: Text | None = None
    duration_ms: Milliseconds | None = None


class FileCreated(_File):
    """A file appeared in a watched folder."""


class FileModified(_File):
    """A file's content changed."""


class FileDeleted(_File):
    """A file went away."""


class FileRenamed(_File):
    """A file has a new path; `old_path` is where it was."""


class FileDirectoryCreated(_File):
    """A directory appeared in a watched folder."""


class FileDirectoryDeleted(_File):
    """A directory went away."""


class FileProcessed(_File):
    """A file was read into memories."""


MEMORY: Payloads = {
    "Created": MemoryCreated,
    "Updated": MemoryUpdated,
    "Deleted": MemoryDeleted,
    "Linked": MemoryLinked,
    "Unlinked": MemoryUnlinked,
    "Tagged": MemoryTagged,
    "Untagged": MemoryUntagged,
    "Accessed": MemoryAccessed,
    "Consolidated": MemoryConsolidated,
    "Pruned": MemoryPruned,
    "Redacted": MemoryRedacted,
}
GRAPH: Payloads = {
    "NodeAdded": GraphNodeAdded,
    "NodeRemoved": GraphNodeRemoved,
    "EdgeCreated": GraphEdgeCreated,
    "EdgeRemoved": GraphEdgeRemoved,
    "PathDiscovered": GraphPathDiscovered,
    "CommunityDetected": GraphCommunityDetected,
    "MetricsComputed": GraphMetricsComputed,
    "Redacted": GraphRedacted,
}
FILE: Payloads = {
    "Created": FileCreated,
    "Modified": FileModified,
    "Deleted": FileDeleted,
    "Renamed": FileRenamed,
    "DirectoryCreated": FileDirectoryCreated,
    "DirectoryDeleted": FileDirectoryDeleted,
    "Processed": FileProcessed,
}
