"""CloudEvents through a real gateway into a real log and out again: the scenarios of the HTTP binding, attribute by
attribute, and the mapping as a property."""

import base64
import json
from datetime import UTC, datetime
from typing import Any

import httpx
import msgspec
import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event, to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent
from hypothesis import example, given
from hypothesis import strategies as st

from crucible_core.attributes import Value, is_text
from crucible_core.envelope import Event, Source, encode, with_sequence
from crucible_core.errors import CrucibleError
from crucible_core.protocol.events import NewEvent
from crucible_core.types.catalogue import CATALOGUE
from crucible_events.append.stamp import Defaults, stamp
from crucible_events.append.validation import Payloads
from crucible_gateway import examples
from crucible_gateway.accept import preferred
from crucible_gateway.body.cloudevents import content, reader, writer
from crucible_gateway.body.cloudevents.forms import negotiate_event, negotiate_events
from tests.cases import each_of

from .conftest import until

PATH = "/api/v1/events"
STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
BINARY = "application/cloudevents;mode=binary"
# The event of the conformance repository (features/http-protocol-binding.feature).
FEATURE: dict[str, Any] = {
    "specversion": "1.0",
    "type": "com.example.someevent",
    "time": "2018-04-05T03:56:24Z",
    "id": "1234-1234-1234",
    "source": "/mycontext/subcontext",
}
DATA = b'{\n    "message": "Hello World!"\n}'
PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Door:
    """A gateway before a log, and what a CloudEvents producer and consumer do with it."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http

    async def binary(self, attributes: dict[str, Any], body: bytes, kind: str | None = "application/json") -> Any:
        sent = {f"ce-{name}": value for name, value in attributes.items()}
        return await self.http.post(PATH, content=body, headers=sent | ({"Content-Type": kind} if kind else {}))

    async def structured(self, document: Any, kind: str = STRUCTURED, **params: str) -> Any:
        content = document if isinstance(document, bytes) else json.dumps(document)
        return await self.http.post(PATH, content=content, headers={"Content-Type": kind}, params=params)

    async def read(self, answer: httpx.Response, accept: str = STRUCTURED) -> httpx.Response:
        """The event that an answer is about, in the form that `accept` asks for."""
        assert answer.status_code in (200, 201), answer.text
        assert "id" in answer.json(), answer.text
        return await self.get(answer.json()["id"], accept)

    async def get(self, id: str, accept: str = STRUCTURED) -> httpx.Response:
        found = None

        async def indexed() -> bool:
            nonlocal found
            found = await self.http.get(f"{PATH}/{id}", headers={"Accept": accept})
            return found.status_code != 404

        await until(indexed)
        assert found is not None
        return found

    async def native(self, answer: httpx.Response) -> Any:
        return (await self.read(answer, "application/json")).json()


@pytest.fixture
def door(http: httpx.AsyncClient, log: None) -> Door:
    return Door(http)


def problem(answer: httpx.Response, path: str) -> Any:
    """The one error of a refusal, which is about `path`."""
    document = answer.json()
    assert answer.status_code == 422, (path, document)
    assert [error["path"] for error in document["errors"]] == [path], document
    return document["errors"][0]


# ---- the conformance scenarios ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8"])
async def test_binary_content_mode(door: Door, kind: str) -> None:
    read = await door.read(await door.binary(FEATURE, DATA, kind))
    event = read.json()
    assert read.headers["Content-Type"] == STRUCTURED
    assert event["originalid"] == FEATURE["id"]
    assert {name: event[name] for name in ("specversion", "type", "source")} == {
        name: FEATURE[name] for name in ("specversion", "type", "source")
    }
    assert event["time"] == "2018-04-05T03:56:24.000000Z"
    assert event["datacontenttype"] == kind
    assert event["data"] == {"message": "Hello World!"}


@pytest.mark.parametrize("kind", [STRUCTURED, f"{STRUCTURED}; charset=utf-8", "Application/CloudEvents+JSON"])
async def test_structured_content_mode(door: Door, kind: str) -> None:
    sent = FEATURE | {"datacontenttype": "application/json", "data": {"message": "Hello World!"}}
    event = (await door.read(await door.structured(sent, kind))).json()
    assert (event["type"], event["source"], event["originalid"]) == (sent["type"], sent["source"], sent["id"])
    assert (event["datacontenttype"], event["data"]) == ("application/json", sent["data"])


async def test_minimum_events(door: Door) -> None:
    least = {name: FEATURE[name] for name in ("specversion", "type", "id", "source")}
    for answer in (await door.structured(least), await door.binary(least | {"id": "2"}, b"", None)):
        assert answer.status_code == 201
        assert (await door.native(answer))["data"]["payload"] == {}


async def test_batched_content_mode(door: Door) -> None:
    sent = [FEATURE, FEATURE | {"id": "2", "data": {"n": 2}}, FEATURE | {"id": ""}]
    document = (await door.structured(sent, f"{BATCH}; charset=UTF-8")).json()
    assert document["committed"] == 2
    assert document["results"][2]["error"]["errors"][0]["path"] == "id"
    empty = await door.structured([], BATCH)
    assert (empty.status_code, empty.json()) == (200, {"committed": 0, "results": []})
    refused = await door.structured(sent, BATCH, atomic="true")
    assert (refused.status_code, refused.json()["errors"][0]["path"]) == (422, "2.id")
    whole = await door.structured([event | {"source": "/other"} for event in sent[:2]], BATCH, atomic="true")
    assert whole.json()["committed"] == 2


async def test_structured_mode_wins_over_headers(door: Door) -> None:
    kinds = {"Content-Type": STRUCTURED, "ce-specversion": "1.0", "ce-id": "other", "ce-type": "Custom.Other"}
    answer = await door.http.post(PATH, content=json.dumps(FEATURE), headers=kinds)
    assert answer.json()["type"] == f"Custom.{FEATURE['type']}"


@pytest.mark.parametrize("kind", ["application/cloudevents+avro", "application/cloudevents-batch+protobuf"])
async def test_other_event_formats_are_415(door: Door, kind: str) -> None:
    answer = await door.structured(FEATURE, kind)
    assert answer.status_code == 415
    assert STRUCTURED in answer.json()["detail"]


# ---- binary headers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "value"),
    [
        (b"Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),
        (b"Euro%20%e2%82%ac%20%f0%9f%98%80", "Euro € 😀"),
        ("Euro € 😀".encode(), "Euro € 😀"),
        (b'"with spaces"', "with spaces"),
        (b'"a \\"quoted\\" \\\\ word"', 'a "quoted" \\ word'),
        (b'"%E2%82%AC"', "€"),
        (b"%2525", "%25"),
        (b"%41bc", "Abc"),
        (b"100%", "100%"),
        (b'{"othervalue":5}', '{"othervalue":5}'),
        (b"\tpadded ", "padded"),
    ],
)
def test_header_values(header: bytes, value: str) -> None:
    assert content.decode_headers([(b"ce-subject", header), (b"host", b"x")]) == {"subject": value}


@pytest.mark.parametrize("value", [b"%C0%A0", b"%ED%A0%80", b"%FF", b"\xff"])
async def test_header_that_is_not_utf8_is_refused(door: Door, value: bytes) -> None:
    sent = [(f"ce-{name}".encode(), str(text).encode()) for name, text in FEATURE.items()]
    answer = await door.http.post(PATH, content=b"{}", headers=[*sent, (b"ce-subject", value)])
    problem(answer, "subject")


def test_encoded_headers_are_those_of_the_specification() -> None:
    assert content.encode_header("Euro € 😀") == "Euro%20%E2%82%AC%20%F0%9F%98%80"
    assert content.encode_header('"%" \x7f/a?b=c;d') == "%22%25%22%20%7F/a?b=c;d"


@given(st.text().filter(is_text).map(str.strip))
def test_header_round_trip(value: str) -> None:
    assert content.decode_headers([(b"ce-x", content.encode_header(value).encode("ascii"))]) == {"x": value}


async def test_header_names_are_case_insensitive_and_unique(door: Door) -> None:
    sent = {f"Ce-{name.title()}": value for name, value in FEATURE.items()}
    assert (await door.http.post(PATH, content=b"{}", headers=sent)).status_code == 201
    twice = [*((f"ce-{name}", value) for name, value in FEATURE.items()), ("CE-ID", "2")]
    problem(await door.http.post(PATH, content=b"{}", headers=twice), "id")


async def test_one_required_header_makes_a_message_binary(door: Door) -> None:
    problem_of = (await door.binary({name: FEATURE[name] for name in ("id", "type", "source")}, b"{}")).json()
    assert problem_of["errors"] == [{"path": "specversion", "message": "required, but missing"}]
    native = await door.http.post(PATH, json={"type": "Custom.X"}, headers={"ce-knativearrivaltime": "now"})
    assert native.status_code == 201


# ---- attributes ------------------------------------------------------------------------------------------------------

REFUSED: list[tuple[str, Any]] = [
    ("specversion", "0.3"),
    ("specversion", None),
    ("id", ""),
    ("id", None),
    ("id", {}),
    ("source", ""),
    ("source", []),
    ("type", ""),
    ("type", "Custom.has space"),
    ("type", "com.example.with space"),
    ("type", "com.example.*"),
    ("type", "x" * 200),
    ("type", "Memory.Creatd"),
    ("type", "file_created_by_me"),
    ("time", "yesterday"),
    ("time", "2999-01-01T00:00:00Z"),
    ("time", "2018-04-05"),
    ("time", "2018-04-05T03:56:24"),
    ("time", "2018-13-05T03:56:24Z"),
    ("subject", "line\nbreak"),
    ("subject", "x" * 5000),
    ("source", "/" + "x" * 3000),
    ("correlationid", "x" * 300),
    ("causationid", "x" * 300),
    ("worldid", "x" * 300),
    ("cruciblehop", "deep"),
    ("cruciblehop", 9),
    ("crucibleversion", "one"),
    ("datacontenttype", "json"),
    ("comexample", 1.5),
    ("comexample", [1]),
    ("comexample", {"a": 1}),
    ("comexample", 2**31),
    ("comexample", 10**400),
    ("comexample", "x" * 9000),
    ("comexample", "\u0085"),
    ("comexample", "\ufffe"),
    ("correlation_id", "x"),
    ("comExample", "x"),
    ("com-example", "x"),
    ("x" * 65, "x"),
    ("", "x"),
    ("data_base64", "not base64!"),
    ("data_base64", 5),
]


async def test_attribute_is_refused_by_its_name(door: Door) -> None:
    for name, value in REFUSED:
        error = problem(await door.structured(FEATURE | {name: value}), name)
        if name == "correlation_id":
            assert error["suggestion"] == "correlationid"


async def test_every_mistake_is_named(door: Door) -> None:
    answer = await door.structured({"specversion": "1.0", "id": "", "Subject": "x", "ext": 2**40})
    assert [error["path"] for error in answer.json()["errors"]] == ["source", "type", "id", "Subject", "ext"]


async def test_refused_payload_is_called_data(door: Door) -> None:
    answer = await door.structured(FEATURE | {"type": "dev.acme.Memory.Created", "data": {"id": 5, "content": "x"}})
    problem(answer, "data.id")
    assert "data.id" in answer.json()["detail"]
    batch = await door.structured([FEATURE | {"type": "Memory.Created", "data": {"id": 5}}], BATCH)
    assert batch.json()["results"][0]["error"]["errors"][0]["path"].startswith("data.")


async def test_standard_extensions_become_the_envelope(door: Door) -> None:
    sent = FEATURE | {
        "subject": "order 7",
        "traceparent": PARENT,
        "tracestate": "rojo=1,congo=t61",
        "correlationid": "txn-abc-123",
        "causationid": "order-122",
        "sequence": "00007",
        "partitionkey": "tenant-1",
        "authtype": "service_account",
        "authid": "billing",
        "authclaims": '{"role":"x"}',
        "dataschema": "https://example.com/schemas/order",
        "comexampleextension1": "value",
        "comexampleothervalue": 5,
        "comexampleflag": True,
        "unset": None,
        "empty": "",
        "data": {"a": 1},
    }
    answer = await door.structured(sent)
    metadata = (await door.native(answer))["metadata"]
    assert (metadata["entity"], metadata["actor"]) == ("order 7", "service_account:billing")
    assert metadata["source"] == {"kind": "external", "id": FEATURE["source"]}
    assert (metadata["correlation_id"], metadata["causation_id"]) == ("txn-abc-123", "order-122")
    assert (metadata["traceparent"], metadata["world_id"], metadata["room_id"]) == (PARENT, "default", "main")
    kept = ("tracestate", "partitionkey", "authclaims", "dataschema")
    extensions = {name: value for name, value in sent.items() if name in kept or name.startswith("comexample")}
    assert metadata["extensions"] == extensions | {"originalid": FEATURE["id"], "crucibletype": FEATURE["type"]}
    event = (await door.read(answer)).json()
    expected = sent | {"time": "2018-04-05T03:56:24.000000Z", "sequence": f"{answer.json()['sequence']:019d}"}
    expected |= {"id": answer.json()["id"], "originalid": sent["id"], "datacontenttype": "application/json"}
    expected |= {"worldid": "default", "roomid": "main"}
    assert event == {name: value for name, value in expected.items() if name not in ("unset", "empty")}
    assert list(event)[-1] == "data"


async def test_extensions_can_be_filtered_by(door: Door) -> None:
    await door.structured(FEATURE | {"comexample": "a"})
    last = (await door.structured(FEATURE | {"id": "2", "comexample": "b"})).json()
    root = "event.metadata.extensions"
    wanted = json.dumps({f"{root}.comexample": "b", f"{root}.none": {"exists": False}})
    found = await door.http.get(PATH, params={"filter": wanted, "min_sequence": last["sequence"]})
    assert [event["metadata"]["id"] for event in found.json()["events"]] == [last["id"]]


@each_of("type", ["System.Started", "hook.executed", "dev.crucible.Webhook.Failing", "Memory.Created"])
async def test_no_extension_makes_an_event_come_out_as_one_of_ours(door: Door, type: str) -> None:
    metadata = {"extensions": {"crucibletype": type}}
    sent = {"type": "Custom", "data": {"event": type, "payload": {}}, "metadata": metadata}
    answer = await door.http.post(PATH, json=sent)
    assert (await door.read(answer)).json()["type"] == f"Custom.{type}"


async def test_broken_trace_context_is_left_out(door: Door) -> None:
    answer = await door.structured(FEATURE | {"traceparent": "broken", "tracestate": "a=1"})
    metadata = (await door.native(answer))["metadata"]
    assert metadata["traceparent"].startswith("00-")
    assert "tracestate" not in metadata["extensions"]


async def test_same_source_and_id_is_a_duplicate(door: Door) -> None:
    first = await door.structured(FEATURE)
    again = await door.binary(FEATURE, b"{}")
    other = await door.structured(FEATURE | {"source": "/elsewhere"})
    assert (first.status_code, again.status_code, other.status_code) == (201, 200, 201)
    assert again.json() == first.json() | {"duplicate": True}


@each_of(
    ("name", "type"),
    [
        ("com.example.Task.Completed", "Task.Completed"),
        ("dev.acme.Custom.Placed", "Custom.Placed"),
        ("Custom.com.example.order.placed", "Custom.com.example.order.placed"),
        ("com.github.push", "Custom.com.github.push"),
        ("com.example.task.completed", "Custom.com.example.task.completed"),
        ("dev.knative.sources.ping", "Custom.dev.knative.sources.ping"),
        ("dev.knative.apiserver.resource.add", "Custom.dev.knative.apiserver.resource.add"),
        ("aws.s3.object.created", "Custom.aws.s3.object.created"),
        ("Microsoft.Storage.BlobCreated", "Custom.Microsoft.Storage.BlobCreated"),
        ("google.cloud.storage.object.v1.finalized", "Custom.google.cloud.storage.object.v1.finalized"),
        ("com.example/größe:🎉>!", "Custom.com.example/größe:🎉>!"),
        ("x" * 128, "Custom." + "x" * 128),
    ],
)
async def test_types_of_others_come_out_as_they_came_in(door: Door, name: str, type: str) -> None:
    answer = await door.structured(FEATURE | {"id": name, "type": name, "data": {"id": "t"}})
    assert answer.json()["type"] == type
    for accept in (STRUCTURED, BINARY):
        read = await door.read(answer, accept)
        assert sent_again(read)["type"] == name
        assert (await resent(door, read)).json() == answer.json() | {"duplicate": True}
    found = await door.http.get(PATH, params={"type": type, "min_sequence": answer.json()["sequence"]})
    assert [event["metadata"]["id"] for event in found.json()["events"]] == [answer.json()["id"]]


async def test_an_unknown_type_that_begins_as_ours_names_the_nearest(door: Door) -> None:
    error = problem(await door.structured(FEATURE | {"type": "task.complted"}), "type")
    assert "no event type" in error["message"]


def sent_again(answer: httpx.Response) -> dict[str, Any]:
    """The attributes of a CloudEvent in an answer, whatever its mode."""
    if answer.headers["Content-Type"] == STRUCTURED:
        return dict(answer.json())
    return dict(content.decode_headers(answer.headers.raw))


@pytest.mark.parametrize(
    "sent",
    [
        {},
        {"data": {}},
        {"data": {"id": "not the subject"}},
        {"subject": "s", "data": {"id": "not the subject"}},
        {"time": "2018-04-05T03:56:24.123456789Z"},
        {"time": "2018-04-05T05:56:24.000000001+02:00"},
        {"traceparent": PARENT, "tracestate": "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE"},
        {"traceparent": PARENT, "baggage": "userId=alice,serverNode=DF%2028,isProduction=false"},
        {"baggage": "k=" + "v" * 8000},
        {"dataschema": "https://example.com/s", "subject": "café 🎉", "data": {"a": [1]}},
        {f"ext{n}": "x" for n in range(64)},
    ],
    ids=lambda sent: ",".join(sent)[:30],
)
async def test_what_came_in_comes_out(door: Door, sent: dict[str, Any]) -> None:
    given = {name: value for name, value in FEATURE.items() if name != "time"} | sent
    answer = await door.structured(given)
    read = await door.read(answer)
    event = read.json()
    assert event["originalid"] == given["id"]
    assert {name: event.get(name) for name in given if name != "id"} == {
        name: value for name, value in given.items() if name != "id"
    }
    assert {name for name in ("data", "subject", "datacontenttype", "partitionkey") if name in event} <= {
        *given,
        *(("datacontenttype",) if "data" in given else ()),
        *(("partitionkey",) if "subject" in given else ()),
    }
    assert (await resent(door, read)).json() == answer.json() | {"duplicate": True}
    binary = await door.read(answer, BINARY)
    attributes = sent_again(binary)
    assert {name: attributes[name] for name in given if name not in ("id", "data")} == {
        name: value for name, value in given.items() if name not in ("id", "data")
    }
    assert binary.content == (json.dumps(given["data"]).encode() if "data" in given else b"")


@pytest.mark.parametrize("write", [to_binary_event, to_structured_event])
@pytest.mark.parametrize("data", [{"message": "Hello World!"}, {"größe": 5}, None], ids=["object", "unicode", "none"])
async def test_the_python_sdk_is_understood_and_understands(door: Door, write: Any, data: Any) -> None:
    attributes = {
        "id": "1234",
        "type": "com.example.someevent",
        "source": "/mycontext/subcontext",
        "subject": "Euro € 🎉",
        "time": datetime(2018, 4, 5, 3, 56, 24, 123456, tzinfo=UTC),
        "comexample": "value",
    }
    if data is not None:
        attributes["datacontenttype"] = "application/json"
    message = write(CloudEvent(attributes, data))
    answer = await door.http.post(PATH, content=message.body, headers=message.headers)
    for accept in (STRUCTURED, BINARY):
        read = await door.read(answer, accept)
        event = from_http_event(HTTPMessage({**read.headers}, read.content))
        assert {name: event.get_attributes()[name] for name in attributes if name != "id"} == {
            name: value for name, value in attributes.items() if name != "id"
        }
        assert event.get_attributes()["originalid"] == "1234"
        assert (event.get_data() or None) == data


async def test_data_that_a_hook_gives_goes_out(door: Door) -> None:
    given = FEATURE | {"data": {"a": 1}}
    event = stamped(reader.from_structured(json.dumps(FEATURE).encode()))
    assert event is not None
    assert "data" not in json.loads(writer.structured(with_sequence(encode(event), 1)))
    changed = msgspec.structs.replace(event, data=msgspec.structs.replace(event.data, payload=given["data"]))
    assert json.loads(writer.structured(with_sequence(encode(changed), 1)))["data"] == {"a": 1}


# ---- data ------------------------------------------------------------------------------------------------------------

XML = '<much wow="xml"/>'
LATIN = "text/plain; charset=latin-1"
WRAPPED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"data": 1.5}, {"data": 1.5, "datacontenttype": "application/json"}),
    ({"data": "I'm just a string"}, {"data": "I'm just a string", "datacontenttype": "application/json"}),
    ({"data": [{"a": 1}], "datacontenttype": "text/json"}, {"data": [{"a": 1}], "datacontenttype": "text/json"}),
    ({"data": XML, "datacontenttype": "text/xml"}, {"data": XML, "datacontenttype": "text/xml"}),
    # A media type of texts is kept as text, any other as bytes, however it came.
    (
        {"data_base64": base64.b64encode(XML.encode()).decode(), "datacontenttype": "application/xml"},
        {"data": XML, "datacontenttype": "application/xml"},
    ),
    (
        {"data_base64": "AAEC/w==", "datacontenttype": "image/png"},
        {"data_base64": "AAEC/w==", "datacontenttype": "image/png"},
    ),
    ({"data_base64": "eyAieHl6IjogMTIzIH0="}, {"data_base64": "eyAieHl6IjogMTIzIH0="}),
    ({"data_base64": "eyAieHl6IjogMTIzIH0=", "datacontenttype": "application/json"}, {"xyz": 123}),
    (
        {"data_base64": "/w==", "datacontenttype": "text/plain"},
        {"data_base64": "/w==", "datacontenttype": "text/plain"},
    ),
    ({"data": "x", "datacontenttype": "image/svg"}, {"data_base64": "eA==", "datacontenttype": "image/svg"}),
    ({"data": None}, {}),
    ({"data": None, "datacontenttype": "text/xml"}, {}),
    ({"datacontenttype": "text/xml"}, {}),
    ({"data_base64": None, "data": {"a": 1}}, {"a": 1}),
]


async def test_data_that_is_no_object(door: Door) -> None:
    for place, (sent, payload) in enumerate(WRAPPED):
        answer = await door.structured(FEATURE | sent | {"id": str(place)})
        assert (await door.native(answer))["data"]["payload"] == payload
        for accept in (STRUCTURED, BINARY):
            read = await door.read(answer, accept)
            assert (await resent(door, read)).json() == answer.json() | {"duplicate": True}
            assert payload_of(read) == payload


def payload_of(answer: httpx.Response) -> Any:
    """What the way in makes of an answer."""
    if answer.headers["Content-Type"] == STRUCTURED:
        return msgspec.json.decode(reader.from_structured(answer.content).payload)
    return msgspec.json.decode(reader.from_binary(answer.headers.raw, answer.content).payload)


async def resent(door: Door, answer: httpx.Response) -> httpx.Response:
    """An answer that holds a CloudEvent, sent as it is."""
    sent = {name: value for name, value in answer.headers.items() if name.startswith("ce-") or name == "content-type"}
    return await door.http.post(PATH, content=answer.content, headers=sent)


BODIES: list[tuple[bytes, str | None, dict[str, Any]]] = [
    (b"", None, {}),
    (b" null ", "application/json", {}),
    (b"[1, 2]", "application/json", {"data": [1, 2], "datacontenttype": "application/json"}),
    (b'{"a":1}', None, {"a": 1}),
    (b"a,b\n1,2", "text/csv", {"data": "a,b\n1,2", "datacontenttype": "text/csv"}),
    (b"\x89PNG", "image/png", {"data_base64": "iVBORw==", "datacontenttype": "image/png"}),
    (b"\xe9", LATIN, {"data_base64": "6Q==", "datacontenttype": LATIN}),
    (b"\x00\x01", None, {"data_base64": "AAE="}),
]


async def test_binary_bodies(door: Door) -> None:
    for place, (body, kind, payload) in enumerate(BODIES):
        answer = await door.binary(FEATURE | {"id": str(place)}, body, kind)
        assert (await door.native(answer))["data"]["payload"] == payload
        read = await door.read(answer, BINARY)
        if kind is not None and body.strip() not in (b"", b"null"):
            assert (read.content, read.headers["Content-Type"]) == (body, kind)
        assert payload_of(read) == payload


REFUSED_DATA: list[tuple[dict[str, Any], str]] = [
    ({"data": 5, "type": "Memory.Created"}, "data"),
    ({"data": XML, "datacontenttype": "text/xml", "type": "Task.Completed"}, "data"),
    ({"data": {}, "data_base64": "AAEC"}, "data_base64"),
    ({"data": 5, "datacontenttype": "text/xml"}, "data"),
    ({"data": "x", "datacontenttype": "text/plain; charset=latin-1"}, "datacontenttype"),
    ({"data_base64": "eA==", "datacontenttype": "application/json;charset=latin-1"}, "datacontenttype"),
]


async def test_data_is_refused(door: Door) -> None:
    for sent, path in REFUSED_DATA:
        problem(await door.structured(FEATURE | sent), path)


async def test_broken_json_is_malformed(door: Door) -> None:
    envelope = json.dumps(FEATURE).encode()[:-1]
    for body in (b"{", b'{"a":\xff}', b"[" * 70 + b"]" * 70, b"nul", b"1 2"):
        assert (await door.binary(FEATURE, body)).status_code == 400
        assert (await door.structured(envelope + b',"data":' + body + b"}")).status_code == 400
        assert (await door.structured(body)).status_code in (400, 422)


BEYOND = (b"{", b'{"a":1},"id":"evt_chosen"', b'{}},{"type":"Custom.Two"', b'{"a":01}')


async def test_data_ends_where_its_json_does(door: Door) -> None:
    for body in BEYOND:
        answer = await door.binary(FEATURE, body)
        assert (answer.status_code, answer.json()["detail"][:16]) == (400, "data is not JSON"), answer.text
        encoded = FEATURE | {"data_base64": base64.b64encode(body).decode(), "datacontenttype": "application/json"}
        assert (await door.structured(encoded)).status_code == 400
        batch = await door.structured([encoded, FEATURE | {"id": repr(body)}], BATCH)
        refused, committed = batch.json()["results"]
        assert refused["error"]["status"] == 400
        assert committed["sequence"] >= 1, "the others of a batch are not drawn in"


async def test_bytes_of_data_pass_through(door: Door) -> None:
    data = b'{"n" : 1.0, "big":12345678901234567890, "\\u00e9" : "\xc3\xa9"}'
    answer = await door.binary(FEATURE, data)
    assert (await door.read(answer)).content.endswith(b'"data":%b}' % data)
    assert (await door.read(answer, BINARY)).content == data


async def test_native_payload_that_looks_wrapped_goes_out_as_it_is(door: Door) -> None:
    for payload in ({"data": 1}, {"data": {"a": 1}, "datacontenttype": "application/json"}, {"data_base64": "x"}):
        answer = await door.http.post(PATH, json={"type": "Custom.X", "payload": payload})
        assert (await door.read(answer)).json()["data"] == payload


# ---- reading ---------------------------------------------------------------------------------------------------------


async def test_query_answers_a_batch_with_a_link(door: Door) -> None:
    last = 0
    for number in range(3):
        answer = await door.http.post(PATH, json={"type": "Custom.X", "payload": {"n": number}})
        last = answer.json()["sequence"]
    link, found = f"{PATH}?type=Custom.X&limit=2&min_sequence={last}", []
    for accept in (BATCH, STRUCTURED):
        page = await door.http.get(link, headers={"Accept": accept})
        assert page.headers["Content-Type"] == BATCH
        assert page.headers["Vary"] == "Accept"
        found += page.json()
        if "Link" in page.headers:
            link = page.links["next"]["url"]
    assert [event["data"]["n"] for event in found] == [0, 1, 2]
    assert "Link" not in page.headers
    assert [event["sequence"] for event in found] == sorted(event["sequence"] for event in found)
    assert (await door.structured(page.content, BATCH)).json()["results"][0]["duplicate"]
    nothing = await door.http.get(PATH, params={"type": "Task.Claimed"}, headers={"Accept": BATCH})
    assert (nothing.status_code, nothing.json()) == (200, [])


async def test_single_event_in_every_form(door: Door) -> None:
    answer = await door.http.post(PATH, json={"type": "Custom.X", "payload": {"n": 1}, "entity": "a b"})
    forms = {accept: await door.read(answer, accept) for accept in ("*/*", STRUCTURED, BATCH, BINARY)}
    assert "metadata" in forms["*/*"].json()
    event = forms[STRUCTURED].json()
    assert forms[BATCH].json() == [event]
    assert (event["source"], event["authtype"], event["authid"]) == ("crucible:user:admin", "user", "admin")
    assert event["partitionkey"] == event["subject"] == "a b"
    binary = forms[BINARY]
    assert (binary.content, binary.headers["Content-Type"]) == (b'{"n":1}', "application/json")
    sent = {name[3:]: value for name, value in binary.headers.items() if name.startswith("ce-")}
    assert sent["subject"] == "a%20b"
    assert set(sent) == set(event) - {"data", "datacontenttype"}
    for form in (forms[STRUCTURED], binary):
        assert (await resent(door, form)).json() == answer.json() | {"duplicate": True}


def test_documented_example_is_what_goes_out() -> None:
    assert json.loads(writer.structured(json.dumps(examples.EVENT).encode())) == examples.SENT_CLOUD_EVENT


async def test_unknown_cloudevents_format_is_406(door: Door) -> None:
    answer = await door.http.get(PATH, headers={"Accept": "application/cloudevents+avro"})
    assert answer.status_code == 406
    assert BATCH in answer.json()["detail"]
    missing = await door.http.get(f"{PATH}/evt_none", headers={"Accept": STRUCTURED})
    assert (missing.status_code, missing.headers["Content-Type"]) == (404, "application/problem+json")


@pytest.mark.parametrize(
    ("accept", "one", "many"),
    [
        (None, "native", "native"),
        ("", "native", "native"),
        ("*/*", "native", "native"),
        ("application/*", "native", "native"),
        ("text/html", "native", "native"),
        ("nonsense", "native", "native"),
        ("application/json", "native", "native"),
        (STRUCTURED, "structured", "batch"),
        ("application/cloudevents", "structured", "batch"),
        (f"{STRUCTURED}; charset=utf-8", "structured", "batch"),
        (BATCH, "batch", "batch"),
        (BINARY, "binary", "native"),
        (f"{STRUCTURED}; mode=binary", "binary", "native"),
        (f"{STRUCTURED}, */*", "structured", "batch"),
        (f"application/json, {STRUCTURED}", "native", "native"),
        (f"{STRUCTURED}, application/json", "structured", "batch"),
        (f"{STRUCTURED};q=0.5, application/json", "native", "native"),
        (f"{STRUCTURED};q=0.5, application/json;q=0.4", "structured", "batch"),
        (f"{STRUCTURED};q=0.5, */*;q=0.1", "structured", "batch"),
        (f"{STRUCTURED};q=0, */*", "native", "native"),
        (f"APPLICATION/CLOUDEVENTS+JSON ; Q=0.9 , {BATCH};q=x", "structured", "batch"),
    ],
)
def test_accept(accept: str | None, one: str, many: str) -> None:
    assert negotiate_event(accept) == one
    if BINARY not in (accept or "") and "mode" not in (accept or ""):
        assert negotiate_events(accept) == many


@given(st.text(alphabet="aplicton/*;q=01.,+json \"'", max_size=60))
def test_no_accept_header_breaks_the_choice(accept: str) -> None:
    assert preferred(accept, ["a/b", "application/json"]) in ("a/b", "application/json", None)


# ---- the mapping as a property ---------------------------------------------------------------------------------------

names_of = st.text(min_size=1, max_size=30).filter(is_text)
ids = st.from_regex(r"evt_[a-z0-9]{1,26}", fullmatch=True)
words = st.from_regex(r"[a-z][a-z0-9]{0,19}", fullmatch=True).filter(
    lambda name: name not in ("datacontenttype", "data")
)
values: st.SearchStrategy[Value] = st.booleans() | st.integers(-(2**31), 2**31 - 1) | names_of
kinds = st.sampled_from(["text/xml", "application/json", "image/png", "text/plain; charset=latin-1"])
likely = st.fixed_dictionaries(
    {},
    optional={
        "data": st.none() | st.integers() | names_of | st.just({"a": [1]}),
        "data_base64": st.binary().map(lambda raw: base64.b64encode(raw).decode()) | names_of,
        "datacontenttype": kinds | names_of,
    },
)
payloads = (
    likely
    | st.sampled_from([payload for _, payload in WRAPPED])
    | st.dictionaries(names_of, st.integers() | names_of, max_size=3)
)
news = st.builds(
    NewEvent,
    type=st.sampled_from(["Custom.com.example.order.placed", "Custom.X", "Session.Ended"]),
    payload=payloads.map(lambda payload: msgspec.Raw(json.dumps(payload).encode())),
    id=ids,
    timestamp=st.datetimes().map(lambda moment: f"{moment.isoformat(timespec='microseconds')}Z"),
    version=st.sampled_from([None, "1.0.0", "2.3.4-rc.1"]),
    source=st.none() | st.builds(Source, st.sampled_from(["user", "agent", "system", "external"]), names_of),
    actor=st.none() | names_of | st.sampled_from(["user:alice", "agent:x:y", "system", "hook:h", "unknown:z", "user:"]),
    correlation_id=names_of,
    causation_id=st.none() | names_of,
    hop=st.integers(0, 8),
    world_id=names_of,
    room_id=names_of,
    entity=st.none() | names_of,
    traceparent=st.just(PARENT),
    extensions=st.dictionaries(words, values, max_size=4),
)


def stamped(new: NewEvent) -> Event | None:
    """None for what the log refuses."""
    try:
        defaults = Defaults("evt_default", "2026-11-21T10:00:00.000000Z", "cor_default", PARENT)
        return stamp(new, defaults, Payloads(lambda: CATALOGUE)).event
    except CrucibleError:
        return None


def as_dict(event: Event) -> Any:
    return msgspec.json.decode(encode(event))


@given(news, st.integers(1, 2**63 - 1))
def test_what_goes_out_comes_in_as_the_same_event(new: NewEvent, sequence: int) -> None:
    event = stamped(new)
    if event is None:
        return
    raw = with_sequence(encode(event), sequence)
    again = stamped(reader.from_structured(writer.structured(raw)))
    assert again is not None
    assert as_dict(again) == as_dict(event)
    document = json.loads(writer.structured(raw))
    assert all(type(value) in (str, int, bool) for name, value in document.items() if name != "data")
    assert writer.is_uri_reference(document["source"])
    if (sent := writer.binary(raw)) is not None:
        fields, kind, body = sent
        message = [(name.encode(), value.encode("ascii")) for name, value in fields.items()]
        again = stamped(reader.from_binary([*message, (b"content-type", kind.encode("ascii"))], body))
        assert again is not None
        # Headers have no types: whole numbers and booleans come back as text.
        assert as_dict(again) == as_dict(with_texts(event))


def with_texts(event: Event) -> Event:
    extensions = event.metadata.extensions
    if isinstance(extensions, dict):
        texts: dict[str, Value] = {name: reader.canonical(value) for name, value in extensions.items()}
        metadata = msgspec.structs.replace(event.metadata, extensions=texts)
        return msgspec.structs.replace(event, metadata=metadata)
    return event


@given(
    st.fixed_dictionaries(
        {"id": names_of, "source": names_of, "type": st.just("Custom.X"), "specversion": st.just("1.0")},
        optional={"subject": names_of, "partitionkey": names_of, "authid": names_of, "authtype": words, "ext": values},
    )
)
@example({"id": "1", "source": "crucible:user:%FF", "type": "Custom.X", "specversion": "1.0"})
def test_what_comes_in_goes_out_with_its_attributes(sent: dict[str, Any]) -> None:
    event = stamped(reader.from_structured(json.dumps(sent).encode()))
    assert event is not None
    document = json.loads(writer.structured(with_sequence(encode(event), 1)))
    for name in ("subject", "ext"):
        assert document.get(name) == sent.get(name)
    if writer.is_uri_reference(sent["source"]) and not sent["source"].startswith("crucible:"):
        assert document["source"] == sent["source"]


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        *((text, True) for text in ("/a", "https://a.b/c?d#e", "urn:uuid:6e8b", "1-555-123-4567", "mailto:a@b")),
        *((text, True) for text in ("//[::1]:80/x", "a%20b", "#f", "?q", "/a//b:c")),
        *((text, False) for text in ("", "a b", "1:2", "%zz", "https://x/é", "a#b#c", "<x>", "a\\b")),
    ],
)
def test_uri_references(text: str, valid: bool) -> None:
    assert writer.is_uri_reference(text) == valid
