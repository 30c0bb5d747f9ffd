"""Checks of blobs that git reads as instructions: `.gitmodules` and `.gitattributes`.

Owns git's rules (fsck.c: fsck_blob, submodule-config.c) and a parser of git's configuration syntax
that reads what git's own reads (config.c), damaged files up to the damage included: a more
tolerant or a stricter parser would let an attacker hide a line from the check. Knows nothing of
packs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

__all__ = ["ConfigSyntaxError", "gitattributes_problems", "gitmodules_problems", "parse_config"]

_GITMODULES_BYTES_MAX = 1024 * 1024
_GITATTRIBUTES_BYTES_MAX = 100 * 1024 * 1024  # attr.h: ATTR_MAX_FILE_SIZE
_GITATTRIBUTES_LINE_BYTES_MAX = 2048  # attr.h: ATTR_MAX_LINE_LENGTH

_CURL_SCHEMES = (b"http", b"https", b"ftp", b"ftps")
_RELATIVE = re.compile(rb"\.\.?[/\\]")
_LEADING_DOTS = re.compile(rb"(?:\.\.?/)*")
_SPACE = b" \t\n\r"  # git-compat-util.h: isspace
_ESCAPES = {0x74: 0x09, 0x62: 0x08, 0x6E: 0x0A, 0x5C: 0x5C, 0x22: 0x22}

Problem = tuple[str, str]  # message id, text


class ConfigSyntaxError(ValueError):
    """A configuration file ends in something that git refuses to parse."""


def gitmodules_problems(content: bytes) -> Iterator[Problem]:
    """What is dangerous about a `.gitmodules` blob, as (message id, text)."""
    if len(content) > _GITMODULES_BYTES_MAX:
        yield "gitmodulesLarge", ".gitmodules too large to parse"
        return
    try:
        for variable, value in parse_config(content):
            section, _, rest = variable.partition(b".")
            name, dot, key = rest.rpartition(b".")
            if section == b"submodule" and dot:
                yield from _submodule_problems(name, key, value)
    except ConfigSyntaxError:
        yield "gitmodulesParse", "could not parse gitmodules blob"


def gitattributes_problems(content: bytes) -> Iterator[Problem]:
    """What is wrong with a `.gitattributes` blob, as (message id, text)."""
    if len(content) > _GITATTRIBUTES_BYTES_MAX:
        yield "gitattributesLarge", ".gitattributes too large to parse"
    elif max(map(len, content.split(b"\0", 1)[0].split(b"\n"))) >= _GITATTRIBUTES_LINE_BYTES_MAX:
        yield "gitattributesLineLength", ".gitattributes has too long lines to parse"


def _submodule_problems(name: bytes, key: bytes, value: bytes | None) -> Iterator[Problem]:
    # C strings: git sees nothing behind a NUL.
    name = name.split(b"\0", 1)[0]
    if not name or b".." in re.split(rb"[/\\]", name):
        yield "gitmodulesName", f"disallowed submodule name: {_shown(name)}"
    if value is None:
        return
    value = value.split(b"\0", 1)[0]
    if key == b"url" and not _is_harmless_url(value):
        yield "gitmodulesUrl", f"disallowed submodule url: {_shown(value)}"
    if key == b"path" and value.startswith(b"-"):
        yield "gitmodulesPath", f"disallowed submodule path: {_shown(value)}"
    if key == b"update" and value.startswith(b"!"):
        yield "gitmodulesUpdate", f"disallowed submodule update setting: {_shown(value)}"


def _is_harmless_url(url: bytes) -> bool:
    """submodule-config.c: check_submodule_url (CVE-2018-17456, CVE-2020-5260, CVE-2020-11008)."""
    if url.startswith(b"-"):
        return False
    if _RELATIVE.match(url) or url.startswith(b"git://"):
        if b"\n" in unquote_to_bytes(url):
            return False
        dots = _LEADING_DOTS.match(url)
        leading = dots.group() if dots else b""
        return not (b"../" in leading and url[len(leading) : len(leading) + 1] in (b":", b"/"))
    for scheme in _CURL_SCHEMES:
        if url.startswith(scheme + b"::"):
            return _has_plain_host(url[len(scheme) + 2 :])
        if url.startswith(scheme + b"://"):
            return _has_plain_host(url)
    return True


def _has_plain_host(url: bytes) -> bool:
    """credential.c: credential_from_url_gently accepts the URL, and it has a host."""
    scheme, separator, rest = url.partition(b"://")
    if not scheme or not separator or b"\n" in unquote_to_bytes(url):
        return False
    host = re.split(rb"[/?#]", rest, maxsplit=1)[0]
    host = host.partition(b"@")[2] if b"@" in host else host
    return bool(host) and b"\r" not in unquote_to_bytes(host)


def parse_config(content: bytes) -> Iterator[tuple[bytes, bytes | None]]:
    """The variables of a configuration file in order, as (section[.subsection].key, value).

    The value is None for a key without "=". Raises ConfigSyntaxError where git stops.
    """
    # git reads a missing last newline, and every CRLF, as LF (config.c: get_next_char).
    text = content.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n") + b"\n"
    prefix = b""  # git takes a key before the first section as it is
    position = 0
    while position < len(text):
        byte = text[position]
        if byte in _SPACE:
            position += 1
        elif byte in b"#;":
            position = text.index(b"\n", position)
        elif byte == 0x5B:
            section, position = _parse_section(text, position + 1)
            prefix = section + b"."
        elif byte < 0x80 and chr(byte).isalpha():
            key, value, position = _parse_variable(text, position)
            yield prefix + key, value
        else:
            raise ConfigSyntaxError(f"unexpected byte {byte:#x} at {position}")


_SECTION = re.compile(rb"([0-9A-Za-z.-]+)([ \t\r]+\"((?:[^\"\\\n]|\\[^\n])*)\")?\]")
_KEY = re.compile(rb"([0-9A-Za-z-]+)[ \t]*(=|\n)")


def _parse_section(text: bytes, position: int) -> tuple[bytes, int]:
    match = _SECTION.match(text, position)
    if match is None:
        raise ConfigSyntaxError(f"bad section header at {position}")
    base = match[1].lower()
    if match[2] is not None:
        base += b"." + re.sub(rb"\\(.)", rb"\1", match[3], flags=re.DOTALL)
    return base, match.end()


def _parse_variable(text: bytes, position: int) -> tuple[bytes, bytes | None, int]:
    match = _KEY.match(text, position)
    if match is None:
        raise ConfigSyntaxError(f"bad key at {position}")
    key = match[1].lower()
    if match[2] == b"\n":
        return key, None, match.end()
    value, position = _parse_value(text, match.end())
    return key, value, position


def _parse_value(text: bytes, position: int) -> tuple[bytes, int]:
    """config.c: parse_value; returns the value and where the next line starts."""
    value = bytearray()
    quoted = commented = False
    spaces = 0
    while True:
        # An escaped last newline ends the file, and the value.
        byte = text[position] if position < len(text) else 0x0A
        position += 1
        if byte == 0x0A:
            if quoted:
                raise ConfigSyntaxError("unterminated quote")
            return bytes(value), position
        if commented:
            continue
        if not quoted and byte in _SPACE:
            spaces += bool(value)
            continue
        if not quoted and byte in b"#;":
            commented = True
            continue
        value += b" " * spaces
        spaces = 0
        if byte == 0x22:
            quoted = not quoted
        elif byte == 0x5C:
            escaped = text[position] if position < len(text) else 0x0A
            position += 1
            if escaped == 0x0A:
                continue
            if escaped not in _ESCAPES:
                raise ConfigSyntaxError(f"unknown escape at {position}")
            value.append(_ESCAPES[escaped])
        else:
            value.append(byte)


def _shown(value: bytes) -> str:
    """The value for an error message: short and printable."""
    return value[:200].decode("utf-8", "backslashreplace")
