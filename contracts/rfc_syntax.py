"""Text notations CloudEvents borrows from RFCs: URIs (3986), media types (2045/2046), base64 (4648).

Each function answers whether a text follows the grammar, whole and exactly; nothing is normalised.
"""

from __future__ import annotations

import base64
import ipaddress
import re

# RFC 3986, appendix A. A percent sign must begin an octet; anything outside ASCII must be encoded.
_PCHAR = r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@]|%[0-9A-Fa-f]{2})"
_NO_COLON = r"(?:[A-Za-z0-9\-._~!$&'()*+,;=@]|%[0-9A-Fa-f]{2})"
_USER = r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:]|%[0-9A-Fa-f]{2})*"
_NAME = r"(?:[A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})*"
_HOST = rf"(?:\[(?:(?P<ipv6>[0-9A-Fa-f:.]+)|v[0-9A-Fa-f]+\.[A-Za-z0-9\-._~!$&'()*+,;=:]+)\]|{_NAME})"
_AUTHORITY = rf"//(?:{_USER}@)?{_HOST}(?::[0-9]*)?(?:/{_PCHAR}*)*"
_ABSOLUTE_PATH = rf"/(?:{_PCHAR}+(?:/{_PCHAR}*)*)?"
_QUERY = rf"(?:\?(?:{_PCHAR}|[/?])*)?"
_FRAGMENT = rf"(?:\#(?:{_PCHAR}|[/?])*)?"
_ABSOLUTE_URI = (
    rf"[A-Za-z][A-Za-z0-9+.\-]*:(?:{_AUTHORITY}|{_ABSOLUTE_PATH}|{_PCHAR}+(?:/{_PCHAR}*)*|){_QUERY}"
)
# The first segment of a relative reference holds no colon: it would read as a scheme.
_RELATIVE = rf"(?:{_AUTHORITY}|{_ABSOLUTE_PATH}|{_NO_COLON}+(?:/{_PCHAR}*)*|){_QUERY}{_FRAGMENT}"
_ABSOLUTE_URI_PATTERN = re.compile(rf"{_ABSOLUTE_URI}\Z")
_URI_PATTERN = re.compile(rf"{_ABSOLUTE_URI}{_FRAGMENT}\Z")
_RELATIVE_PATTERN = re.compile(rf"{_RELATIVE}\Z")

_TOKEN = r"[A-Za-z0-9!#$%&'*+\-.^_`{|}~]+"
_QUOTED = r'"(?:[^"\\\x00-\x1f\x7f]|\\[\x20-\x7e])*"'
_MEDIA_TYPE = re.compile(rf"{_TOKEN}/{_TOKEN}(?:[ \t]*;[ \t]*{_TOKEN}[ \t]*=[ \t]*(?:{_TOKEN}|{_QUOTED}))*\Z")


def _fits(pattern: re.Pattern[str], text: str) -> bool:
    found = pattern.match(text)
    if found is None:
        return False
    address = found.group("ipv6")
    if address is not None:
        try:
            ipaddress.IPv6Address(address)
        except ValueError:
            return False
    return True


def is_uri_reference(text: str) -> bool:
    """RFC 3986, 4.1: an absolute or a relative reference, with or without a fragment."""
    return _fits(_URI_PATTERN, text) or _fits(_RELATIVE_PATTERN, text)


def is_absolute_uri(text: str) -> bool:
    """RFC 3986, 4.3: with a scheme, without a fragment."""
    return _fits(_ABSOLUTE_URI_PATTERN, text)


def is_media_type(text: str) -> bool:
    """RFC 2046 (grammar in RFC 2045, 5.1): type/subtype and parameters, each `name=value`."""
    return _MEDIA_TYPE.match(text) is not None


def is_base64(text: str) -> bool:
    """RFC 4648, section 4: the standard alphabet, padded, no line breaks."""
    try:
        base64.b64decode(text, validate=True)
    except ValueError:  # binascii.Error is one
        return False
    return True
