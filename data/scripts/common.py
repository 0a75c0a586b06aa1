"""What the converters share: an interpreter that has h5py, reading of plain or gzipped files, writing of a set."""
import gzip
import os
import sys

try:
    import h5py
    import numpy as np
except ImportError:
    if sys.executable != "/usr/bin/python3" and not os.environ.get("PACELINE_REEXEC"):
        os.environ["PACELINE_REEXEC"] = "1"
        os.execv("/usr/bin/python3", ["/usr/bin/python3"] + sys.argv)
    sys.exit("h5py and numpy are needed: apt-get install python3-h5py python3-numpy")


def stop(message):
    sys.exit("%s: %s" % (os.path.basename(sys.argv[0]), message))


def read_bytes(path):
    try:
        with open(path, "rb") as f:
            raw = f.read()
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError) as e:
        stop("%s: %s" % (path, e))


def write_set(path, data, label, force=False, data_attrs=None, label_attrs=None):
    """data [N, ...] and label [N] to a new file, chunked along N and compressed; whole or not at all."""
    if os.path.exists(path) and not force:
        stop("%s exists; --force replaces it" % path)
    if len(data) != len(label):
        stop("%d samples but %d labels" % (len(data), len(label)))
    rows = max(1, min(len(data), (256 << 10) // max(1, data[0].nbytes)))
    temporary = "%s.%d.tmp" % (path, os.getpid())
    try:
        with h5py.File(temporary, "w") as f:
            d = f.create_dataset("data", data=data, chunks=(rows,) + data.shape[1:], compression="gzip", compression_opts=1, shuffle=True)
            l = f.create_dataset("label", data=label)
            for where, attrs in ((d, data_attrs), (l, label_attrs)):
                for k, v in (attrs or {}).items():
                    where.attrs[k] = v
        os.rename(temporary, path)
    except OSError as e:
        if os.path.exists(temporary):
            os.unlink(temporary)
        stop("%s: %s" % (path, e))
    print("%s: data %s %s, label %s" % (path, list(data.shape), data.dtype, label.dtype))
