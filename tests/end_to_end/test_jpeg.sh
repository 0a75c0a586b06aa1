#!/usr/bin/env bash
# A set of JPEG images as images_to_hdf5.py --jpeg writes it: the files' bytes, the pixels that Pillow would have stored,
# training with the same bits on any number of decoding threads, and what is refused.
. "$PL_SOURCE_DIR/tests/tools/lib.sh"
cp "$tools"/*.yaml .
/usr/bin/python3 -c 'import PIL' 2>/dev/null || { echo "skipped: python3-pil is not installed"; exit 77; }
"$PACELINE" doctor 2>/dev/null | grep -q '^jpeg  *TurboJPEG' || { echo "skipped: built without TurboJPEG"; exit 77; }
s=$PL_SOURCE_DIR/data/scripts
/usr/bin/python3 - <<'PY' || exit 1
import os
import numpy as np
from PIL import Image
r = np.random.default_rng(4)
patterns = r.integers(0, 256, (4, 5, 5, 3), np.uint8)
for i in range(240):
    w, h = ((40, 30), (33, 33), (90, 120), (28, 61))[i // 4 % 4]
    x = np.asarray(Image.fromarray(patterns[i % 4]).resize((w, h), Image.BICUBIC)).astype(float) + r.normal(0, 4, (h, w, 1))
    os.makedirs("images/%d" % (i % 4), exist_ok=True)
    image = Image.fromarray(np.clip(x, 0, 255).astype(np.uint8))
    image = image.convert("CMYK") if i == 9 else image.convert("L") if i == 10 else image
    image.save("images/%d/%d.jpg" % (i % 4, i), quality=95, progressive=i % 5 == 0)
PY
"$s/images_to_hdf5.py" images jpeg.h5 --jpeg && "$s/images_to_hdf5.py" images pixel.h5 --size 27 || fail "images_to_hdf5"
"$s/check.py" jpeg.h5 >/dev/null || fail "check refuses a good set"
/usr/bin/python3 - <<'PY' || fail "the bytes are not those of the files"
import glob
import h5py
f = h5py.File("jpeg.h5")
stored = sorted(x.tobytes() for x in f["data"][()])
assert f["data"].attrs["encoding"] == "jpeg" and stored == sorted(open(p, "rb").read() for p in glob.glob("images/*/*.jpg"))
PY
refuse() { local text=$1; shift; "$@" >out 2>&1 && fail "taken: $*"; grep -qF -- "$text" out || { fail "wanted \"$text\": $*"; cat out; }; }
refuse "no --size, no --compress" "$s/images_to_hdf5.py" images new.h5 --jpeg --size 27
mkdir -p png/a && /usr/bin/python3 -c 'from PIL import Image; Image.new("RGB", (9, 9)).save("png/a/x.jpg", "PNG")'
refuse "x.jpg: is PNG inside, not JPEG" "$s/images_to_hdf5.py" png new.h5 --jpeg

sed -i 's/\[1, 12, 12\]/[3, 24, 24]/' net.yaml
augment="augment: {crop: 24, flip: true}"
cat >jpeg.yaml <<YAML
model: net.yaml
data:
  train: {file: jpeg.h5, scale: 0.00390625, $augment}
  test: {file: jpeg.h5, scale: 0.00390625, augment: {crop: 24}}
train: {epochs: 4, batch: 24, seed: 5}
optimizer: {kind: momentum, lr: 0.02, momentum: 0.9}
checkpoint: {dir: run}
report: {dir: run, every: 1 steps}
YAML
for t in 1 3; do train 2 jpeg.yaml checkpoint.dir=t$t report.dir=t$t data.threads=$t >t$t.log 2>&1 || { fail "training with $t threads"; tail -n 5 t$t.log; }; done
"$tools/compare.py" t1/$(cat t1/latest)/model.h5 t3/$(cat t3/latest)/model.h5 0 0 exact || fail "1 and 3 decoding threads differ"
grep '"eval"' t1/metrics.jsonl | tail -n 1 | grep -q '"samples": 240' || fail "the evaluation did not count 240 samples"
# The same network sees the same images, decoded here or stored as pixels (rounded, and cut before they are scaled).
for set in jpeg pixel; do ranks 1 "$PACELINE" predict jpeg.yaml checkpoint.dir=t1 data.test.file=$set.h5 --out $set-out.h5 >/dev/null || fail "predict from $set"; done
/usr/bin/python3 - <<'PY' || fail "predictions from JPEG images and from their pixels differ"
import h5py
import numpy as np
a, b = h5py.File("jpeg-out.h5"), h5py.File("pixel-out.h5")
apart, spread = np.abs(a["output"][()] - b["output"][()]), a["output"][()].std(0)
right = (a["class"][()] == h5py.File("jpeg.h5")["label"][()]).mean()
print("outputs differ by %.4f in the mean, %.4f at most, of a spread of %s; %.3f are right" % (apart.mean(), apart.max(), spread, right))
assert apart.mean() < 0.01 and apart.max() < 0.1 and right > 0.7
PY
ranks 2 "$PACELINE" bench data jpeg.yaml data.threads=2 --steps 2 >bench.json || fail "bench data"
grep -q '"threads": 2' bench.json && /usr/bin/python3 -c 'import json; assert json.load(open("bench.json"))["samples_per_s"] > 0' || { fail "bench data says"; cat bench.json; }
/usr/bin/python3 - <<'PY'
import h5py
import numpy as np
f = h5py.File("jpeg.h5")
with h5py.File("broken.h5", "w") as b:
    d = b.create_dataset("data", (240,), h5py.vlen_dtype(np.uint8))
    for i, x in enumerate(f["data"][()]):
        d[i] = x[:len(x) // 2] if i == 77 else x
    d.attrs["encoding"] = "jpeg"
    b["label"] = f["label"][()]
PY
refuse "sample 77 is no JPEG image" "$s/check.py" broken.h5
expect 3 "$PWD/broken.h5:/data: sample 77 cannot be decoded: " 3 jpeg.yaml checkpoint.dir=none report.dir=none data.train.file=broken.h5 data.threads=2
finish
