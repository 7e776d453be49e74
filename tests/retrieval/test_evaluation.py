"""What an evaluation says of networks that retrieve nothing."""

import numpy as np
import pytest

from cgd.data.datasets import Dataset
from cgd.retrieval import evaluation
from cgd.system.environment import mx
from cgd.system.errors import InputError

PREPARATION = evaluation.Preprocessing((8, 8), (0, 0, 0), (1, 1, 1))


@pytest.fixture
def evaluate(records):
    """Evaluates a function (N, 3, 8, 8) -> (N, dim) on five pictures of two classes."""
    whole = [record._replace(box=None) for record in records]
    return lambda embed: evaluation.Evaluator(Dataset("d", [], whole, (1, 2)), PREPARATION, 2, 0)(embed, mx.cpu())


def test_equal_embeddings_find_nothing_and_a_line_says_why(evaluate, capsys):
    assert evaluate(lambda x: mx.nd.ones((len(x), 4))).recalls == [0, 0]
    assert "warning: all embeddings are equal; ties count as misses" in capsys.readouterr().err
    assert max(evaluate(lambda x: x.mean(axis=(2, 3))).recalls) > 0
    assert "all embeddings are equal" not in capsys.readouterr().err


def test_embeddings_that_are_not_finite_are_told(evaluate):
    with pytest.raises(InputError, match="the network's embeddings are not finite"):
        evaluate(lambda x: x.mean(axis=(2, 3)) * np.nan)
