"""Make the environment: a virtual environment with torch, the locked packages and xlcore.

Run by `make env` with the system's Python, so it uses nothing but the standard library and
says in words what is missing on a machine where a step cannot be done. Usage:

    python3 tools/install.py [FOLDER] [--torch cpu|cuda|REQUIREMENT]
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec

OLDEST, NEWEST = (3, 11), (3, 13)
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
UV = "uv==0.13.9"
NO_CPU_BUILD = """no CPU build of {torch} could be installed (log: {log}). Either
  make env TORCH=cuda                      take the registry's default build, several GB on Linux
  PIP_FIND_LINKS=FOLDER make env           use a CPU wheel of {torch} that lies in FOLDER
  make env TORCH=PATH_TO_A_WHEEL           use that wheel"""


class Stop(Exception):
    """A step that cannot be done; the message says what to do."""


def starts(python):
    """Tell whether a command of this name exists and runs (a version manager's stub may not)."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return bool(shutil.which(python)) and subprocess.call([python, "-c", ""], **quiet) == 0


def check_python():
    """Raise Stop unless this Python has a supported version, venv and ensurepip."""
    version = ".".join(map(str, sys.version_info[:2]))
    here = f"{sys.executable} is Python {version}"
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        names = [f"python3.{minor}" for minor in range(OLDEST[1], NEWEST[1] + 1)]
        found = next(filter(starts, names), None)
        advice = f"say make env PYTHON={found}" if found else "install one of them"
        raise Stop(f"{here}, xlcore needs 3.11, 3.12 or 3.13: {advice}")
    if not (find_spec("venv") and find_spec("ensurepip")):
        package = f"python{version}-venv"
        advice = f"on Debian or Ubuntu run `apt install {package}`, then `make env` again"
        raise Stop(f"{here} and cannot make virtual environments: {advice}")


class Environment:
    """One environment folder, the marker of unfinished work in it, and a log of all commands."""

    def __init__(self, folder):
        self.folder = os.path.abspath(folder)
        self.python = os.path.join(self.folder, "bin", "python")
        self.log = os.path.join(self.folder, "install.log")
        self.unfinished = os.path.join(self.folder, ".unfinished")

    def open(self):
        """Create the folder's environment, or take what is there; a half-made one is made anew."""
        own = self.folder == os.path.join(ROOT, ".venv")
        if own and (os.path.exists(self.unfinished) or not self.runs()):
            shutil.rmtree(self.folder, ignore_errors=True)
        os.makedirs(self.folder, exist_ok=True)
        with open(self.unfinished, "w"), open(self.log, "w"):
            pass
        if not self.runs():
            self.call([sys.executable, "-m", "venv", self.folder], "a virtual environment")

    def runs(self):
        """Tell whether the environment was made at this path and its Python starts and has pip."""
        config = os.path.join(self.folder, "pyvenv.cfg")
        if not os.path.exists(self.python):
            return False
        if os.path.exists(config):
            with open(config) as file:
                if self.folder not in file.read():  # moved: its scripts still name the old place
                    return False
        return subprocess.call([self.python, "-c", "import pip"], stderr=subprocess.DEVNULL) == 0

    def has_torch(self, torch):
        """Tell whether this version of torch, of whatever build, is installed."""
        code = "from importlib.metadata import version; print(version('torch').split('+')[0])"
        command = [self.python, "-c", code]
        answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        return answer.stdout.decode().strip() == torch.split("==")[1]

    def remember(self, name, value):
        """Keep a value in the folder for later calls."""
        with open(os.path.join(self.folder, "." + name), "w") as file:
            file.write(value)

    def recall(self, name, default):
        """Return the value kept under a name, or the default."""
        path = os.path.join(self.folder, "." + name)
        if not os.path.exists(path):
            return default
        with open(path) as file:
            return file.read()

    def attempt(self, command):
        """Run a command with its output in the log; return True where it succeeded."""
        with open(self.log, "a") as log:
            log.write("\n$ " + " ".join(command) + "\n")
            log.flush()
            return subprocess.call(command, cwd=ROOT, stdout=log, stderr=log) == 0

    def call(self, command, what):
        """Run a command, or raise Stop with the last lines of its output."""
        if not self.attempt(command):
            with open(self.log) as log:
                tail = "".join(log.readlines()[-12:])
            raise Stop(f"{what} could not be made. The end of {self.log}:\n{tail}")

    def pip(self, *arguments):
        """Return the command that installs with this environment's pip."""
        quiet = ["--disable-pip-version-check", "--no-input", "--no-compile"]
        return [self.python, "-m", "pip", "install", *quiet, *arguments]


def locked():
    """Return the locked requirement lines by package name."""
    with open(os.path.join(ROOT, "requirements.lock")) as lock:
        lines = [line.strip() for line in lock if line.strip() and not line.startswith("#")]
    return {re.split("[=; ]", line)[0]: line for line in lines}


def install_torch(environment, choice):
    """Install torch before all else, so that no other package brings a build nobody chose.

    A choice made once holds for later calls; without one it is the CPU build.
    """
    torch = locked()["torch"].split(";")[0].strip()
    again = ["--upgrade", "--force-reinstall"] if choice else []
    choice = choice or environment.recall("torch-choice", "cpu")
    if choice != "cpu":
        wanted = torch if choice == "cuda" else choice
        environment.call(environment.pip(*again, wanted), f"torch ({wanted})")
    elif again or not environment.has_torch(torch):
        install_cpu_torch(environment, torch, again)
    environment.remember("torch-choice", choice)


def install_cpu_torch(environment, torch, again):
    """Install the CPU build of a pinned torch, or raise Stop with the ways out."""
    if not sys.platform.startswith("linux"):  # elsewhere the default build is the CPU build
        environment.call(environment.pip(*again, torch), torch)
    elif not environment.attempt(environment.pip(*again, torch + "+cpu")):
        # pip finds no CPU build in its indexes; uv knows where PyTorch publishes them.
        print("(asking PyTorch for its CPU build)", end=" ", flush=True)
        uv = [environment.python, "-m", "uv", "pip", "install", "--python", environment.python]
        uv += ["--torch-backend", "cpu", *again, torch]
        if not (environment.attempt(environment.pip(UV)) and environment.attempt(uv)):
            raise Stop(NO_CPU_BUILD.format(torch=torch, log=environment.log))


def install_locked(environment):
    """Install every locked package but torch exactly as locked, nothing besides."""
    path = os.path.join(environment.folder, "requirements.txt")
    with open(path, "w") as file:
        file.write("\n".join(line for name, line in locked().items() if name != "torch"))
    environment.call(environment.pip("--no-deps", "-r", path), "the locked packages")


def install_project(environment):
    """Install xlcore itself, editable, and check that every package has what it asks for."""
    editable = environment.pip("--no-deps", "--no-build-isolation", "--editable", ROOT)
    environment.call(editable, "xlcore")
    command = [environment.python, "-m", "pip", "check"]
    answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if answer.returncode and complaints(answer.stdout.decode()):
        raise Stop("a package lacks what it asks for:\n" + answer.stdout.decode())


def file_only():
    """Return the pins of packages of which one file is read, whatever else they ask for."""
    from tomllib import load  # not there in a Python that is too old, which is told so first

    with open(os.path.join(ROOT, "pyproject.toml"), "rb") as file:
        return load(file)["tool"]["xlcore"]["file-only"]


def complaints(answer):
    """Return the lines of `pip check` that are not about a package of which one file is read."""
    names = [pin.split("==")[0] for pin in file_only()]
    return [line for line in answer.splitlines() if line.split(" ")[0] not in names]


def verify(environment):
    """Import the main packages and print their versions, and the device torch sees."""
    code = (
        "import sys, torch, transformers; "
        "device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else 'CPU'; "
        "print(f'Python {sys.version.split()[0]}, torch {torch.__version__} on {device}, "
        "transformers {transformers.__version__}')"
    )
    subprocess.check_call([environment.python, "-c", code], cwd=ROOT)


def arguments():
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", default=os.path.join(ROOT, ".venv"))
    parser.add_argument("--torch", default="", help="cpu, cuda, or any pip requirement")
    return parser.parse_args()


def main():
    """Do the steps one after the other, a line and a time for each."""
    options = arguments()
    environment = Environment(options.folder)
    steps = [
        ("Python", check_python),
        ("virtual environment", environment.open),
        ("torch", lambda: install_torch(environment, options.torch)),
        ("locked packages", lambda: install_locked(environment)),
        ("xlcore", lambda: install_project(environment)),
        ("check", lambda: verify(environment)),
    ]
    for number, (name, step) in enumerate(steps, start=1):
        start = time.time()
        print(f"[{number}/{len(steps)}] {name} ...", end=" ", flush=True)
        step()
        print(f"{time.time() - start:.0f} s", flush=True)
    os.remove(environment.unfinished)


if __name__ == "__main__":
    try:
        main()
    except Stop as stop:
        sys.exit(f"\nmake env: {stop}")
    except KeyboardInterrupt:
        sys.exit("\nmake env: interrupted; the next call starts anew")
