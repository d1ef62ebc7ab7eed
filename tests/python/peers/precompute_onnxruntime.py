#!/usr/bin/env python3
"""The Python peer of `precompute`, and the bare session run that both are measured by: onnxruntime, torch or numpy top-k, pyarrow.

    python tests/python/peers/precompute_onnxruntime.py --teacher DIR --cache CACHE --plan PLAN.json --corpus FILE --out DIR

Reads commands from standard input, a line each, and answers each with a line of JSON, so that the driver can let it wait while another program is timed:

- `bare`: `session.run` on the batches that PLAN gives for the rows of CACHE, one after the other, and nothing else. The logits are handed over
  without a copy, as OrtValues.
- `pipeline`: corpus to Parquet. One thread tokenizes, masks and batches, the main thread runs the session, one takes the top-k and the
  log-normalisers, one writes: bounded queues between them.
- `quit`.

With `--provider cuda` the logits stay on the GPU: the bare run leaves them there, and the pipeline takes the top-k there.
"""

import argparse
import json
import queue
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as parquet
import torch
from cache_rows import lists, manifest, shards
from tokenizers import Tokenizer
from train_torch import peak_megabytes

END = None


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="what `precompute` made of the corpus: its rows are the bare run's, its settings the pipeline's")
    parser.add_argument("--plan", type=Path, required=True, help="batches as lists of row numbers, for each shard of the cache")
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--top-k", choices=["torch", "numpy"], default="torch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--provider", choices=["cpu", "cuda"], default="cpu")
    return parser.parse_args()


def pad(rows: list[np.ndarray], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    longest = max(len(row) for row in rows)
    ids, mask = np.full((len(rows), longest), pad_id, np.int64), np.zeros((len(rows), longest), np.int64)
    for at, row in enumerate(rows):
        ids[at, : len(row)], mask[at, : len(row)] = row, 1
    return ids, mask


class Session:
    def __init__(self, options: argparse.Namespace, spin: bool):
        teacher, threads, self.on_gpu = options.teacher, options.threads, options.provider == "cuda"
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        settings.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
        providers = ["CUDAExecutionProvider"] if self.on_gpu else ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(teacher / "model.onnx", settings, providers=providers)
        if self.session.get_providers()[0] != providers[0]:
            sys.exit(f"{providers[0]} was asked for, and the session has {self.session.get_providers()}")
        self.inputs = [each.name for each in self.session.get_inputs()]
        self.width = self.session.get_outputs()[0].shape[-1]

    def feeds(self, ids: np.ndarray, mask: np.ndarray) -> dict:
        arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        return {name: onnxruntime.OrtValue.ortvalue_from_numpy(arrays[name]) for name in self.inputs}

    def run(self, feeds: dict) -> np.ndarray | torch.Tensor:
        """The logits where they were made: without a copy."""
        if not self.on_gpu:
            return self.session.run_with_ort_values(["logits"], feeds)[0].numpy()
        logits = torch.empty(*feeds["input_ids"].shape(), self.width, device="cuda")
        binding = self.session.io_binding()
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_output("logits", "cuda", 0, np.float32, tuple(logits.shape), logits.data_ptr())
        self.session.run_with_iobinding(binding)
        return logits


class Bare:
    """The batches of the cache's rows, made before the clock starts."""

    def __init__(self, options: argparse.Namespace):
        self.session = Session(options, spin=True)
        self.batches, self.tokens, self.padded = [], 0, 0
        for table, batches in zip(shards(options.cache, ["input_ids"]), json.loads(options.plan.read_text()), strict=True):
            rows = lists(table, "input_ids")
            for batch in batches:
                ids, mask = pad([rows[row] for row in batch], 0)
                self.tokens, self.padded = self.tokens + int(mask.sum()), self.padded + mask.size
                self.batches.append(self.session.feeds(ids, mask))

    def __call__(self) -> dict:
        started = time.perf_counter()
        for feeds in self.batches:
            self.session.run(feeds)
        seconds = time.perf_counter() - started
        return {"tokens": self.tokens, "padded": self.padded, "seconds": seconds, "batches": len(self.batches), "peak_mb": peak_megabytes()}


class Pipeline:
    def __init__(self, options: argparse.Namespace):
        self.options, made = options, manifest(options.cache)
        self.settings, self.k, self.temperatures = made["settings"], made["spec"]["top_k"], made["spec"]["temperatures"]
        self.tokenizer = Tokenizer.from_file(str(options.teacher / "tokenizer.json"))
        self.special = {name: self.tokenizer.token_to_id(f"[{name}]") for name in ("PAD", "CLS", "SEP", "MASK")}
        # The other threads need the cores that an idle session would spin on.
        self.session = Session(options, spin=False)
        self.out = options.out / "peer.parquet"

    def __call__(self) -> dict:
        started = time.perf_counter()
        asked, answered, encoded = (queue.Queue(maxsize=size) for size in (16, 2, 4))
        failures: list[BaseException] = []
        tokens = 0
        threads = [
            threading.Thread(target=guarded, args=(failures, work, queues), daemon=True)
            for work, queues in [(self.produce, (asked,)), (self.reduce, (answered, encoded)), (self.write, (encoded,))]
        ]
        for thread in threads:
            thread.start()
        while (batch := asked.get()) is not END:
            ids, mask, labels = batch
            logits = self.session.run(self.session.feeds(ids, mask))
            answered.put((ids, mask, labels, logits))
            tokens += int(mask.sum())
        answered.put(END)
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return {"tokens": tokens, "seconds": time.perf_counter() - started, "bytes": self.out.stat().st_size, "peak_mb": peak_megabytes()}

    def sequences(self):
        """Token ids of at most `max-length`, documents longer than that cut or truncated, in corpus order."""
        most, least = self.settings["max-length"] - 2, self.settings["min-tokens"] - 2
        truncate = self.settings.get("long-documents") == "truncate"
        limit = self.settings.get("limit", 1 << 60)
        documents = self.options.corpus.read_text(encoding="utf-8").splitlines()[:limit]
        for start in range(0, len(documents), 256):
            for encoding in self.tokenizer.encode_batch(documents[start : start + 256], add_special_tokens=False):
                ids = np.array(encoding.ids, np.int64)
                for at in range(0, min(len(ids), most) if truncate else len(ids), most):
                    piece = ids[at : at + most]
                    if len(piece) >= least:
                        yield np.concatenate([[self.special["CLS"]], piece, [self.special["SEP"]]])

    def produce(self, asked: queue.Queue) -> None:
        """Masks 15 % and batches under the token budget, rows of like lengths together within a shard's worth of them."""
        draw, budget, waiting = np.random.default_rng(0), self.settings["batch-tokens"], []

        def release():
            waiting.sort(key=len, reverse=True)
            at = 0
            while at < len(waiting):
                count = max(1, budget // len(waiting[at]))
                ids, mask = pad(waiting[at : at + count], self.special["PAD"])
                chosen = (draw.random(ids.shape) < self.settings["mask-probability"]) & (mask == 1) & (ids != self.special["CLS"]) & (ids != self.special["SEP"])
                how = draw.random(ids.shape)
                labels = np.where(chosen, ids, -100)
                ids = np.where(chosen & (how < 0.8), self.special["MASK"], ids)
                ids = np.where(chosen & (how >= 0.9), draw.integers(0, self.tokenizer.get_vocab_size(), ids.shape), ids)
                asked.put((ids, mask, labels))
                at += count
            waiting.clear()

        for sequence in self.sequences():
            waiting.append(sequence)
            if len(waiting) == self.settings["shard-sequences"]:
                release()
        release()
        asked.put(END)

    def reduce(self, answered: queue.Queue, encoded: queue.Queue) -> None:
        top_k = top_k_torch if self.options.top_k == "torch" else top_k_numpy
        while (answer := answered.get()) is not END:
            ids, mask, labels, logits = answer
            encoded.put((ids, mask, labels, *top_k(logits.reshape(-1, logits.shape[-1]), self.k, self.temperatures)))
        encoded.put(END)

    def write(self, encoded: queue.Queue) -> None:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        writer = None
        while (batch := encoded.get()) is not END:
            ids, mask, labels, top_ids, top_logits, largest, log_z = batch
            lengths = mask.sum(1)
            inside = mask.reshape(-1).astype(bool)
            table = pa.table(
                {
                    "input_ids": ragged(ids.reshape(-1)[inside].astype(np.uint16), lengths),
                    "labels": ragged(labels.reshape(-1)[inside].astype(np.int32), lengths),
                    "top_ids": ragged(fixed(top_ids[inside].astype(np.uint16)), lengths),
                    "top_logits": ragged(fixed(top_logits[inside].astype(np.float16).astype(np.float32)), lengths),
                    "max_logit": ragged(largest[inside], lengths),
                    "log_z": ragged(fixed(log_z[inside]), lengths),
                }
            )
            if writer is None:
                floats = [f"{name}.list.element.list.element" for name in ("top_logits", "log_z")]
                encodings = {name: "BYTE_STREAM_SPLIT" for name in floats}
                writer = parquet.ParquetWriter(
                    self.out, table.schema, compression="zstd", compression_level=1, use_dictionary=False, column_encoding=encodings
                )
            writer.write_table(table)
        if writer:
            writer.close()


def guarded(failures: list, work, queues) -> None:
    try:
        work(*queues)
    except BaseException as error:  # noqa: BLE001: handed to the main thread, which raises it
        failures.append(error)
        queues[-1].put(END)
        while len(queues) > 1 and queues[0].get() is not END:
            pass


def ragged(values, lengths: np.ndarray) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, values if isinstance(values, pa.Array) else pa.array(values))


def fixed(values: np.ndarray) -> pa.ListArray:
    rows, width = values.shape
    return pa.ListArray.from_arrays(np.arange(0, (rows + 1) * width, width, dtype=np.int32), pa.array(values.reshape(-1)))


def top_k_torch(logits: np.ndarray | torch.Tensor, k: int, temperatures: list[float]):
    with torch.inference_mode():
        logits = torch.as_tensor(logits)
        values, ids = torch.topk(logits, k, dim=-1)
        largest = values[:, :1]
        log_z = torch.stack([torch.logsumexp(logits / t, -1) - largest[:, 0] / t for t in temperatures], 1)
        return [each.cpu().numpy() for each in (ids, (values - largest) / temperatures[0], largest[:, 0], log_z)]


def top_k_numpy(logits: np.ndarray, k: int, temperatures: list[float]):
    ids = np.argpartition(logits, -k, axis=-1)[:, -k:]
    values = np.take_along_axis(logits, ids, -1)
    order = np.argsort(-values, -1)
    ids, values = np.take_along_axis(ids, order, -1), np.take_along_axis(values, order, -1)
    largest = values[:, :1]
    log_z = np.stack([np.log(np.exp((logits - largest) / t).sum(-1)) for t in temperatures], 1)
    return ids, (values - largest) / temperatures[0], largest[:, 0], log_z


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    jobs = {"bare": Bare, "pipeline": Pipeline}
    ready: dict = {}
    for line in sys.stdin:
        word = line.strip()
        if word == "quit":
            break
        if word not in ready:
            ready[word] = jobs[word](options)
        print(json.dumps(ready[word]()), flush=True)


if __name__ == "__main__":
    main()
