"""Write requirements.lock, every package pinned for any system, and environment.yml's pins.

Run by `make lock`. Known pins are kept; `make lock ARGS=--upgrade` moves all of them, and
`ARGS="--upgrade-package NAME"` one. Needs a network; changes nothing but these two files.
"""

import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

from install import UV, file_only

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
CONDA = ROOT / "environment.yml"
# Which of these is right depends on the build of torch, so torch itself asks for them.
CUDA = re.compile(r"^(cuda|nvidia|triton)\b")
HEADER = """\
# Every package of the environment. Written by `make lock`; edit pyproject.toml instead.
# torch is pinned by its version alone: `make env` picks its CPU build, `make env TORCH=cuda` CUDA.
"""


def resolve(folder, options):
    """Return the resolved requirement lines, using a uv installed in `folder` for the purpose."""
    venv.create(folder, with_pip=True)
    tools, resolved = Path(folder) / "bin", Path(folder) / "resolved.txt"
    subprocess.run([tools / "python", "-m", "pip", "install", "-q", UV], check=True)
    if LOCK.exists():
        resolved.write_text(LOCK.read_text())
    command = [tools / "uv", "pip", "compile", "pyproject.toml", "--extra", "dev", "--universal"]
    command += ["--python-version", "3.11", "--fork-strategy", "fewest", "--no-header"]
    command += ["--no-annotate", "--quiet", "--output-file", resolved, *options]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return resolved.read_text().splitlines()


def direct(lines):
    """Return the pins of what pyproject.toml itself names, in its order."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    names = [re.match(r"[\w.-]+", text).group().replace("_", "-") for text in wanted]
    pins = {line.split("==")[0]: line for line in lines if "==" in line}
    return [pins[name] for name in names]


def write_conda(lines):
    """Put the direct pins between the two option lines of environment.yml's pip block."""
    first, last = "      - -c requirements.lock\n", "      - -e .\n"
    before, rest = CONDA.read_text().split(first)
    pins = "".join(f"      - {pin}\n" for pin in direct(lines))
    CONDA.write_text(before + first + pins + last + rest.split(last)[1])


def main():
    """Resolve, leave out what belongs to one build of torch, and write both files."""
    with tempfile.TemporaryDirectory() as folder:
        lines = [line for line in resolve(folder, sys.argv[1:]) if not CUDA.match(line)]
    lines = sorted(lines + file_only(), key=lambda line: line.split("==")[0])
    LOCK.write_text(HEADER + "\n".join(lines) + "\n")
    write_conda(lines)
    print(f"requirements.lock: {len(lines)} packages; environment.yml: {len(direct(lines))} pins")


if __name__ == "__main__":
    main()
