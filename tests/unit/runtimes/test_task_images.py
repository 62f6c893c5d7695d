"""Tasks with images of their own: what a bundle says of them, and what follows for their sandboxes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from rock.domain.errors import ImageBuildFailed, InvalidRequest
from rock.runtimes.building import build_environment
from rock.runtimes.bundles import Bundle, EnvCatalog
from rock.runtimes.pulling import TIMEOUT_VARIABLE, pull_timeout_s, split
from rock.runtimes.task_images import is_task_image

COUNTER = Path(__file__).parents[2] / "fixtures" / "envs" / "counter"
USER = '\n[task_images]\nuser = "0:0"\n'


@pytest.fixture
def catalog(tmp_path: Path) -> EnvCatalog:
    counter = Path(shutil.copytree(COUNTER, tmp_path / "envs" / "counter"))
    (counter / "env.toml").write_text((counter / "env.toml").read_text() + USER)
    return EnvCatalog(tmp_path / "home", search=[counter.parent])


@pytest.fixture
def bundle(catalog: EnvCatalog) -> Bundle:
    """With an image each for two of its tasks."""
    built = build_environment(catalog, "counter", image=False)
    say(built, {"to-20": ["acme/one:1", "one:1"], "to-21": "acme/two:1"})
    return built


def say(bundle: Bundle, images: object) -> None:
    (bundle.directory / "images.json").write_text(json.dumps(images))


def test_they_have_specs_of_their_own_and_all_others_the_environments(catalog: EnvCatalog, bundle: Bundle) -> None:
    one, two = catalog.task_spec("counter", "to-20"), catalog.task_spec("counter", "to-21")
    assert one is not None
    assert two is not None
    assert catalog.task_spec("counter", "to-3") is None
    assert catalog.task_spec("counter", "../../etc") is None
    assert len({one.image, two.image, catalog.spec("counter").image}) == 3
    assert (one.user, catalog.spec("counter").user) == ("0:0", "")
    assert is_task_image(one.image)
    assert not is_task_image(catalog.spec("counter").image)
    view = catalog.view("counter")
    assert (view.task_images, "user=root" in view.loosened) == (2, True)
    assert set(bundle.images()) == {one.image, two.image, bundle.image}


def test_the_name_of_the_image_says_what_it_is_and_changes_with_what_is_in_it(
    catalog: EnvCatalog, bundle: Bundle
) -> None:
    def name() -> str:
        spec = catalog.task_spec("counter", "to-20")
        assert spec is not None
        return spec.image

    before = name()
    found = catalog.task_of(before)
    assert found is not None
    assert (found[0].directory, found[1].task, found[1].stands_on) == (
        bundle.directory,
        "to-20",
        ("acme/one:1", "one:1"),
    )
    data = bundle.directory / "task-data" / "to-20"
    data.mkdir(parents=True)
    (data / "hidden.json").write_text("1")
    with_data = name()
    (data / "hidden.json").write_text("2")
    assert len({before, with_data, name()}) == 3
    assert catalog.task_of(before) is None  # that is no longer what the task is played in
    assert catalog.task_of(bundle.image) is None
    assert catalog.task_of("python:3.12") is None


@pytest.mark.parametrize("images", [["one"], {"to-20": []}, {"to-20": [1]}, {"to-20": None}], ids=str)
def test_a_file_that_is_not_understood_is_named(catalog: EnvCatalog, bundle: Bundle, images: object) -> None:
    say(bundle, images)
    with pytest.raises(ImageBuildFailed, match=r"images\.json is not understood"):
        catalog.task_spec("counter", "to-20")


def test_the_name_of_an_image_is_split_as_docker_does() -> None:
    assert split("a/b:1") == ("a/b", "1")
    assert split("host:5000/a") == ("host:5000/a", "latest")
    assert split("sweb.eval.x86_64.a__b-1:latest") == ("sweb.eval.x86_64.a__b-1", "latest")


def test_a_time_out_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TIMEOUT_VARIABLE, "soon")
    with pytest.raises(InvalidRequest, match="soon"):
        pull_timeout_s()
    monkeypatch.setenv(TIMEOUT_VARIABLE, "5")
    assert pull_timeout_s() == 5.0
