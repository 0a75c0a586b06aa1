"""What the converters share: an interpreter that has h5py, reading of plain or gzipped files, writing of a set."""
import contextlib
import gzip
import os
import sys
import zlib


def missing(message):
    """A module is not there: starts again with Debian's own python3, or stops if that is the one running."""
    if sys.executable != "/usr/bin/python3" and not os.environ.get("PACELINE_REEXEC"):
        os.environ["PACELINE_REEXEC"] = "1"
        os.execv("/usr/bin/python3", ["/usr/bin/python3"] + sys.argv)
    sys.exit(message)


try:
    import h5py
    import numpy as np
except ImportError:
    missing("h5py and numpy are needed: apt-get install python3-h5py python3-numpy")


def stop(message):
    sys.exit("%s: %s" % (os.path.basename(sys.argv[0]), message))


def read_bytes(path):
    try:
        with open(path, "rb") as f:
            raw = f.read()
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as e:
        stop("%s: %s" % (path, e))


@contextlib.contextmanager
def new_file(path, force=False, **options):
    """An HDF5 file under another name, which becomes path when all is written; whole or not at all."""
    if os.path.exists(path) and not force:
        stop("%s exists; --force replaces it" % path)
    temporary = "%s.%d.tmp" % (path, os.getpid())
    try:
        with h5py.File(temporary, "w", **options) as f:
            yield f
        os.rename(temporary, path)
    except OSError as e:
        stop("%s: %s" % (path, e))
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def write_set(path, data, label, force=False, data_attrs=None, label_attrs=None):
    """data [N, ...] and label [N] to a new file, chunked along N and compressed."""
    if len(data) != len(label):
        stop("%d samples but %d labels" % (len(data), len(label)))
    rows = max(1, min(len(data), (256 << 10) // max(1, data[0].nbytes)))
    with new_file(path, force) as f:
        d = f.create_dataset("data", data=data, chunks=(rows,) + data.shape[1:], compression="gzip", compression_opts=1, shuffle=True)
        l = f.create_dataset("label", data=label)
        for where, attrs in ((d, data_attrs), (l, label_attrs)):
            for k, v in (attrs or {}).items():
                where.attrs[k] = v
    print("%s: data %s %s, label %s" % (path, list(data.shape), data.dtype, label.dtype))
