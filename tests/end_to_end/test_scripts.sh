#!/usr/bin/env bash
# The converters on tiny files of every kind, their refusals, the checker, the generator and the plot.
. "$PL_SOURCE_DIR/tests/tools/lib.sh"
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
# Text by characters of one byte and of several, in windows that overlap; by words, of which the rare ones are one; by bytes.
printf 'the cat sat on the mat\nthe dog sät\n' | gzip >one.txt.gz; printf 'a cat\n' >two.txt; printf 'the cow\n' >three.txt; printf 'ab\377cd' >latin.txt; : >empty.txt; printf 'a\0b' >zero.txt
printf 'a\fb\r\nc\xe2\x80\xa8d\n' >lines.txt; head -c 20 one.txt.gz >cut.gz; printf '\x1f\x8b\x08\0aaaaaaaaaaaaaaaaaaaaaaaa' >broken.gz
"$s/text_to_hdf5.py" one.txt.gz two.txt chars.h5 --length 4 --stride 3 >text.out && "$s/text_to_hdf5.py" one.txt.gz two.txt words.h5 --level word --most 4 --length 2 &&
    "$s/text_to_hdf5.py" two.txt three.txt known.h5 --level word --vocabulary-from words.h5 --length 1 && "$s/text_to_hdf5.py" latin.txt bytes.h5 --level byte --length 2 &&
    "$s/text_to_hdf5.py" lines.txt lines.h5 --level word --length 5 &&
    "$s/text_to_hdf5.py" one.txt.gz two.txt front.h5 --length 3 --holdout 0.25 --holdout-out back.h5 || fail "text_to_hdf5"
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
text = "the cat sat on the mat\nthe dog sät\na cat\n"
def tokens(path, what):
    f = h5py.File(path)
    names = [n.decode() if isinstance(n, bytes) else int(n) for n in f["vocabulary"][()]]
    return [[names[i] for i in row] for row in f[what][()]]
t = tokens("chars.h5", "data"), tokens("chars.h5", "label")
assert ["".join(r) for r in t[0]] == [text[i:i + 4] for i in range(0, len(text) - 4, 3)] and ["".join(r) for r in t[1]] == [text[i + 1:i + 5] for i in range(0, len(text) - 4, 3)]
assert "vocabulary of %d chars" % len(set(text)) in open("text.out").read()
words = [w if w in ("the", "<eos>", "cat") else "<unk>" for w in text.replace("\n", " <eos> ").split()]
assert sum(tokens("words.h5", "data"), []) == words[:12] and sum(tokens("words.h5", "label"), []) == words[1:13] and len(words) == 14, words
assert sum(tokens("known.h5", "data"), []) == ["<unk>", "cat", "<eos>", "the", "<unk>"]
assert tokens("lines.h5", "data") == [["a", "b", "<eos>", "c", "d"]], "what ends a line"
assert tokens("bytes.h5", "data") == [[97, 98], [255, 99]] and tokens("bytes.h5", "label") == [[98, 255], [99, 100]]
cut = len(text) - round(len(text) / 4)
for name, part in ("front.h5", text[:cut]), ("back.h5", text[cut:]):
    assert "".join(sum(tokens(name, "data"), [])) == part[:(len(part) - 1) // 3 * 3] and len(h5py.File(name)["vocabulary"]) == len(set(text))
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
refuse "latin.txt: byte 2 is not UTF-8" "$s/text_to_hdf5.py" latin.txt new.h5
refuse "zero.txt: character 1 is 0" "$s/text_to_hdf5.py" zero.txt new.h5
refuse "empty.txt: no text" "$s/text_to_hdf5.py" empty.txt new.h5
refuse "6 chars are too few for samples of 6" "$s/text_to_hdf5.py" two.txt new.h5 --length 6
refuse "three.txt: char 'w' at 6 is not in the vocabulary of front.h5" "$s/text_to_hdf5.py" two.txt three.txt new.h5 --length 1 --vocabulary-from front.h5
refuse "its vocabulary is of level char" "$s/text_to_hdf5.py" two.txt new.h5 --level word --vocabulary-from front.h5
refuse "no vocabulary" "$s/text_to_hdf5.py" two.txt new.h5 --vocabulary-from train.h5
refuse "belong together" "$s/text_to_hdf5.py" two.txt new.h5 --holdout 0.5
refuse "front.h5 exists; --force" "$s/text_to_hdf5.py" two.txt front.h5 --length 2
refuse "back.h5 exists; --force" "$s/text_to_hdf5.py" one.txt.gz new.h5 --length 2 --holdout 0.5 --holdout-out back.h5
refuse "new-back.h5: 4 chars are too few" "$s/text_to_hdf5.py" one.txt.gz new.h5 --length 4 --holdout 0.1 --holdout-out new-back.h5
refuse "both the set and its end" "$s/text_to_hdf5.py" one.txt.gz front.h5 --force --length 2 --holdout 0.5 --holdout-out ./front.h5
for bad in "--most 1 --level word" "--most 3" "--most 3 --level word --vocabulary-from words.h5"; do refuse "--most is for words" "$s/text_to_hdf5.py" two.txt new.h5 $bad; done
for bad in "--length 0" "--length 2 --stride 0"; do refuse "are at least 1" "$s/text_to_hdf5.py" two.txt new.h5 $bad; done
for bad in cut broken; do refuse "text_to_hdf5.py: $bad.gz: " "$s/text_to_hdf5.py" $bad.gz new.h5; done
[ -e new.h5 ] && fail "a refusal leaves a set"
"$s/text_to_hdf5.py" two.txt front.h5 --force --length 2 >/dev/null && "$s/check.py" front.h5 >out && grep -q "labels 1 to 4, positions of each" out || fail "--force, or the checker's counts"
"$s/check.py" chars.h5 >out && grep -q "ids up to 13, a vocabulary of 14" out || fail "check refuses text"
/usr/bin/python3 -c 'import h5py; h5py.File("chars.h5", "r+")["data"][2, 1] = 14'
refuse "an id that is not in the vocabulary" "$s/check.py" chars.h5
"$s/check.py" train.h5 >/dev/null || fail "check refuses a good set"
"$tools/make_set.py" nan.h5 100 1 12 4 1 nan && refuse "NaN" "$s/check.py" nan.h5
printf '{"event": "step", "step": 1, "loss": 2.0}\n{"event": "eval", "step": 1, "loss": 1.9, "accuracy": 0.5}\n{"event": "st' >m.jsonl
"$PL_SOURCE_DIR/bench/plot_metrics.py" m.jsonl --out m.png >/dev/null && [ -s m.png ] || fail "plot_metrics"
# A run that reaches its accuracy at the second evaluation, after 2 + 3 s of steps, and one that does not.
printf '{"event": "step", "step": %d, "step_ms": %d, "exchange_ms": 500, "sent_mb": 2}\n{"event": "eval", "step": %d, "accuracy": %s}\n' 10 2000 10 0.9 20 3000 20 0.995 >m.jsonl
{ "$PL_SOURCE_DIR/bench/local_sgd.py" run m.jsonl 2 10 0.99 1gbit && head -n 2 m.jsonl >first.jsonl && "$PL_SOURCE_DIR/bench/local_sgd.py" run first.jsonl 2 1 0.99 1gbit; } >local_sgd.jsonl
"$PL_SOURCE_DIR/bench/local_sgd.py" table . >table.out && [ -s local_sgd.json ] && [ -s local_sgd.txt ] || fail "local_sgd.py"
grep -qE '^ +2 +10 +0.9950 +20 +5.0 +250.0 +1.0 +4.0' table.out && grep -qE '^ +2 +1 +\(0.9000\) +10 +2.0' table.out || { fail "local_sgd.py"; cat table.out; }

# images_to_hdf5.py: two classes of PNGs, one in a folder below, of which three have the stored side and stay as they are,
# one is tall, one gray; then a broken one.
images() {
    local i=$s/images_to_hdf5.py
    /usr/bin/python3 - <<'PY' || return 1
import os
import numpy as np
from PIL import Image
r = np.random.default_rng(2)
os.makedirs("images/dog/more"), os.makedirs("images/cat"), os.makedirs("one/dog"), os.makedirs("other/bird"), os.makedirs("none/cat")
whole = r.integers(0, 256, (3, 16, 16, 3), np.uint8)
np.save("whole.npy", whole)
for path, pixels in zip(("dog/1.png", "dog/more/2.PNG", "cat/3.png"), whole):
    Image.fromarray(pixels).save("images/" + path)
tall = np.zeros((96, 32, 3), np.uint8)  # its middle third is what remains: red above, blue below
tall[:32, :, 1], tall[32:48, :, 0], tall[48:64, :, 2], tall[64:, :, 1] = 255, 200, 100, 255
Image.fromarray(tall).save("images/cat/4.png")
Image.fromarray(np.full((20, 40), 7, np.uint8)).save("images/cat/5.bmp")
open("images/cat/notes.txt", "w").write("no image")
Image.fromarray(whole[0]).save("one/dog/6.png"), Image.fromarray(whole[0]).save("other/bird/7.png")
PY
    "$i" images images.h5 --size 16 && "$i" images again.h5 --size 16 --threads 1 --compress && "$i" images other.h5 --size 16 --seed 2 &&
        "$i" one one.h5 --size 16 --classes-from images.h5 || fail "images_to_hdf5"
    head -c 300 images/dog/1.png >images/dog/0.png
    refuse "images/dog/0.png" "$i" images new.h5 --size 16
    refuse "--skip-broken" "$i" images new.h5 --size 16
    "$i" images skipped.h5 --size 16 --skip-broken >out 2>&1 && grep -q "1 broken images skipped" out || { fail "--skip-broken"; cat out; }
    /usr/bin/python3 - <<'PY' || fail "the images are not those that were read"
import h5py
import numpy as np
whole = np.load("whole.npy").transpose(0, 3, 1, 2)
def read(path):
    h = h5py.File(path)
    data, label = h["data"][()], h["label"][()]
    assert data.shape == (5, 3, 16, 16) and data.dtype == np.uint8 and label.dtype == np.int32, path
    assert list(h["label"].attrs["classes"]) == ["cat", "dog"] and h["data"].chunks is not None
    return h["data"].compression, data, label
(plain, data, label), (gzip, same, same_label) = read("images.h5"), read("again.h5")
assert plain is None and gzip == "gzip" and (data == same).all() and (label == same_label).all()
for set_ in ("images.h5", "other.h5", "skipped.h5"):
    _, d, l = read(set_)
    where = [[i for i in range(5) if (d[i] == w).all()] for w in whole]
    assert [l[w].tolist() for w in where] == [[1], [1], [0]], (set_, where)
    tall = [i for i in range(5) if l[i] == 0 and d[i, 1, 8, 8] == 0]
    assert len(tall) == 1 and (d[tall[0], 0, 2:6] == 200).all() and (d[tall[0], 2, 10:14] == 100).all() and not d[tall[0], 1, 2:14].any()
    assert sum((x == 7).all() for x in d) == 1
assert (read("other.h5")[1] != data).any(), "--seed changes nothing"
assert h5py.File("one.h5")["label"][()].tolist() == [1]
PY
    "$s/check.py" images.h5 >/dev/null || fail "check refuses the images"
    refuse "no class of this name" "$i" other new.h5 --classes-from images.h5
    refuse "no images" "$i" none new.h5
    refuse "no sub-folders" "$i" none/cat new.h5
    refuse "No such file" "$i" missing new.h5
    refuse "exists; --force" "$i" images images.h5
    mkdir -p without/PIL && echo 'raise ImportError' >without/PIL/__init__.py
    PYTHONPATH=without refuse "python3-pil" /usr/bin/python3 "$i" images new.h5
}
if /usr/bin/python3 -c 'import PIL' 2>/dev/null; then
    images || fail "the images could not be made"
else
    echo "images_to_hdf5.py is not tested: python3-pil is not installed"
fi
ls *.tmp 2>/dev/null && fail "temporary files are left"
finish
