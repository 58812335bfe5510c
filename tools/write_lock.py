"""Write the lock from a report of pip: `python tools/write_lock.py REPORT LOCK`.

The lock holds exact versions of everything that the project and its `dev` extra pull in; it is
given to pip as a constraints file. `make lock` renews it in a fresh environment.

- Local version parts (`2.13.0+cpu`) are dropped, so that any build of a version satisfies the lock.
- xgboost has two distributions of the same version, chosen by an environment marker in
  pyproject.toml; the lock pins both.
"""

import json
import re
import sys
from pathlib import Path

_HEADER = "# Written by `make lock`; exact versions, used as pip constraints.\n"
_TWINS = {"xgboost-cpu": "xgboost", "xgboost": "xgboost-cpu"}
_OWN_NAME = "bignas"


def locked_versions(report: dict[str, list[dict[str, dict[str, str]]]]) -> dict[str, str]:
    """Return the version of each distribution in a pip report, by normalised name."""
    versions: dict[str, str] = {}
    for item in report["install"]:
        name = re.sub(r"[-_.]+", "-", item["metadata"]["name"]).lower()
        if name == _OWN_NAME:
            continue
        version = item["metadata"]["version"].partition("+")[0]
        versions[name] = version
        if name in _TWINS:
            versions[_TWINS[name]] = version
    return versions


def main() -> None:
    """Read the report named first and write the lock named second."""
    report, lock = Path(sys.argv[1]), Path(sys.argv[2])
    versions = locked_versions(json.loads(report.read_text(encoding="utf-8")))
    lines = [f"{name}=={versions[name]}\n" for name in sorted(versions)]
    lock.write_text(_HEADER + "".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
