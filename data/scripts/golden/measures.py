#!/usr/bin/env python3
"""Reference values of the measures of an evaluation, from scikit-learn, scipy and seqeval.

    python3 -m venv target/venv-measures
    target/venv-measures/bin/pip install numpy==2.4.6 scikit-learn==1.7.2 scipy==1.16.3 seqeval==1.2.2
    target/venv-measures/bin/python data/scripts/golden/measures.py            # writes data/golden/measures.json
    target/venv-measures/bin/python data/scripts/golden/measures.py --check    # makes it anew and compares
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
from scipy.special import expit, log_softmax, rel_entr, softmax
from scipy.stats import pearsonr, spearmanr
from seqeval.metrics import classification_report
from seqeval.metrics.sequence_labeling import get_entities
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, mean_squared_error, precision_recall_fscore_support
from sklearn.neighbors import NearestNeighbors

OUT = Path(__file__).parents[2] / "golden" / "measures.json"


def scores(gold, predicted, labels):
    """By class, a class that is never predicted counting as of precision 0."""
    precision, recall, f1, support = precision_recall_fscore_support(gold, predicted, labels=labels, zero_division=0)
    return {"precision": precision, "recall": recall, "f1": f1, "support": support}


def single_label(draws, classes, gold_classes, rows, likely):
    """Gold answers of the first `gold_classes` of `classes`, of which the share `likely` is found."""
    gold = draws.integers(0, gold_classes, rows)
    predicted = np.where(draws.random(rows) < likely, gold, draws.integers(0, classes - 1, rows))
    return {
        "classes": classes,
        "gold": gold,
        "predicted": predicted,
        "accuracy": accuracy_score(gold, predicted),
        "micro_f1": f1_score(gold, predicted, average="micro"),
        "macro_f1": f1_score(gold, predicted, average="macro", zero_division=0),
        "matthews": matthews_corrcoef(gold, predicted),
        "by_class": scores(gold, predicted, list(range(classes))),
    }


def multi_label(draws, classes, rows):
    gold = draws.random((rows, classes)) < np.linspace(0.7, 0.0, classes)
    student, teacher = draws.normal(0, 2, (rows, classes)) + 2 * gold, draws.normal(0, 2, (rows, classes)) + 3 * gold
    student[:, -2], teacher[:, -1] = -3, -4
    found, taught = expit(student), expit(teacher)
    divergence = rel_entr(taught, found) + rel_entr(1 - taught, 1 - found)
    predicted = student > 0
    return {
        "classes": classes,
        "gold": gold.astype(int),
        "student": student,
        "teacher": teacher,
        "kl_nats": divergence.sum(1).mean(),
        "agreement": (predicted == (teacher > 0)).mean(),
        "exact": accuracy_score(gold, predicted),
        "micro_f1": f1_score(gold, predicted, average="micro", zero_division=0),
        "macro_f1": f1_score(gold, predicted, average="macro", zero_division=0),
        "by_class": scores(gold, predicted, list(range(classes))),
    }


def numbers(draws, rows, decimals):
    """Rounded to `decimals`, so that there are ties."""
    gold = draws.normal(2, 1.5, rows).round(decimals)
    predicted = (0.6 * gold + draws.normal(0, 0.7, rows)).round(decimals)
    return {
        "gold": gold,
        "predicted": predicted,
        "mse": mean_squared_error(gold, predicted),
        "pearson": pearsonr(gold, predicted).statistic,
        "spearman": spearmanr(gold, predicted).statistic,
    }


def entities(draws, tags, sequences):
    """Any tag after any other: most sequences break the scheme, which is what the lenient rule is about."""
    lengths = draws.integers(1, 12, sequences)
    gold = [[tags[i] for i in draws.integers(0, len(tags), length)] for length in lengths]
    predicted = [[tag if draws.random() < 0.7 else tags[draws.integers(0, len(tags))] for tag in row] for row in gold]
    report = classification_report(gold, predicted, output_dict=True, zero_division=0)
    found = [[[kind, start, end] for kind, start, end in get_entities(row)] for row in gold]
    return {
        "tags": tags,
        "gold": [[tags.index(tag) for tag in row] for row in gold],
        "predicted": [[tags.index(tag) for tag in row] for row in predicted],
        "gold_entities": found,
        "overall": report.pop("micro avg"),
        "by_type": {kind: value for kind, value in report.items() if not kind.endswith(" avg")},
    }


def divergence(draws, classes, rows):
    student, teacher = draws.normal(0, 2, (rows, classes)), draws.normal(0, 2, (rows, classes))
    gold = draws.integers(0, classes, rows)
    return {
        "classes": classes,
        "student": student,
        "teacher": teacher,
        "gold": gold,
        "kl_nats": rel_entr(softmax(teacher, 1), softmax(student, 1)).sum(1).mean(),
        "agreement": (student.argmax(1) == teacher.argmax(1)).mean(),
        "student_perplexity": np.exp(-log_softmax(student, 1)[np.arange(rows), gold].mean()),
        "teacher_perplexity": np.exp(-log_softmax(teacher, 1)[np.arange(rows), gold].mean()),
    }


def retrieval(draws, rows):
    """The ten nearest of each other by cosine, in two spaces of different widths."""
    teacher = draws.normal(0, 1, (rows, 6)).round(3)
    student = (teacher @ draws.normal(0, 1, (6, 4)) + draws.normal(0, 0.5, (rows, 4))).round(3)

    def nearest(vectors):
        _, ids = NearestNeighbors(n_neighbors=11, metric="cosine", algorithm="brute").fit(vectors).kneighbors(vectors)
        return [[int(i) for i in row if i != place][:10] for place, row in enumerate(ids)]

    def cosines(vectors):
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return (unit @ unit.T)[np.triu_indices(rows, 1)]

    pairs = zip(nearest(teacher), nearest(student))
    recall = np.mean([len(set(of) & set(found)) / 10 for of, found in pairs])
    return {
        "student": student,
        "teacher": teacher,
        "recall_at_10": recall,
        "spearman": spearmanr(cosines(student), cosines(teacher)).statistic,
    }


def make():
    draws = np.random.default_rng(10)
    iob, mixed = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"], ["B", "E-LOC", "I-LOC", "I-NEW-YORK", "O", "S-LOC", "B-LOC"]
    return {
        "single_label": [single_label(draws, 4, 4, 60, 0.6), single_label(draws, 2, 2, 40, 0.8), single_label(draws, 6, 4, 30, 0.4)]
        + [single_label(draws, 3, 1, 8, 1.0)],
        "multi_label": [multi_label(draws, 5, 40)],
        "numbers": [numbers(draws, 50, 4), numbers(draws, 60, 0)],
        "entities": [entities(draws, iob, 25), entities(draws, mixed, 25)],
        "divergence": [divergence(draws, 7, 12)],
        "retrieval": [retrieval(draws, 40)],
    }


def plain(value):
    if isinstance(value, dict):
        return {key: plain(of) for key, of in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(of) for of in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    return round(value, 12) if isinstance(value, float) else value


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    text = json.dumps(plain(make()), separators=(",", ":")) + "\n"
    if "--check" not in sys.argv[1:]:
        OUT.write_text(text)
    elif OUT.read_text() != text:
        sys.exit(f"{OUT} made anew differs from what is there")
