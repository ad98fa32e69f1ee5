"""Payloads of what is known: Memory, Graph and File."""

from typing import Any, ClassVar

from msgspec import field

from crucible_core.types.payloads.fields import (
    Closed,
    Content,
    Count,
    Ids,
    MemoryId,
    Milliseconds,
    Moment,
    NodeId,
    Object,
    OldPath,
    OtherId,
    OtherIds,
    OtherNodeId,
    OtherPath,
    Path,
    Payloads,
    Problems,
    Redacted,
    References,
    Synonyms,
    Tag,
    Tags,
    Text,
    Title,
    Word,
    Words,
)

# ---- Memory ----------------------------------------------------------------------------------------------------------

_OF_ENTRIES: Synonyms = {"entry_id": ("id",), "kb_name": ("kb",), "entry_type": ("type",), "timestamp": ("at",)}
_OF_LINKS: Synonyms = {"source": ("from",), "target": ("to",)}


class _Entry(Closed, kw_only=True):
    """The entry of a knowledge base, in every event about it; `at` and `actor` are the sender's own words."""

    id: MemoryId
    kb: Word | None = None
    type: Word | None = None
    title: Title | None = None
    path: OtherPath | None = None
    actor: Word | None = None
    at: Moment | None = None


class MemoryCreated(_Entry, kw_only=True):
    """A memory was made."""

    synonyms: ClassVar[Synonyms] = {**_OF_ENTRIES, "created_at": ("at",)}

    content: Content | None = None
    tags: Tags | None = None
    entities: Words | None = None
    links: References | None = None
    metadata: Object | None = None
    hash: Word | None = None
    source: Word | None = None
    root: OtherPath | None = None
    problems: Problems | None = None

    def __post_init__(self) -> None:
        if self.content is None and not self.title and self.kb is None:  # an entry's text may be its base's alone
            raise ValueError("`content`: required, but missing, and there is no title in its place")


class MemoryUpdated(_Entry, kw_only=True):
    """A memory changed; the payload has the new values of what changed, and `changes` names or describes it."""

    synonyms: ClassVar[Synonyms] = {
        **_OF_ENTRIES,
        "updated_at": ("at",),
        "changed": ("changes",),
        "hash": ("new_hash",),
    }

    previous_hash: Word | None = None
    new_hash: Word | None = None
    changes: Object | list[Any] | Text | None = None
    content: Content | None = None
    tags: Tags | None = None
    entities: Words | None = None
    links: References | None = None
    metadata: Object | None = None
    reason: Text | None = None
    root: OtherPath | None = None
    problems: Problems | None = None


class MemoryDeleted(_Entry, kw_only=True):
    """A memory was removed."""

    synonyms: ClassVar[Synonyms] = {**_OF_ENTRIES, "deleted_at": ("at",)}

    reason: Text | None = None


class _MemoryLink(Closed, kw_only=True):
    synonyms: ClassVar[Synonyms] = {**_OF_LINKS, "id": ("from",), "type": ("link_type",), "weight": ("strength",)}

    from_: MemoryId = field(name="from")
    to: OtherId
    link_type: Word | None = None
    strength: float | None = None
    reason: Text | None = None

    def __post_init__(self) -> None:
        if self.from_ == self.to:
            raise ValueError("`to`: a memory cannot be linked to itself")


class MemoryLinked(_MemoryLink):
    """A memory was linked to another."""

    metadata: Object | None = None


class MemoryUnlinked(_MemoryLink):
    """A memory is no longer linked to another."""


class MemoryTagged(Closed, kw_only=True):
    """A tag was put on a memory."""

    id: MemoryId
    tag: Tag


class MemoryUntagged(Closed, kw_only=True):
    """A tag was taken off a memory."""

    id: MemoryId
    tag: Tag


class MemoryAccessed(Closed, kw_only=True):
    """A memory was read, or found by a query."""

    synonyms: ClassVar[Synonyms] = {"score": ("relevance",)}

    id: MemoryId
    query: Text | None = None
    relevance: float | None = None


class MemoryConsolidated(Closed, kw_only=True):
    """A memory took over what others held; it may come with what it holds now."""

    synonyms: ClassVar[Synonyms] = {"id": ("summary_id",), "into": ("summary_id",), "merged": ("original_ids",)}

    summary_id: MemoryId
    original_ids: OtherIds
    content: Content | None = None
    title: Title | None = None
    tags: Tags | None = None
    entities: Words | None = None
    links: References | None = None
    metadata: Object | None = None
    reason: Text | None = None


class MemoryPruned(Closed, kw_only=True):
    """A memory was dropped by a retention rule."""

    id: MemoryId
    reason: Text | None = None


class MemoryRestored(Closed, kw_only=True):
    """A memory that was removed is back."""

    id: MemoryId
    reason: Text | None = None


class MemorySuperseded(Closed, kw_only=True):
    """A memory no longer holds; another (`by`) took its place."""

    id: MemoryId
    by: OtherId
    reason: Text | None = None


class MemoryRedacted(Redacted):
    """The payload of a Memory event was erased; `envelope` is what is left of it."""


# ---- Graph -----------------------------------------------------------------------------------------------------------


class GraphNodeAdded(Closed, kw_only=True):
    """A node joined the graph."""

    synonyms: ClassVar[Synonyms] = {"name": ("label",), "kind": ("type",)}

    id: NodeId
    label: Text | None = None
    type: Word | None = None
    tags: Tags | None = None
    properties: Object | None = None
    metadata: Object | None = None


class GraphNodeRemoved(Closed, kw_only=True):
    """A node left the graph."""

    id: NodeId
    reason: Text | None = None


class _Edge(Closed, kw_only=True):
    synonyms: ClassVar[Synonyms] = {
        **_OF_LINKS,
        "link_type": ("type",),
        "kind": ("type",),
        "weight": ("strength",),
        "name": ("label",),
    }

    from_: NodeId = field(name="from")
    to: OtherNodeId
    id: Word | None = None
    type: Word | None = None
    reason: Text | None = None


class GraphEdgeCreated(_Edge, kw_only=True):
    """Two nodes were joined by an edge."""

    strength: float | None = None
    directed: bool | None = None
    label: Text | None = None
    properties: Object | None = None
    metadata: Object | None = None


class GraphEdgeRemoved(_Edge):
    """An edge between two nodes was removed."""

    synonyms: ClassVar[Synonyms] = {**_OF_LINKS, "link_type": ("type",), "kind": ("type",)}


class _Finding(Closed, kw_only=True):
    """The result of a computation over the graph, and its method."""

    id: Word | None = None
    algorithm: Word | None = None
    duration_ms: Milliseconds | None = None
    metadata: Object | None = None


class GraphPathDiscovered(_Finding, kw_only=True):
    """A path between two nodes was found."""

    synonyms: ClassVar[Synonyms] = {**_OF_LINKS, "nodes": ("path",), "weight": ("score",)}

    from_: NodeId | None = field(default=None, name="from")
    to: OtherNodeId | None = None
    path: Ids | None = None
    edges: Ids | None = None
    length: Count | None = None
    score: float | None = None


class GraphCommunityDetected(_Finding, kw_only=True):
    """A group of closely joined nodes was found."""

    synonyms: ClassVar[Synonyms] = {"nodes": ("members",), "name": ("label",)}

    label: Text | None = None
    members: Ids | None = None
    size: Count | None = None
    score: float | None = None


class GraphMetricsComputed(_Finding, kw_only=True):
    """Measures of the graph were computed."""

    metrics: Object | None = None


class GraphRedacted(Redacted):
    """The payload of a Graph event was erased; `envelope` is what is left of it."""


# ---- File ------------------------------------------------------------------------------------------------------------


class _File(Closed, kw_only=True):
    """`root` is the watched folder, which `path` is below; `hash` is SHA-256 (hex) of the bytes."""

    path: Path
    root: OtherPath | None = None
    reason: Text | None = None


class _Written(Closed, kw_only=True):
    """A file's content and what the file system says of it; of one that is too long, `reason` says so."""

    root: OtherPath | None = None
    content: Content | None = None
    hash: Word | None = None
    size: Count | None = None
    mtime: Moment | None = None
    mime: Word | None = None
    encoding: Word | None = None
    name: Text | None = None
    extension: Text | None = None
    title: Title | None = None
    tags: Tags | None = None
    metadata: Object | None = None
    reason: Text | None = None


class FileCreated(_Written, kw_only=True):
    """A file appeared in a watched folder."""

    path: Path


class FileModified(_Written, kw_only=True):
    """A file's content changed."""

    path: Path


class FileDeleted(_File, kw_only=True):
    """A file went away."""

    hash: Word | None = None
    size: Count | None = None


class FileRenamed(_Written, kw_only=True):
    """A file that was at `from` is at `to`."""

    synonyms: ClassVar[Synonyms] = {"old_path": ("from",), "new_path": ("to",), "path": ("to", "from")}

    from_: OldPath = field(name="from")
    to: Path


class FileDirectoryCreated(_File):
    """A directory appeared in a watched folder."""


class FileDirectoryDeleted(_File):
    """A directory went away."""


class FileProcessed(_File, kw_only=True):
    """A file was read into memories."""

    memory_id: Word | None = None
    status: Word | None = None
    hash: Word | None = None
    size: Count | None = None
    error: Text | None = None
    duration_ms: Milliseconds | None = None
    metadata: Object | None = None


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
    "Restored": MemoryRestored,
    "Superseded": MemorySuperseded,
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
