"Packaging that reads settings.ini, the one source of name, version and requirements."
import shlex
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).parent
parser = ConfigParser()
parser.read(here / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]
readme = here / "README.md"


class BuildWithSamples(build_py):
    "Put the sample studies (samples/), the dashboard's notebook (notebooks/) and the rivals' recipes into the wheel."

    def run(self):
        super().run()
        if not self.editable_mode and (here / "data_samples").is_dir():
            target = Path(self.build_lib) / cfg["lib_path"] / "samples"
            shutil.copytree(here / "data_samples", target, dirs_exist_ok=True)
            notebooks = Path(self.build_lib) / cfg["lib_path"] / "notebooks"
            notebooks.mkdir(exist_ok=True)
            shutil.copy(here / "nbs/tutorials/dashboard.ipynb", notebooks)
        if not self.editable_mode and (here / "benchmarks" / "rivals").is_dir():
            target = Path(self.build_lib) / cfg["lib_path"] / "recipes"
            shutil.copytree(here / "benchmarks" / "rivals", target, dirs_exist_ok=True)


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    url=cfg["git_url"],
    packages=find_packages(include=["diffspect_nb", "diffspect_nb.*"]),
    package_data={
        "diffspect_nb": [
            "weights/*.safetensors",
            "weights/*.json",
            "normals/*.safetensors",
            "page/*.safetensors",
            "static/*.js",
            "static/*.css",
            "static/jupyter/voila/templates/*/*",
        ]
    },
    cmdclass={"build_py": BuildWithSamples},
    python_requires=f">={cfg['min_python']}",
    install_requires=shlex.split(cfg["requirements"]),
    extras_require={name: shlex.split(cfg[f"{name}_requirements"]) for name in ("dev", "app", "cluster", "reader")},
    entry_points={
        "console_scripts": shlex.split(cfg["console_scripts"]),
        "nbdev": [f"{cfg['lib_name']}={cfg['lib_name']}._modidx:d"],
    },
)
