"""Adds the config files of the checkout to the package; everything else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfigs(build_py):
    """Copies ``configs/`` to ``cdgcnet/configs``, as Detectron2 does for its model zoo."""

    def run(self):
        super().run()
        if not self.editable_mode:  # a checkout reads them where they are
            shutil.copytree(
                Path(__file__).resolve().parent / "configs",
                Path(self.build_lib) / "cdgcnet" / "configs",
                ignore=shutil.ignore_patterns("experiments"),
                dirs_exist_ok=True,
            )


setup(cmdclass={"build_py": BuildWithConfigs})
