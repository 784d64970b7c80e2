"""Any bytes into every seam, for seconds; `fuzz.py` does it for longer, and sees which way they take."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.seams import SEAMS

HERE = Path(__file__).parent
HTTP = b"\r\n|: |0\r\n\r\n|Content-Length: |Transfer-Encoding: chunked|chunked|HTTP/1.1|Connection: |close|keep-alive"
JSON = b'"model"|"usage":{|null|NaN|\xff|[[|\\ud800|data: |\n\n|"weight":|"addresses":|1e999|-1|@|\x00'
FORM = b'--x\r\n|--x--|name="model"'
TOKENS = [token for tokens in (HTTP, JSON, FORM) for token in tokens.split(b"|")]


@st.composite
def inputs(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A well-formed input with some places changed, or anything."""
    data = bytearray(draw(st.sampled_from(seeds)) if draw(st.integers(0, 9)) else draw(st.binary(max_size=300)))
    for _ in range(draw(st.integers(0, 5))):
        at = draw(st.integers(0, len(data)))
        piece = draw(st.sampled_from(TOKENS) | st.binary(max_size=4))
        data[at : at + draw(st.integers(0, 12))] = piece
    return bytes(data)


@pytest.mark.parametrize("name", SEAMS)
def test_no_bytes_break_a_seam(name: str) -> None:
    target, seeds = SEAMS[name]
    for seed in seeds:
        target(seed)
    given(inputs(seeds))(target)()


@pytest.mark.parametrize("name", SEAMS)
def test_no_way_through_a_seam_leads_to_a_bug(name: str, tmp_path: Path) -> None:
    if find_spec("atheris") is None and not (HERE.parents[1] / ".venv-fuzz" / "atheris").exists():
        pytest.skip("atheris is not installed here: make fuzz installs it, where there is one for this Python")
    command: list[str | Path] = [sys.executable, HERE / "fuzz.py", name, "--seconds", "3", "--folder", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
