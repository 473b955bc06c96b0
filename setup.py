"""Build of the compiled kernels, and which packages there are; all else about pyops is in pyproject.toml.

Sources and packages are globbed, so adding an op or a folder never edits this file. ninja builds
  pyops/_lib/libpyops_cpu_{baseline,avx2,avx512}.so   the same csrc/cpu sources, one loaded at run time;
                                                      by default only this machine's (PYOPS_CPU_VARIANTS)
  pyops/_lib/libpyops_cuda.so                         csrc/cuda, when asked for or when torch has CUDA
  pyops/_lib/build_facts.json                         what was built, and how
against LibTorch's Stable ABI: one build runs on every torch >= 2.11, and the CUDA library builds on a
machine without a GPU and with a CPU-only torch (PYOPS_WITH_CUDA=1). torch loads the libraries, so a wheel
(`make wheel`) serves every Python. Builds in place have pyops/_build_info.*.so as well: a pybind11 module,
which would tie a wheel to one Python, with the facts as the compiler saw them.
"""

import json
import os
import platform
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Collection
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
#: Folders of the source tree, by the names of the packages that they are installed as.
PACKAGE_FOLDERS = {
    "pyops": "pyops",
    "pyops.models": "models",
    "pyops.triton_kernels": "triton_kernels",
    "pyops.benchmarks": "benchmarks",
}
#: What was built, beside the libraries: `pyops info` shows it.
FACTS = "build_facts.json"
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # torch 2.11
#: The compiler's flags of each variant of the CPU library, the least demanding first.
CPU_FLAGS = {"baseline": ""}
if platform.machine().lower() in ("x86_64", "amd64"):
    CPU_FLAGS["avx2"] = "-mavx2 -mfma -mf16c"
    CPU_FLAGS["avx512"] = CPU_FLAGS["avx2"] + " -mavx512f -mavx512bw -mavx512vl -mavx512dq"


def find_torch() -> tuple[Path, dict]:
    """Folder and version facts of the torch of the target environment, also inside pip's build isolation."""
    scheme = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    for folder in [*scheme, *site.getsitepackages(), site.getusersitepackages(), *sys.path]:
        version_file = Path(folder, "torch", "version.py")
        if version_file.is_file():
            facts: dict = {}
            exec(version_file.read_text(), facts)
            if tuple(map(int, facts["__version__"].split(".")[:2])) < (2, 11):
                sys.exit(f"pyops needs torch >= 2.11, but {version_file.parent} is {facts['__version__']}")
            return version_file.parent, facts
    sys.exit(
        f"pyops builds against the torch of your environment, and {sys.prefix} has none.\n"
        "Install it first, for example:\n    pip install 'torch>=2.11'\nthen run this command again."
    )


def cpu_variants(cxx: str) -> list[str]:
    """Variants of the CPU library to build: PYOPS_CPU_VARIANTS=native (the default), all or names by commas.

    ``native`` is the one that this machine loads. It is what a build for one's own machine needs; what is
    built for others, as a wheel is, needs them all.
    """
    setting = os.environ.get("PYOPS_CPU_VARIANTS", "native")
    if setting == "all":
        return list(CPU_FLAGS)
    if setting == "native":
        query = [*shlex.split(cxx), "-march=native", "-dM", "-E", "-x", "c++", os.devnull]
        answer = subprocess.run(query, capture_output=True, text=True, check=False)
        if answer.returncode:
            return list(CPU_FLAGS)  # the compiler does not know this machine: build for any
        has = {line.split()[1].strip("_").lower() for line in answer.stdout.splitlines()}
        needs = {name: {flag[2:] for flag in flags.split()} for name, flags in CPU_FLAGS.items()}
        return [[name for name in CPU_FLAGS if needs[name] <= has][-1]]
    names = [name.strip() for name in setting.split(",")]
    if unknown := [name for name in names if name not in CPU_FLAGS]:
        sys.exit(f"PYOPS_CPU_VARIANTS must be native, all or some of {', '.join(CPU_FLAGS)}, got {unknown}")
    return [name for name in CPU_FLAGS if name in names]


def find_nvcc(torch_has_cuda: bool) -> str | None:
    """Path of nvcc when CUDA is to be built: PYOPS_WITH_CUDA=0/1, else whether torch has CUDA."""
    setting = os.environ.get("PYOPS_WITH_CUDA", "auto")
    if setting not in ("0", "1", "auto"):
        sys.exit(f"PYOPS_WITH_CUDA must be 0, 1 or auto, got {setting!r}")
    if setting == "0" or (setting == "auto" and not torch_has_cuda):
        return None
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    found = [shutil.which("nvcc", path=f"{home}/bin") for home in homes if home] + [shutil.which("nvcc")]
    nvcc = next(filter(None, found), None)
    if nvcc is None and setting == "1":
        sys.exit("PYOPS_WITH_CUDA=1, but nvcc was not found: set CUDA_HOME or put nvcc on PATH")
    return nvcc


def nvcc_release(nvcc: str) -> str:
    """Version of CUDA that ``nvcc`` compiles for."""
    text = subprocess.check_output([nvcc, "--version"], text=True)
    found = re.search(r"release (\d+\.\d+)", text)
    return found[1] if found else text.strip()


def compiler_version(cxx: str) -> str:
    """The C++ compiler's name and version, as it tells its sources."""
    query = [*shlex.split(cxx), "-dM", "-E", "-x", "c++", os.devnull]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    found = re.search(r'^#define __VERSION__ "(.*)"$', answer.stdout, re.MULTILINE)
    return f"{Path(shlex.split(cxx)[0]).name} {found[1] if found else 'of unknown version'}"


def cuda_archs(nvcc: str) -> list[str]:
    """Compute capabilities as in TORCH_CUDA_ARCH_LIST; by default all we tune for that nvcc knows."""
    if listed := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        return re.split(r"[;,\s]+", listed.strip(" ;"))
    known = subprocess.check_output([nvcc, "--list-gpu-arch"], text=True).split()
    archs = [a for a in ("8.0", "9.0", "10.0", "12.0") if f"compute_{a.replace('.', '')}" in known]
    return [*archs[:-1], archs[-1] + "+PTX"]


def own_ptx(source: Path) -> set[str]:
    """Architectures for which ``source`` is compiled to a PTX of its own, as it says in a line of its own:

        // Architectures with a PTX of their own: 9.0a

    It may then use what only they have, such as wgmma, where ``__CUDA_ARCH_FEAT_SM90_ALL`` is defined.
    """
    lines = re.findall(r"^// Architectures with a PTX of their own: (.+)$", source.read_text(), re.MULTILINE)
    asked = {arch for line in lines for arch in re.split(r"[,\s]+", line.strip())}
    if unknown := sorted(arch for arch in asked if not re.fullmatch(r"\d+\.\d[af]?", arch)):
        sys.exit(f"{source} asks for a PTX of its own for {', '.join(unknown)}: no compute capability")
    return asked


def gencode(archs: list[str], own: Collection[str] = ()) -> str:
    """nvcc's flags: machine code for each of ``archs``, from one compilation to PTX per generation.

    Most kernels ask for nothing newer than 8.0, and then nvcc makes the same PTX for every capability before
    10.0, and the same for every one since: only ptxas has to run for each of them. An architecture of ``own``
    is compiled to a PTX of its own, which "9.0a" always is; it takes the place of a plain 9.0 in ``archs``.
    """
    asked = {name.rstrip("af").replace(".", ""): name.replace(".", "") for name in own}
    numbers = [arch.removesuffix("+PTX").replace(".", "") for arch in archs]

    def virtual(number: str) -> str:
        family = [n for n in numbers if n.isdigit() and (int(n) < 100) == (int(number) < 100)]
        return min(family, key=int)

    flags = []
    for arch, number in zip(archs, numbers, strict=True):
        source = virtual(number) if number.isdigit() else number
        special = asked.get(number)
        flags.append(f"-gencode=arch=compute_{special or source},code=sm_{special or number}")
        if arch.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{source},code=compute_{source}")
    return " ".join(flags)


def embedded_ptx(archs: list[str]) -> list[str]:
    """Compute capabilities whose PTX is in the library: later GPUs run it, other than that of 9.0a."""
    return [f"{name[:-1]}.{name[-1]}" for name in re.findall(r"code=compute_(\d+)(?!\w)", gencode(archs))]


def folders_unnamed(torch_dir: Path) -> list[str]:
    """The C++ compiler's flags by which what is shipped names no folder of the machine that built it.

    torch's macros keep the names of sources for its messages. pip unpacks a source distribution into a folder
    of a random name, so without these no two builds have the same bytes.
    """
    return [f"-ffile-prefix-map={folder}=." for folder in (torch_dir.parent, ROOT)]


def write_if_changed(file: Path, text: str) -> None:
    """Leave the file's time alone where nothing has changed: ninja builds again what is older."""
    if not file.exists() or file.read_text() != text:
        file.write_text(text)


class BuildKernels(build_ext):
    def run(self) -> None:
        self.targets: list[str] = []
        torch_dir, torch_facts = find_torch()
        nvcc = find_nvcc(torch_facts.get("cuda") is not None)
        archs = cuda_archs(nvcc) if nvcc else []
        self.cxx = os.environ.get("CXX", "g++")
        self.cpu_flags = {name: CPU_FLAGS[name] for name in cpu_variants(self.cxx)}
        self.work = Path(self.build_temp).resolve() / "kernels"
        self.out = (ROOT if self.inplace or self.editable_mode else Path(self.build_lib).resolve()) / "pyops"
        for folder in (self.work, self.out / "_lib"):
            folder.mkdir(parents=True, exist_ok=True)
        facts = {
            "torch": torch_facts["__version__"],
            "cpu": self.cpu_flags,
            "cuda_archs": archs,
            "cuda_ptx": embedded_ptx(archs),
            "cuda": nvcc_release(nvcc) if nvcc else None,
            "compiler": compiler_version(self.cxx),
        }
        write_if_changed(self.work / "build_facts.h", f'#define PYOPS_BUILD_FACTS R"({json.dumps(facts)})"\n')
        write_if_changed(self.out / "_lib" / FACTS, json.dumps(facts, indent=2) + "\n")
        print(f"pyops: torch {facts['torch']}; CPU: {', '.join(self.cpu_flags)}; CUDA: {archs}", flush=True)
        (self.work / "build.ninja").write_text("\n".join(self.ninja_lines(torch_dir, nvcc, archs)) + "\n")
        ninja = shutil.which("ninja") or sys.exit("pyops: building needs ninja: pip install ninja")
        jobs = ["-j", os.environ["MAX_JOBS"]] if "MAX_JOBS" in os.environ else []
        if subprocess.run([ninja, "--quiet", *jobs, "-C", self.work]).returncode:
            sys.exit("pyops: the build of the kernels failed; the compiler's message is above")
        for library in (self.out / "_lib").glob("*.so"):
            if str(library) not in self.targets:
                library.unlink()  # of an earlier build with other settings: it must not be loaded

    def ninja_lines(self, torch_dir: Path, nvcc: str | None, archs: list[str]) -> list[str]:
        common = f"-std=c++17 -O3 {STABLE_ABI} -I{CSRC} -isystem {torch_dir}/include $flags -c $in -o $out"
        unnamed = [] if self.inplace or self.editable_mode else folders_unnamed(torch_dir)
        # GCC takes its own AVX-512 headers to read uninitialised values (GCC bug 105593).
        warnings = "-Wall -Wextra -Wno-uninitialized -Wno-maybe-uninitialized -Wno-psabi"
        # libtorch.so needs libtorch_cuda.so where torch has CUDA, and exists everywhere.
        torch_libraries = f"-L{torch_dir}/lib -ltorch -ltorch_cpu"
        hidden = ",".join(["-Xcompiler=-fPIC,-fvisibility=hidden", *unnamed])
        no_exports = (
            f"--version-script={CSRC}/exports.map"  # templates of the standard library are not hidden
        )
        rules = {
            "cxx": f"{self.cxx} -fPIC -fvisibility=hidden {warnings} {' '.join(unnamed)} {common} "
            "-MMD -MF $out.d",
            "nvcc": f"{nvcc} {hidden} -lineinfo --expt-relaxed-constexpr -DUSE_CUDA {common} -MD -MF $out.d",
            "link": f"{self.cxx} -shared $in -o $out -Wl,{no_exports},--no-as-needed {torch_libraries}",
            "link_cuda": f"{nvcc} -shared $in -o $out -Xlinker {no_exports},--no-as-needed {torch_libraries}",
            "link_module": f"{self.cxx} -shared $in -o $out",
        }
        lines = [f"rule {name}\n command = {command}" for name, command in rules.items()]
        lines = [f"{r}\n depfile = $out.d\n deps = gcc" if "$out.d" in r else r for r in lines]

        def link(target: str, rule: str, objects: list[Path]) -> None:
            lines.append(f"build {self.out}/{target}: {rule} {' '.join(map(str, objects))}")
            self.targets.append(f"{self.out}/{target}")

        def library(target: str, folder: str, compile_rule: str, link_rule: str, flags: str = "") -> None:
            suffix = {"cxx": "cpp", "nvcc": "cu"}[compile_rule]
            sources = sorted(CSRC.glob(f"{folder}/**/*.{suffix}"))
            objects = [self.work / target / f"{source.relative_to(CSRC)}.o" for source in sources]
            for source, o in zip(sources, objects, strict=True):
                own = gencode(archs, own_ptx(source)) if compile_rule == "nvcc" else flags
                lines.append(f"build {o}: {compile_rule} {source}\n flags = {own}")
            link(target, link_rule, objects)

        for variant, flags in self.cpu_flags.items():
            library(f"_lib/libpyops_cpu_{variant}.so", "cpu", "cxx", "link", flags)
        if nvcc:
            library("_lib/libpyops_cuda.so", "cuda", "nvcc", "link_cuda")
        if self.inplace or self.editable_mode:
            self.link_info_module(lines, link)
        return lines

    def link_info_module(self, lines: list[str], link: Callable[[str, str, list[Path]], None]) -> None:
        """The facts as a module, whose compiler and headers are those of the interpreter at hand."""
        module = f"_build_info{sysconfig.get_config_var('EXT_SUFFIX')}"
        info = self.work / f"{module}.o"
        lines.append(f"build {info}: cxx {CSRC}/build_info.cpp")
        lines.append(f" flags = -isystem {sysconfig.get_path('include')} -I{self.work}")
        link(module, "link_module", [info])

    def get_outputs(self) -> list[str]:
        targets = getattr(self, "targets", [])
        return [*targets, f"{self.out}/_lib/{FACTS}"] if targets else []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class AnyPythonWheel(bdist_wheel):
    """Of this platform, for every Python: torch loads the libraries, and they call nothing of Python's."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def version() -> str:
    """The package's own, and what tells wheels of it apart: PYOPS_LOCAL_VERSION=cu130 makes 0.1.0+cu130."""
    facts: dict = {}
    exec((ROOT / "pyops" / "_version.py").read_text(), facts)
    local = os.environ.get("PYOPS_LOCAL_VERSION")
    return facts["__version__"] + (f"+{local}" if local else "")


def find_all_packages() -> list[str]:
    """The packages of :data:`PACKAGE_FOLDERS` with all packages below them."""
    below = {package: find_packages(str(ROOT / folder)) for package, folder in PACKAGE_FOLDERS.items()}
    return [*below, *(f"{package}.{name}" for package, names in below.items() for name in names)]


def editable_layout() -> dict:
    """Packages and their folder for an editable install: a folder that holds a link to ``pyops`` only.

    setuptools then puts that folder on Python's path, where type checkers and editors find the package; of
    several folders it would make an import hook, which they do not follow. ``pyops`` itself finds the others
    (``pyops/__init__.py``), which must not be importable by their bare names.
    """
    home = ROOT / ".editable"
    home.mkdir(exist_ok=True)
    if not (home / "pyops").is_symlink():
        (home / "pyops").symlink_to(Path("..", "pyops"), target_is_directory=True)
    return {"packages": ["pyops"], "package_dir": {"": home.name}}


def installed_layout() -> dict:
    return {"packages": find_all_packages(), "package_dir": PACKAGE_FOLDERS}


find_torch()  # say so now, before pip starts to download a torch of its own choice
setup(
    version=version(),
    **(editable_layout() if "editable_wheel" in sys.argv else installed_layout()),
    ext_modules=[Extension("pyops._build_info", [])],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": AnyPythonWheel},
)
