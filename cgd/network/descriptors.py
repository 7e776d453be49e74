"""Global descriptors: SPoC, MAC and GeM, which pool a feature map (N, C, H, W) to one vector per image."""

from cgd.network.options import MAX_P
from cgd.system.environment import mx

nn = mx.gluon.nn

MIN_X, MAX_X = 1e-6, 1e12  # bounds of GeM's map


class SPoC(nn.HybridBlock):
    """Sum-pooled convolutions, computed as a mean: (N, C, H, W) -> (N, C, 1, 1).

    Babenko and Lempitsky, "Aggregating Deep Convolutional Features for Image Retrieval" (ICCV 2015).
    """

    def hybrid_forward(self, F, x):
        return _global_pool(F, x, "avg")


class MAC(nn.HybridBlock):
    """Maximum activations of convolutions: (N, C, H, W) -> (N, C, 1, 1).

    Tolias, Sicre and Jegou, "Particular object retrieval with integral max-pooling of CNN activations" (ICLR 2016).
    """

    def hybrid_forward(self, F, x):
        return _global_pool(F, x, "max")


class GeM(nn.HybridBlock):
    """Generalised mean, (mean x^p)^(1/p) for each channel: (N, C, H, W) -> (N, C, 1, 1).

    Radenovic, Tolias and Chum, "Fine-tuning CNN Image Retrieval with No Human Annotation" (TPAMI 2018).

    One scalar p for all channels, initially 3. It is constant in the released model (`lr_mult` 0); the paper allows
    learning it, and `clamp_p` must then be called after each step. The feature map is first clipped to [1e-6, 1e12],
    because the gradient of the power is not finite at 0.

    With the attribute `fast`, which cgd/network/onednn.py sets, and a p that is 3 and fixed when the network first
    runs, it computes (sum x^3)^(1/3) in one operator. This clips the result instead of the map; the difference matters
    for means near 1e-6 only.
    """

    def __init__(self, p=3.0, learn_p=False, **kwargs):
        super().__init__(**kwargs)
        with self.name_scope():
            self.p = self.params.get("p", shape=(1,), init=mx.init.Constant(p))
        self.p.lr_mult = 1.0 if learn_p else 0.0
        self.p.grad_req = "write" if learn_p else "null"
        self.fast = False

    def clamp_p(self):
        """Clamps a learned p to [1, MAX_P]; below 1 the mean would no longer emphasise large values."""
        for p in self.p.list_data():
            p[:] = p.clip(1, MAX_P)

    def hybrid_forward(self, F, x, p):
        if self.fast and self._is_3():
            return self.of_cubes(F, x, p)
        x = F.broadcast_power(F.clip(x, a_min=MIN_X, a_max=MAX_X), p)
        return F.broadcast_power(_global_pool(F, x, "avg"), 1.0 / p)

    def _is_3(self):
        known = self.p.grad_req == "null" and self.p._data is not None  # not while only shapes are inferred
        return known and self.p.list_data()[0].asscalar() == 3

    @staticmethod
    def of_cubes(F, x, p):
        """The descriptor for p = 3."""
        x = F.Activation(x, act_type="relu")
        total = _global_pool(F, x, "lp", p_value=3)
        sizes = F.cast(F.size_array(x), "float32") / F.cast(F.size_array(total), "float32")
        return F.clip(F.broadcast_div(total, F.broadcast_power(sizes, 1.0 / p)), a_min=MIN_X, a_max=MAX_X)


def _global_pool(F, x, pool_type, **more):
    # The attributes of the released graph; GlobalAvgPool2D of today's Gluon adds another one.
    return F.Pooling(
        x,
        kernel=(1, 1),
        stride=(1, 1),
        pad=(0, 0),
        global_pool=True,
        pool_type=pool_type,
        pooling_convention="full",
        **more,
    )


def descriptor(letter, gem_p=3.0, learn_p=False):
    """The block for a letter of the configuration: S (SPoC), M (MAC) or G (GeM)."""
    if letter == "G":
        return GeM(gem_p, learn_p, prefix="gem0_")
    return {"S": SPoC, "M": MAC}[letter](prefix="")
