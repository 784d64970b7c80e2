"""What could make two servers see different requests in the same bytes: refused, or passed on as exactly one.

`test_protocol` has the plain cases; here are the odder ones, and those in which a replica is the one that lies.
"""

from __future__ import annotations

import json

import pytest

from tests.system.upstream import GatewayProcess, Replica, arm, chat, refused

CHAT = "/v1/chat/completions"
POST = f"POST {CHAT} HTTP/1.1\r\nHost: g\r\n"
BODY = json.dumps(chat())
SIZE = len(BODY)
CODING = "Transfer-Encoding: chunked"
HIDDEN = f"{POST}X-Hidden: 1\r\nContent-Length: {SIZE}\r\n\r\n{BODY}"


def chunked(*parts: str, coding: str = CODING) -> str:
    return f"{POST}{coding}\r\n\r\n{''.join(parts)}"


WHOLE = f"{SIZE:x}\r\n{BODY}\r\n0\r\n\r\n"
REFUSED = {
    "empty length": f"{POST}Content-Length:\r\n\r\n{HIDDEN}",
    "length with a blank inside": f"{POST}Content-Length: {SIZE} 0\r\n\r\n{BODY}",
    "length with a letter": f"{POST}Content-Length: {SIZE}a\r\n\r\n{BODY}",
    "length with a fraction": f"{POST}Content-Length: {SIZE}.0\r\n\r\n{BODY}",
    "length with an underscore": f"{POST}Content-Length: 1_0\r\n\r\n{BODY}",
    "length beyond 64 bits": f"{POST}Content-Length: {2**64 + SIZE}\r\n\r\n{BODY}",
    "length in other digits": f"{POST}Content-Length: \u00b2\r\n\r\n{BODY}",
    "length after a NUL": f"{POST}Content-Length: \x00{SIZE}\r\n\r\n{BODY}",
    "length in a header's second line": f"{POST}X-A:\r\n\tContent-Length: {SIZE}\r\n\r\n{BODY}",
    "coding with something before": chunked(WHOLE, HIDDEN, coding="Transfer-Encoding: \x0bchunked"),
    "coding with something behind": chunked(WHOLE, HIDDEN, coding="Transfer-Encoding: chunked\x00"),
    "coding with a comma behind": chunked(WHOLE, HIDDEN, coding="Transfer-Encoding: chunked,"),
    "coding with a comma before": chunked(WHOLE, HIDDEN, coding="Transfer-Encoding: , chunked"),
    "coding with a parameter": chunked(WHOLE, HIDDEN, coding="Transfer-Encoding: chunked;q=1"),
    "coding in quotes": chunked(WHOLE, HIDDEN, coding='Transfer-Encoding: "chunked"'),
    "blanks behind the coding": chunked(WHOLE, HIDDEN, coding="Transfer-Encoding: chunked \t "),
    "identity": chunked(WHOLE, HIDDEN, coding="Transfer-Encoding: identity"),
    "empty coding": chunked(WHOLE, HIDDEN, coding="Transfer-Encoding:"),
    "empty coding and a length": chunked(WHOLE, HIDDEN, coding=f"Transfer-Encoding:\r\nContent-Length: {len(WHOLE)}"),
    "coding in the next line": chunked(WHOLE, HIDDEN, coding="Transfer-Encoding:\r\n chunked"),
    "coding behind a bare LF": chunked(WHOLE, HIDDEN, coding="X-A: b\nTransfer-Encoding: chunked"),
    "coding behind a bare CR": chunked(WHOLE, HIDDEN, coding="X-A: b\rTransfer-Encoding: chunked"),
    "chunk size 0x": chunked(f"0x{SIZE:x}\r\n{BODY}\r\n0\r\n\r\n"),
    "chunk size negative": chunked(f"-{SIZE:x}\r\n{BODY}\r\n0\r\n\r\n"),
    "chunk size with a blank before": chunked(f" {SIZE:x}\r\n{BODY}\r\n0\r\n\r\n"),
    "chunk size empty": chunked(f"\r\n{BODY}\r\n0\r\n\r\n"),
    "chunk size with an underscore": chunked(f"{SIZE:x}_0\r\n{BODY}\r\n0\r\n\r\n"),
    "chunk size beyond 64 bits": chunked(f"1{SIZE:016x}\r\n{BODY}\r\n0\r\n\r\n"),
    "chunk too long for its size": chunked(f"{SIZE - 1:x}\r\n{BODY}\r\n0\r\n\r\n"),
    "chunk too short for its size": chunked(f"{SIZE + 1:x}\r\n{BODY}\r\n0\r\n\r\n"),
    "chunk without its line's end": chunked(f"{SIZE:x}\r\n{BODY}0\r\n\r\n"),
    "chunk ended by CR": chunked(f"{SIZE:x}\r\n{BODY}\r0\r\n\r\n"),
    "chunk ended by LF": chunked(f"{SIZE:x}\r\n{BODY}\n0\r\n\r\n"),
    "chunk size ended by LF": chunked(f"{SIZE:x}\n{BODY}\r\n0\r\n\r\n"),
    "chunk extension with LF": chunked(f"{SIZE:x};a\nb\r\n{BODY}\r\n0\r\n\r\n"),
    "last chunk ended by LF": chunked(f"{SIZE:x}\r\n{BODY}\r\n0\n\r\n"),
    "trailer ended by LF": chunked(f"{SIZE:x}\r\n{BODY}\r\n0\r\nX-A: b\n\r\n"),
    "trailer folded": chunked(f"{SIZE:x}\r\n{BODY}\r\n0\r\nX-A: b\r\n c\r\n\r\n"),
    "target with a blank": f"POST {CHAT} x HTTP/1.1\r\nHost: g\r\nContent-Length: {SIZE}\r\n\r\n{BODY}",
    "target with a control character": f"POST {CHAT}\x01 HTTP/1.1\r\nHost: g\r\nContent-Length: {SIZE}\r\n\r\n{BODY}",
    "target with NUL": f"POST {CHAT}?\x00 HTTP/1.1\r\nHost: g\r\nContent-Length: {SIZE}\r\n\r\n{BODY}",
    "target with CR": f"POST {CHAT}?\rX HTTP/1.1\r\nHost: g\r\nContent-Length: {SIZE}\r\n\r\n{BODY}",
    "absolute target of its own": f"POST http://g{CHAT} HTTP/1.1\r\nHost: g\r\nContent-Length: {SIZE}\r\n\r\n{BODY}",
    "https target": f"POST https://g{CHAT} HTTP/1.1\r\nHost: g\r\nContent-Length: {SIZE}\r\n\r\n{BODY}",
    "relative target": f"POST v1/chat HTTP/1.1\r\nHost: g\r\nContent-Length: {SIZE}\r\n\r\n{BODY}",
    "empty target": f"POST  HTTP/1.1\r\nHost: g\r\nContent-Length: {SIZE}\r\n\r\n{BODY}",
    "small method": f"post {CHAT} HTTP/1.1\r\nHost: g\r\nContent-Length: {SIZE}\r\n\r\n{BODY}",
    "small version": f"POST {CHAT} http/1.1\r\nHost: g\r\nContent-Length: {SIZE}\r\n\r\n{BODY}",
    "version with a digit more": f"POST {CHAT} HTTP/1.10\r\nHost: g\r\nContent-Length: {SIZE}\r\n\r\n{BODY}",
    "blank before the first header": f"POST {CHAT} HTTP/1.1\r\n Host: g\r\nContent-Length: {SIZE}\r\n\r\n{BODY}",
    "name with a blank": f"{POST}Content Length: 3\r\nContent-Length: {SIZE}\r\n\r\n{BODY}",
    "name with a tab": f"{POST}Content-Length\t: {SIZE}\r\n\r\n{BODY}",
    "name that is empty": f"{POST}: a\r\nContent-Length: {SIZE}\r\n\r\n{BODY}",
    "name with a bracket": f"{POST}X(A): a\r\nContent-Length: {SIZE}\r\n\r\n{BODY}",
    "name of other letters": f"{POST}X-\u00c4: a\r\nContent-Length: {SIZE}\r\n\r\n{BODY}",
    "line without a colon": f"{POST}Content-Length\r\nContent-Length: {SIZE}\r\n\r\n{BODY}",
    "value with DEL": f"{POST}X-A: a\x7f\r\nContent-Length: {SIZE}\r\n\r\n{BODY}",
    "host list": f"POST {CHAT} HTTP/1.1\r\nHost: g, h\r\nContent-Length: {SIZE}\r\n\r\n{BODY}",
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_ambiguous_is_refused_and_ends_the_connection(
    gateway: GatewayProcess, replica: Replica, case: str
) -> None:
    assert 400 <= refused(gateway, replica, REFUSED[case]) < 600
    assert not gateway.batch().records


TAKEN = {
    "blanks around the length": f"{POST}Content-Length: \t {SIZE} \t \r\n\r\n{BODY}",
    "length with zeros before": f"{POST}Content-Length: 000{SIZE}\r\n\r\n{BODY}",
    "names in any case": f"{POST}cONTENT-lENGTH: {SIZE}\r\n\r\n{BODY}",
    "coding in any case": chunked(WHOLE, coding="transfer-ENCODING: Chunked"),
    "two blanks before the version": f"POST {CHAT}  HTTP/1.1\r\nHost: g\r\nContent-Length: {SIZE}\r\n\r\n{BODY}",
    "chunk size with zeros before": chunked(f"000{SIZE:X}\r\n{BODY}\r\n0\r\n\r\n"),
    "last chunk with zeros": chunked(f"{SIZE:x}\r\n{BODY}\r\n0000\r\n\r\n"),
    "chunk extensions": chunked(f'{SIZE:x};a=b;c="d;e"\r\n{BODY}\r\n0;f\r\n\r\n'),
    "trailers": chunked(f"{SIZE:x}\r\n{BODY}\r\n0\r\nContent-MD5: x\r\nHost: other\r\nX-Hidden: 1\r\n\r\n"),
    "its length named as hop-by-hop": f"{POST}Connection: Content-Length, Host\r\nContent-Length: {SIZE}\r\n\r\n{BODY}",
    "its coding named as hop-by-hop": chunked(
        WHOLE, coding="Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked"
    ),
    "other words for lengths and codings": f"{POST}Content_Length: 3\r\nX-Transfer-Encoding: chunked\r\n"
    f"Content-Length: {SIZE}\r\n\r\n{BODY}",
    "a blank line before it": f"\r\n{POST}Content-Length: {SIZE}\r\n\r\n{BODY}",
}


@pytest.mark.parametrize("case", TAKEN)
def test_what_is_odd_but_clear_reaches_the_replica_as_one_plain_request(
    gateway: GatewayProcess, replica: Replica, case: str
) -> None:
    gateway.route(arm("stable", 100, replica))
    with gateway.raw() as raw:
        for _ in range(2):  # what is known from before is read in another way
            raw.send(TAKEN[case].encode("latin-1"))
            assert raw.answer()[0] == 200
        raw.send(b"GET /v1/models HTTP/1.1\r\nHost: g\r\n\r\n")  # nothing is left over before the next one
        status, _, body = raw.answer()
        assert (status, json.loads(body)["object"]) == (200, "list")
    assert len(replica.seen) == 2
    for seen in replica.seen:
        assert seen.body == BODY.encode()
        assert seen.headers["content-length"] == str(SIZE)
        assert not seen.headers.keys() & {"transfer-encoding", "connection", "x-hidden", "content-md5"}


def test_a_body_may_look_like_a_request(gateway: GatewayProcess, replica: Replica) -> None:
    gateway.route(arm("stable", 100, replica))
    body = {**chat(), "hidden": HIDDEN}
    with gateway.raw() as raw:
        raw.post(body)
        assert raw.answer()[0] == 200
    (seen,) = replica.seen
    assert seen.json == body


SPLITTING = {
    "both lengths": "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "two lengths": "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "length list": "Content-Length: 2, 2\r\n\r\n{}",
    "signed length": "Content-Length: +2\r\n\r\n{}",
    "coding that nobody knows": "Transfer-Encoding: xchunked\r\n\r\n{}",
    "two codings": "Transfer-Encoding: gzip, chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    "folded header": "X-A: b\r\n c\r\nContent-Length: 2\r\n\r\n{}",
    "bare LF": "X-A: b\nX-Injected: 1\r\nContent-Length: 2\r\n\r\n{}",
    "bare CR": "X-A: b\rX-Injected: 1\r\nContent-Length: 2\r\n\r\n{}",
    "NUL": "X-A: \x00\r\nContent-Length: 2\r\n\r\n{}",
    "blank before the colon": "Content-Length : 2\r\n\r\n{}",
    "bad chunk": "Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("case", SPLITTING)
def test_an_ambiguous_answer_is_not_passed_on(gateway: GatewayProcess, replica: Replica, case: str) -> None:
    gateway.route(arm("stable", 100, replica))
    with gateway.raw() as raw:
        raw.post(chat(raw=f"HTTP/1.1 200 OK\r\n{SPLITTING[case]}", then_close=True))
        status, headers, body = raw.answer()
        assert (status, json.loads(body)["error"]["code"]) == (502, "upstream_failed")
        assert "x-injected" not in headers
        raw.post(chat())
        assert raw.answer()[0] == 200


REASONS = {"NUL": "O\x00K", "escape": "\x1b[2J", "tab": "O\tK", "other letters": "O\u00e4", "none": ""}


@pytest.mark.parametrize("case", REASONS)
def test_a_reason_can_hold_nothing_that_is_no_text(gateway: GatewayProcess, replica: Replica, case: str) -> None:
    gateway.route(arm("stable", 100, replica))
    with gateway.raw() as raw:
        raw.post(chat(raw=f"HTTP/1.1 200 {REASONS[case]}\r\nContent-Length: 2\r\n\r\n{{}}"))
        line = raw.line()
        assert line[:9] == b"HTTP/1.1 "
        assert all(32 <= byte < 127 or byte == 9 or byte > 160 for byte in line.rstrip(b"\r\n"))


SURPLUS = {
    "another answer": "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged",
    "a byte": "x",
    "line ends": "\r\n\r\n",
    "an interim answer": "HTTP/1.1 100 Continue\r\n\r\n",
}


@pytest.mark.parametrize("case", SURPLUS)
def test_what_a_replica_says_unasked_answers_nobody(gateway: GatewayProcess, replica: Replica, case: str) -> None:
    gateway.route(arm("stable", 100, replica))
    with gateway.raw() as raw, gateway.raw() as other:
        raw.post(chat(raw=f"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{{}}{SURPLUS[case]}"))
        assert raw.answer()[2] == b"{}"
        for one in (other, raw):
            one.post(chat())
            assert json.loads(one.answer()[2])["choices"][0]["message"]["content"] == "version 1"


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_without_a_body_gets_none_because_its_head_is_known(
    gateway: GatewayProcess, replica: Replica, status: int
) -> None:
    gateway.route(arm("stable", 100, replica))
    with gateway.raw() as raw:
        for body in ("", "", "forged"):
            raw.post(chat(raw=f"HTTP/1.1 {status} Fine\r\nContent-Length: {len(body)}\r\n\r\n{body}"))
            assert raw.head()[0] == status
        raw.send(b"GET /health HTTP/1.1\r\nHost: g\r\n\r\n")
        assert raw.line() == b"HTTP/1.1 200 OK\r\n"
