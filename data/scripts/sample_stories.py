#!/usr/bin/env python3
"""More stories of a causal language model, sampled at temperature 1 from its first token on: the corpus of the decoder in train/TASKS.md.

    sample_stories.py --model DIR --stories N --seed SEED --out stories.jsonl

DIR is a folder that `transformers` loads (config.json, model.safetensors, tokenizer.json). A story ends where the model starts the next one (its BOS or EOS
token), or at --length tokens. Written as JSONL, field `text`; one seed gives the same stories again on the same machine. Needs torch and transformers.
"""
import argparse, json, pathlib

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@torch.inference_mode()
def sample(model, stories, length, generator):
    """Token ids of `stories` stories sampled together, the first token not included."""
    first, ends = model.config.bos_token_id, [model.config.bos_token_id, model.config.eos_token_id]
    ids, cache = torch.full((stories, 1), first), None
    ended, columns = torch.zeros(stories, dtype=torch.bool), []
    while len(columns) < length - 1 and not ended.all():
        answer = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = answer.past_key_values
        sums = answer.logits[:, -1].softmax(dim=-1).cumsum(dim=-1)
        drawn = torch.rand(stories, 1, generator=generator) * sums[:, -1:]
        ids = torch.searchsorted(sums, drawn, right=True).clamp_(max=model.config.vocab_size - 1)
        columns.append(ids[:, 0])
        ended |= torch.isin(ids[:, 0], torch.tensor(ends))
    for row in torch.stack(columns, dim=1).tolist():
        yield row[: next((at for at, id in enumerate(row) if id in ends), len(row))]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--stories", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--length", type=int, default=256, help="tokens of a story at most, its first one included")
    parser.add_argument("--batch", type=int, default=128, help="stories that are sampled together")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(arguments.seed)
    left = arguments.stories
    with open(arguments.out, "w", encoding="utf-8") as out:
        while left:
            now = min(arguments.batch, left)
            for ids in sample(model, now, arguments.length, generator):
                out.write(json.dumps({"text": tokenizer.decode(ids, skip_special_tokens=True).strip()}, ensure_ascii=False) + "\n")
            left -= now
            print(f"{arguments.stories - left}/{arguments.stories} stories", flush=True)


if __name__ == "__main__":
    main()
