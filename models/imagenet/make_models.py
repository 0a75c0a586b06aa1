#!/usr/bin/env python3
"""Writes this folder's models, NAME-model.yaml; those named, or all. --print shows them instead, --check compares them
with the files and fails where one differs. The long models are regular: what repeats in them is a function here."""
import argparse
import os
import sys


class Net:
    """The lines of a model file. A layer reads the one added before it unless `of` says otherwise."""

    def __init__(self, name, side, about):
        self.last = "data"
        self.lines = ["# " + line for line in about.strip().split("\n")]
        self.lines += ["# Written by make_models.py: change it there.", "name: " + name,
                       "input: {data: [3, %d, %d], label: int}" % (side, side), "layers:"]

    def add(self, name, kind, of=None, **keys):
        """One layer; of: the layer it reads, or several. Returns its name."""
        text = ["name: " + name, "kind: " + kind] + ["%s: %s" % (k, value(v)) for k, v in keys.items()]
        if of is not None and of != self.last:
            text.append("from: " + value(of))
        self.lines.append("  - {%s}" % ", ".join(text))
        self.last = name
        return name

    def conv(self, name, filters, kernel, of=None, **keys):
        return self.add(name, "conv", of, filters=filters, kernel=kernel, **keys, init="he", activation="relu")

    def conv_bn(self, name, filters, kernel, of=None, epsilon=None, activation="relu", **keys):
        """A convolution without bias, then batch normalisation, which brings shift and activation."""
        self.add(name, "conv", of, filters=filters, kernel=kernel, **keys, bias=False, init="he")
        keys = {k: v for k, v in (("epsilon", epsilon), ("activation", activation)) if v}
        return self.add(name + "_bn", "batchnorm", **keys)

    def maxpool(self, name, kernel, of=None, **keys):
        return self.add(name, "maxpool", of, kernel=kernel, **keys)

    def dense(self, name, units):
        return self.add(name, "dense", units=units, activation="relu", init="he")

    def head(self, name, loss, **keys):
        """The two layers that every classifier ends in; small weights, so that no class is far ahead at the start."""
        self.add(name, "dense", units=1000, init="gaussian", init_value=0.01)
        self.add(loss, "softmax_loss", **keys)

    def classes(self, name, **loss):
        """The end of every model here."""
        self.head(name, "loss", **loss)
        return "\n".join(self.lines) + "\n"


def value(v):
    if isinstance(v, bool):
        return "true" if v else "false"
    if isinstance(v, (list, tuple)):
        return "[%s]" % ", ".join(value(x) for x in v)
    return str(v)


# ---- one after the other ---------------------------------------------------------------------------------------------

def alexnet():
    n = Net("alexnet", 224, """
AlexNet in one tower (Krizhevsky, One weird trick for parallelizing convolutional neural networks, 2014), with the
filters and the dropout of torchvision's alexnet: 61,100,840 parameters.""")
    n.conv("conv1", 64, 11, stride=4, pad=2)
    n.maxpool("pool1", 3, stride=2)
    n.conv("conv2", 192, 5, pad=2)
    n.maxpool("pool2", 3, stride=2)
    n.conv("conv3", 384, 3, pad=1)
    n.conv("conv4", 256, 3, pad=1)
    n.conv("conv5", 256, 3, pad=1)
    n.maxpool("pool5", 3, stride=2)
    n.add("drop6", "dropout", rate=0.5)
    n.dense("fc6", 4096)
    n.add("drop7", "dropout", rate=0.5)
    n.dense("fc7", 4096)
    return n.classes("fc8")


def overfeat():
    n = Net("overfeat", 231, """
OverFeat, the fast model (Sermanet et al., ICLR 2014, table 1), as convnet-benchmarks has it: 145,920,872 parameters.
The dropout is the paper's; the benchmark leaves it out.""")
    n.conv("conv1", 96, 11, stride=4)
    n.maxpool("pool1", 2)
    n.conv("conv2", 256, 5)
    n.maxpool("pool2", 2)
    n.conv("conv3", 512, 3, pad=1)
    n.conv("conv4", 1024, 3, pad=1)
    n.conv("conv5", 1024, 3, pad=1)
    n.maxpool("pool5", 2)
    n.dense("fc6", 3072)
    n.add("drop6", "dropout", rate=0.5)
    n.dense("fc7", 4096)
    n.add("drop7", "dropout", rate=0.5)
    return n.classes("fc8")


def vgg_a():
    n = Net("vgg_a", 224, """
VGG-A, 11 layers (Simonyan & Zisserman, ICLR 2015, table 1), torchvision's vgg11: 132,863,336 parameters.""")
    for stage, filters in enumerate(([64], [128], [256, 256], [512, 512], [512, 512]), 1):
        for i, f in enumerate(filters, 1):
            n.conv("conv%d_%d" % (stage, i), f, 3, pad=1)
        n.maxpool("pool%d" % stage, 2)
    for i in (6, 7):
        n.dense("fc%d" % i, 4096)
        n.add("drop%d" % i, "dropout", rate=0.5)
    return n.classes("fc8")


# ---- GoogLeNet -------------------------------------------------------------------------------------------------------

# Table 1 of the paper: filters of 1x1; of the 1x1 before 3x3, of 3x3; before 5x5, of 5x5; of the 1x1 after the pool.
GOOGLENET = {
    "3a": (64, 96, 128, 16, 32, 32), "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64), "4b": (160, 112, 224, 24, 64, 64), "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64), "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128), "5b": (384, 192, 384, 48, 128, 128),
}


def googlenet_head(n, name, x):
    n.add(name + "_pool", "avgpool", x, kernel=5, stride=3)
    n.conv(name + "_conv", 128, 1)
    n.dense(name + "_fc1", 1024)
    n.add(name + "_drop", "dropout", rate=0.7)
    n.head(name + "_fc2", name + "_loss", weight=0.3)


def googlenet():
    n = Net("googlenet", 224, """
GoogLeNet (Szegedy et al., Going deeper with convolutions, CVPR 2015) with its two auxiliary heads: 13,378,280
parameters, 6,998,552 of them without the heads, which are for training only. Pools round up, and the numbers of the
normalisation and of the heads are those of Caffe's bvlc_googlenet.""")
    lrn = {"size": 5, "alpha": 0.0001, "beta": 0.75}
    n.conv("conv1", 64, 7, stride=2, pad=3)
    n.maxpool("pool1", 3, stride=2, ceil=True)
    n.add("norm1", "lrn", **lrn)
    n.conv("conv2_reduce", 64, 1)
    n.conv("conv2", 192, 3, pad=1)
    n.add("norm2", "lrn", **lrn)
    x = n.maxpool("pool2", 3, stride=2, ceil=True)
    for block, (f1, r3, f3, r5, f5, fpool) in GOOGLENET.items():
        name = "i" + block
        parts = [n.conv(name + "_1x1", f1, 1, x)]
        n.conv(name + "_3x3_reduce", r3, 1, x)
        parts.append(n.conv(name + "_3x3", f3, 3, pad=1))
        n.conv(name + "_5x5_reduce", r5, 1, x)
        parts.append(n.conv(name + "_5x5", f5, 5, pad=2))
        n.maxpool(name + "_pool", 3, x, stride=1, pad=1)
        parts.append(n.conv(name + "_pool_proj", fpool, 1))
        x = n.add(name, "concat", parts)
        if block in ("4a", "4d"):
            googlenet_head(n, "aux1" if block == "4a" else "aux2", x)
        if block in ("3b", "4e"):
            x = n.maxpool("pool" + block[0], 3, stride=2, ceil=True)
    n.add("pool5", "avgpool", **{"global": True})
    n.add("drop", "dropout", rate=0.4)
    return n.classes("fc")


# ---- Inception v3 ----------------------------------------------------------------------------------------------------

HALVE = 2  # the stride of the convolutions that halve the image; they are not padded


class Inception:
    """A net of branches. A step of a branch is (filters, kernel[, stride]), or the kind of a pool."""

    def __init__(self, net):
        self.net, self.block = net, ""

    def branch(self, name, x, *steps):
        """Steps one after the other, the first reading x. Returns the name of the last."""
        for i, step in enumerate(steps, 1):
            layer = "%s%s_%d" % (self.block, name, i) if len(steps) > 1 else self.block + name
            if step == "avgpool":
                x = self.net.add(layer, step, x, kernel=3, stride=1, pad=1, count_pad=True)
            elif step == "maxpool":
                x = self.net.add(layer, step, x, kernel=3, stride=2)
            else:
                x = self.conv(layer, x, *step)
        return x

    def conv(self, name, x, filters, kernel, stride=1):
        keys = {"stride": stride} if stride != 1 else {}
        if stride == 1 and kernel != 1:
            keys["pad"] = [k // 2 for k in kernel] if isinstance(kernel, list) else kernel // 2
        return self.net.conv_bn(name, filters, kernel, x, epsilon=0.001, **keys)

    def end(self, name, *branches):
        return self.net.add(name, "concat", branches)

    def block_35(self, name, x, pool):  # figure 5
        self.block = name + "_"
        return self.end(name, self.branch("1x1", x, (64, 1)),
                        self.branch("5x5", x, (48, 1), (64, 5)),
                        self.branch("3x3", x, (64, 1), (96, 3), (96, 3)),
                        self.branch("pool", x, "avgpool", (pool, 1)))

    def to_17(self, name, x):
        self.block = name + "_"
        return self.end(name, self.branch("3x3", x, (384, 3, HALVE)),
                        self.branch("3x3dbl", x, (64, 1), (96, 3), (96, 3, HALVE)),
                        self.branch("pool", x, "maxpool"))

    def block_17(self, name, x, f):  # figure 6: 7x7 as 1x7 and 7x1
        self.block = name + "_"
        wide, high = [1, 7], [7, 1]
        return self.end(name, self.branch("1x1", x, (192, 1)),
                        self.branch("7x7", x, (f, 1), (f, wide), (192, high)),
                        self.branch("7x7dbl", x, (f, 1), (f, high), (f, wide), (f, high), (192, wide)),
                        self.branch("pool", x, "avgpool", (192, 1)))

    def to_8(self, name, x):
        self.block = name + "_"
        return self.end(name, self.branch("3x3", x, (192, 1), (320, 3, HALVE)),
                        self.branch("7x7", x, (192, 1), (192, [1, 7]), (192, [7, 1]), (192, 3, HALVE)),
                        self.branch("pool", x, "maxpool"))

    def block_8(self, name, x):  # figure 7: 3x3 as 1x3 beside 3x1
        self.block = name + "_"
        ends = [self.branch("1x1", x, (320, 1))]
        for branch, steps in (("3x3", [(384, 1)]), ("3x3dbl", [(448, 1), (384, 3)])):
            fork = self.branch(branch, x, *steps)
            ends.append(self.branch(branch + "_wide", fork, (384, [1, 3])))
            ends.append(self.branch(branch + "_high", fork, (384, [3, 1])))
        return self.end(name, *ends, self.branch("pool", x, "avgpool", (192, 1)))


def inception_v3():
    n = Net("inception_v3", 299, """
Inception v3 (Szegedy et al., Rethinking the Inception architecture for computer vision, CVPR 2016), torchvision's
inception_v3 with its auxiliary head and the paper's label smoothing: 27,161,264 parameters, 23,834,568 of them without
the head, which is for training only.""")
    n.conv_bn("conv1", 32, 3, stride=2, epsilon=0.001)
    n.conv_bn("conv2", 32, 3, epsilon=0.001)
    n.conv_bn("conv3", 64, 3, pad=1, epsilon=0.001)
    n.maxpool("pool3", 3, stride=2)
    n.conv_bn("conv4", 80, 1, epsilon=0.001)
    n.conv_bn("conv5", 192, 3, epsilon=0.001)
    x = n.maxpool("pool5", 3, stride=2)
    blocks = Inception(n)
    for name, pool in (("i5b", 32), ("i5c", 64), ("i5d", 64)):
        x = blocks.block_35(name, x, pool)
    x = blocks.to_17("i6a", x)
    for name, filters in (("i6b", 128), ("i6c", 160), ("i6d", 160), ("i6e", 192)):
        x = blocks.block_17(name, x, filters)
    n.add("aux_pool", "avgpool", x, kernel=5, stride=3)
    n.conv_bn("aux_conv1", 128, 1, epsilon=0.001)
    n.conv_bn("aux_conv2", 768, 5, epsilon=0.001)
    n.add("aux_gap", "avgpool", **{"global": True})
    n.head("aux_fc", "aux_loss", smoothing=0.1, weight=0.4)
    x = blocks.to_8("i7a", x)
    for name in ("i7b", "i7c"):
        x = blocks.block_8(name, x)
    n.add("pool", "avgpool", **{"global": True})
    n.add("drop", "dropout", rate=0.5)
    return n.classes("fc", smoothing=0.1)


# ---- ResNet-50 -------------------------------------------------------------------------------------------------------

def resnet50():
    n = Net("resnet50", 224, """
ResNet-50 (He et al., Deep residual learning for image recognition, CVPR 2016, table 1), with the stride in the 3x3
convolution as torchvision's resnet50 (v1.5): 25,557,032 parameters.""")
    n.conv_bn("conv1", 64, 7, stride=2, pad=3)
    x = n.maxpool("pool1", 3, stride=2, pad=1)
    for stage, (blocks, filters) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), 2):
        for b in range(blocks):
            name = "s%d%s" % (stage, "abcdef"[b])
            stride = {"stride": 2} if b == 0 and stage > 2 else {}
            shortcut = x
            if b == 0:
                shortcut = n.conv_bn(name + "_short", 4 * filters, 1, x, activation=None, **stride)
            n.conv_bn(name + "_conv1", filters, 1, x)
            n.conv_bn(name + "_conv2", filters, 3, pad=1, **stride)
            y = n.conv_bn(name + "_conv3", 4 * filters, 1, activation=None)
            x = n.add(name, "add", [y, shortcut], activation="relu")
    n.add("pool5", "avgpool", **{"global": True})
    return n.classes("fc")


MODELS = {f.__name__: f for f in (alexnet, overfeat, vgg_a, googlenet, inception_v3, resnet50)}

if __name__ == "__main__":
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument("names", nargs="*", metavar="NAME", help=", ".join(MODELS))
    how = a.add_mutually_exclusive_group()
    how.add_argument("--print", action="store_true"), how.add_argument("--check", action="store_true")
    a = a.parse_args()
    unknown = [name for name in a.names if name not in MODELS]
    if unknown:
        sys.exit("make_models.py: no model %s; there are %s" % (unknown[0], ", ".join(MODELS)))
    different = []
    for name in a.names or MODELS:
        path, text = os.path.join(os.path.dirname(os.path.abspath(__file__)), name + "-model.yaml"), MODELS[name]()
        if a.print:
            print(text, end="")
        elif not a.check:
            with open(path, "w") as f:
                f.write(text)
        elif not os.path.exists(path) or open(path).read() != text:
            different.append(os.path.basename(path))
    if different:
        sys.exit("make_models.py: %s: not what this script writes" % ", ".join(different))
