"""Import every module of the installed packages: none may need an extra before it is used."""

from __future__ import annotations

import importlib
import pkgutil

for package in ("stages", "weaksam", "weaksam_cli"):
    root = importlib.import_module(package)
    for module in pkgutil.walk_packages(root.__path__, f"{package}."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
