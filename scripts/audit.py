"""Ask PyPI's advisory service about the installed packages, where it answers.

pip-audit exits 0 when a mirror without advisories says "not found" to every package, so one package is asked for
first: without an answer for that one, this gate says that it was not run (exit code 75) and never "passed".
"""

import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

PROBE = "pydantic"
NOT_RUN = 75


def audit(*options: str) -> list[dict[str, Any]] | None:
    """Return the dependencies with their advisories, or None when no service answered."""
    command = [str(Path(sys.executable).with_name("pip-audit")), "--format=json", "--progress-spinner=off"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    try:
        found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except ValueError:
        print("pip-audit:", done.stderr.strip().rpartition("\n")[2][:300])
        return None
    return found


def advisories_answer() -> bool:
    """Whether the service knows a package that is certainly on PyPI."""
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder, "requirements.txt")
        requirements.write_text(f"{PROBE}=={version(PROBE)}\n")
        found = audit("--no-deps", "--disable-pip", "-r", str(requirements))
    return found is not None and not any("skip_reason" in package for package in found)


def main() -> int:
    """Print each known vulnerability; 1 when there is one, 75 when nobody could be asked."""
    if not advisories_answer():
        print("PyPI's advisory service is out of reach: the dependencies were not audited")
        return NOT_RUN
    found = audit("--local", "--skip-editable")
    if found is None:
        print("pip-audit failed after its first answer: the dependencies were not audited")
        return NOT_RUN
    for package in found:
        for known in package.get("vulns", []):
            fixed = ", ".join(known["fix_versions"]) or "no release"
            print(f"{package['name']} {package['version']}: {known['id']}, fixed in {fixed}")
    return int(any(package.get("vulns") for package in found))


if __name__ == "__main__":
    sys.exit(main())
