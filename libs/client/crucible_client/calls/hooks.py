"""Requests about hooks and their runs."""

from crucible_client.request import Call, Json, delete, get, params_of, patch, post, present, reads, segment
from crucible_client.response import read_as
from crucible_client.results import Page
from crucible_core.protocol.hooks import HookList, HookView, RunList, RunRecord
from crucible_core.protocol.parts import Check, Checks, HandlerCheck


def list_hooks(*, page_size: int | None = None, cursor: str | None = None) -> Call[Page[HookView]]:
    """The hooks with their states and counters: Pre hooks in their order, then the others by name."""
    return get("/api/v1/hooks", _hook_page, params=params_of(limit=page_size, cursor=cursor))


def check_hooks(*, page_size: int | None = None, cursor: str | None = None) -> Call[Page[HandlerCheck]]:
    """Each hook with a synthetic event, as a dry run of `test` does."""
    return post("/api/v1/hooks/test", None, _check_page, params=params_of(limit=page_size, cursor=cursor))


def add_hook(definition: Json | None = None, *, markdown: str | None = None) -> Call[HookView]:
    """Registers a hook, or a new version of it: the hook object, or the text of a hook file. Raises InvalidError."""
    if markdown is None:
        return post("/api/v1/hooks", definition or {}, reads(HookView))
    headers = {"content-type": "text/markdown; charset=utf-8"}
    return Call("POST", "/api/v1/hooks", reads(HookView), headers=headers, content=markdown.encode())


def get_hook(name: str) -> Call[HookView]:
    """One hook. Raises NotFoundError."""
    return get(_hook(name), reads(HookView))


def update_hook(name: str, changes: Json) -> Call[HookView]:
    """Changes a hook by a merge patch of the hook object. Raises NotFoundError or InvalidError."""
    return patch(_hook(name), changes, reads(HookView))


def delete_hook(name: str) -> Call[None]:
    """Removes a hook."""
    return delete(_hook(name))


def enable_hook(name: str) -> Call[HookView]:
    """Lets a disabled hook fire again."""
    return post(f"{_hook(name)}/enable", None, reads(HookView))


def disable_hook(name: str) -> Call[HookView]:
    """Keeps a hook, but it does not fire."""
    return post(f"{_hook(name)}/disable", None, reads(HookView))


def hook_runs(name: str, *, page_size: int | None = None, cursor: str | None = None) -> Call[Page[RunRecord]]:
    """The attempts at a hook's runs, the latest first."""
    return get(f"{_hook(name)}/runs", _run_page, params=params_of(limit=page_size, cursor=cursor))


def get_run(id: str) -> Call[list[RunRecord]]:
    """The attempts at one run, the latest first, by its id or a beginning of it. Raises NotFoundError, or ConflictError
    where several begin so."""
    return get(f"/api/v1/runs/{segment(id)}", lambda raw: read_as(raw, RunList).runs)


def check_hook(name: str, *, dry_run: bool = True, payload: Json | None = None) -> Call[Check]:
    """Fires one synthetic event (with `payload`, if given) through a hook; a dry run changes nothing."""
    body = present(dry_run=dry_run, payload=payload)
    return post(f"{_hook(name)}/test", body, reads(Check), repeatable=dry_run)


def _check_page(raw: bytes) -> Page[HandlerCheck]:
    found = read_as(raw, Checks)
    return Page(found.checks, found.next_cursor)


def _hook_page(raw: bytes) -> Page[HookView]:
    found = read_as(raw, HookList)
    return Page(found.hooks, found.next_cursor)


def _run_page(raw: bytes) -> Page[RunRecord]:
    found = read_as(raw, RunList)
    return Page(found.runs, found.next_cursor)


def _hook(name: str) -> str:
    return f"/api/v1/hooks/{segment(name)}"
