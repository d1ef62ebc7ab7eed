#!/usr/bin/env python3
"""More stories of a small Llama, sampled at temperature 1 from its first token on: the corpus of the decoder in train/TASKS.md.

    OMP_NUM_THREADS=1 sample_stories.py --model DIR --stories N --seed SEED --out stories.jsonl

DIR is a folder that `transformers` loads (config.json, model.safetensors, tokenizer.json). A story ends where the model starts the next one (its BOS or EOS
token), or at --length tokens. Written as JSONL, field `text`, a batch at a time; one seed gives the same stories again on the same machine. One process a core is
the fastest: keys and values stay in place here, where the caches of transformers are copied at every token, and ended stories leave the batch, an eighth of it at a time. Needs torch and
transformers.
"""
import argparse, json, pathlib

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

BLOCK = 160  # of the vocabulary, summed before a token is drawn inside one


class Decoder:
    """A Llama that reads one token of each row at a time. Every attention head has its own keys and values, the output embedding is the input's."""

    def __init__(self, model, rows, length):
        config, weights = model.config, model.state_dict()
        width, heads = config.hidden_size, config.num_attention_heads
        assert config.model_type == "llama" and config.num_key_value_heads == heads and config.tie_word_embeddings, "a Llama of this shape alone"
        self.heads, self.size, self.epsilon = heads, width // heads, config.rms_norm_eps
        self.embedding, self.norm = weights["model.embed_tokens.weight"], weights["model.norm.weight"]
        self.head = self.embedding.T.contiguous()
        self.layers = []
        for at in range(config.num_hidden_layers):
            part = lambda name: weights[f"model.layers.{at}.{name}.weight"]
            joined = lambda *names: torch.cat([part(name) for name in names]).T.contiguous()
            attention = joined("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), joined("self_attn.o_proj")
            self.layers.append((part("input_layernorm"), *attention, part("post_attention_layernorm"), joined("mlp.gate_proj", "mlp.up_proj"), joined("mlp.down_proj")))
        theta = getattr(config, "rope_theta", None) or config.rope_parameters["rope_theta"]
        angles = torch.outer(torch.arange(length).float(), theta ** (-torch.arange(0, self.size, 2).float() / self.size))
        self.cos, self.sin = angles.cos().repeat(1, 2), angles.sin().repeat(1, 2)
        self.keys = torch.empty(len(self.layers), rows, heads, length, self.size)
        self.values = torch.empty_like(self.keys)

    def keep(self, rows, position):
        """Goes on with `rows` alone, whose first `position` keys and values move up."""
        for cache in (self.keys, self.values):
            for layer in cache:
                layer[: len(rows), :, :position] = layer[rows, :, :position]

    def next_logits(self, ids, position):
        """Logits [rows, vocabulary] of the token after `ids` [rows], which stand at `position`."""
        norm = lambda x, weight: F.rms_norm(x, weight.shape, weight, self.epsilon)
        turn = lambda x: x * self.cos[position] + torch.cat([-x[..., self.size // 2 :], x[..., : self.size // 2]], -1) * self.sin[position]
        hidden, rows = self.embedding[ids], len(ids)
        for keys, values, (norm_1, into, out, norm_2, up, down) in zip(self.keys, self.values, self.layers):
            query, key, value = (norm(hidden, norm_1) @ into).view(rows, 3, self.heads, self.size).unbind(1)
            keys[:rows, :, position], values[:rows, :, position] = turn(key), value
            seen = F.scaled_dot_product_attention(turn(query)[:, :, None], keys[:rows, :, : position + 1], values[:rows, :, : position + 1])
            hidden = hidden + seen.reshape(rows, -1) @ out
            gate, linear = (norm(hidden, norm_2) @ up).chunk(2, -1)
            hidden = hidden + (F.silu(gate) * linear) @ down
        return norm(hidden, self.norm) @ self.head


def draw(logits, generator):
    """One token id a row, by its probability: a block of the vocabulary by the blocks' sums, then the token inside it."""
    weights = logits.sub_(logits.amax(-1, keepdim=True)).exp_().view(len(logits), -1, BLOCK)
    sums = weights.sum(-1).cumsum(-1)
    drawn = torch.rand(len(logits), 1, generator=generator) * sums[:, -1:]
    block = torch.searchsorted(sums, drawn, right=True).clamp_(max=weights.shape[1] - 1)
    left = drawn - torch.where(block > 0, sums.gather(1, (block - 1).clamp(min=0)), 0)
    inside = weights.gather(1, block[:, :, None].expand(-1, -1, BLOCK))[:, 0].cumsum(-1)
    return (block * BLOCK + torch.searchsorted(inside, left, right=True).clamp_(max=BLOCK - 1))[:, 0]


@torch.inference_mode()
def sample(decoder, config, stories, length, generator):
    """Token ids of `stories` stories sampled together, the first token not included."""
    ends = torch.tensor([config.bos_token_id, config.eos_token_id])
    ids, rows, told = torch.full((stories,), config.bos_token_id), torch.arange(stories), [[] for _ in range(stories)]
    goes_on = torch.ones(stories, dtype=torch.bool)
    for position in range(length - 1):
        ids = draw(decoder.next_logits(ids, position), generator)
        goes_on &= ~torch.isin(ids, ends)
        for row, id, told_on in zip(rows.tolist(), ids.tolist(), goes_on.tolist()):
            if told_on:
                told[row].append(id)
        if goes_on.sum() <= len(rows) * 7 // 8:
            kept = goes_on.nonzero()[:, 0]
            decoder.keep(kept, position + 1)
            ids, rows, goes_on = ids[kept], rows[kept], goes_on[kept]
        if not len(rows):
            break
    return told


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
    assert model.config.vocab_size % BLOCK == 0, f"a vocabulary of a multiple of {BLOCK}"
    decoder = Decoder(model, arguments.batch, arguments.length)
    generator = torch.Generator().manual_seed(arguments.seed)
    left = arguments.stories
    with open(arguments.out, "w", encoding="utf-8") as out:
        while left:
            now = min(arguments.batch, left)
            for ids in sample(decoder, model.config, now, arguments.length, generator):
                out.write(json.dumps({"text": tokenizer.decode(ids, skip_special_tokens=True).strip()}, ensure_ascii=False) + "\n")
            out.flush()
            left -= now
            print(f"{arguments.stories - left}/{arguments.stories} stories", flush=True)


if __name__ == "__main__":
    main()
