"""Signatures against values worked out elsewhere, and what each outcome of an attempt means."""

import pytest

from crucible_core.errors import InvalidError
from crucible_webhooks.outcome import Response, classify
from crucible_webhooks.signing import encode_body, new_secret, sign, signing_key

DELAYS = [2.0, 4.0, 8.0, 16.0]


def test_standard_webhooks_example() -> None:
    # The example of the Standard Webhooks specification and its reference libraries.
    key = signing_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signed = sign([key], b'{"test": 2432232314}', "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330)
    assert signed["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_plain_secret_is_its_utf8_bytes() -> None:
    assert signing_key("geheim-ß") == "geheim-ß".encode()


def test_hex_signature_is_of_the_body_alone() -> None:
    signed = sign([b"key"], b"The quick brown fox jumps over the lazy dog", "evt_1", 1)
    expected = "f7bc83f430538424b13298e6aa6fb143ef4d59a14946175997479dbc2d1a3cd8"
    assert signed["X-Crucible-Signature"] == f"sha256={expected}"


def test_bad_base64_is_refused() -> None:
    with pytest.raises(InvalidError, match=r"auth\.secret"):
        signing_key("whsec_not base64!")


def test_new_secrets_are_usable_and_differ() -> None:
    first, second = new_secret(), new_secret()
    assert first != second
    assert len(signing_key(first)) == 32


def test_body_keeps_the_event_bytes() -> None:
    assert encode_body(b'{"a": 1 }') == b'{"event":{"a": 1 }}'


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_2xx_is_delivered(status: int) -> None:
    assert classify(Response(status), 1, DELAYS).outcome == "delivered"


@pytest.mark.parametrize("status", [500, 502, 503, 599, 408, 425, 429])
def test_retried_statuses_wait_as_scheduled(status: int) -> None:
    waits = [classify(Response(status), attempt, DELAYS).delay_s for attempt in (1, 2, 3, 4)]
    assert waits == DELAYS
    assert classify(Response(status), 5, DELAYS).outcome == "exhausted"


def test_broken_connection_is_retried() -> None:
    assert classify(Response(error="refused"), 1, DELAYS).outcome == "retrying"


@pytest.mark.parametrize("status", [301, 302, 307, 400, 401, 404, 422])
def test_other_answers_fail_for_good(status: int) -> None:
    assert classify(Response(status), 1, DELAYS).outcome == "failed"


def test_gone_is_final() -> None:
    assert classify(Response(410), 1, DELAYS).outcome == "failed"


def test_retry_after_lengthens_but_never_shortens_a_wait() -> None:
    assert classify(Response(503, retry_after_s=30), 1, DELAYS).delay_s == 30
    assert classify(Response(503, retry_after_s=1), 2, DELAYS).delay_s == 4
