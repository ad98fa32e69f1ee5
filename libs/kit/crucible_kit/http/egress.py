"""The egress guard: limits the URLs and addresses of Crucible's own requests. Pure; `exchange` connects."""

import functools
import ipaddress
import re
import socket
import unicodedata
from collections.abc import Sequence
from fnmatch import fnmatchcase
from urllib.parse import quote

import msgspec
from yarl import URL

from crucible_core.errors import FieldError, InvalidError
from crucible_core.limits import URL_LENGTH

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

LOOPBACK = ("127.0.0.0/8", "::1/128")
SETTING = "CRUCIBLE_EGRESS_ALLOW"

_HOST_LENGTH = 253
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
_GLOB = re.compile(r"[a-z0-9_*?.-]{1,253}", re.ASCII)
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.ASCII)
_PLAIN = "%/?:@!$&'()*+,;=[]"
_PORT = re.compile(r"[0-9]{0,5}", re.ASCII)

# The special-purpose registries of IANA, besides what only looks public: addresses of a network that carry one of
# another network inside (NAT64, 6to4, Teredo, mapped), and a platform's own services.
_CLOSED = (
    ("0.0.0.0/8", "an unspecified address"),
    ("10.0.0.0/8", "a private address"),
    ("100.64.0.0/10", "a private address of a provider's network"),
    ("127.0.0.0/8", "a loopback address"),
    ("168.63.129.16/32", "an address of a cloud platform"),
    ("169.254.0.0/16", "a link-local address"),
    ("172.16.0.0/12", "a private address"),
    ("192.0.0.0/24", "an address that is reserved for protocols"),
    ("192.0.2.0/24", "an address for documentation"),
    ("192.88.99.0/24", "a 6to4 address"),
    ("192.168.0.0/16", "a private address"),
    ("198.18.0.0/15", "an address for benchmarks"),
    ("198.51.100.0/24", "an address for documentation"),
    ("203.0.113.0/24", "an address for documentation"),
    ("224.0.0.0/4", "a multicast address"),
    ("255.255.255.255/32", "the broadcast address"),
    ("240.0.0.0/4", "a reserved address"),
    ("::/128", "an unspecified address"),
    ("::1/128", "a loopback address"),
    ("::/96", "an IPv4-compatible address"),
    ("::ffff:0:0/96", "an IPv4-mapped address"),
    ("64:ff9b::/96", "a NAT64 address"),
    ("64:ff9b:1::/48", "a NAT64 address"),
    ("2001::/32", "a Teredo address"),
    ("2001::/23", "an address that is reserved for protocols"),
    ("2001:db8::/32", "an address for documentation"),
    ("2002::/16", "a 6to4 address"),
    ("3fff::/20", "an address for documentation"),
    ("fc00::/7", "a private address"),
    ("fe80::/10", "a link-local address"),
    ("fec0::/10", "a private address"),
    ("ff00::/8", "a multicast address"),
)
_KINDS = tuple((ipaddress.ip_network(network), kind) for network, kind in _CLOSED)
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")


class Target(msgspec.Struct, frozen=True):
    """A URL, parsed once. `host` is lower-case ASCII without a dot at its end; `address` where the host is one.

    `url` has that host and nothing else that anybody could read in another way.
    """

    url: URL
    host: str
    port: int
    address: Address | None

    @property
    def tls(self) -> bool:
        return self.url.scheme == "https"

    @property
    def origin(self) -> str:
        return str(self.url.origin())


class Guard(msgspec.Struct, frozen=True):
    """The networks and hosts that `CRUCIBLE_EGRESS_ALLOW` names, beside all public addresses."""

    networks: tuple[Network, ...] = ()
    hosts: tuple[str, ...] = ()

    def refusal(self, host: str, address: Address) -> str | None:
        """The reason why a connection to this address of that host is refused; None where it is allowed."""
        kind = address_kind(address)
        if kind is None or any(fnmatchcase(host, glob) for glob in self.hosts):
            return None
        if any(address.version == network.version and address in network for network in self.networks):
            return None
        verb = "is" if host == str(address) else "leads to"
        return f"{host} {verb} {kind}, which {SETTING} does not name"

    def check(self, target: Target, path: str = "url") -> None:
        """Raises InvalidError at once where the URL's host is an address that is refused."""
        if target.address is not None and (message := self.refusal(target.host, target.address)) is not None:
            raise InvalidError.field(path, message)


def open_guard(allow: Sequence[str]) -> Guard:
    """The guard of the setting's entries: CIDRs, addresses and host globs. Raises InvalidError for a bad one."""
    networks: list[Network] = []
    hosts: list[str] = []
    for entry in allow:
        try:
            networks.append(ipaddress.ip_network(entry, strict=False))
        except ValueError:
            hosts.append(_glob(entry))
    return Guard(tuple(networks), tuple(hosts))


@functools.lru_cache(maxsize=1024)  # called before each request to a URL with an address
def address_kind(address: Address) -> str | None:
    """The kind of an address that is not public ("a loopback address"); None for a public one."""
    for network, kind in _KINDS:
        if address.version == network.version and address in network:
            return kind
    return None if address.version == 4 or address in _GLOBAL_UNICAST else "a reserved address"


def parse_target(text: str, path: str = "url") -> Target:
    """An http or https URL whose host can be read in one way only. Raises InvalidError at `path`."""
    try:
        return _parse(text)
    except InvalidError as error:
        found = [FieldError(path, mistake.message, mistake.suggestion) for mistake in error.errors]
        raise InvalidError(f"{path}: {error.detail}", errors=found) from None


@functools.lru_cache(maxsize=1024)  # a webhook's deliveries all have one
def _parse(text: str) -> Target:
    if len(text) > URL_LENGTH:
        raise _url_error(f"is longer than {URL_LENGTH} characters")
    if any(char.isspace() or char == "\\" or unicodedata.category(char) in ("Cc", "Cs") for char in text):
        raise _url_error("must not hold spaces, control characters or backslashes")
    scheme, separator, rest = text.partition("://")
    if not separator or scheme.lower() not in ("http", "https"):
        raise _url_error("must begin with https:// or http://", f"https://{rest or scheme}"[:200])
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    path, _, query = rest[len(authority) :].partition("#")[0].partition("?")
    if "@" in authority:
        raise _url_error("must not hold a user's name or password: they belong into auth, or into a header")
    port = _port(authority)
    try:
        name = (URL(f"{scheme}://{authority}").raw_host or "").removesuffix(".")
    except (ValueError, TypeError):  # IDNA refuses the name, for one
        raise _url_error("is not a URL that can be read") from None
    address = _address(name, authority.startswith("["))
    host = str(address or name)
    # Path and query stay as they are written: a receiver may have signed them.
    url = URL.build(
        scheme=scheme.lower(),
        host=f"[{host}]" if ":" in host else host,
        port=port,
        path=quote(path, safe=_PLAIN) or "/",
        query_string=quote(query, safe=_PLAIN),
        encoded=True,
    )
    return Target(url, host, port or (443 if url.scheme == "https" else 80), address)


def _port(authority: str) -> int | None:
    _, colon, port = authority.rpartition(":")
    if not colon or "]" in port or not port:
        return None
    if not _PORT.fullmatch(port) or not 1 <= int(port) <= 65535:
        raise _url_error("must have a port of 1 to 65535")
    return int(port)


def _address(host: str, bracketed: bool) -> Address | None:
    """The address that a host is, or None of a host's name. Raises InvalidError for what is neither."""
    if bracketed:
        if "%" in host:
            raise _url_error("must not name a network interface (%) in its address")
        try:
            return ipaddress.IPv6Address(host)
        except ValueError:
            raise _url_error("has no IPv6 address in its brackets") from None
    labels = host.split(".")
    if not host or len(host) > _HOST_LENGTH or not all(map(_LABEL.fullmatch, labels)):
        raise _url_error(
            f"must have a host of at most {_HOST_LENGTH} characters: labels of 1 to 63 letters, digits and hyphens"
            if host
            else "has no host"
        )
    # Some clients read numbers in other bases, or fewer of them, as an address: they would connect elsewhere.
    if not _NUMBER.fullmatch(labels[-1]):
        return None
    try:
        return ipaddress.IPv4Address(host)
    except ValueError:
        raise _url_error("must have an address of four decimal numbers, or a host's name", _dotted(host)) from None


def _dotted(host: str) -> str | None:
    """The address that C libraries read from such a number."""
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        return None


def _glob(entry: str) -> str:
    glob = entry.lower().removesuffix(".")
    last = glob.rpartition(".")[2]
    if not _GLOB.fullmatch(glob):
        raise InvalidError(f"{SETTING}: {entry[:100]!r} is neither a CIDR nor a host such as *.example.com")
    if glob != "*" and (set(last) & set("*?") or _NUMBER.fullmatch(last)):
        # 10.* would open every name that begins so, whatever address its owner gives it.
        raise InvalidError(f"{SETTING}: {entry[:100]!r} is open at its end: name networks by a CIDR such as 10.0.0.0/8")
    return glob


def _url_error(message: str, suggestion: str | None = None) -> InvalidError:
    return InvalidError.field("url", message, suggestion, detail=message)
