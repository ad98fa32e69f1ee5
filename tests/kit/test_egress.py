"""The egress guard as a function: which URLs can be read, which addresses are public, and what the setting opens."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crucible_core.errors import InvalidError
from crucible_kit.http.egress import LOOPBACK, address_kind, open_guard, parse_target

READ = [
    ("https://example.com", "example.com", 443),
    ("HTTPS://EXAMPLE.com/A?b=C", "example.com", 443),
    ("http://example.com:8080/x", "example.com", 8080),
    ("http://example.com:/x", "example.com", 80),
    ("http://example.com.", "example.com", 80),
    ("http://faß.de/", "xn--fa-hia.de", 80),
    ("http://bücher.example/", "xn--bcher-kva.example", 80),
    ("http://a。b/", "a.b", 80),
    ("http://xn--a/", "xn--a", 80),
    ("http://my_service:9000/", "my_service", 9000),
    ("http://localhost/", "localhost", 80),
    ("http://3com.com/", "3com.com", 80),
    ("http://" + ".".join(["a" * 63] * 3 + ["b" * 61]) + "/", ".".join(["a" * 63] * 3 + ["b" * 61]), 80),
    ("http://8.8.8.8/", "8.8.8.8", 80),
    ("http://127.0.0.1./", "127.0.0.1", 80),
    ("http://[2606:4700::1111]:81/", "2606:4700::1111", 81),
    ("http://[::FFFF:127.0.0.1]/", "::ffff:7f00:1", 80),
]
# Fullwidth and circled digits, and other dots, are one address for everybody: that of the digits.
LOOPBACK_WRITTEN = [
    *("127.0.0.1", "127。0。0。1", "１２７.0.0.1", "①②⑦.0.0.1", "𝟏𝟐𝟕．0｡0.1", "127.0.0.1.", "127.255.255.254", "[::1]"),
    *("[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::127.0.0.1]", "[64:ff9b::127.0.0.1]", "[2002:7f00:1::]"),
]
UNREADABLE = [
    *("", "x", "//h/", "http:", "http:/h", "http://", "http:///h", "http://?x", "http://.", "http://:80/"),
    *("ftp://h/", "file:///etc/passwd", "gopher://h/", "javascript:alert(1)", "unix:///run/x", "httpx://h/", "ws://h/"),
    *("http://u@h/", "http://u:p@h/", "http://@h/", "http://h\\@x/", "http://h\\x", "http://127.0.0.1:80@h/"),
    *("http://h:0/", "http://h:65536/", "http://h:99999999999/", "http://h:x/", "http://h:-1/", "http://h:+80/"),
    *(
        "http://h:８０/",
        "http://h:80:80/",
        "http://h: 80/",
        "http://::1/",
        "http://[::1",
        "http://[::1]x/",
        "http://]/",
    ),
    *(
        "http://h\t.com/",
        "http://h\n.com/",
        "http://h\r\nX: y/",
        " http://h/",
        "http://h/ x",
        "http://h/\x00",
        "http://h\x7f",
    ),
    *("http://h\u00a0/", "http://h\u3000/", "http://h/\x85", "http://\ud800/", "http://a b/"),
    *("http://%31%32%37.0.0.1/", "http://127%2e0.0.1/", "http://h%00/", "http://h%/", "http://ex%61mple.com/"),
    *("http://a..b/", "http://.a/", "http://a../", "http://-a/", "http://a-/", "http://a.-b.c/", "http://a!b/"),
    "http://" + "a" * 64 + ".com/",
    "http://" + "a" * 300 + "/",
    "http://" + ".".join(["a" * 63] * 4) + "/",
    "http://" + "ä" * 300 + "/",
    "http://h/" + "a" * 3000,
    *(
        "http://xn--/",
        "http://\u00ad/",
        "http://ä" + "x" * 70 + "/",
        "http://٣.0.0.1/",
        "http://①②⑦.1/",
    ),
    *("http://0x7f.1/", "http://0x7f000001/", "http://2130706433/", "http://0177.0.0.1/", "http://127.1/", "http://0/"),
    *(
        "http://127.0.1/",
        "http://1.2.3.4.5/",
        "http://256.0.0.1/",
        "http://127.0.0.0x1/",
        "http://a.1/",
        "http://a.0x1/",
    ),
    *("http://[fe80::1%25eth0]/", "http://[fe80::1%eth0]/", "http://[::1%25]/", "http://[v1.a]/", "http://[1.2.3.4]/"),
    *("http://[]/", "http://[h]/", "http://[::ffff:127.0.0.1.2]/", "http://h／x/", "http://h？x/"),
]
CLOSED = [
    *("0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "100.127.255.255", "127.0.0.1"),
    *("168.63.129.16", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.8", "192.0.2.1", "192.88.99.1"),
    *("192.168.1.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255"),
    *("240.0.0.1", "255.255.255.254", "255.255.255.255"),
    *("::", "::1", "::7f00:1", "::8.8.8.8", "::ffff:10.0.0.1", "::ffff:8.8.8.8", "::ffff:0:127.0.0.1"),
    *("64:ff9b::7f00:1", "64:ff9b::8.8.8.8", "64:ff9b:1::a00:1", "100::1", "2001::1", "2001:2::1", "2001:10::1"),
    *("2001:db8::1", "2002:7f00:1::1", "3fff::1", "4000::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1"),
    *("fe80::1%eth0", "fec0::1", "feff::1", "ff02::1", "ff0e::1"),
]
PUBLIC = [
    *("1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.1", "100.63.255.255", "100.128.0.1", "126.255.255.255"),
    *("128.0.0.1", "172.15.255.255", "172.32.0.1", "192.0.1.1", "198.17.255.255", "198.20.0.1", "223.255.255.255"),
    *("2606:4700::1111", "2a00:1450:4001::1", "2001:200::1", "2001:4860:4860::8888", "3ffe::1"),
]


@pytest.mark.parametrize(("url", "host", "port"), READ)
def test_url_is_read_in_one_way(url: str, host: str, port: int) -> None:
    target = parse_target(url)
    assert (target.host, target.port) == (host, port)
    # What is handed to the client reads the same to others.
    again = parse_target(str(target.url))
    assert (again.url, again.host, again.port) == (target.url, host, port)


def test_path_and_query_are_kept_and_the_fragment_is_not() -> None:
    assert (
        str(parse_target("https://h.example/a%2Fb/../ü/%7e%3D?x=%2B1&sig=a+b&y=<z>#c").url)
        == "https://h.example/a%2Fb/../%C3%BC/%7e%3D?x=%2B1&sig=a+b&y=%3Cz%3E"
    )


@pytest.mark.parametrize("host", LOOPBACK_WRITTEN)
def test_loopback_is_refused_however_it_is_written(host: str) -> None:
    target = parse_target(f"http://{host}:9/")
    assert target.address is not None
    with pytest.raises(InvalidError, match="CRUCIBLE_EGRESS_ALLOW does not name"):
        open_guard([]).check(target)


@pytest.mark.parametrize("url", UNREADABLE)
def test_url_that_could_be_read_in_two_ways_is_refused(url: str) -> None:
    with pytest.raises(InvalidError) as refused:
        parse_target(url, "a.url")
    assert [error.path for error in refused.value.errors] == ["a.url"]
    assert len(refused.value.detail) < 300


@pytest.mark.parametrize(
    ("host", "address"), [("0x7f.1", "127.0.0.1"), ("2130706433", "127.0.0.1"), ("0177.1", "127.0.0.1")]
)
def test_number_in_another_form_is_refused_with_the_usual_one(host: str, address: str) -> None:
    with pytest.raises(InvalidError) as refused:
        parse_target(f"http://{host}/")
    assert refused.value.errors[0].suggestion == address


@pytest.mark.parametrize("text", CLOSED)
def test_address_is_not_public(text: str) -> None:
    assert address_kind(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", PUBLIC)
def test_address_is_public(text: str) -> None:
    assert address_kind(ipaddress.ip_address(text)) is None


@pytest.mark.parametrize(
    ("allow", "host", "address", "open_"),
    [
        ([], "h", "8.8.8.8", True),
        ([], "h", "127.0.0.1", False),
        (LOOPBACK, "h", "127.0.0.1", True),
        (LOOPBACK, "h", "::1", True),
        (LOOPBACK, "h", "10.0.0.1", False),
        (LOOPBACK, "::ffff:7f00:1", "::ffff:127.0.0.1", False),
        (["10.1.0.0/16"], "h", "10.1.2.3", True),
        (["10.1.0.0/16"], "h", "10.2.2.3", False),
        (["10.1.2.3"], "h", "10.1.2.3", True),
        (["10.1.2.3/8"], "h", "10.9.9.9", True),
        (["64:ff9b::/96"], "h", "64:ff9b::7f00:1", True),
        (["::/0"], "h", "127.0.0.1", False),
        (["*.corp.example"], "a.corp.example", "10.0.0.1", True),
        (["*.corp.example"], "corp.example", "10.0.0.1", False),
        (["*.corp.example"], "a.corp.example.evil.com", "10.0.0.1", False),
        (["*.Corp.Example."], "a.corp.example", "10.0.0.1", True),
        (["my-service"], "my-service", "10.0.0.1", True),
        (["my-service"], "my-service.evil.com", "10.0.0.1", False),
        (["*"], "h", "169.254.169.254", True),
    ],
)
def test_setting_opens_what_it_names(allow: list[str], host: str, address: str, open_: bool) -> None:
    assert (open_guard(allow).refusal(host, ipaddress.ip_address(address)) is None) == open_


@pytest.mark.parametrize(
    "entry", ["10.*", "10.0.0.0/33", "http://h", "a b", "web-*", "*.*", "1.2.3", "", "*.1", "h:80"]
)
def test_bad_entry_of_the_setting_is_named(entry: str) -> None:
    with pytest.raises(InvalidError, match="CRUCIBLE_EGRESS_ALLOW"):
        open_guard([entry])


@given(
    st.one_of(
        st.text(max_size=60), st.text("[]:%@./\\?#0123456789abcdefx。１ß\u200d -_", max_size=30).map("http://{}".format)
    )
)
def test_any_text_is_a_target_or_refused(text: str) -> None:
    try:
        target = parse_target(text)
    except InvalidError:
        return
    assert target.host.isascii()
    assert parse_target(str(target.url)).host == target.host


@given(st.ip_addresses())
def test_what_passes_for_public_is_global_for_python_too(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    assert address_kind(address) or (address.is_global and not address.is_multicast)
