"""What test.py measures beside Recall@K, and what it writes: embeddings, and results as JSON."""

import json
from pathlib import Path

import numpy as np

from cgd.data import datasets
from cgd.retrieval import metrics
from cgd.system import files
from cgd.system.errors import InputError


def more_measures(names, result):
    """{name: mean over the queries} of --metrics."""
    gallery = (result.gallery.embeddings, result.gallery.identities) if result.gallery else ()
    if not names:
        return {}
    values = metrics.measure(names, result.queries.embeddings, result.queries.identities, *gallery)
    return {name: float(each.mean()) for name, each in values.items()}


def save_embeddings(file, result, classes):
    """Writes the arrays that the top of test.py lists."""
    parts = [result.queries, result.gallery] if result.gallery else [result.queries]
    records = [record for part in parts for record in part.records]
    identities = np.concatenate([part.identities for part in parts])
    with files.replacing(file) as part:
        np.savez(
            str(part),
            embeddings=np.concatenate([part.embeddings for part in parts]),
            identities=identities,
            class_ids=np.array([classes[identity].id for identity in identities]),
            class_names=np.array([classes[identity].name for identity in identities]),
            gallery=np.arange(len(records)) >= len(result.queries.records),
            image_ids=np.array([record.image_id for record in records]),
            boxes=np.array([record.box or (0, 0, 0, 0) for record in records]),
            paths=np.array([record.path for record in records]),
        )


def save_results(options, result, pooled, measured, dataset, cropped, dtype, runtime):
    """Writes the file of --results: docs/evaluation.md describes its keys."""
    figures = {
        "pretrained_model": options.pretrained_model,
        "dataset": dataset.name,
        "cropped": cropped,
        "dtype": dtype,
        "images": len(result.queries.records),
        "gallery": len(result.gallery.records) if result.gallery else None,
        "recall": dict(zip(map(str, dataset.ranks), result.recalls)),
        "metrics": measured,
        "pooled": {letter: dict(zip(map(str, dataset.ranks), recalls)) for letter, recalls in pooled.items()},
        "images_per_second": result.images_per_second,
        "search_seconds": result.search_seconds,
        **runtime,
        "queries_sha1": digest_of(result.queries.records, dataset),
        "searched_sha1": digest_of(result.gallery.records, dataset) if result.gallery else None,
        "hits_at_1": "".join(map(str, (result.nearer < 1).astype(int))),
        "classes": metrics.by_class(result.nearer < 1, result.queries.identities, dataset.classes),
    }
    with files.replacing(options.results) as part:
        part.write_text(json.dumps(figures, indent=1) + "\n")


def read_hits(file):
    """A file of --results as (its name, digests of queries and gallery, (N,) bool whether each is a hit at 1)."""
    try:
        saved = json.loads(Path(file).read_text())
        return file, (saved["queries_sha1"], saved["searched_sha1"]), np.array(list(saved["hits_at_1"])) == "1"
    except OSError as error:
        raise InputError(f"--confidence {file}: {error.strerror}; expected a file of --results")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"--confidence {file}: no file of this version's --results ({type(error).__name__}: {error})")


def digest_of(records, dataset):
    """SHA-1 of the names and classes of images, which two evaluations of the same images share, cropped or not.

    dataset : the Dataset that they are of. Its classes have ids, which lists of the same images share, but class
        folders have names only
    """
    classes = [each.name if dataset.name == "folders" else each.id for each in dataset.classes]
    return datasets.digest([record._replace(box=None, identity=classes[record.identity]) for record in records])


def check_same_images(other, dataset, queries, gallery):
    """Raises InputError unless `other`, from `read_hits`, is of these queries in this gallery: records, or None."""
    file, digests, hits = other
    own = digest_of(queries, dataset), digest_of(gallery, dataset) if gallery else None
    if digests != own or len(hits) != len(queries):
        what = "queries" if digests[0] != own[0] else "images to search in"
        raise InputError(f"--confidence {file}: is of other {what}; evaluate both checkpoints on the same images")


def print_confidence(other, result, dataset):
    """Prints the interval of R@1; and of its difference to `other`, from `read_hits`, if that is not True."""
    hits, identities = result.nearer < 1, result.queries.identities
    print("R@1: {:.4f}, 95 % from {:.4f} to {:.4f}".format(hits.mean(), *metrics.interval(hits, identities)))
    if other is True:
        return
    check_same_images(other, dataset, result.queries.records, result.gallery.records if result.gallery else None)
    file, _, others = other
    low, high = metrics.interval(hits, identities, others)
    print(f"R@1 minus that of {file}: {hits.mean() - others.mean():+.4f}, 95 % from {low:+.4f} to {high:+.4f}")
