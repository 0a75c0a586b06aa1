#!/usr/bin/env python3
"""Training speed and memory of the same networks in Paceline and in PyTorch on this machine's CPU, or with --device cuda on
its GPU. First both get the same weights and data and must give the same losses. Then, round by round, each contender trains in turn on made-up data
for a while. The ratio is Paceline's samples/s over those of PyTorch's best mode of the same round, the median of rounds.

Modes: eager and compile (torch.compile); for networks of images each brings its -nhwc form (channels_last memory format)
along. PyTorch is that of the Python this is run by, or else of --venv, made where it is missing. On a machine with other
work the ratios of the rounds, of which the range is shown, lie far apart: take more rounds.
"""
import argparse
import importlib.util
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WORKER = os.path.join(ROOT, "bench", "pytorch_worker.py")
DEBIAN_PYTHON = "/usr/bin/python3"
MODULES = {"torch": "torch", "numpy": "numpy", "yaml": "pyyaml", "h5py": "h5py"}  # module -> pip's name
DEBIAN_PACKAGES = ["python3-torch", "python3-numpy", "python3-yaml", "python3-h5py"]
MODES = ["eager", "eager-nhwc", "compile", "compile-nhwc"]
MODELS = {  # model file, samples of a step on each rank
    "lenet": ("lenet/lenet.yaml", 64), "mlp-mnist": ("mlp/mnist-model.yaml", 64), "mlp-higgs": ("mlp/higgs-model.yaml", 64),
    "char-lstm": ("text/char-lstm.yaml", 32), "char-gpt": ("text/char-gpt.yaml", 32),
    "mlp-molecular": ("mlp/molecular-model.yaml", 64), "cifar10-quick": ("cifar10/quick-model.yaml", 128),
    "cifar10-full": ("cifar10/full-model.yaml", 128), "resnet20": ("cifar10/resnet20-model.yaml", 128),
    "alexnet": ("imagenet/alexnet-model.yaml", 32), "googlenet": ("imagenet/googlenet-model.yaml", 16),
    "vgg-a": ("imagenet/vgg_a-model.yaml", 8), "resnet50": ("imagenet/resnet50-model.yaml", 8),
    "inception-v3": ("imagenet/inception_v3-model.yaml", 4), "overfeat": ("imagenet/overfeat-model.yaml", 32)}
GPU_BATCH = {"alexnet": 128, "overfeat": 128, "vgg-a": 64, "googlenet": 128, "resnet50": 64, "inception-v3": 64}
CHECK_BATCH, CHECK_STEPS, TOLERANCE = 4, 2, 1e-4
NORMALISED_BATCH = 16  # where an auxiliary head normalises one value a sample, four say too little
CHECK_HYPER = {"lr": 0.001, "momentum": 0.9, "weight_decay": 0.0005}
# Statistics of four samples magnify rounding in an update (between cpu and reference, too): a tenth of the update moves the
# loss of the next step by 4e-3 in Inception v3, 1e-3 in ResNet-50, and rounding moves it by 2e-4 and 3e-5.
NORMALISED_TOLERANCE = 1e-3
BF16_TOLERANCE = 0.02  # each rounds at places of its own
# And deep networks overshoot: an update of 0.001 takes VGG-A's loss from 15 to 62, where rounding counts.
SMALL_LR = 0.0001
# A network of positions says nearly the same before and after an update by noise: 0.001 moves char-lstm's loss by 1e-6 of it. By
# 10, and with the same samples in both steps, each tensor's gradient moves it by 2e-4 or more, and rounding by less than 1e-6.
SEQUENCE_LR, SEQUENCE_TOLERANCE = 10, 2e-5
TIMED_HYPER = {"lr": 1e-6, "momentum": 0.9, "weight_decay": 0.0005}  # a network that learned the noise would have easier numbers


class Failure(Exception):
    """What to tell the user in one line."""


# ---- a Python with torch ---------------------------------------------------------------------------------------------

def lacks(python):
    """Modules that a Python lacks, or None where it cannot be run."""
    code = f"import importlib.util as u; print(*[m for m in {list(MODULES)} if not u.find_spec(m)])"
    try:
        return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return None


def run_quietly(command):
    """The last line of what it said where it failed, or None."""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except OSError as e:
        return f"{command[0]}: {e.strerror}"
    said = [line for line in done.stdout.splitlines() if line.strip()] or ["no message"]
    return said[-1] if done.returncode else None


def venv_python(venv):
    """The Python of the virtual environment, made and filled where it is not; or None and why."""
    python = os.path.join(venv, "bin", "python")
    missing = lacks(python)
    if missing is None:
        print(f"Making {venv} with the newest torch of pip (some GB)", flush=True)
        wrong = run_quietly([sys.executable, "-m", "venv", venv])
        if wrong:
            return None, wrong
        missing = list(MODULES)
    wrong = missing and run_quietly([python, "-m", "pip", "install", "-q", *(MODULES[m] for m in missing)])
    return (None, wrong) if wrong else (python, None)


def debian_python():
    if lacks(DEBIAN_PYTHON) and os.geteuid() == 0:
        print(f"Installing {' '.join(DEBIAN_PACKAGES)}", flush=True)
        run_quietly(["apt-get", "install", "-y", "-q", "--no-install-recommends", *DEBIAN_PACKAGES])
    return DEBIAN_PYTHON if lacks(DEBIAN_PYTHON) == [] else None


def openblas_core():
    """Debian's torch computes with OpenBLAS, which takes processors newer than itself for the oldest of their kind."""
    with open("/proc/cpuinfo") as f:
        flags = f.read().split()
    core = "SKYLAKEX" if "avx512f" in flags else "HASWELL" if "avx2" in flags else None
    return {"OPENBLAS_CORETYPE": core} if core and "OPENBLAS_CORETYPE" not in os.environ else {}


def become_python_with_torch(venv):
    """Returns in a Python that has what the workers need; where this one has not, runs this program anew in another."""
    if lacks(sys.executable) == []:
        return
    python, wrong = venv_python(venv)
    if not python:
        print(f"pip cannot install torch ({wrong}); looking for Debian's", flush=True)
        python = debian_python()
        if not python:
            raise Failure(f"no torch: pip cannot install it, and Debian's is not there (apt-get install {' '.join(DEBIAN_PACKAGES)})")
    sys.stdout.flush()
    os.execv(python, [python, os.path.abspath(__file__), *sys.argv[1:]])


def is_debians():
    """Is the torch of this Python Debian's package?"""
    found = importlib.util.find_spec("torch")
    return bool(found and found.origin and found.origin.startswith("/usr/lib/python3/"))


# ---- PyTorch ---------------------------------------------------------------------------------------------------------

def environment(threads):
    """Of every contender: so many threads, and nothing pinned."""
    pins = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    env = {k: v for k, v in os.environ.items() if k not in pins}
    return dict(env, OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads), GLOO_SOCKET_IFNAME="lo",
                OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1")


class Worker:
    """A living process of pytorch_worker.py."""
    def __init__(self, config, log):
        self.name = f"PyTorch {config['mode']}"
        self.log = log
        env = environment(config["threads"])
        if is_debians():
            env.update(openblas_core())
        with open(log, "w") as f:
            self.process = subprocess.Popen([sys.executable, WORKER, json.dumps(config)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            stderr=f, text=True, env=env)

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            raise Failure(f"{self.name}: its process ended with {self.process.wait()}: {last_line(self.log)}")
        answer = json.loads(line)
        if "error" in answer:
            raise Failure(f"{self.name}: {answer['error']}")
        return answer

    def ask(self, do, **arguments):
        try:
            self.process.stdin.write(json.dumps(dict(arguments, do=do)) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # answer() says what became of it

    def tell(self, do, **arguments):
        self.ask(do, **arguments)
        return self.answer()

    def end(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def last_line(path):
    with open(path, errors="replace") as f:
        return ([line.strip() for line in f if line.strip()] or ["no message"])[-1]


class Torch:
    """A mode of PyTorch as a contender: a process for each rank, of which each does the same number of steps."""
    def __init__(self, mode, case, how):
        self.name, self.batch = mode, case.batch
        config = {"mode": mode, "model": case.model, "weights": case.path("weights.h5"), "batch": case.batch, "threads": case.threads,
                  "hyper": TIMED_HYPER, "device": case.device, "precision": case.precision, "optimizer": how, "ranks": case.ranks, "meeting": case.path(f"{mode}.meeting")}
        self.workers = [Worker(dict(config, rank=r), case.path(f"{mode}-{r}.log")) for r in range(case.ranks)]

    def warm_up(self):
        for worker in self.workers:
            worker.answer()
        self.run(3)

    def run(self, steps, alone=False):
        """Seconds a step, MB a rank. alone: without the exchange."""
        for worker in self.workers:
            worker.ask("steps", n=steps, alone=alone)
        answers = [worker.answer() for worker in self.workers]
        return max(a["seconds"] for a in answers) / steps, statistics.mean(a["peak_mb"] for a in answers)

    def exchange_ms(self, steps, seconds):
        """Of a step: what it takes longer than without the exchange."""
        return (seconds - self.run(steps, alone=True)[0]) * 1000

    def end(self):
        for worker in self.workers:
            worker.end()


# ---- Paceline --------------------------------------------------------------------------------------------------------

def paceline(case, *arguments, ranks=1):
    """What the program prints."""
    launch = ["mpirun", "-q", "--oversubscribe", "--bind-to", "none", "-n", str(ranks)] if ranks > 1 else []
    try:
        done = subprocess.run([*launch, case.program, *arguments], capture_output=True, text=True, env=environment(case.threads))
    except OSError as e:
        raise Failure(f"{(launch or [case.program])[0]}: {e.strerror}")
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith(("[rank", "paceline"))] or [last(done.stderr)]
        raise Failure(f"paceline {arguments[0]} ended with {done.returncode}: {said[0]}")
    return done.stdout


def last(text):
    return ([line for line in text.splitlines() if line.strip()] or ["no message"])[-1]


class Paceline:
    """Paceline as a contender: a process a round, which does three steps before those that count."""
    name = "paceline"

    def __init__(self, case):
        self.case, self.job = case, case.write_job("bench.yaml", case.batch, TIMED_HYPER, case.model)

    def warm_up(self):
        pass

    def run(self, steps):
        """Seconds a step, MB a rank."""
        said = paceline(self.case, "bench", "step", self.job, "--rounds", "1", "--steps", str(steps), ranks=self.case.ranks)
        figures = json.loads(last(said))
        self.exposed_ms = figures["exchange_ms"]
        return figures["step_ms"] / 1000, figures["memory_mb"]

    def exchange_ms(self, steps, seconds):
        return self.exposed_ms

    def end(self):
        pass


# ---- one model with so many threads and ranks ------------------------------------------------------------------------

class Case:
    def __init__(self, name, threads, options, folder):
        file, self.batch = MODELS[name]
        self.device, self.precision = options.device, options.precision
        self.batch = options.batch or (GPU_BATCH.get(name, self.batch) if self.device == "cuda" else self.batch)
        self.name, self.threads, self.ranks = name, threads, options.ranks
        self.model, self.program, self.folder = os.path.join(ROOT, "models", file), options.program, folder

    def normalised(self):
        with open(self.model) as f:
            return "kind: batchnorm" in f.read()

    def sequences(self):
        with open(self.model) as f:
            return bool(re.search(r"kind: (embedding|lstm|gru)", f.read()))

    def path(self, file):
        return os.path.join(self.folder, file)

    def write_job(self, file, batch, hyper, model):
        data = {"file": self.path("data.h5"), "shuffle": False}
        job = {"model": model, "data": {"train": data, "test": data},
               "train": {"steps": CHECK_STEPS, "batch": batch, "threads": self.threads, "eval_every": "never",
                         "precision": self.precision if hyper is TIMED_HYPER else "fp32"},
               "optimizer": dict(hyper, kind="momentum"), "device": {"kind": self.device}, "report": {"dir": self.path("run"), "every": 1}}
        with open(self.path(file), "w") as f:
            json.dump(job, f)  # JSON is YAML
        return self.path(file)


def same(what, ours, theirs, tolerance=TOLERANCE):
    if not abs(ours - theirs) <= tolerance * abs(theirs):
        raise Failure(f"not the same network: {what} is {ours:.7g} in Paceline and {theirs:.7g} in PyTorch")
    return {"paceline": ours, "torch": theirs}


def without_dropout(case):
    """A copy of the model file: what dropout draws is each program's own."""
    import yaml  # a module of the Python that has torch
    with open(case.model) as f:
        model = yaml.safe_load(f)
    for layer in model["layers"]:
        if layer["kind"] == "dropout":
            layer["rate"] = 0
    with open(case.path("check-model.yaml"), "w") as f:
        json.dump(model, f)
    return case.path("check-model.yaml")


def check_training(case, job, weights, batch, worker):
    """name -> both losses of each step; with auxiliary heads their weighted sum, too."""
    paceline(case, "train", job, f"train.init={weights}")
    with open(case.path("run/metrics.jsonl")) as f:
        ours = [e for e in map(json.loads, f) if e["event"] == "step"]
    theirs, losses = worker.tell("train_losses", batch=batch, steps=CHECK_STEPS)["losses"], {}
    for i, (line, (loss, total)) in enumerate(zip(ours, theirs, strict=True)):
        tolerance = SEQUENCE_TOLERANCE if case.sequences() else NORMALISED_TOLERANCE if i and case.normalised() else TOLERANCE
        losses[f"step {i + 1}"] = same(f"the loss of training step {i + 1}", line["loss"], loss, tolerance)
        if "total_loss" in line:
            losses[f"step {i + 1}, total"] = same(f"the total loss of training step {i + 1}", line["total_loss"], total, tolerance)
    return losses


def loss_in(said):
    return float(re.search(r"loss (\S+),", said)[1])


def check(case):
    """The same weights and data to both: losses in evaluation and of two steps of training, of which the second shows the
    gradients. Returns them, what the network is, and the faster of PyTorch's optimizers."""
    weights, batch, model = case.path("weights.h5"), NORMALISED_BATCH if case.normalised() else CHECK_BATCH, without_dropout(case)
    small = case.normalised() or "imagenet" in case.model
    hyper = dict(CHECK_HYPER, lr=SEQUENCE_LR if case.sequences() else SMALL_LR if small else CHECK_HYPER["lr"])
    job = case.write_job("check.yaml", batch, hyper, model)
    worker = Worker({"mode": "check", "model": model, "threads": case.threads, "hyper": hyper, "device": case.device, "precision": "fp32"},
                    case.path("check.log"))
    try:
        found = {"versions": worker.answer(), **worker.tell("files", weights=weights, data=case.path("data.h5"), batch=batch, steps=CHECK_STEPS, again=case.sequences())}
        said = paceline(case, "eval", job, "--checkpoint", weights)
        losses = {"eval": same("the loss in evaluation", loss_in(said), worker.tell("eval_loss", precision="fp32")["loss"])}
        if case.precision == "bf16":
            said = paceline(case, "eval", job, "train.precision=bf16", "--checkpoint", weights)
            losses["eval, bf16"] = same("the loss in evaluation with bf16", loss_in(said), worker.tell("eval_loss", precision="bf16")["loss"], BF16_TOLERANCE)
        losses.update(check_training(case, job, weights, batch, worker))
        return dict(found, losses=losses, **worker.tell("optimizer"))
    finally:
        worker.end()


def modes_of(asked, images, debian):
    """eager and compile bring their nhwc forms along, which are for images."""
    modes = [m for m in MODES if m in asked or m.removesuffix("-nhwc") in asked]
    return [m for m in modes if (images or not m.endswith("-nhwc")) and not (debian and m.startswith("compile"))]


def start(case, modes, found):
    """Those that can run; the others are named."""
    ready = []
    for make in [lambda: Paceline(case)] + [lambda m=m: Torch(m, case, found["optimizer"]) for m in modes]:
        contender = make()
        try:
            contender.warm_up()
            contender.seconds, contender.memory = contender.run(3)
            ready.append(contender)
        except Failure as e:
            contender.end()
            if contender.name == "paceline":
                raise
            print(f"{case.name}: left out: {e}", file=sys.stderr)
        except BaseException:
            for c in [*ready, contender]:
                c.end()
            raise
    return ready


def time_rounds(case, contenders, options):
    """name -> samples/s of each round. Every round begins with another contender."""
    speed, exchange = {c.name: [] for c in contenders}, {c.name: [] for c in contenders}
    for r in range(options.rounds):
        for c in contenders[r % len(contenders):] + contenders[:r % len(contenders)]:
            steps = max(1, round(options.seconds / c.seconds))
            seconds, memory = c.run(steps)
            if case.ranks > 1:
                exchange[c.name].append(c.exchange_ms(steps, seconds))
            c.memory = max(c.memory, memory)
            speed[c.name].append(case.batch * case.ranks / seconds)
    return speed, exchange


def measure(case, options):
    found = check(case)
    contenders = start(case, modes_of(options.modes, found["images"], is_debians()), found)
    try:
        speed, exchange = time_rounds(case, contenders, options)
    finally:
        for c in contenders:
            c.end()
    rivals = [c.name for c in contenders if c.name != "paceline"]
    ratios = [speed["paceline"][r] / max(speed[m][r] for m in rivals) for r in range(options.rounds)] if rivals else []
    memory = {c.name: c.memory if case.device == "cpu" else None for c in contenders}  # of the host, which says little beside a GPU
    return {"model": case.name, "device": case.device, "precision": case.precision, "batch": case.batch, "threads": case.threads, "ranks": case.ranks,
            "samples_per_s": {name: statistics.median(v) for name, v in speed.items()}, "rounds": speed,
            "ratio": statistics.median(ratios) if ratios else None, "ratios": ratios,
            "exchange_ms": {name: statistics.median(v) for name, v in exchange.items() if v}, "peak_mb_a_rank": memory,
            "losses": found["losses"], "optimizer": next(iter(found["optimizer"])), "versions": found["versions"]}


# ---- the table -------------------------------------------------------------------------------------------------------

def cells(values):
    return "".join(f" {v:>12.1f}" if v is not None else f" {'-':>12}" for v in values)


def print_head(columns):
    width = 13 * len(columns) - 1
    names = "".join(f" {n:>12}" for n in columns)
    print(f"{'':<28} {'samples/s':<{width}} {'':18} peak MB a rank")
    print(f"{'model':<14} {'batch':>5} {'threads':>7}{names} {'ratio':>6} {'of rounds':>11}{names}", flush=True)


def print_row(r, columns):
    ratio, span = "-", "-"
    if r["ratios"]:
        ratio, span = f"{r['ratio']:.2f}", f"{min(r['ratios']):.2f}-{max(r['ratios']):.2f}"
    print(f"{r['model']:<14} {r['batch']:>5} {r['threads']:>7}{cells(map(r['samples_per_s'].get, columns))} {ratio:>6} {span:>11}"
          f"{cells(map(r['peak_mb_a_rank'].get, columns))}", flush=True)
    if r["exchange_ms"]:
        print(f"{'':<14} exchange not hidden, ms a step: " + ", ".join(f"{n} {ms:.2f}" for n, ms in r["exchange_ms"].items()), flush=True)


def cpu_name():
    with open("/proc/cpuinfo") as f:
        return next((line.split(":", 1)[1].strip() for line in f if line.startswith("model name")), platform.machine())


def gpu_name():
    try:
        said = subprocess.run(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"], capture_output=True, text=True)
        return said.stdout.splitlines()[0].replace(", ", ", driver ") if said.returncode == 0 else "a GPU"
    except (OSError, IndexError):
        return "a GPU"


# ---- the command -----------------------------------------------------------------------------------------------------

def listed(kind, known=None):
    def read(text):
        values = [kind(t) for t in text.split(",") if t]
        for v in values:
            if v not in (known or values):
                raise argparse.ArgumentTypeError(f"{v} is not among {', '.join(known)}")
            if kind is int and v < 1:
                raise argparse.ArgumentTypeError(f"{v} is no number of threads")
        return values
    return read


def read_arguments():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--models", type=listed(str, list(MODELS)), default=list(MODELS), help="default: all; " + ",".join(MODELS))
    a.add_argument("--threads", type=listed(int), default=[1], help="1,2: of each rank, one row each (1)")
    a.add_argument("--ranks", type=int, choices=(1, 2), default=1, help="2: Paceline with mpirun, PyTorch with DDP over gloo")
    a.add_argument("--batch", type=int, help="of each rank; default: the model's own")
    a.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    a.add_argument("--precision", choices=("fp32", "tf32", "bf16"), default="fp32",
                   help="tf32: of matrix products, with --device cuda; bf16: PyTorch by autocast")
    a.add_argument("--rounds", type=int, default=5)
    a.add_argument("--seconds", type=float, default=2, help="of each contender in a round (2)")
    a.add_argument("--modes", type=listed(str, MODES), default=["eager", "compile"], help="of " + ",".join(MODES))
    a.add_argument("--venv", default=os.path.join(ROOT, "build", "venv-torch"), help="virtual environment with torch (build/venv-torch)")
    a.add_argument("--build", default=os.path.join(ROOT, "build", "release"), help="folder of the program (build/release)")
    a.add_argument("--json", help="write everything to this file")
    options = a.parse_args()
    if options.rounds < 1 or not options.seconds > 0 or (options.batch is not None and options.batch < 1):
        a.error("--rounds, --seconds and --batch must be positive")
    if options.precision == "tf32" and options.device == "cpu" or options.device == "cuda" and options.ranks > 1:
        a.error("--precision tf32 is for --device cuda, and that for one rank")
    options.program = os.path.join(os.path.abspath(options.build), "paceline")
    return options


def present(models):
    for name in models:
        if os.path.exists(os.path.join(ROOT, "models", MODELS[name][0])):
            yield name
        else:
            print(f"{name}: skipped, there is no models/{MODELS[name][0]}", file=sys.stderr)


def program_version(program):
    try:
        return subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        raise Failure(f"{program} does not run; build it (jobs/quickstart.sh) or give --build")


def run(options):
    """Returns whether every model was measured."""
    version, whole = program_version(options.program), True
    become_python_with_torch(options.venv)
    debian = is_debians()
    torch = subprocess.run([sys.executable, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True)
    if torch.returncode:
        raise Failure(f"{sys.executable}: import torch: {last(torch.stderr)}")
    print(f"{version} and torch {torch.stdout.strip()} ({sys.executable}) on {cpu_name()}, {os.cpu_count()} CPUs; ranks: {options.ranks}"
          + (f"; {gpu_name()}" if options.device == "cuda" else "") + f"; {options.precision}")
    if debian and any(m.startswith("compile") for m in options.modes):
        print("torch.compile is not measured: Debian's torch does not have it")
    columns = ["paceline", *modes_of(options.modes, True, debian)]
    rows = []
    print_head(columns)
    for name in present(options.models):
        for threads in options.threads:
            with tempfile.TemporaryDirectory(prefix="vs-pytorch-") as folder:
                try:
                    rows.append(measure(Case(name, threads, options, folder), options))
                    print_row(rows[-1], columns)
                except Failure as e:
                    if "not the same network" in str(e):
                        raise Failure(f"{name}: {e}")
                    print(f"{name}: {e}", file=sys.stderr)
                    whole = False
            if options.json:
                write_json(options.json, version, options, rows)
    return whole


def write_json(path, version, options, rows):
    machine = {"cpu": cpu_name(), "cpus": os.cpu_count(), "system": platform.platform()}
    if options.device == "cuda":
        machine.update(gpu=gpu_name(), precision=options.precision)
    with open(path, "w") as f:
        json.dump({"machine": machine, "paceline": version, "rounds": options.rounds, "seconds": options.seconds, "rows": rows}, f, indent=1)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the processes and files of a round go with it
    try:
        sys.exit(0 if run(read_arguments()) else 1)
    except Failure as failure:
        sys.exit(f"vs_pytorch: {failure}")
    except OSError as failure:
        sys.exit(f"vs_pytorch: {failure.filename}: {failure.strerror}")
    except KeyboardInterrupt:
        sys.exit(130)
