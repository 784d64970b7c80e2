from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stokerd.gateway.keys import KeyRefused, Keyring
from stokerd.gateway.ledger import Ledger
from stokerd.gateway.wire import Key

TEXT = b"sk-stoker-one"
NOW = 1000.0


def key(**fields: object) -> Key:
    return Key("one", sha256(TEXT).hexdigest(), **fields)  # type: ignore[arg-type]


def ring(*keys: Key, needs_key: bool = True, ledger: Ledger | None = None) -> Keyring:
    return Keyring(keys, needs_key, ledger)


def refusal(keyring: Keyring, asked: Key, deployment: str = "a", now: float = NOW) -> KeyRefused:
    with pytest.raises(KeyRefused) as refused:
        keyring.admit(asked, deployment, now)
    return refused.value


@pytest.mark.parametrize(
    ("authorization", "x_api_key"),
    [
        (b"Bearer " + TEXT, None),
        (b"bearer  " + TEXT, None),
        (None, TEXT),
        (b"Basic abc", TEXT),
        (b"Bearer EMPTY", TEXT),
        (b"Bearer " + TEXT, b"sk-other"),
    ],
)
def test_a_key_is_found_by_its_text_in_either_header(authorization: bytes | None, x_api_key: bytes | None) -> None:
    assert ring(key()).find(authorization, x_api_key) == key()
    assert ring(key(), needs_key=False).find(authorization, x_api_key) == key()


@pytest.mark.parametrize(
    ("authorization", "x_api_key", "code"),
    [
        (None, None, "missing_api_key"),
        (b"Basic abc", None, "missing_api_key"),
        (b"Bearer EMPTY", None, "missing_api_key"),
        (b"Bearer sk-other", None, "invalid_api_key"),
        (None, b"sk-other", "invalid_api_key"),
        (b"Bearer " + sha256(TEXT).hexdigest().encode(), None, "invalid_api_key"),
    ],
)
def test_where_a_key_is_needed_nobody_is_served_without(
    authorization: bytes | None, x_api_key: bytes | None, code: str
) -> None:
    with pytest.raises(KeyRefused) as refused:
        ring(key()).find(authorization, x_api_key)
    assert (refused.value.status, refused.value.code) == (401, code)
    assert "sk-other" not in str(refused.value)


def test_where_none_is_needed_other_peoples_keys_are_nobodys_but_a_deleted_one_of_ours_is_refused() -> None:
    assert ring(key(), needs_key=False).find(None, None) is None
    assert ring(key(), needs_key=False).find(b"Bearer EMPTY", None) is None
    assert ring(key(), needs_key=False).find(b"Bearer sk-proj-other", None) is None
    with pytest.raises(KeyRefused, match="was deleted"):
        ring(needs_key=False).find(b"Bearer " + TEXT, None)


def test_a_key_is_for_its_models() -> None:
    limited = key(models=("a",))
    ring(limited).admit(limited, "a", NOW)
    refused = refusal(ring(limited), limited, "b")
    assert (refused.status, refused.code, refused.retry_after) == (403, "model_not_allowed", 0.0)


def test_requests_under_way_are_bounded_over_tables_and_given_back() -> None:
    held, ledger = key(in_flight=2), Ledger(None)
    first = ring(held, ledger=ledger)
    first.admit(held, "a", NOW)
    first.admit(held, "a", NOW)
    second = ring(held, ledger=ledger)
    assert (refusal(second, held).status, refusal(second, held).retry_after) == (429, 1.0)
    first.settle(held, 0, NOW)
    second.admit(held, "a", NOW)
    assert refusal(second, held).code == "rate_limit_exceeded"
    second.settle(held, 0, NOW)
    second.settle(held, 0, NOW)
    assert ledger.in_flight == {}


def test_a_request_that_is_refused_is_not_counted() -> None:
    held = key(in_flight=1, requests_per_minute=2)
    keyring = ring(held)
    keyring.admit(held, "a", NOW)
    for _ in range(5):
        refusal(keyring, held)
    keyring.settle(held, 0, NOW)
    keyring.admit(held, "a", NOW)


def test_requests_a_minute_hold_over_all_workers(tmp_path: Path) -> None:
    limited = key(requests_per_minute=6)
    ledgers = [Ledger(tmp_path), Ledger(tmp_path)]
    rings = [ring(limited, ledger=ledger) for ledger in ledgers]
    for n in range(6):
        rings[n % 2].admit(limited, "a", NOW)
    for keyring in rings:
        refused = refusal(keyring, limited, now=NOW + 1)
        assert refused.status == 429
        assert refused.retry_after == pytest.approx(9.0)
        assert "6 requests a minute" in str(refused)
    rings[0].admit(limited, "a", NOW + 10)
    refusal(rings[1], limited, now=NOW + 10)
    for ledger in ledgers:
        ledger.close()


def test_tokens_are_charged_afterwards_and_may_overdraw() -> None:
    limited = key(tokens_per_minute=600, requests_per_minute=100)
    keyring = ring(limited)
    keyring.admit(limited, "a", NOW)
    keyring.admit(limited, "a", NOW)
    keyring.settle(limited, 900, NOW)
    assert refusal(keyring, limited).retry_after == pytest.approx(30.0)
    keyring.admit(limited, "a", NOW + 30.1)
    keyring.settle(limited, 0, NOW + 30.1)


def test_a_key_that_was_deleted_while_it_was_used_settles_all_the_same() -> None:
    limited, ledger = key(tokens_per_minute=10), Ledger(None)
    ring(limited, ledger=ledger).admit(limited, "a", NOW)
    ring(ledger=ledger).settle(limited, 100, NOW)
    assert ledger.in_flight == {}


@given(st.integers(1, 100), st.lists(st.floats(0, 30), max_size=60))
def test_no_more_requests_than_the_bucket_held_and_got_and_whoever_waits_as_told_is_let_in(
    limit: int, pauses: list[float]
) -> None:
    limited = key(requests_per_minute=limit)
    keyring, now = ring(limited), NOW
    for admitted, pause in enumerate(pauses, 1):
        now += pause
        try:
            keyring.admit(limited, "a", now)
        except KeyRefused as refused:
            now += refused.retry_after
            keyring.admit(limited, "a", now)
        assert admitted <= limit + (now - NOW) * limit / 60 + 1e-3
