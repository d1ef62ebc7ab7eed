#!/usr/bin/env python3
"""Sentences of WikiText-2 and SST-2, one a line: what the sentence encoder of train/TASKS.md is distilled on and measured with.

    make_sentences.py --wikitext train.raw.gz valid.raw.gz --sst2 train.tsv dev.tsv --out DIR

Writes DIR/train.txt (every sentence of both training parts) and DIR/heldout.txt (700 sentences of WikiText-2's validation part and 300 of
SST-2's development part, drawn with a fixed seed, none of which is in train.txt). A sentence of WikiText-2 ends at a full stop that stands alone;
headings are left out, and so is what has fewer than 6 or more than 60 words. Needs nothing but Python.
"""
import argparse, csv, gzip, pathlib, random

HELDOUT = {"wikitext": 700, "sst2": 300}


def wikitext(path):
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            line = line.strip()
            if not line or line.startswith("="):
                continue
            for sentence in line.replace(" . ", " .\n").split("\n"):
                if 6 <= len(sentence.split()) <= 60:
                    yield sentence.strip()


def sst2(path):
    with open(path, encoding="utf-8", newline="") as file:
        rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        text = next(i for i, name in enumerate(next(rows)) if name in ("sentence", "content"))
        for row in rows:
            if len(row) == 2 and row[text].strip():
                yield row[text].strip()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wikitext", nargs=2, metavar=("TRAIN", "VALID"), required=True)
    parser.add_argument("--sst2", nargs=2, metavar=("TRAIN", "DEV"), required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    arguments = parser.parse_args()
    draws = random.Random(0)
    heldout = []
    for name, read, path in [("wikitext", wikitext, arguments.wikitext[1]), ("sst2", sst2, arguments.sst2[1])]:
        heldout += draws.sample(sorted(set(read(path))), HELDOUT[name])
    apart = set(heldout)
    train = sorted((set(wikitext(arguments.wikitext[0])) | set(sst2(arguments.sst2[0]))) - apart)
    draws.shuffle(train)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, sentences in [("train.txt", train), ("heldout.txt", heldout)]:
        (arguments.out / name).write_text("".join(sentence + "\n" for sentence in sentences), encoding="utf-8")
        print(f"{arguments.out / name}: {len(sentences)} sentences, {sum(len(s.split()) for s in sentences)} words")


if __name__ == "__main__":
    main()
