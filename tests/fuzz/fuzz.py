"""Feed a seam by atheris, which looks for inputs that take new ways: ``python tests/fuzz/fuzz.py SEAM --seconds 60``.

What leads to a failure is kept in ``.hypothesis/atheris/``; give such a file instead of ``--seconds`` to see it again.
What took new ways is kept there as well, and the next run begins with it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / ".venv-fuzz")]

import atheris  # noqa: E402

with atheris.instrument_imports(include=["stokerd.gateway", "tests.fuzz"]):
    from tests.fuzz.seams import SEAMS


def main() -> None:
    """Run until the time is over (exit 0) or an input fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seam", choices=SEAMS)
    parser.add_argument("file", type=Path, nargs="?", help="an input that failed")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--folder", type=Path, default=ROOT / ".hypothesis" / "atheris")
    arguments = parser.parse_args()
    target, seeds = SEAMS[arguments.seam]
    if arguments.file:
        target(arguments.file.read_bytes())
        print("this input does not fail")
        return
    corpus = arguments.folder / arguments.seam
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = [f"-max_total_time={arguments.seconds}", "-max_len=2000", "-timeout=60", "-rss_limit_mb=2048"]
    options += [f"-artifact_prefix={arguments.folder}/{arguments.seam}-", "-print_final_stats=1", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
