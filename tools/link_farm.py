"""Show the folders of the repository to type checkers as the package `bignas`.

The folders are mapped to `bignas.*` by setuptools (pyproject.toml), which type checkers do not
follow. This makes the ignored folder build/typing with links `bignas/X -> ../../../X`, one for each
top-level package of pyproject.toml; mypy and pyright are pointed at it. Links that are no longer
wanted go away.
"""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def top_level_folders() -> dict[str, str]:
    """Return the top-level packages below `bignas`, as name -> folder."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    mapping: dict[str, str] = settings["tool"]["setuptools"]["package-dir"]
    packages = ((package.split("."), folder) for package, folder in mapping.items())
    return {parts[1]: folder for parts, folder in packages if len(parts) == 2}


def build(farm: Path) -> None:
    """Make the folder `farm` hold one link for each top-level package, and nothing else."""
    farm.mkdir(parents=True, exist_ok=True)
    folders = top_level_folders()
    for entry in farm.iterdir():
        if entry.name not in folders or not entry.is_symlink():
            entry.unlink()
    for name, folder in folders.items():
        link = farm / name
        if not link.is_symlink():
            link.symlink_to(Path("../../..") / folder, target_is_directory=True)


if __name__ == "__main__":
    build(ROOT / "build" / "typing" / "bignas")
