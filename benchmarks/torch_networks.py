"""The networks of networks.py in PyTorch, and a step of training them, as a practitioner would write them there."""

import torch
from torch import nn
from torch.nn import functional

# Of each stage of MobileNetV2: the factor of channels within a block, output channels, blocks, stride of the first.
MOBILENET_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def convolution(inputs, outputs, kernel, stride=1, relu=nn.ReLU, **options):
    """The layers of a convolution, batch norm and an activation."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, **dict({"bias": False}, **options))
    return [layer, nn.BatchNorm2d(outputs), relu(inplace=True)]


class Residual(nn.Module):
    """A block of a ResNet whose sum is followed by a ReLU."""

    def __init__(self, inputs, outputs, stride, body):
        super().__init__()
        self.body = nn.Sequential(*body)
        changed = stride != 1 or inputs != outputs
        self.shortcut = nn.Sequential(*convolution(inputs, outputs, 1, stride)[:2]) if changed else nn.Identity()

    def forward(self, x):
        return functional.relu(self.body(x) + self.shortcut(x))


def bottleneck(inputs, outputs, stride):
    """The stride is in the first convolution, and the convolutions of one pixel have biases, as in Gluon's."""
    middle = outputs // 4
    first = convolution(inputs, middle, 1, stride, bias=True)
    last = convolution(middle, outputs, 1, bias=True)[:2]
    return Residual(inputs, outputs, stride, [*first, *convolution(middle, middle, 3), *last])


def basic(inputs, outputs, stride):
    body = [*convolution(inputs, outputs, 3, stride), *convolution(outputs, outputs, 3)[:2]]
    return Residual(inputs, outputs, stride, body)


def resnet(block, counts, widths):
    """The layers of a ResNet whose last stage has the stride 1, and the channels of its map."""
    layers, channels = [*convolution(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)], 64
    for stage, (count, width) in enumerate(zip(counts, widths)):
        for place in range(count):
            layers.append(block(channels, width, 2 if place == 0 and stage in (1, 2) else 1))
            channels = width
    return layers, channels


class Inverted(nn.Module):
    """A block of MobileNetV2."""

    def __init__(self, inputs, outputs, stride, factor):
        super().__init__()
        middle = inputs * factor
        self.body = nn.Sequential(
            *convolution(inputs, middle, 1, relu=nn.ReLU6),
            *convolution(middle, middle, 3, stride, groups=middle, relu=nn.ReLU6),
            *convolution(middle, outputs, 1)[:2],
        )
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.body(x) if self.adds else self.body(x)


def mobilenet_v2():
    layers, channels = convolution(3, 32, 3, 2, relu=nn.ReLU6), 32
    for factor, width, count, stride in MOBILENET_V2:
        for place in range(count):
            layers.append(Inverted(channels, width, stride if place == 0 else 1, factor))
            channels = width
    return [*layers, *convolution(channels, 1280, 1, relu=nn.ReLU6)], 1280


BACKBONES = {
    "resnet50_v1": lambda: resnet(bottleneck, (3, 4, 6, 3), (256, 512, 1024, 2048)),
    "resnet18_v1": lambda: resnet(basic, (2, 2, 2, 2), (64, 128, 256, 512)),
    "mobilenetv2_1.0": mobilenet_v2,
}


class CGD(nn.Module):
    """MG: images (N, 3, H, W) -> embeddings (N, dim); with `classes`, its training form -> (embeddings, logits)."""

    def __init__(self, backbone, dim, classes=0):
        super().__init__()
        layers, channels = BACKBONES[backbone]()
        self.features = nn.Sequential(*layers)
        self.reductions = nn.ModuleList(nn.Linear(channels, dim // 2) for _ in range(2))
        self.classifier = nn.Sequential(nn.BatchNorm1d(channels), nn.Linear(channels, classes)) if classes else None

    def forward(self, x):
        x = self.features(x)
        largest = x.amax(dim=(2, 3))
        mean = x.clamp(1e-6, 1e12).pow(3).mean(dim=(2, 3)).pow(1 / 3)
        branches = [functional.normalize(reduce(v)) for reduce, v in zip(self.reductions, (largest, mean))]
        embedding = functional.normalize(torch.cat(branches, 1))
        return (embedding, self.classifier(largest)) if self.classifier else embedding


class Training:
    """A step as train.py makes it: normalisation, both losses with the recipe's values, Adam."""

    def __init__(self, net, recipe):
        self.net, self.recipe = net.train(), recipe
        self.optimiser = torch.optim.Adam(net.parameters(), lr=recipe.lr)
        self.mean, self.std = (torch.tensor(v).view(1, 3, 1, 1) for v in (recipe.mean, recipe.std))

    def step(self, pictures, identities):
        """pictures : (N, 3, H, W) uint8 · identities : (N,) -> both losses, floats"""
        x = (pictures.float() / 255 - self.mean) / self.std
        embeddings, logits = self.net(x.contiguous(memory_format=torch.channels_last))
        ranking = triplet_loss(embeddings, identities, self.recipe.margin)
        scaled, smoothing = logits / self.recipe.temperature, self.recipe.smoothing
        classification = functional.cross_entropy(scaled, identities, label_smoothing=smoothing)
        self.optimiser.zero_grad()
        (ranking + classification).backward()
        self.optimiser.step()
        return ranking.item(), classification.item()


def triplet_loss(embeddings, identities, margin):
    """Batch-hard triplets with Euclidean distances, as in cgd/training/losses.py."""
    squares = embeddings.square().sum(1, keepdim=True)
    distances = (squares + squares.T - 2 * embeddings @ embeddings.T).clamp(1e-12, 1e12).sqrt()
    same = identities[:, None] == identities[None]
    positives = same & ~torch.eye(len(embeddings), dtype=torch.bool)
    farthest = distances.masked_fill(~positives, -1).max(1).values
    nearest = distances.masked_fill(same, 9).min(1).values
    return (margin + farthest - nearest).relu().mean()
