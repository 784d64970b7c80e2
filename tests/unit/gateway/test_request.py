from __future__ import annotations

import pytest

from stokerd.gateway.http1 import without_nominated
from stokerd.gateway.limits import Limits
from stokerd.gateway.request import Refusal, Request, check_head


def request(target: bytes = b"/v1/x", *, http11: bool = True, **noted: bytes) -> Request:
    made = Request(0.0)
    made.target = target
    made.is_http11 = http11
    made.noted = {name.replace("_", "-").encode(): value for name, value in noted.items()}
    return made


def test_the_length_of_the_body_is_told_as_far_as_known() -> None:
    assert check_head(request(host=b"g"), "1.1", Limits()) == 0
    assert check_head(request(host=b"g", content_length=b"12 "), "1.1", Limits()) == 12
    assert check_head(request(host=b"g", transfer_encoding=b"Chunked"), "1.1", Limits()) == 1
    assert check_head(request(http11=False), "1.0", Limits()) == 0


@pytest.mark.parametrize(
    ("status", "bad", "version"),
    [
        (505, request(host=b"g"), "2.0"),
        (505, request(), "0.9"),
        (400, request(b"http://evil/v1/x", host=b"g"), "1.1"),
        (400, request(b"*", host=b"g"), "1.1"),
        (400, request(), "1.1"),
        (400, request(host=b"g,h"), "1.1"),
        (501, request(host=b"g", transfer_encoding=b"gzip, chunked"), "1.1"),
        (501, request(http11=False, transfer_encoding=b"chunked"), "1.0"),
        (413, request(host=b"g", content_length=b"%d" % (64 * 2**20 + 1)), "1.1"),
        (417, request(host=b"g", expect=b"the-moon"), "1.1"),
    ],
)
def test_a_head_that_cannot_be_served_is_refused(status: int, bad: Request, version: str) -> None:
    with pytest.raises(Refusal) as refusal:
        check_head(bad, version, Limits())
    assert refusal.value.status == status


def test_headers_that_the_connection_header_names_are_not_passed_on() -> None:
    lines = [b"X-A: 1\r\n", b"X-B: 2\r\n", b"Close: 3\r\n"]
    assert without_nominated(lines, b"close, x-a , keep-alive") == lines[1:]
    assert without_nominated(lines, b"keep-alive") is lines
