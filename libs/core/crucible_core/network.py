"""Failures of connections in words for users, by the numbers of the system and of OpenSSL: no text of a library."""

import errno

NO_TLS = "TLS: the other side does not speak it at this port, or no version of it that is safe"
NO_ANSWER = "the connection was closed without an answer"
BROKEN = "the connection broke off"

_CONNECTION = {
    errno.ECONNREFUSED: "the connection was refused",
    errno.ECONNRESET: BROKEN,
    errno.ECONNABORTED: BROKEN,
    errno.EPIPE: BROKEN,
    errno.ETIMEDOUT: "the other side does not react",
    errno.EHOSTUNREACH: "the address cannot be reached from here",
    errno.ENETUNREACH: "the network of the address cannot be reached from here",
    errno.EADDRNOTAVAIL: "this machine has no free port left for a connection",
    errno.EMFILE: "this process has too many files open",
    errno.ENFILE: "this machine has too many files open",
}
_CERTIFICATE = {
    9: "is not valid yet",
    10: "has expired",
    18: "is signed by itself, which is not trusted",
    19: "comes from an authority that is not trusted",
    20: "comes from an authority that is not trusted",
    21: "comes from an authority that is not trusted",
    23: "was revoked",
    62: "is for another host",
    64: "is for another address",
}
"""By X509_V_ERR_…, the code of OpenSSL's verification."""


def connection_reason(number: int | None) -> str:
    """The words for the `errno` of a connection."""
    if number is None:
        return "the connection failed"
    return _CONNECTION.get(number) or f"the connection failed ({errno.errorcode.get(number, number)})"


def certificate_reason(code: int) -> str:
    """The words for the `verify_code` of a certificate that was not accepted."""
    return f"TLS: the certificate {_CERTIFICATE.get(code, 'is not trusted')}"
