#!/usr/bin/env python3
"""The quickstart's data: images of digits drawn from strokes, with random shift, rotation, scale, shear, thickness,
bent strokes and noise. A linear model stays under 95 %, LeNet passes 98 %. Writes digits-train.h5, digits-test.h5."""
import argparse
import os

from common import np, write_set


def arc(cx, cy, rx, ry, start, end, n=10):
    t = np.radians(np.linspace(start, end, n))
    return np.stack([cx + rx * np.cos(t), cy + ry * np.sin(t)], 1)


def line(*points):
    return np.array(points, float)


# Strokes in a box of -1 to 1, y downwards.
STROKES = {
    0: [arc(0, 0, .6, .9, 0, 360, 20)],
    1: [line((-.35, -.5), (.1, -.9), (.1, .9))],
    2: [arc(0, -.4, .55, .5, 180, 390, 14), line((.48, -.15), (-.6, .9), (.65, .9))],
    3: [arc(-.05, -.45, .5, .45, 200, 450, 14), arc(-.05, .45, .55, .45, 270, 520, 14)],
    4: [line((.3, .9), (.3, -.9), (-.65, .35), (.7, .35))],
    5: [line((.55, -.9), (-.45, -.9), (-.5, -.1)), arc(-.05, .35, .55, .52, 215, 500, 16)],
    6: [arc(.35, .3, .95, 1.2, 270, 180, 10), arc(0, .4, .55, .5, 0, 360, 18)],
    7: [line((-.6, -.9), (.6, -.9), (-.15, .9))],
    8: [arc(0, -.45, .45, .43, 0, 360, 16), arc(0, .45, .55, .46, 0, 360, 18)],
    9: [arc(0, -.4, .55, .5, 0, 360, 18), arc(-.4, -.3, .95, 1.2, 0, 90, 10)],
}


def segments(digit):
    parts = [np.stack([s[:-1], s[1:]], 1) for s in STROKES[digit]]
    return np.concatenate(parts)  # [S, 2, 2]


def draw(digit, n, r):
    """n images of a digit, [n, 28, 28] in 0 to 1."""
    seg = np.repeat(segments(digit)[None], n, 0)
    # bend: a smooth displacement of every point, the same where strokes meet
    f, p = r.uniform(1, 2.5, (n, 1, 1, 2)), r.uniform(0, 6.28, (n, 1, 1, 2))
    seg = seg + r.uniform(0, .16, (n, 1, 1, 1)) * np.sin(f * seg[..., ::-1] * 2 + p)
    angle, shear = np.radians(r.normal(0, 13, n)), r.normal(0, .22, n)
    sx, sy = r.uniform(5.2, 8.6, n), r.uniform(6.8, 9.6, n)
    c, s = np.cos(angle), np.sin(angle)
    m = np.stack([np.stack([c * sx, (shear * c - s) * sy], -1), np.stack([s * sx, (shear * s + c) * sy], -1)], -2)
    seg = np.einsum("nij,nskj->nski", m, seg) + 13.5 + r.uniform(-2.6, 2.6, (n, 1, 1, 2))
    a, d = seg[:, :, 0].astype(np.float32), (seg[:, :, 1] - seg[:, :, 0]).astype(np.float32)
    y, x = np.mgrid[0:28, 0:28].astype(np.float32)
    nearest = np.full((n, 28, 28), 1e9, np.float32)
    for k in range(seg.shape[1]):
        ax, ay = a[:, k, 0, None, None], a[:, k, 1, None, None]
        dx, dy = d[:, k, 0, None, None], d[:, k, 1, None, None]
        t = np.clip(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy + 1e-6), 0, 1)
        np.minimum(nearest, (x - ax - t * dx) ** 2 + (y - ay - t * dy) ** 2, out=nearest)
    width = r.uniform(.8, 1.7, (n, 1, 1)).astype(np.float32)
    return np.clip(width + .5 - np.sqrt(nearest), 0, 1) * r.uniform(.6, 1, (n, 1, 1)).astype(np.float32)


def make(n, r):
    label = r.permutation(np.arange(n) % 10).astype(np.uint8)
    data = np.empty((n, 28, 28), np.float32)
    for digit in range(10):
        where = np.flatnonzero(label == digit)
        for part in np.array_split(where, max(1, len(where) // 250)):
            data[part] = draw(digit, len(part), r)
    data += r.normal(0, .12, data.shape).astype(np.float32)
    return (np.clip(data, 0, 1) * 255).astype(np.uint8)[:, None], label


a = argparse.ArgumentParser(description=__doc__)
a.add_argument("--out-dir", default="."), a.add_argument("--seed", type=int, default=1)
a.add_argument("--train", type=int, default=12000), a.add_argument("--test", type=int, default=2000)
a.add_argument("--force", action="store_true")
a = a.parse_args()
os.makedirs(a.out_dir, exist_ok=True)
r = np.random.default_rng(a.seed)
for name, n in (("train", a.train), ("test", a.test)):
    write_set(os.path.join(a.out_dir, "digits-%s.h5" % name), *make(n, r), a.force)
