"""What is installed beside pyops: ``python .ci/audit.py``, a part of ``make lint``.

Every package that pyops needs, or that its extras name, and what these need in turn, must have a licence that
asks for no more than attribution or for the source of its own changes. Known vulnerabilities are looked up by
pip-audit where it is installed and finds its index; where not, that is said and is no failure.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Words of licences that are good to build on, in lower case.
GOOD = (
    *("mit", "bsd", "apache", "psf", "python software foundation", "isc", "zlib", "unlicense", "hpnd"),
    *("mozilla public license", "mpl", "0bsd", "cc0", "public domain", "bsl-1.0", "boost"),
)


def licence(found: Distribution) -> str:
    """What the metadata say, in the order in which they can be trusted."""
    meta = found.metadata
    classifiers = [c for c in meta.get_all("Classifier") or [] if c.startswith("License ::")]
    names = [c.rpartition("::")[2].strip() for c in classifiers if c.count("::") > 1]
    text = (meta.get("License") or "").strip().partition("\n")[0]
    return meta.get("License-Expression") or "; ".join(names) or text


def needed() -> dict[str, Distribution]:
    """The installed packages that pyops and its extras need, and those that these need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*project["dependencies"], *(r for e in project["optional-dependencies"].values() for r in e)]
    names = [re.split(r"[^\w.-]", r)[0] for r in asked]
    found: dict[str, Distribution] = {}
    while names:
        name = re.sub(r"[-_.]+", "-", names.pop()).lower()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue  # of an extra, or of another system, that is not installed
        if name != "torch":  # what it needs, such as NVIDIA's libraries, is its own choice
            names += [re.split(r"[^\w.-]", r)[0] for r in found[name].requires or [] if "extra ==" not in r]
    return found


def questionable(text: str) -> bool:
    """Whether ``text``, or a part of it that holds as well as the others, names no licence that is good."""
    parts = re.split(r"\bAND\b", text)
    return not all(any(re.search(rf"\b{re.escape(word)}", part.lower()) for word in GOOD) for part in parts)


def audit() -> str:
    """What pip-audit says of all that is installed; raises SystemExit where it knows of a vulnerability."""
    if importlib.util.find_spec("pip_audit") is None:
        return "vulnerabilities: not looked up, pip-audit is not installed"
    command = [sys.executable, "-m", "pip_audit", "--progress-spinner", "off", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        said = done.stderr.strip().splitlines() or ["no answer"]
        return f"vulnerabilities: not looked up: {said[-1][:200]}"
    known = [p for p in packages if p.get("vulns")]
    if known:
        sys.exit("\n".join(f"{p['name']} {p['version']}: {[v['id'] for v in p['vulns']]}" for p in known))
    skipped = sum("skip_reason" in p for p in packages)  # the index, or a mirror, has no record of them
    return f"vulnerabilities: {len(packages) - skipped} packages looked up, {skipped} not; none known"


def main() -> None:
    packages = needed()
    licences = {name: licence(found) for name, found in packages.items()}
    bad = {name: text for name, text in licences.items() if questionable(text)}
    print(f"licences: {len(packages)} packages, {len(bad)} in question")
    for name, text in sorted(bad.items()):
        print(f"  {name}: {text or 'says nothing'}")
    print(audit())
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
