"""Checks, each in an environment of its own. `nox` runs what a change must pass.

Environments come from uv.lock. `test-<model>` holds that package and core alone; `alone-<model>`
installs built wheels outside the workspace, and `alone` does so for every model.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import nox

ROOT = Path(__file__).parent
MODELS = sorted(path.parent.name for path in ROOT.glob("packages/*/pyproject.toml"))

nox.options.default_venv_backend = "uv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "test-core", "side-by-side"]

# What `side-by-side` runs beside the tests of every package; those that take long first.
ON_ONE_CORE = {
    "third-party": [],
    "test-configs": ["-n", "0"],
    "test-extras": ["-n", "0"],
    "attack-quick": [],
    "gpu-rehearsal": [],
    "types": [],
    "build": [],
    "docs": [],
}


# Two threads fight over the small matrices of tests, most of all beside other work: a process for
# each core, and one thread in it. What `dtype=auto` would measure then, no machine would repeat.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "NANOZOO_CPU_PRECISION": "float32"}
PARALLEL = ("-n", "auto", "--dist", "worksteal")


def sync(session: nox.Session, *arguments: str) -> None:
    """Makes the session's environment exactly what uv.lock says for these packages and groups."""
    session.run_install(
        "uv",
        "sync",
        "--locked",
        "--no-default-groups",
        *arguments,
        env={"UV_PROJECT_ENVIRONMENT": session.virtualenv.location},
        silent=True,
    )


@nox.session
def lint(session: nox.Session) -> None:
    """Style, the lock in step with the pyproject files, and imports that point downwards."""
    sync(session, "--all-packages", "--group", "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("uv", "lock", "--check", external=True)
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    """Static types of core and every package, with mypy."""
    sync(session, "--all-packages", "--group", "types")
    session.run("mypy", "core/src", *(f"packages/{model}/src" for model in MODELS))


@nox.session
def build(session: nox.Session) -> None:
    """The wheel and the sdist of every package, as a registry would take them."""
    sync(session, "--only-group", "build")
    with tempfile.TemporaryDirectory() as folder:
        session.run("uv", "build", "--all-packages", "--quiet", "-o", folder, external=True)
        files = [str(path) for path in Path(folder).iterdir() if path.suffix in (".whl", ".gz")]
        session.run("twine", "check", "--strict", *sorted(files))


@nox.session(name="test-core")
def test_core(session: nox.Session) -> None:
    """Tests of core, with no model installed."""
    sync(session, "--package", "nanozoo-core", "--group", "test")
    session.run("pytest", "core/tests", *PARALLEL, *session.posargs, env=ONE_THREAD)


@nox.session
def attack(session: nox.Session) -> None:
    """Odd settings, damaged files, kills, crowds and failing ranks, in ten minutes at most."""
    run_attack(session, *session.posargs)


@nox.session(name="attack-quick")
def attack_quick(session: nox.Session) -> None:
    """A part of the attack, in about a minute."""
    run_attack(session, "--quick", *session.posargs)


def run_attack(session: nox.Session, *arguments: str) -> None:
    sync(session, "--package", "nanozoo-core", "--group", "test")
    session.run("python", "core/attack/run.py", *arguments, env=ONE_THREAD)


@nox.session(name="test-extras")
def test_extras(session: nox.Session) -> None:
    """Tests of what core does with its optional dependencies, all of them installed."""
    sync(session, "--package", "nanozoo-core", "--all-extras", "--group", "test")
    session.run("pytest", "core/tests/extras", *PARALLEL, *session.posargs, env=ONE_THREAD)


@nox.session(name="test-configs")
def test_configs(session: nox.Session) -> None:
    """Every YAML composes and validates; what pages and mutations say of the code is true."""
    sync(session, "--all-packages", "--group", "dev")
    session.run("pytest", "configs", "docs", *PARALLEL, *session.posargs, env=ONE_THREAD)
    session.run("python", "configs/test_configs.py")
    folders = ["core", *(f"packages/{model}" for model in MODELS)]
    session.run("python", "-m", "nanozoo_core.testing.mutants", "--check", *folders)


def make_test_session(model: str) -> None:
    @nox.session(name=f"test-{model}")
    def test(session: nox.Session) -> None:
        sync(session, "--package", f"nanozoo-{model}", "--group", "test")
        session.run(
            "pytest", f"packages/{model}/tests", *PARALLEL, *session.posargs, env=ONE_THREAD
        )

    test.__doc__ = f"Tests of {model}, with core and no other model installed."


def make_alone_session(model: str) -> None:
    @nox.session(name=f"alone-{model}", venv_backend="none")
    def alone(session: nox.Session) -> None:
        with tempfile.TemporaryDirectory() as folder:
            train_from_wheels(session, model, Path(folder))

    alone.__doc__ = f"Builds the wheels of {model}, installs them elsewhere and trains five steps."


@nox.session(name="side-by-side", venv_backend="none")
def side_by_side(session: nox.Session) -> None:
    """What a change must pass beside `lint` and `test-core`, one session for each core at a time:
    `ON_ONE_CORE`, and test-<model> and alone-<model> of every model."""
    with built_wheels(session) as wheels:
        tests = {f"test-{model}": ["-n", "0"] for model in MODELS}
        alone = {f"alone-{model}": [wheels] for model in MODELS}
        run_sessions(session, ON_ONE_CORE | tests | alone)


@nox.session(venv_backend="none")
def alone(session: nox.Session) -> None:
    """The session alone-<model> of every model, one for each core at a time."""
    with built_wheels(session) as wheels:
        run_sessions(session, {f"alone-{model}": [wheels] for model in MODELS})


@nox.session(name="test-packages", venv_backend="none")
def test_packages(session: nox.Session) -> None:
    """The session test-<model> of every model, one for each core at a time."""
    run_sessions(session, {f"test-{model}": ["-n", "0", *session.posargs] for model in MODELS})


@contextmanager
def built_wheels(session: nox.Session) -> Iterator[str]:
    """A folder with the wheel of every package."""
    with tempfile.TemporaryDirectory() as folder:
        session.run("uv", "build", "--wheel", "--all-packages", "-o", folder, silent=True)
        yield folder


def run_sessions(session: nox.Session, sessions: dict[str, list[str]]) -> None:
    """Says how long each took, and shows what those that failed have printed.

    Args: sessions: their arguments by name.
    """

    def run(name: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "nox", "-s", name, "--", *sessions[name]]
        started = time.perf_counter()
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        how = "failed" if ended.returncode else "passed"
        session.log(f"{name} {how} in {time.perf_counter() - started:.0f} s")
        return ended

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ended = dict(zip(sessions, pool.map(run, sessions), strict=True))
    failed = [name for name, process in ended.items() if process.returncode]
    for name in failed:
        session.log(f"{name}:\n{ended[name].stdout}\n{ended[name].stderr}")
    if failed:
        session.error(f"these fail: {', '.join(failed)}")


def workspace_needs(model: str) -> list[str]:
    """The model's distribution and every workspace package it depends on, core among them."""
    found: list[str] = []
    todo = [f"nanozoo-{model}"]
    while todo:
        name = todo.pop()
        short = name.removeprefix("nanozoo-")
        folder = ROOT / ("core" if short == "core" else f"packages/{short}")
        found.append(name)
        project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
        for need in project["dependencies"]:
            if need.startswith("nanozoo-") and need not in (*found, *todo):
                todo.append(need)
    return found


def export_pins(session: nox.Session, package: str, folder: Path) -> Path:
    """A constraints file with the versions that uv.lock has for what the package needs."""
    pins = folder / "pins.txt"
    session.run(
        *("uv", "export", "--locked", "--package", package, "--no-default-groups"),
        *("--no-emit-workspace", "--no-hashes", "-o", str(pins)),
        silent=True,
    )
    return pins


def train_from_wheels(session: nox.Session, model: str, folder: Path) -> None:
    needs = workspace_needs(model)
    wheels = Path(session.posargs[0]) if session.posargs else folder / "wheels"
    for name in () if session.posargs else needs:
        session.run("uv", "build", "--wheel", "--package", name, "-o", str(wheels), silent=True)
    own = [path for name in needs for path in wheels.glob(f"{name.replace('-', '_')}-*.whl")]
    pins = export_pins(session, f"nanozoo-{model}", folder)
    session.run("uv", "venv", str(folder / "env"), silent=True)
    python = str(folder / "env" / "bin" / "python")
    session.run(
        *("uv", "pip", "install", "--python", python, "--constraint", str(pins)),
        *sorted(map(str, own)),
        silent=True,
    )
    work = folder / "work"
    work.mkdir()
    session.chdir(work)
    listed = session.run(str(folder / "env" / "bin" / "nanozoo"), "models", silent=True)
    names = [line.split()[0] for line in str(listed).splitlines() if line]
    expected = sorted(n.removeprefix("nanozoo-") for n in needs)
    expected.remove("core")
    if names != expected:
        session.error(f"expected only {expected} to be installed, found {names}")
    session.run(
        *(str(folder / "env" / "bin" / "train"), "--model", model),
        *("train.max_steps=5", "train.batch_tokens=1024", "eval.bytes=5000", "eval.draws=2"),
        env=ONE_THREAD,
    )
    session.chdir(ROOT)


for name in MODELS:
    make_test_session(name)
    make_alone_session(name)


@nox.session
def slow(session: nox.Session) -> None:
    """The tests marked slow, of core, the recipes and every package."""
    sync(session, "--all-packages", "--all-groups")
    folders = ["core/tests", "configs", *(f"packages/{model}/tests" for model in MODELS)]
    session.run("pytest", "-m", "slow", *folders, *session.posargs, env=ONE_THREAD)


@nox.session
def gpu(session: nox.Session) -> None:
    """Tests, kernels and recipes on a GPU, in ten minutes: a page and its numbers."""
    run_on_a_gpu(session, *session.posargs)


@nox.session(name="gpu-rehearsal")
def gpu_rehearsal(session: nox.Session) -> None:
    """A small part of what `gpu` does, on the CPU."""
    run_on_a_gpu(session, "--rehearse", *session.posargs)


def run_on_a_gpu(session: nox.Session, *arguments: str) -> None:
    sync(session, "--all-packages", "--all-groups")
    session.run("python", "core/benchmarks/on_a_gpu.py", *arguments, env=ONE_THREAD)


@nox.session
def mutants(session: nox.Session) -> None:
    """Breaks equations of every package, or of those named, and asks that its tests notice."""
    sync(session, "--all-packages", "--all-extras", "--all-groups")
    folders = [m if m == "core" else f"packages/{m}" for m in session.posargs or ("core", *MODELS)]
    session.run("python", "-m", "nanozoo_core.testing.mutants", *folders)


# What the core tests and those of the zoo's models show already, or what takes long.
ELSEWHERE = "two_processes or other_model or float64_of or overflow_in or known_source"


@nox.session(name="third-party", venv_backend="none")
def third_party(session: nox.Session) -> None:
    """Two models from elsewhere, of `nanozoo new` and docs/examples/griffin, install beside core's
    wheel, train some steps and pass their tests."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        pins = export_pins(session, "nanozoo-core", work)
        session.run(
            *("uv", "build", "--wheel", "--package", "nanozoo-core", "-o", str(work / "wheels")),
            silent=True,
        )
        session.run("uv", "venv", str(work / "env"), silent=True)
        programs = work / "env" / "bin"
        install = ("uv", "pip", "install", "--python", str(programs / "python"), "-c", str(pins))
        session.run(*install, *map(str, (work / "wheels").glob("*.whl")), silent=True)
        session.chdir(work)
        session.run(str(programs / "nanozoo"), "new", "my_idea")
        shutil.copytree(ROOT / "docs" / "examples" / "griffin", work / "griffin")
        session.run(
            *(*install, "--find-links", str(work / "wheels"), "pytest-xdist"),
            *("-e", "my_idea[test]", "-e", "griffin[test]"),
            silent=True,
        )
        for model in ("my_idea", "griffin"):
            session.run(
                *(str(programs / "train"), "--model", model, "data.tokenizer=bytes"),
                *("train.max_steps=5", "train.batch_tokens=1024", "eval.bytes=5000"),
                env=ONE_THREAD,
            )
            session.run(
                *(str(programs / "pytest"), model, *PARALLEL, "-k", f"not ({ELSEWHERE})"),
                env=ONE_THREAD,
            )
        session.run(str(programs / "nanozoo"), "new", "--undo", "my_idea")
        session.chdir(ROOT)


@nox.session
def readme(session: nox.Session) -> None:
    """Runs every command of the README's `bash` blocks, in order, in a fresh clone."""
    sync(session, "--only-group", "dev")
    session.run("python", "docs/run_commands.py", "README.md", *session.posargs)


@nox.session(name="docs-commands")
def docs_commands(session: nox.Session) -> None:
    """Runs the commands of the pages of docs/, each page in a fresh clone; or of those named."""
    sync(session, "--only-group", "dev")
    found = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/pages/*.md"))
    session.run("python", "docs/run_commands.py", *(session.posargs or found))


@nox.session
def figures(session: nox.Session) -> None:
    """Runs the commands behind the figures of the READMEs, or those named, and compares (long)."""
    sync(session, "--all-packages", "--all-groups")
    session.run("python", "docs/figures.py", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Builds the pages of docs/ and the models' READMEs as a site; a broken link fails."""
    sync(session, "--only-group", "docs")
    session.run("python", "docs/stage_pages.py")
    session.run("zensical", "build", "--strict", "--config-file", "docs/mkdocs.yml")
