"""Environments on disk: found, described, built, and told apart from what they were."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rock.domain.errors import ImageBuildFailed, ImageNotFound, InvalidRequest, NotFound
from rock.runtimes.building import build_environment
from rock.runtimes.bundles import EnvCatalog
from rock.runtimes.manifest import read_manifest

COUNTER = Path(__file__).parents[2] / "fixtures" / "envs" / "counter"


@pytest.fixture
def counter(tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(COUNTER, tmp_path / "envs" / "counter"))


@pytest.fixture
def catalog(tmp_path: Path, counter: Path) -> EnvCatalog:
    return EnvCatalog(tmp_path / "home", search=[counter.parent])


def build(catalog: EnvCatalog, **options: bool) -> str:
    return build_environment(catalog, "counter", image=False, **options).digest


def test_what_is_not_built_says_how_to_build_it(catalog: EnvCatalog) -> None:
    view = catalog.view("counter")
    assert (view.built, view.version, view.recovery) == (False, "1.0.0", "replay")
    assert "rock env build counter" in view.build_detail
    for call in (lambda: catalog.spec("counter"), lambda: catalog.tasks("counter", "train")):
        with pytest.raises(ImageNotFound, match="rock env build counter"):
            call()


def test_an_unknown_name_gets_the_nearest(catalog: EnvCatalog) -> None:
    with pytest.raises(NotFound, match="Did you mean 'counter'"):
        catalog.get("conter")


def test_a_built_bundle_is_all_that_a_sandbox_needs(catalog: EnvCatalog) -> None:
    bundle = build_environment(catalog, "counter", image=False)
    spec = catalog.spec("counter")
    assert spec.image == f"rock-env-counter:{bundle.digest}"
    assert catalog.bundle_dir(spec.image) == bundle.directory
    assert spec.limits.memory_bytes == 96 << 20
    assert catalog.view("counter").splits == {"train": 10, "heldout": 2}
    assert catalog.tasks("counter", "heldout") == ["to-20", "to-21"]
    with pytest.raises(NotFound, match="train, heldout"):
        catalog.tasks("counter", "test")
    code = "from counter.env import CounterEnv; print(CounterEnv().reset('to-3', 0, {})[0])"
    path = f"{bundle.directory}/src:{bundle.directory}/site"
    environ = {"PYTHONPATH": path, "ROCK_ENV_DATA": f"{bundle.directory}/data"}
    done = subprocess.run([sys.executable, "-S", "-c", code], env=environ, capture_output=True, text=True, cwd="/")
    assert done.stdout == "Count! 0 of 3\n", done.stderr


def test_the_digest_is_of_the_content(catalog: EnvCatalog, counter: Path) -> None:
    first = build(catalog)
    assert build(catalog) == first
    assert build(catalog, quick=True) != first
    build(catalog)
    (counter / "__pycache__").mkdir()
    (counter / "__pycache__" / "x.pyc").write_text("x")
    assert not catalog.view("counter").build_detail
    (counter / "env.py").write_text((counter / "env.py").read_text() + "\n# changed\n")
    assert "changed since" in catalog.view("counter").build_detail
    assert build(catalog) != first


def test_a_build_that_fails_leaves_the_old_one_and_nothing_half_done(catalog: EnvCatalog, counter: Path) -> None:
    first = build(catalog)
    (counter / "prepare.py").write_text("import sys; print('one'); sys.exit('no games today')")
    with pytest.raises(ImageBuildFailed, match="no games today") as failed:
        build(catalog)
    assert "one" in failed.value.cause
    (counter / "prepare.py").write_text("pass")
    with pytest.raises(ImageBuildFailed, match=r"tasks\.json"):
        build(catalog)
    assert sorted(path.name for path in (catalog.root / "counter").iterdir()) == sorted([first, "current.json"])
    assert catalog.spec("counter").image.endswith(first)


def add_requirements(counter: Path, name: str, modules: dict[str, str]) -> None:
    """A wheel with ``modules`` and a file that requires it by its path: pip asks no registry."""
    label = name.replace("-", "_")
    wheel = counter.parent / f"{label}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in modules.items():
            archive.writestr(path, text)
        info = f"{label}-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    (counter / f"{name}.txt").write_text(f"{wheel}\n")


def test_what_is_optional_is_added_and_replaces_nothing(catalog: EnvCatalog, counter: Path) -> None:
    add_requirements(counter, "needed", {"needed.py": "", "both.py": "needed"})
    add_requirements(counter, "extra", {"extra.py": "", "both.py": "extra"})
    keys = '[bundle]\nrequirements = "needed.txt"\noptional_requirements = "extra.txt"'
    (counter / "env.toml").write_text((counter / "env.toml").read_text().replace("[bundle]", keys))
    for _ in range(2):  # the second is built of what pip left
        bundle = build_environment(catalog, "counter", image=False, force=True)
        site = bundle.directory / "site"
        assert {path.name for path in site.glob("*.py")} == {"needed.py", "extra.py", "both.py"}
        assert (site / "both.py").read_text() == "needed"


def test_what_is_optional_and_fails_is_a_warning_that_says_what_is_lost(catalog: EnvCatalog, counter: Path) -> None:
    add_requirements(counter, "needed", {"needed.py": ""})
    (counter / "extra.txt").write_text(f"{counter}/absent-1.0-py3-none-any.whl\n")
    keys = '[bundle]\nrequirements = "needed.txt"\noptional_requirements = "extra.txt"\noptional_for = "flying"'
    (counter / "env.toml").write_text((counter / "env.toml").read_text().replace("[bundle]", keys))
    said: list[str] = []
    bundle = build_environment(catalog, "counter", image=False, on_line=said.append)
    assert (bundle.directory / "site" / "needed.py").is_file()
    warnings = [line for line in said if line.startswith("Warning")]
    assert "extra.txt" in warnings[0]
    assert "flying will not work" in warnings[1]
    assert "rock env build counter --force" in warnings[1]
    (counter / "extra.txt").unlink()
    with pytest.raises(ImageBuildFailed, match=r"there is no .*extra\.txt"):
        build(catalog)


def test_what_is_required_and_fails_ends_the_build(catalog: EnvCatalog, counter: Path) -> None:
    (counter / "needed.txt").write_text(f"{counter}/absent-1.0-py3-none-any.whl\n")
    keys = '[bundle]\nrequirements = "needed.txt"'
    (counter / "env.toml").write_text((counter / "env.toml").read_text().replace("[bundle]", keys))
    with pytest.raises(ImageBuildFailed, match=r"installing needed\.txt of counter failed"):
        build(catalog)


def test_a_build_finds_the_python_that_runs_it(
    catalog: EnvCatalog, counter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (counter / "prepare.py").read_text()
    (counter / "prepare.py").write_text(
        f"import os\nprint('PATH is', os.environ['PATH'])\n{code[code.index('import') :]}"
    )
    monkeypatch.setenv("PATH", "/nowhere")
    said: list[str] = []
    build_environment(catalog, "counter", image=False, on_line=said.append)
    assert f"PATH is {Path(sys.executable).parent}:/nowhere" in said


def test_what_a_killed_build_left_is_swept(catalog: EnvCatalog) -> None:
    left = catalog.root / "counter" / ".build-999999999-x"
    left.mkdir(parents=True)
    build(catalog)
    assert not left.exists()


def test_a_bundle_is_found_by_its_image_only_where_bundles_are(catalog: EnvCatalog) -> None:
    build(catalog)
    for image in ("python:3.11", "rock-env-counter:", "rock-env-counter:nope", "rock-env-../../x:y", "rock-env-.:.."):
        assert catalog.bundle_dir(image) is None, image


def test_environments_are_never_imported_to_be_found(catalog: EnvCatalog, counter: Path) -> None:
    (counter / "__init__.py").write_text("raise RuntimeError('imported')")
    assert "counter" in catalog.names()
    assert not catalog.view("counter").built


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("memory_mb = 96", "memory_md = 96", "did you mean 'memory_mb'"),
        ('recovery = "replay"', 'recovery = "magic"', "recovery is 'magic'"),
        ('entry = "counter.env:CounterEnv"', 'entry = "counter.env"', "entry is 'counter.env'"),
        ('version = "1.0.0"', "", "'version' is missing"),
        ("[pool]", "[pool", "no valid TOML"),
        ("cpus = 0.5", "cpus = 0", "limits.cpus is 0"),
    ],
)
def test_a_mistake_in_env_toml_is_named(counter: Path, old: str, new: str, told: str) -> None:
    path = counter / "env.toml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InvalidRequest) as refused:
        read_manifest(counter)
    assert told in refused.value.message
    assert str(path) in refused.value.message


def test_current_says_what_was_built(catalog: EnvCatalog) -> None:
    digest = build(catalog, quick=True)
    current = json.loads((catalog.root / "counter" / "current.json").read_text())
    assert (current["digest"], current["quick"]) == (digest, True)
