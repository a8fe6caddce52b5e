"""At install: compiles the kernel of views where there is a C compiler. Without one, or with
LOOKALIKE_NATIVE=0 in the environment, the package is the same for all machines, and makes views in
torch's form.
"""

import importlib.util
import os
import shutil
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class NativeViews(BuildHookInterface):
    """A wheel takes the library, and its platform's tag; an editable install has it in the tree."""

    PLUGIN_NAME = "custom"
    made = ""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        views = Path(self.root, "ssl", "lookalike", "views")
        if self.target_name != "wheel" or os.environ.get("LOOKALIKE_NATIVE") == "0":
            return
        if version != "editable":
            self.made = tempfile.mkdtemp()
        try:
            library = loaded(views / "compiling.py").build(Path(self.made) if self.made else views)
        except OSError as error:
            self.app.display_warning(f"views in torch's form, without the native kernel: {error}")
            return
        if self.made:
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["force_include"][str(library)] = f"lookalike/views/{library.name}"
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self.made:
            shutil.rmtree(self.made, ignore_errors=True)


def loaded(path: Path) -> ModuleType:
    """A module by its file: the package itself would import torch, which is not there yet."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
