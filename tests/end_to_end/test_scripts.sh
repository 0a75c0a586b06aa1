#!/usr/bin/env bash
# The converters on tiny files of every kind, their refusals, the checker, the generator and the plot.
. "$PL_SOURCE_DIR/tests/tools/lib.sh"
cd "$PL_TMPDIR" || exit 1
s=$PL_SOURCE_DIR/data/scripts
/usr/bin/python3 - <<'PY' || exit 1
import gzip, pickle
import numpy as np
r = np.random.default_rng(1)
x, y = r.integers(0, 256, (7, 28, 28), np.uint8), r.integers(0, 10, 7).astype(np.uint8)
idx = lambda a: bytes([0, 0, 8, a.ndim]) + b"".join(n.to_bytes(4, "big") for n in a.shape) + a.tobytes()
open("x.idx", "wb").write(idx(x)); open("y.idx.gz", "wb").write(gzip.compress(idx(y))); open("short.idx", "wb").write(idx(x)[:-5])
np.savez("x.npz", x); np.savez("y.npz", y)
c, k = r.integers(0, 256, (5, 3072), np.uint8), r.integers(0, 10, 5).astype(np.uint8)
open("c.bin", "wb").write(np.concatenate([k[:, None], c], 1).tobytes())
pickle.dump({b"data": c, b"labels": k.tolist()}, open("c.pickle", "wb"), protocol=2)
np.save("x.npy", x); np.save("y.npy", y); np.save("c.npy", c); np.save("k.npy", k)
rows = "\n".join("%g,%g,%s" % (a, b, "cat" if i % 3 else "dog") for i, (a, b) in enumerate(r.normal(5, 2, (30, 2))))
open("t.csv", "w").write("a,b,kind\n" + rows + "\n"); open("bad.csv", "w").write("a,b,kind\n1,nan,cat\n2,3,dog\n")
PY
"$s/idx_to_hdf5.py" x.idx y.idx.gz idx.h5 && "$s/idx_to_hdf5.py" x.npz y.npz npz.h5 || fail "idx_to_hdf5"
"$s/cifar_to_hdf5.py" c.bin c.pickle --out cifar.h5 || fail "cifar_to_hdf5"
"$s/csv_to_hdf5.py" t.csv train.h5 --label kind --holdout 0.2 --holdout-out test.h5 --standardise || fail "csv_to_hdf5"
"$s/csv_to_hdf5.py" t.csv all.h5 --label 2 --statistics-from train.h5 || fail "csv_to_hdf5 --statistics-from"
"$s/make_digits.py" --out-dir . --train 200 --test 50 || fail "make_digits"
/usr/bin/python3 - <<'PY' || fail "what was written is not what was read"
import h5py
import numpy as np
L = np.load
for f in ("idx.h5", "npz.h5"):
    h = h5py.File(f)
    assert (h["data"][:, 0] == L("x.npy")).all() and (h["label"][()] == L("y.npy")).all() and h["data"].compression == "gzip"
h = h5py.File("cifar.h5")
assert (h["data"][()].reshape(10, -1) == np.concatenate([L("c.npy")] * 2)).all() and (h["label"][()] == np.concatenate([L("k.npy")] * 2)).all()
a, b, c = h5py.File("train.h5"), h5py.File("test.h5"), h5py.File("all.h5")
assert len(a["data"]) == 24 and len(b["data"]) == 6 and list(a["label"].attrs["classes"]) == ["cat", "dog"]
assert abs(a["data"][()].mean(0)).max() < 1e-6 and abs(a["data"][()].std(0) - 1).max() < 1e-5
both = np.concatenate([a["data"][()], b["data"][()]])
assert np.allclose(np.sort(both, 0), np.sort(c["data"][()], 0)) and c["label"][()].sum() == 10
assert h5py.File("digits-train.h5")["data"].shape == (200, 1, 28, 28)
PY
refuse() { local text=$1; shift; "$@" >out 2>&1 && fail "taken: $*"; grep -qF -- "$text" out || { fail "wanted \"$text\": $*"; cat out; }; }
refuse "exists; --force" "$s/idx_to_hdf5.py" x.idx y.idx.gz idx.h5
refuse "the header says" "$s/idx_to_hdf5.py" short.idx y.idx.gz new.h5
refuse "not an IDX file" "$s/idx_to_hdf5.py" t.csv y.idx.gz new.h5
refuse "no multiple of 3073" "$s/cifar_to_hdf5.py" t.csv --out new.h5
refuse "no column colour" "$s/csv_to_hdf5.py" t.csv new.h5 --label colour
refuse "NaN or an infinity" "$s/csv_to_hdf5.py" bad.csv new.h5 --label kind
refuse "No such file" "$s/csv_to_hdf5.py" missing.csv new.h5 --label kind
"$s/check.py" train.h5 >/dev/null || fail "check refuses a good set"
"$tools/make_set.py" nan.h5 100 1 12 4 1 nan && refuse "NaN" "$s/check.py" nan.h5
printf '{"event": "step", "step": 1, "loss": 2.0}\n{"event": "eval", "step": 1, "loss": 1.9, "accuracy": 0.5}\n{"event": "st' >m.jsonl
"$PL_SOURCE_DIR/bench/plot_metrics.py" m.jsonl --out m.png >/dev/null && [ -s m.png ] || fail "plot_metrics"
ls *.tmp 2>/dev/null && fail "temporary files are left"
finish
