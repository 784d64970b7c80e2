"""Fine-tune a chat model with LoRA on OpenAI-style chats, then merge the adapter into a model folder that vLLM serves.

usage: train_lora.py --base DIR --data DIR_OR_FILE --output DIR [--steps 24] [--lr 2e-3] [--rank 8] [--seed 0]

--data is a .jsonl file, or a folder of them; each line is {"messages": [{"role": …, "content": …}, …]}. Only what the
assistant says is learned. Writes OUTPUT/adapter (the LoRA weights) and OUTPUT/model (base and adapter merged, in
bf16, with tokenizer and chat template). Uses the GPU where torch sees one.

The same seed, data, base, torch and number of threads give the same bytes on one kind of CPU. On a GPU deterministic
kernels are asked for, but another GPU model or CUDA version may round differently.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import stoker

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it; read at its start
# Threads that wait spin by default: on busy cores that made single steps twenty times slower. Read when torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

IGNORED = -100  # the label that torch's cross entropy leaves out
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def read_chats(path: Path) -> list[list[dict[str, str]]]:
    """All chats in the .jsonl file, or the folder of them, at *path*; exits with a sentence when there are none."""
    files = sorted(path.rglob("*.jsonl")) if path.is_dir() else [path]
    chats = []
    for file in files:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                messages = json.loads(line)["messages"]
                if messages[-1]["role"] != "assistant":
                    raise ValueError("the last message is not the assistant's")
            except (ValueError, KeyError, IndexError, TypeError) as error:
                sys.exit(f"{file}, line {number}: not a chat of the form {{'messages': [...]}}: {error!r}")
            chats.append(messages)
    if not chats:
        sys.exit(f"no chats in {path}: expected a .jsonl file or a folder of them")
    return chats


def encode(tokenizer, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
    """Token ids and labels of one chat: the labels are the ids of the last answer, and IGNORED before it."""
    whole = tokenizer.apply_chat_template(messages, return_dict=False)
    asked = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
    return whole, [IGNORED] * len(asked) + whole[len(asked) :]


def batches(examples: list[tuple[list[int], list[int]]], size: int, pad: int, seed: int) -> Iterator[dict]:
    """Endless batches of *size* examples, shuffled anew in each epoch; tensors of shape (size, longest)."""
    shuffle = random.Random(seed)
    queue: list[tuple[list[int], list[int]]] = []
    while True:
        while len(queue) < size:
            queue += shuffle.sample(examples, len(examples))
        batch, queue = queue[:size], queue[size:]
        longest = max(len(ids) for ids, _ in batch)
        yield {
            "input_ids": torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in batch]),
            "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in batch]),
            "labels": torch.tensor([labels + [IGNORED] * (longest - len(labels)) for _, labels in batch]),
        }


def train(model, data: Iterator[dict], steps: int, lr: float, device: str) -> float:
    """Take *steps* optimizer steps, the rate falling linearly to a tenth; returns the mean of the last 5 losses."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=steps)
    losses = []
    model.train()
    for step in range(1, steps + 1):
        started = time.monotonic()
        loss = model(**{key: value.to(device) for key, value in next(data).items()}).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        rate = schedule.get_last_lr()[0]
        schedule.step()
        losses.append(loss.item())
        stoker.log_metric("loss", losses[-1], step=step)
        stoker.log_metric("learning_rate", rate, step=step)
        print(f"step {step}/{steps}  loss {losses[-1]:.4f}  {time.monotonic() - started:.2f} s", flush=True)
    return sum(losses[-5:]) / len(losses[-5:])


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="LoRA fine-tune of a chat model.")
    parser.add_argument("--base", type=Path, required=True, help="model folder to start from")
    parser.add_argument("--data", type=Path, required=True, help=".jsonl file, or a folder of them")
    parser.add_argument("--output", type=Path, required=True, help="folder for adapter/ and model/")
    parser.add_argument("--steps", type=int, default=24, help="optimizer steps (default 24)")
    parser.add_argument("--lr", type=float, default=2e-3, help="learning rate of the first step (default 2e-3)")
    parser.add_argument("--rank", type=int, default=8, help="rank of the adapter (default 8)")
    parser.add_argument("--batch", type=int, default=4, help="chats a step (default 4)")
    parser.add_argument("--seed", type=int, default=0)
    found = parser.parse_args()
    if min(found.steps, found.rank, found.batch) < 1 or found.lr <= 0:
        parser.error("--steps, --rank and --batch must be at least 1, and --lr above 0")
    return found


def main() -> None:
    """Train, merge, save; each loss goes to Stoker as it is known."""
    args = arguments()
    chats = read_chats(args.data)
    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"

    tokenizer = AutoTokenizer.from_pretrained(args.base)
    # Trained in float32: bf16 steps of this size would be lost in rounding, and many CPUs have no bf16 units.
    model = AutoModelForCausalLM.from_pretrained(args.base, dtype=torch.float32).to(device)
    model.config.use_cache = False
    model = get_peft_model(model, LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules=TARGETS))
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    stoker.log_params(
        {
            "steps": args.steps,
            "lr": args.lr,
            "rank": args.rank,
            "batch": args.batch,
            "seed": args.seed,
            "chats": len(chats),
            "device": torch.cuda.get_device_name() if device == "cuda" else f"cpu, {torch.get_num_threads()} threads",
            "torch": torch.__version__,
            "trainable_parameters": trainable,
        }
    )
    print(f"{len(chats)} chats, {trainable:,} trainable parameters, on {device}", flush=True)

    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    examples = [encode(tokenizer, messages) for messages in chats]
    final = train(model, batches(examples, args.batch, pad, args.seed), args.steps, args.lr, device)
    stoker.log_metric("final_loss", final, step=args.steps)

    model.save_pretrained(args.output / "adapter")
    merged = model.merge_and_unload().to(torch.bfloat16)
    merged.config.use_cache = True
    merged.save_pretrained(args.output / "model")
    tokenizer.save_pretrained(args.output / "model")
    print(f"final loss {final:.4f}; merged model in {args.output / 'model'}", flush=True)


if __name__ == "__main__":
    main()
