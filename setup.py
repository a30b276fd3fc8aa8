"""Builds the CPU kernels into the package; everything else is in pyproject.toml.

Without a C++ compiler the installation succeeds and says what is missing: steps on CPU then run in
plain torch. AUTOMAGIC_CAMEAMP_PURE=1 leaves the kernels out on purpose: one wheel for every system.
"""

import importlib.util
import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools before 70.1
    from wheel.bdist_wheel import bdist_wheel

FOLDER = Path("src") / "automagic_cameamp" / "kernels"


def builder():
    """The package's own build script, without importing the package (which needs torch)."""
    spec = importlib.util.spec_from_file_location("build_kernels", FOLDER / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildKernels(build_ext):
    """Runs the build script in the place of Python's compiler; a failure is a warning."""

    def get_ext_filename(self, fullname):
        """One name for every Python: the library is opened with ctypes."""
        return str(Path(*fullname.split(".")).with_suffix(builder().LIBRARY.suffix))

    def build_extension(self, ext):
        """Compile and link, or say why not."""
        module = builder()
        target = Path(self.get_ext_fullpath(ext.name))
        try:
            module.build(target.resolve())
        except (module.BuildError, OSError) as error:
            print(f"warning: the CPU kernels were not built: {error}", file=sys.stderr)

    def get_outputs(self):
        """What was built; without a compiler nothing."""
        return [path for path in super().get_outputs() if Path(path).exists()]


class PlatformWheel(bdist_wheel):
    """The library holds no Python code, so one wheel serves every Python of a platform."""

    def get_tag(self):
        """Any Python, this platform."""
        tag = super().get_tag()[2]
        return "py3", "none", tag


if os.environ.get("AUTOMAGIC_CAMEAMP_PURE") == "1":
    setup()
else:
    setup(
        ext_modules=[Extension("automagic_cameamp.kernels._native", sources=[], optional=True)],
        cmdclass={"build_ext": BuildKernels, "bdist_wheel": PlatformWheel},
    )
