"""The two losses of CGD, on MXNet arrays, under `autograd.record`."""

from collections import namedtuple

from cgd.system.environment import mx

# active_triplets : share of all anchors whose hardest triplet violates the margin
# hardest_positive, hardest_negative : mean distances, squared if the loss squares them, over the anchors that have both
# (1,) each
Hardest = namedtuple("Hardest", "active_triplets hardest_positive hardest_negative")


def distances(embeddings):
    """Euclidean distances of all pairs: (N, D) -> (N, N).

    The squared distance is clipped to [1e-12, 1e12] before the root (embedding-expansion): at 0 the root's gradient is
    infinite. No gradient flows where the clip is active.
    """
    squares = embeddings.square().sum(axis=1, keepdims=True)
    products = mx.nd.dot(embeddings, embeddings, transpose_b=True)
    return (squares + squares.T - 2 * products).clip(1e-12, 1e12).sqrt()


def hardest(d, identities):
    """The hardest positive and negative of every anchor.

    d : (N, N) distances · identities : (N,)
    -> positive, negative : (N,) indices: the farthest other image of the anchor's identity, the nearest of any other
       usable : (N,) 1 where the anchor has both, else 0
    """
    same = mx.nd.broadcast_equal(identities.expand_dims(1), identities.expand_dims(0))
    positives, negatives = same - mx.nd.eye(len(d), ctx=d.context), 1 - same
    beyond = d.max() + 1  # an infinity times 0 would be NaN
    positive = (d * positives - (1 - positives)).argmax(axis=1)
    negative = (d * negatives + beyond * same).argmin(axis=1)
    return positive, negative, positives.max(axis=1) * negatives.max(axis=1)


def batch_hard_triplet(embeddings, identities, margin=0.1, soft=False, squared=False):
    """Batch-hard triplet loss: (N, D), (N,) -> (1,), and what there is to know of it, `Hardest`.

    The mean over the anchors of max(0, margin + d(anchor, hardest positive) - d(anchor, hardest negative)), with plain
    Euclidean distances; an anchor without a positive or a negative in the batch counts as 0. The margin is the paper's.

    soft : ln(1 + exp(difference)) instead of the hinge (Hermans et al., "In Defense of the Triplet Loss", 2017)
    squared : the squares of the distances
    """
    d = distances(embeddings)
    with mx.autograd.pause():
        positive, negative, usable = hardest(d, identities)
    to_positive, to_negative = d.pick(positive), d.pick(negative)
    if squared:
        to_positive, to_negative = to_positive.square(), to_negative.square()
    difference = to_positive - to_negative
    each = mx.nd.Activation(difference, act_type="softrelu") if soft else (margin + difference).relu()
    with mx.autograd.pause():
        active = (margin + difference > 0) * usable
        found = usable / mx.nd.maximum(usable.sum(), 1)
        facts = Hardest(active.mean(), (to_positive * found).sum(), (to_negative * found).sum())
    return (each * usable).mean(), facts


def smoothed_softmax(logits, identities, temperature=0.5, smoothing=0.1):
    """Cross-entropy of softmax(logits / temperature) with smoothed labels: (N, C), (N,) -> (1,), the mean.

    The target of an image is 1 - smoothing + smoothing / C for its class and smoothing / C for each other one.
    """
    log_probability = (logits / temperature).log_softmax(axis=1)
    return -((1 - smoothing) * log_probability.pick(identities) + smoothing * log_probability.mean(axis=1)).mean()
