"""An index of cgd.describe in other engines: which share of the exact search's neighbours they find, and how fast.

    python -m cgd.describe PREFIX photos -o photos-index
    python benchmarks/engines.py photos-index

Pictures of the index are the queries, each searched among all the others. The engines: this project's exact search;
faiss, exact (IndexFlatIP) and compressed (IVF-PQ: clusters, and a byte for each 16 values); and Qdrant, exact, within
this process. Its client has the same methods for a server, which keeps its own index of graphs.

pip install faiss-cpu qdrant-client 'numpy<2'
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from cgd.retrieval import index  # noqa: E402
from cgd.retrieval.recall import nearest  # noqa: E402
from cgd.system import errors  # noqa: E402
from cgd.system.packages import optional_package  # noqa: E402


def exact(vectors):
    return lambda queries, k: nearest(queries, k, vectors), vectors.shape[1] * 4


def faiss_flat(vectors):
    faiss = optional_package("faiss", "faiss-cpu")
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    return lambda queries, k: flat.search(queries, k)[1], vectors.shape[1] * 4


def faiss_ivf_pq(vectors, probes=16):
    """4 sqrt(N) clusters or fewer, of which the nearest `probes` are searched; one byte for each 16 values.

    By Euclidean distance, which orders vectors of length 1 as the inner product does. Clusters by inner product fail
    where all vectors have a large mean in common: most of them then belong to the longest centroid.
    """
    faiss = optional_package("faiss", "faiss-cpu")
    clusters, codes = max(1, min(int(4 * np.sqrt(len(vectors))), len(vectors) // 39)), vectors.shape[1] // 16
    compressed = faiss.index_factory(vectors.shape[1], f"IVF{clusters},PQ{codes}", faiss.METRIC_L2)
    compressed.train(vectors)
    compressed.add(vectors)
    compressed.nprobe = min(probes, clusters)
    return lambda queries, k: compressed.search(queries, k)[1], codes


def qdrant(vectors):
    """A collection of Qdrant in a temporary folder; its points have the numbers of the rows."""
    client_of = optional_package("qdrant_client", "qdrant-client")
    folder = tempfile.TemporaryDirectory()
    client, models = client_of.QdrantClient(path=folder.name), client_of.models
    size = models.VectorParams(size=vectors.shape[1], distance=models.Distance.DOT)
    client.create_collection("pictures", vectors_config=size)
    client.upload_collection("pictures", vectors=vectors, ids=range(len(vectors)))

    def search(queries, k):
        asked = [models.QueryRequest(query=query.tolist(), limit=k) for query in queries]
        answers = client.query_batch_points("pictures", asked)
        return np.array([[point.id for point in answer.points] for answer in answers])

    search.folder = folder  # kept as long as the collection is used
    return search, vectors.shape[1] * 4


ENGINES = {
    "this project": exact,
    "faiss IndexFlatIP": faiss_flat,
    "faiss IVF-PQ": faiss_ivf_pq,
    "Qdrant": qdrant,
}


def others(found, numbers, k):
    """The k nearest without the query itself: `numbers` are the rows of the queries. -1 where fewer were found."""
    rows = [[item for item in row if item != own][:k] for row, own in zip(found.tolist(), numbers)]
    return np.array([row + [-1] * (k - len(row)) for row in rows])


def main():
    parser = errors.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", metavar="INDEX", help="folder that cgd.describe wrote")
    parser.add_argument("--queries", type=int, default=500, metavar="N", help="pictures that are searched (500)")
    parser.add_argument("-k", type=int, default=10, metavar="K", help="neighbours of each (10)")
    options = parser.parse_args()
    vectors = np.array(index.read(options.index)[2], np.float32)
    count = min(options.queries, len(vectors))
    numbers = np.sort(np.random.RandomState(0).permutation(len(vectors))[:count])
    expected = None
    print(f"{len(vectors)} x {vectors.shape[1]}, {len(numbers)} queries, k = {options.k}")
    print(f"| engine | share of the exact {options.k} nearest | bytes of a vector | ms per query | build, s |")
    print("|---|---|---|---|---|")
    for name, build in ENGINES.items():
        start = time.time()
        search, size = build(vectors)
        built = time.time()
        found = search(vectors[numbers], options.k + 1)
        seconds = (time.time() - built) / len(numbers)
        found = others(found, numbers, options.k)
        expected = found if expected is None else expected
        share = np.mean([len(set(a) & set(b)) / options.k for a, b in zip(expected.tolist(), found.tolist())])
        print(f"| {name} | {share:.4f} | {size} | {1000 * seconds:.2f} | {built - start:.1f} |")


if __name__ == "__main__":
    errors.run(main)
