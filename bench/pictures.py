"""matplotlib for the tables' pictures: by the system's interpreter where this one lacks it, None where neither has it."""
import os
import sys

try:
    import matplotlib
except ImportError:
    if sys.executable != "/usr/bin/python3" and not os.environ.get("PACELINE_REEXEC"):
        os.environ["PACELINE_REEXEC"] = "1"
        os.execv("/usr/bin/python3", ["/usr/bin/python3"] + sys.argv)
    matplotlib = None  # a table needs none
