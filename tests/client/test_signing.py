"""The verifier of webhook requests: what it takes, and which part it names when it does not."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_client import SignatureError, check_signature, verify_webhook
from crucible_core.errors import MalformedError
from crucible_webhooks.signing import new_secret, sign, signing_key

NOW = 1_763_719_200
BODY = (
    b'{"event":{"type":"Custom","data":{"event":"X","payload":{"a":1}},"metadata":{"id":"evt_1","timestamp":"",'
    b'"source":{"kind":"user","id":"a"},"actor":"a","correlation_id":"c"}}}'
)
SECRET = new_secret()


def signed(secret: str = SECRET, body: bytes = BODY, at: int = NOW) -> dict[str, str]:
    return sign([signing_key(secret)], body, "evt_1", at)


def failing_part(headers: dict[str, str], body: bytes = BODY, secret: str = SECRET, now: float = NOW) -> str:
    with pytest.raises(SignatureError) as caught:
        verify_webhook(secret, headers, body, now=now)
    return caught.value.part


@pytest.mark.parametrize("secret", [SECRET, "a plain secret with ü"], ids=["generated", "plain"])
def test_a_genuine_delivery_gives_its_event(secret: str) -> None:
    event = verify_webhook(secret, signed(secret), BODY, now=NOW + 299)
    assert (event.dotted, event.data.payload) == ("Custom.X", {"a": 1})


@given(st.binary(max_size=200), st.binary(min_size=1, max_size=40))
def test_what_the_sender_signs_holds(body: bytes, key: bytes) -> None:
    secret = "whsec_" + base64.b64encode(key).decode()
    check_signature(secret, signed(secret, body), body, now=NOW)


def test_the_standards_own_example_holds() -> None:
    """From the specification's reference implementations (standardwebhooks.com)."""
    headers = {
        "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "webhook-timestamp": "1614265330",
        "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
    }
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    check_signature(secret, headers, b'{"test": 2432232314}', now=1614265330)


def test_several_signatures_are_allowed() -> None:
    headers = signed()
    headers["webhook-signature"] = f"v1a,zzz v1,AAAA {headers['webhook-signature']}"
    check_signature(SECRET, headers, BODY, now=NOW)


def test_header_names_have_no_case() -> None:
    check_signature(SECRET, {name.upper(): value for name, value in signed().items()}, BODY, now=NOW)


@pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_missing_header_is_named(name: str) -> None:
    headers = signed()
    del headers[name]
    assert failing_part(headers) == name


@pytest.mark.parametrize("now", [NOW + 301, NOW - 301])
def test_an_old_or_early_delivery_is_refused(now: int) -> None:
    assert failing_part(signed(), now=now) == "webhook-timestamp"


@pytest.mark.parametrize("timestamp", ["soon", "-5", "1.5", "٣", "9" * 400])
def test_a_timestamp_that_is_no_time_is_refused(timestamp: str) -> None:
    assert failing_part(signed() | {"webhook-timestamp": timestamp}) == "webhook-timestamp"


def test_a_changed_body_is_refused() -> None:
    assert failing_part(signed(), BODY.replace(b"1", b"2", 1)) == "webhook-signature"


def test_another_secret_is_refused() -> None:
    assert failing_part(signed("another")) == "webhook-signature"


def test_our_own_header_is_checked_where_it_was_sent() -> None:
    assert failing_part(signed() | {"X-Crucible-Signature": "sha256=00"}) == "x-crucible-signature"
    assert failing_part(signed() | {"X-Crucible-Signature": "md5=00"}) == "x-crucible-signature"


@pytest.mark.parametrize("secret", ["", "whsec_no!base64"])
def test_a_secret_that_is_none_is_said_so(secret: str) -> None:
    assert failing_part(signed(), secret=secret) == "secret"


def test_a_non_ascii_signature_is_refused() -> None:
    assert failing_part(signed() | {"webhook-signature": "v1,ü"}) == "webhook-signature"


def test_a_signed_body_without_an_event_is_malformed() -> None:
    with pytest.raises(MalformedError):
        verify_webhook(SECRET, signed(body=b"{}"), b"{}", now=NOW)
