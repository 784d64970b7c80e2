"""Make the demo's bad version: a copy of a model folder that lost its chat template.

usage: make_bad.py BASE OUT

It is a mistake that happens: weights and tokenizer were saved, the template was not. vLLM starts with such a folder,
says it is healthy and answers /v1/completions; each /v1/chat/completions is refused with status 400, because
transformers 4.44 and later have no template of their own. Only real chat traffic shows it, which is what a canary
step is for. OUT appears only when it is complete; where it is there already, nothing is done.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

TEMPLATE_FILES = ["chat_template.jinja", "chat_template.json", "additional_chat_templates"]
CONFIGS = ["tokenizer_config.json", "processor_config.json"]


def make_bad(base: Path, out: Path) -> None:
    """Copy *base* to *out* without its chat template, wherever it may stand; raises OSError when that can't be done."""
    partial = out.with_name(out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(base, partial, ignore=shutil.ignore_patterns(*TEMPLATE_FILES))
    for path in (partial / name for name in CONFIGS):
        if path.is_file():
            config = json.loads(path.read_text(encoding="utf-8"))
            config.pop("chat_template", None)
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    partial.rename(out)


def main() -> int:
    """Read the command line, copy, and say what came of it."""
    parser = argparse.ArgumentParser(description="Copy a model folder without its chat template.")
    parser.add_argument("base", type=Path, metavar="BASE", help="the model folder to copy")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to make")
    args = parser.parse_args()
    if not (args.base / "config.json").is_file():
        print(f"{args.base} is not a model folder: it has no config.json", file=sys.stderr)
        return 1
    if (args.out / "config.json").is_file():
        print(f"{args.out} is there already")
        return 0
    make_bad(args.base, args.out)
    print(f"{args.out}: {args.base} without its chat template")
    return 0


if __name__ == "__main__":
    sys.exit(main())
