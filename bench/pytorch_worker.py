"""A process of vs_pytorch.py: a network of a model file in PyTorch, trained on made-up data when told to. Its one
argument is a JSON object; it answers each line of its input ({"do": ...}) with one line of JSON, {"error": ...} if it
cannot."""
import contextlib
import json
import os
import sys
import time

import h5py
import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import fx, nn

WEIGHT_KEYS = {"activation", "bias", "init", "init_value", "bias_init", "lr_mult", "decay_mult", "bias_lr_mult", "bias_decay_mult"}
WINDOW_KEYS = {"kernel", "stride", "pad"}
KEYS = {  # what is understood; another key might mean another network
    "dense": WEIGHT_KEYS | {"units", "positions"}, "embedding": {"entries", "units", "init", "init_value", "lr_mult", "decay_mult"},
    "lstm": WEIGHT_KEYS - {"activation"} | {"units", "last"}, "gru": WEIGHT_KEYS - {"activation"} | {"units", "last"}, "conv": WEIGHT_KEYS | WINDOW_KEYS | {"filters", "dilation", "groups"},
    "maxpool": WINDOW_KEYS | {"global", "ceil"}, "avgpool": WINDOW_KEYS | {"global", "ceil", "count_pad"},
    "relu": set(), "sigmoid": set(), "tanh": set(), "gelu": set(), "dropout": {"rate"},
    "position_embedding": {"init", "init_value", "lr_mult", "decay_mult"}, "attention": {"heads", "causal"}, "layernorm": {"epsilon", "scale", "activation"},
    "batchnorm": {"momentum", "epsilon", "scale", "activation"}, "lrn": {"size", "alpha", "beta", "k"},
    "flatten": set(), "concat": set(), "add": {"activation"},
    "softmax_loss": {"smoothing", "weight"}, "sigmoid_loss": {"weight"}, "euclidean_loss": {"weight"}}
TENSORS = {"weight": "weight", "bias": "bias"}  # ours -> PyTorch's
RECURRENT_TENSORS = {"weight": "weight_ih_l0", "recurrent": "weight_hh_l0", "bias": "bias_ih_l0", "recurrent_bias": "bias_hh_l0"}
NORM_TENSORS = {"scale": "weight", "shift": "bias", "mean": "running_mean", "variance": "running_var"}


class Unfit(Exception):
    """What to tell the user in one line."""


# ---- from a model file to a module -----------------------------------------------------------------------------------

class Concat(nn.Module):
    def forward(self, *x):
        return torch.cat(x, 1)


class Add(nn.Module):
    def forward(self, first, *others):
        for x in others:
            first = first + x
        return first


class Dense(nn.Linear):
    def forward(self, x):
        return super().forward(x.flatten(1))


class Recurrent(nn.Module):
    def __init__(self, cell, features, units, bias, last):
        super().__init__()
        self.cell, self.last = cell(features, units, bias=bias, batch_first=True), last

    def forward(self, x):
        y = self.cell(x)[0]
        return y[:, -1] if self.last else y


class PositionEmbedding(nn.Module):
    def __init__(self, positions, features):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(positions, features))

    def forward(self, x):
        return x + self.weight


class Attention(nn.Module):
    def __init__(self, heads, causal):
        super().__init__()
        self.heads, self.causal = heads, causal

    def forward(self, x):
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in x.chunk(3, 2))
        return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2).flatten(2)


class SoftmaxLoss(nn.Module):
    def __init__(self, smoothing=0.0):
        super().__init__()
        self.smoothing = smoothing

    def forward(self, x, label):
        x = x.flatten(0, 1) if label.dim() == 2 else x.flatten(1)
        return F.cross_entropy(x, label.flatten(), label_smoothing=self.smoothing)


class SigmoidLoss(nn.Module):
    def forward(self, x, label):
        x = x.flatten(1)
        return F.binary_cross_entropy_with_logits(x, label.view_as(x).to(x.dtype), reduction="sum") / x.shape[0]


class EuclideanLoss(nn.Module):
    def forward(self, x, label):
        x = x.flatten(1)
        return (x - label.view_as(x)).square().sum() / (2 * x.shape[0])


class Total(nn.Module):
    """What is trained on where a network has several losses, or one of another weight than 1."""
    def __init__(self, weights):
        super().__init__()
        self.weights = weights

    def forward(self, *losses):
        return sum(w * loss for w, loss in zip(self.weights, losses))


OVERWRITTEN = {"dense", "conv", "batchnorm", "add", "concat", "maxpool", "avgpool"}  # their backward needs no output
LOSSES = {"softmax_loss": SoftmaxLoss, "sigmoid_loss": SigmoidLoss, "euclidean_loss": EuclideanLoss}


def number(layer, key, otherwise):
    return float(layer.get(key, otherwise))  # 1e-4 is a text to PyYAML


def pair(value):
    return tuple(value) * (3 - len(value)) if isinstance(value, list) else (value, value)


def pool(layer, kind):
    if layer.get("global"):
        return nn.AdaptiveMaxPool2d(1) if kind == "maxpool" else nn.AdaptiveAvgPool2d(1)
    window = pair(layer["kernel"]), pair(layer.get("stride", layer["kernel"])), pair(layer.get("pad", 0))
    ceil = layer.get("ceil", False)
    if kind == "maxpool":
        return nn.MaxPool2d(*window, ceil_mode=ceil)
    return nn.AvgPool2d(*window, ceil_mode=ceil, count_include_pad=layer.get("count_pad", False))


def activation(kind, inplace=False):
    return nn.ReLU(inplace) if kind == "relu" else {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "gelu": nn.GELU}[kind]()


def make(layer, shape, inplace):
    """The module of one layer; shape: of its (first) input; inplace: whether a ReLU may overwrite it."""
    kind, bias = layer["kind"], layer.get("bias", True)
    if kind == "dense":
        return nn.Linear(shape[2], layer["units"], bias) if layer.get("positions") else Dense(shape[1:].numel(), layer["units"], bias)
    if kind == "embedding":
        return nn.Embedding(layer["entries"], layer["units"])
    if kind in ("lstm", "gru"):
        return Recurrent(nn.LSTM if kind == "lstm" else nn.GRU, shape[2], layer["units"], bias, layer.get("last", False))
    if kind == "conv":
        return nn.Conv2d(shape[1], layer["filters"], pair(layer["kernel"]), pair(layer.get("stride", 1)),
                         pair(layer.get("pad", 0)), pair(layer.get("dilation", 1)), layer.get("groups", 1), bias)
    if kind in ("maxpool", "avgpool"):
        return pool(layer, kind)
    if kind == "position_embedding":
        return PositionEmbedding(*shape[1:])
    if kind == "attention":
        return Attention(layer["heads"], layer.get("causal", False))
    if kind == "layernorm":
        return nn.LayerNorm(shape[-1], number(layer, "epsilon", 1e-5), layer.get("scale", True))
    if kind in ("relu", "sigmoid", "tanh", "gelu"):
        return activation(kind, inplace)
    if kind == "dropout":
        return nn.Dropout(number(layer, "rate", 0.5))
    if kind == "batchnorm":
        norm = nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d
        return norm(shape[1], number(layer, "epsilon", 1e-5), 1 - number(layer, "momentum", 0.9), layer.get("scale", True))
    if kind == "lrn":
        return nn.LocalResponseNorm(layer.get("size", 5), *(number(layer, k, d) for k, d in (("alpha", 1e-4), ("beta", 0.75), ("k", 1))))
    if kind == "softmax_loss":
        return SoftmaxLoss(layer.get("smoothing", 0.0))
    return {"flatten": nn.Flatten, "concat": Concat, "add": Add}.get(kind, LOSSES.get(kind))()


def check(layer):
    kind = layer.get("kind")
    if kind not in KEYS:
        raise Unfit(f"layer {layer.get('name')}: kind {kind} is not known here")
    unknown = set(layer) - KEYS[kind] - {"name", "kind", "from"}
    if unknown:
        raise Unfit(f"layer {layer['name']}: key {min(unknown)} of {kind} is not known here")


def in_running_order(layers):
    """With `from` filled in; as in graph/: of the layers that are ready the first in the file goes first."""
    above, todo = "data", []
    for layer in layers:
        check(layer)
        inputs = layer.get("from", above)
        todo.append(dict(layer, **{"from": inputs if isinstance(inputs, list) else [inputs]}))
        above = layer["name"]
    done = {"data"}
    while todo:
        layer = next((l for l in todo if done.issuperset(l["from"])), None)
        if layer is None:
            raise Unfit(f"layer {todo[0]['name']}: its inputs {todo[0]['from']} are not found")
        todo.remove(layer)
        done |= {layer["name"], f"{layer['name']}.{layer.get('activation')}"}
        yield layer


def entries(model):
    """The data are integers below this; 0: any numbers."""
    return min((layer["entries"] for layer in model["layers"] if layer["kind"] == "embedding"), default=0)


def labels(model):
    """Whether they are classes, and how many a sample has."""
    label = model["input"].get("label", "int")
    return (True, 1) if label == "int" else (True, label[1]) if isinstance(label, list) and label[0] == "int" else (False, label)


def overwritten(layer):
    return layer["kind"] in OVERWRITTEN and layer.get("activation", "none") == "none"


def build(model):
    """The network as a function of data and label that gives the loss (the last of the file) and the total that is trained
    on, its layers by name, and the numbers that the loss takes of a sample. fx writes the forward() that one would write by hand: each output is let go after its last use."""
    root, graph, layers, outputs = nn.Module(), fx.Graph(), {}, 0
    order = list(in_running_order(model["layers"]))
    used = [name for layer in order for name in layer["from"]]
    data, label = graph.placeholder("data"), graph.placeholder("label")
    node = {"data": data}
    sample = {data: torch.zeros(2, *model["input"]["data"], dtype=torch.long if entries(model) else torch.float)}

    def call(name, module, inputs):
        target = f"{len(node)}_{name.replace('.', '_')}"
        root.add_module(target, module)
        node[name] = graph.call_module(target, tuple(inputs))

    def append(name, module, inputs):
        call(name, module, inputs)
        sample[node[name]] = module(*(sample[i] for i in inputs))

    with torch.no_grad():  # sample: for the shapes
        for layer in order:
            inputs, name, kind = [node[n] for n in layer["from"]], layer["name"], layer["kind"]
            before = layer["from"][0]
            inplace = used.count(before) == 1 and before in layers and overwritten(layers[before][0])
            layers[name] = layer, make(layer, sample[inputs[0]].shape, inplace)
            if kind in LOSSES:
                call(name, layers[name][1], [*inputs, label])
                shape = sample[inputs[0]].shape
                outputs = shape[2] if labels(model)[1] > 1 else shape[1:].numel()
                continue
            append(name, layers[name][1], inputs)
            after = layer.get("activation", "none")
            if after != "none":
                append(f"{name}.{after}", activation(after, inplace=True), [node[name]])
                node[name] = node[f"{name}.{after}"]
    heads = [layer for layer in model["layers"] if layer["kind"] in LOSSES]
    weights, losses = [number(layer, "weight", 1) for layer in heads], [node[layer["name"]] for layer in heads]
    if weights != [1]:
        call("total", Total(weights), losses)
    graph.output((losses[-1], node["total"] if weights != [1] else losses[-1]))
    graph.lint()
    return fx.GraphModule(root, graph), layers, outputs


# ---- weights and data ------------------------------------------------------------------------------------------------

def tensors(layers):
    """(layer, our tensor name, tensor)"""
    for name, (layer, module) in layers.items():
        recurrent = layer["kind"] in ("lstm", "gru")
        ours = NORM_TENSORS if layer["kind"] in ("batchnorm", "layernorm") else RECURRENT_TENSORS if recurrent else TENSORS
        owner = module.cell if recurrent else module
        if layer["kind"] in ("dense", "conv", "batchnorm", "layernorm", "embedding", "position_embedding", "lstm", "gru"):
            for own, theirs in ours.items():
                if getattr(owner, theirs, None) is not None:
                    yield name, own, getattr(owner, theirs)


def random_tensor(rng, name, shape):
    if name == "weight":
        return rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    if name == "recurrent":
        return rng.standard_normal(shape) / np.sqrt(shape[1])
    if name in ("scale", "variance"):
        return rng.uniform(0.5, 1.5, shape)
    return rng.standard_normal(shape) * 0.1


def write_weights(path, layers):
    rng = np.random.default_rng(1)
    with h5py.File(path, "w") as f:
        for name, (layer, module) in layers.items():
            if layer["kind"] == "batchnorm" and not layer.get("scale", True):
                n = module.num_features
                f[f"params/{name}/scale"], f[f"params/{name}/shift"] = np.ones(n, "f4"), np.zeros(n, "f4")
        for name, own, tensor in tensors(layers):
            f[f"params/{name}/{own}"] = random_tensor(rng, own, tuple(tensor.shape)).astype("f4")


def load_weights(path, layers):
    with h5py.File(path) as f, torch.no_grad():
        for name, own, tensor in tensors(layers):
            tensor.copy_(torch.from_numpy(f[f"params/{name}/{own}"][()]))
    for layer, module in layers.values():
        if layer["kind"] == "batchnorm":
            module.num_batches_tracked.zero_()


def made_up(model, outputs, n, seed):
    rng = np.random.default_rng(seed)
    shape, below = (n, *model["input"]["data"]), entries(model)
    data = rng.integers(0, below, shape) if below else rng.standard_normal(shape, dtype="f4")
    classes, width = labels(model)
    if classes:
        return data, rng.integers(0, max(outputs, 2), (n, width) if width > 1 else n, dtype="i4")
    return data, rng.uniform(0, 1, (n, width)).astype("f4")


def to_torch(data, label, device):
    label = torch.from_numpy(label)
    return torch.from_numpy(data).to(device), (label if label.is_floating_point() else label.long()).to(device)


def prepare(c):
    """On a GPU: tf32 where it is asked for, and the fastest of cuDNN's algorithms."""
    tf32 = c["precision"] == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True
    return torch.device(c["device"])


def rounded(c):
    """bf16: what PyTorch has for it with float32 parameters."""
    return torch.autocast(c["device"], dtype=torch.bfloat16, enabled=c["precision"] == "bf16")


def settle(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


# ---- training --------------------------------------------------------------------------------------------------------

def optimizer(layers, hyper, how):
    """SGD as the job file has it: one group for each pair of multipliers. how: {"fused": True} or {"foreach": True}."""
    groups = {}
    for name, own, tensor in tensors(layers):
        if isinstance(tensor, nn.Parameter):
            layer, prefix = layers[name][0], "bias_" if own in ("bias", "recurrent_bias") else ""
            decay = 0 if layer["kind"] in ("batchnorm", "layernorm") else number(layer, f"{prefix}decay_mult", 1)
            groups.setdefault((number(layer, f"{prefix}lr_mult", 1), decay), []).append(tensor)
    return torch.optim.SGD([{"params": p, "lr": hyper["lr"] * lr, "weight_decay": hyper["weight_decay"] * decay}
                            for (lr, decay), p in groups.items()], lr=hyper["lr"], momentum=hyper["momentum"], **how)


def step(network, opt, data, label, context=contextlib.nullcontext()):
    opt.zero_grad(set_to_none=True)
    with context:
        loss, total = network(data, label)
    total.backward()
    opt.step()
    return loss, total


def peak_mb():
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) / 1024 for line in f if line.startswith("VmHWM"))


def faster_optimizer(network, layers, hyper, data, label, device):
    """{"fused": True} or {"foreach": True}, whichever updates faster (fused is not in every version)."""
    best = None
    for how in ({"foreach": True}, {"fused": True}):
        try:
            opt = optimizer(layers, hyper, how)
            step(network, opt, data, label)
            took = []
            for _ in range(7):
                settle(device)
                begin = time.perf_counter()
                opt.step()
                settle(device)
                took.append(time.perf_counter() - begin)
        except (TypeError, RuntimeError):
            continue
        if best is None or min(took) < best[0]:
            best = min(took), how
    return best[1]


class Checker:
    """Random weights and data in files, the losses that they give, and the faster optimizer."""
    def __init__(self, c):
        with open(c["model"]) as f:
            self.model = yaml.safe_load(f)
        self.network, self.layers, self.outputs = build(self.model)
        self.device = prepare(c)
        self.network.to(self.device)
        self.c = c

    def files(self, weights, data, batch, steps, again):
        """again: every step has the same samples."""
        write_weights(weights, self.layers)
        self.data, self.label = made_up(self.model, self.outputs, batch if again else batch * steps, 2)
        if again:
            self.data, self.label = (np.concatenate([x] * steps) for x in (self.data, self.label))
        with h5py.File(data, "w") as f:
            f["data"], f["label"] = self.data, self.label
        load_weights(weights, self.layers)
        return {"images": any(layer["kind"] == "conv" for layer, _ in self.layers.values())}

    def eval_loss(self, precision):
        self.network.eval()
        with torch.no_grad(), rounded(dict(self.c, precision=precision)):
            return {"loss": self.network(*to_torch(self.data, self.label, self.device))[0].item()}

    def train_losses(self, batch, steps):
        self.network.train()
        opt, losses = optimizer(self.layers, self.c["hyper"], {"foreach": True}), []
        data, label = to_torch(self.data, self.label, self.device)
        for i in range(0, steps * batch, batch):
            losses.append([loss.item() for loss in step(self.network, opt, data[i:i + batch], label[i:i + batch])])
        return {"losses": losses}  # of each step the main loss and the total

    def optimizer(self):
        self.network.train()
        data, label = to_torch(self.data, self.label, self.device)
        return {"optimizer": faster_optimizer(self.network, self.layers, self.c["hyper"], data, label, self.device)}


class Trainer:
    """The network in one of the modes, ready to be timed."""
    def __init__(self, c):
        with open(c["model"]) as f:
            model = yaml.safe_load(f)
        network, layers, outputs = build(model)
        load_weights(c["weights"], layers)
        self.device = prepare(c)
        network.to(self.device)
        self.data, self.label = to_torch(*made_up(model, outputs, c["batch"], 3 + c["rank"]), self.device)
        if c["mode"].endswith("-nhwc"):
            network = network.to(memory_format=torch.channels_last)
            self.data = self.data.contiguous(memory_format=torch.channels_last)
        network.train()
        self.optimizer = optimizer(layers, c["hyper"], c["optimizer"])
        if c["ranks"] > 1:
            torch.distributed.init_process_group("gloo", init_method="file://" + c["meeting"], rank=c["rank"], world_size=c["ranks"])
            network = nn.parallel.DistributedDataParallel(network, gradient_as_bucket_view=True)
        self.ddp = network
        self.network = torch.compile(network) if c["mode"].startswith("compile") else network
        self.ranks = c["ranks"]
        self.context = rounded(c)

    def steps(self, n, alone=False):
        """alone: without the exchange of gradients."""
        if self.ranks > 1:
            torch.distributed.barrier()
        with self.ddp.no_sync() if alone else contextlib.nullcontext():
            settle(self.device)
            begin = time.perf_counter()
            for _ in range(n):
                step(self.network, self.optimizer, self.data, self.label, self.context)
            settle(self.device)
            return {"seconds": time.perf_counter() - begin, "peak_mb": peak_mb()}


def versions():
    return {"torch": torch.__version__, "python": sys.version.split()[0], "numpy": np.__version__,
            "torch_config": torch.__config__.show(), "import_mb": peak_mb()}


def one_line(e):
    text = [line.strip() for line in str(e).splitlines() if line.strip()]
    return text[0] if isinstance(e, Unfit) else f"{type(e).__name__}: {text[0] if text else ''}"


def main():
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is not an answer
    try:
        c = json.loads(sys.argv[1])
        torch.set_num_threads(c["threads"])
        about = versions()
        worker = Checker(c) if c["mode"] == "check" else Trainer(c)
        answers.write(json.dumps(about) + "\n")
        for line in sys.stdin:
            request = json.loads(line)
            answers.write(json.dumps(getattr(worker, request.pop("do"))(**request)) + "\n")
    except Exception as e:  # of PyTorch it may be anything; the whole of it goes to the log
        answers.write(json.dumps({"error": one_line(e)}) + "\n")
        raise


if __name__ == "__main__":
    main()
