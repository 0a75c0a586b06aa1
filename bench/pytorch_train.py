"""A job of images trained in PyTorch by the same recipe, for time_to_accuracy.py: the network of the model file with its
initial values, batch, optimizer, schedule, warm-up, mirroring and crops of the job file; an evaluation every epoch, until
the accuracy is above train.stop.above. Channels lie first or last, whichever is faster over a few steps. One line of JSON an epoch. Runs in PyTorch's Python:
pytorch_train.py JOB.yaml THREADS [key=value ...] [--check]; --check: only whether it can."""
import json
import math
import os
import sys
import time

import h5py
import torch
import torch.nn.functional as F
import yaml

from pytorch_worker import Unfit, build, number, one_line, optimizer

UNDERSTOOD = {  # a key that is not here might mean another recipe
    "model": None, "data": {"train": {"file", "scale", "mean", "std", "augment"}, "test": {"file", "scale", "mean", "std"}},
    "train": {"epochs", "batch", "seed", "stop", "eval_every", "threads"}, "checkpoint": None, "report": None,
    "optimizer": {"kind", "lr", "momentum", "weight_decay", "schedule", "warmup"}}


def read_job(path, overrides):
    with open(path) as f:
        job = yaml.safe_load(f)
    folder = os.path.dirname(os.path.abspath(path))
    job["model"] = os.path.join(folder, job["model"])
    for part in ("train", "test"):
        job["data"][part]["file"] = os.path.join(folder, job["data"][part]["file"])
    for text in overrides:
        name, value = text.split("=", 1)
        *above, last = name.split(".")
        at = job
        for key in above:
            at = at.setdefault(key, {})
        at[last] = yaml.safe_load(value)
    for key, value in job.items():
        if key not in UNDERSTOOD:
            raise Unfit(f"the job's key {key} is not known here")
        for inner in value if isinstance(UNDERSTOOD[key], (set, dict)) else ():
            if inner not in UNDERSTOOD[key]:
                raise Unfit(f"the job's key {key}.{inner} is not known here")
    if job["optimizer"].get("kind", "momentum") not in ("momentum", "nesterov"):
        raise Unfit(f"optimizer.kind {job['optimizer']['kind']} is not known here")
    return job


class Images:
    """A set in memory, as bytes; batches as the network sees them."""
    def __init__(self, c):
        with h5py.File(c["file"]) as f:
            self.data, self.label = torch.from_numpy(f["data"][()]), torch.from_numpy(f["label"][()]).long()
        self.scale = number(c, "scale", 1)
        self.mean = torch.tensor(c.get("mean", [0.0])).view(1, -1, 1, 1)
        self.std = torch.tensor(c.get("std", [1.0])).view(1, -1, 1, 1)
        a = c.get("augment", {})
        self.flip, self.crop, self.pad = a.get("flip", False), a.get("crop", self.data.shape[-1]), a.get("pad", 0)

    def batch(self, which, random):
        x = (self.data[which].float() * self.scale - self.mean) / self.std
        if random:
            n, room = len(which), x.shape[-1] + 2 * self.pad - self.crop
            x = F.pad(x, [self.pad] * 4)
            span = torch.arange(self.crop)
            rows = torch.randint(room + 1, (n, 1)) + span
            columns = torch.randint(room + 1, (n, 1)) + span
            if self.flip:
                columns = torch.where(torch.rand(n, 1) < 0.5, columns.flip(1), columns)
            x = x[torch.arange(n)[:, None, None, None], torch.arange(x.shape[1])[None, :, None, None], rows[:, None, :, None], columns[:, None, None, :]]
        return x, self.label[which]


def initial_values(layers):
    for layer, module in layers.values():
        if layer["kind"] not in ("dense", "conv"):
            continue
        fan_in, kind = module.weight[0].numel(), layer.get("init", "xavier")
        with torch.no_grad():
            if kind == "he":
                module.weight.normal_(0, math.sqrt(2 / fan_in))
            elif kind == "xavier":
                module.weight.uniform_(-math.sqrt(3 / fan_in), math.sqrt(3 / fan_in))
            else:
                raise Unfit(f"layer {layer['name']}: init {kind} is not known here")
            if module.bias is not None:
                module.bias.zero_()


def rate(o, step, total, of_epoch):
    schedule, warm = o.get("schedule", {}), str(o.get("warmup", "0 steps")).split()
    warm = float(warm[0]) * (of_epoch if warm[1].startswith("epoch") else 1)
    base, part = number(o, "lr", 0.01), step / total
    kind = schedule.get("kind", "fixed")
    if kind == "cosine":
        base *= 0.5 * (1 + math.cos(math.pi * part))
    elif kind == "poly":
        base *= (1 - part) ** number(schedule, "power", 1)
    elif kind != "fixed":
        raise Unfit(f"optimizer.schedule.kind {kind} is not known here")
    return base * min((step + 1) / warm, 1) if warm > 0 else base


def accuracy(network, scores, images):
    network.eval()
    right = 0
    with torch.no_grad():
        for i in range(0, len(images.label), 256):
            data, label = images.batch(torch.arange(i, min(i + 256, len(images.label))), False)
            network(data, label)
            right += (scores["of"].flatten(1).argmax(1) == label).sum().item()
    network.train()
    return right / len(images.label)


def seconds_of(network, images, batch, layout):
    network.to(memory_format=layout)
    took = []
    for _ in range(4):
        begin = time.perf_counter()
        data, label = images.batch(torch.arange(batch), True)
        network(data.contiguous(memory_format=layout), label)[1].backward()
        took.append(time.perf_counter() - begin)
    network.zero_grad(set_to_none=True)
    return min(took)


def faster_layout(network, images, batch):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    took = {layout: seconds_of(network, images, batch, layout) for layout in (torch.contiguous_format, torch.channels_last)}
    layout = min(took, key=took.get)
    network.to(memory_format=layout)
    network.load_state_dict(before)
    return layout


def main():
    check = sys.argv[-1] == "--check"
    job = read_job(sys.argv[1], sys.argv[3:-1] if check else sys.argv[3:])
    torch.set_num_threads(int(sys.argv[2]))
    torch.manual_seed(job["train"].get("seed", 1))
    with open(job["model"]) as f:
        network, layers, _ = build(yaml.safe_load(f))
    if check:
        return
    initial_values(layers)
    scores = {}
    loss_layer = [module for layer, module in layers.values() if layer["kind"] == "softmax_loss"][-1]
    loss_layer.register_forward_pre_hook(lambda module, inputs: scores.update(of=inputs[0]))
    train, test, o = Images(job["data"]["train"]), Images(job["data"]["test"]), job["optimizer"]
    hyper = {"lr": 1.0, "momentum": number(o, "momentum", 0.9), "weight_decay": number(o, "weight_decay", 0)}
    opt = optimizer(layers, hyper, {"foreach": True})
    for group in opt.param_groups:
        group["factor"], group["nesterov"] = group["lr"], o.get("kind") == "nesterov"
    batch, epochs, n = job["train"]["batch"], job["train"]["epochs"], len(train.label)
    of_epoch = -(-n // batch)
    begin, used = time.perf_counter(), time.process_time()
    layout = faster_layout(network, train, batch)
    for epoch in range(epochs):
        order = torch.randperm(n)
        for i in range(of_epoch):
            lr = rate(o, epoch * of_epoch + i, epochs * of_epoch, of_epoch)
            for group in opt.param_groups:
                group["lr"] = lr * group["factor"]
            opt.zero_grad(set_to_none=True)
            data, label = train.batch(order[i * batch:(i + 1) * batch], True)
            _, total = network(data.contiguous(memory_format=layout), label)
            total.backward()
            opt.step()
        reached = accuracy(network, scores, test)
        print(json.dumps({"epoch": epoch + 1, "accuracy": reached, "seconds": round(time.perf_counter() - begin, 1),
                          "cpu_seconds": round(time.process_time() - used, 1), "layout": str(layout)}), flush=True)
        if reached > job["train"].get("stop", {}).get("above", 2):
            break


if __name__ == "__main__":
    try:
        main()
    except Unfit as e:
        sys.exit(f"pytorch_train.py: {one_line(e)}")
