"""The paper's tables as data: what each row changes in a data set's recipe, and what is known of the paper's result.

To add a row, add a line here. No figure of the paper's tables is known: those of the released model are from the
authors' README, the orderings from readers' notes.
"""

from typing import Mapping, NamedTuple, Optional, Tuple

PAPERS_SETS = ("cub200", "cars196", "sop", "inshop")
CROPPED_SETS = ("cub200", "cars196", "demo")


class Row(NamedTuple):
    """One line of a table."""

    name: str
    changes: Mapping[str, object] = {}  # fields of the data set's recipe
    flags: Tuple[str, ...] = ()  # other flags of train.py
    dataset: Optional[str] = None  # for one of the paper's four data sets only; None: for any
    released: Tuple[float, ...] = ()  # recalls of the authors' released model, at the data set's ranks


class Table(NamedTuple):
    """Rows to compare.

    order : the paper's ranking, best first; an entry names one row, or several for the best of them
    """

    title: str
    rows: Tuple[Row, ...]
    order: Tuple[Tuple[str, ...], ...] = ()
    note: str = ""
    needs_boxes: bool = False


def rows_of(field, values, name="{}"):
    """A row for each value of one field."""
    return tuple(Row(name.format(value), {field: value}) for value in values)


SINGLES = ("S", "M", "G")
PAIRS = ("SM", "MS", "SG", "GS", "MG", "GM")
TRIPLES = ("SMG", "MSG", "GSM")

TABLES = {
    "1": Table(
        "Table 1: losses",
        (
            Row("ranking loss alone", {"classification_weight": 0.0}),
            Row("classification loss alone", {"ranking_weight": 0.0}),
            Row("both", {"ranking_weight": 1.0, "classification_weight": 1.0}),
        ),
        (("both",), ("ranking loss alone",)),
        "The row of the classification loss alone is not in the paper; its Dense layers are not trained.",
    ),
    "2": Table(
        "Table 2: label smoothing and temperature",
        (
            Row("neither", {"smoothing": 0.0, "temperature": 1.0}),
            Row("smoothing", {"smoothing": 0.1, "temperature": 1.0}),
            Row("temperature", {"smoothing": 0.0, "temperature": 0.5}),
            Row("both", {"smoothing": 0.1, "temperature": 0.5}),
        ),
        (("both",), ("temperature",), ("smoothing",), ("neither",)),
    ),
    "3": Table(
        "Table 3: types of combination",
        rows_of("architecture", ("A", "B", "CGD")),
        (("CGD",), ("B",), ("A",)),
        "All have the classification loss. How the paper evaluates type A and weighs its ranking losses is not known: "
        "here its branches are concatenated, and the losses added, so that with two branches they weigh twice as much.",
    ),
    "4": Table("Table 4: concatenation and sum", rows_of("fusion", ("concat", "sum")), (("concat",), ("sum",))),
    "configurations": Table(
        "The 12 configurations",
        rows_of("config", SINGLES + PAIRS + TRIPLES),
        (PAIRS, SINGLES),
        "The first letter's descriptor also feeds the classifier.",
    ),
    "dimensions": Table(
        "Dimensions of the descriptor",
        rows_of("dim", (96, 192, 384, 768, 1536)),
        note="The dimensions are chosen by us.",
    ),
    "backbones": Table(
        "Backbones",
        rows_of("backbone", ("resnet50_v1", "se_resnet50", "bn_inception", "shufflenet_v2")),
        note="bash download.sh weights BACKBONE fetches weights; --weights DIR is a folder with BACKBONE.params.",
    ),
    "instances": Table(
        "Images of each identity in a batch",
        rows_of("images_per_identity", (2, 4, 8)),
        note="At the same batch size.",
    ),
    "batchnorm": Table(
        "Batch norm of the backbone",
        (Row("trained", {"freeze_batch_norm": False}), Row("frozen", {"freeze_batch_norm": True})),
        note="The authors train it and did not try the other (naver/cgd issue #3).",
    ),
    "crops": Table(
        "Bounding boxes",
        (Row("cropped"), Row("uncropped", flags=("--uncropped",))),
        note="leftthomas/CGD, another implementation, reports on CUB200 R@1 of 0.739 cropped and 0.660 uncropped, on "
        "Cars196 0.924 and 0.864.",
        needs_boxes=True,
    ),
    "main": Table(
        "The main table",
        (
            Row("MG as on CUB200", {"config": "MG"}, dataset="cub200", released=(0.7681, 0.8484, 0.9060, 0.9433)),
            Row("SG as on Cars196", {"config": "SG"}, dataset="cars196"),
            Row("SG as on SOP", {"config": "SG"}, dataset="sop"),
            Row("GS as on In-shop", {"config": "GS"}, dataset="inshop"),
        ),
        note="The released model's figures are from the authors' README. The paper's best R@1, by a copy of a public "
        "leaderboard and with an unstated backbone that is not this ResNet-50: CUB200 0.792, Cars196 0.948, "
        "SOP 0.842, In-shop 0.919.",
    ),
}
