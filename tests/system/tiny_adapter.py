"""Make a LoRA adapter for the model of `tiny_model`: for tests where the words of an answer don't matter.

usage: tiny_adapter.py OUT_DIR [--seed 0]        (run it with the engine environment's python)

At temperature 0 the model says other words with it than without, and others with each seed.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

LAYERS, WIDTH, RANK = 2, 64, 8


def main() -> None:
    """Read the command line and make the folder."""
    parser = argparse.ArgumentParser(description="Make a tiny random LoRA adapter.")
    parser.add_argument("out", type=Path, metavar="OUT_DIR")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed + 1)
    weights = {}
    for layer in range(LAYERS):
        for part in ("q_proj", "v_proj"):
            name = f"base_model.model.model.layers.{layer}.self_attn.{part}"
            weights[f"{name}.lora_A.weight"] = torch.randn(RANK, WIDTH)
            weights[f"{name}.lora_B.weight"] = torch.randn(WIDTH, RANK)
    save_file(weights, args.out / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK, "lora_dropout": 0.0,
        "bias": "none", "target_modules": ["q_proj", "v_proj"], "base_model_name_or_path": "tiny",
    }  # fmt: skip
    (args.out / "adapter_config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    main()
