"""`[store]`: each of the three in a folder of the workspace or in a bucket, and nothing anywhere else."""

from pathlib import Path

import pytest

from datasets.addresses import ObjectAddress
from datasets.settings import SettingsError, build_settings
from pipelines.config import PipelineConfig, read_config
from pipelines.store_config import StoreConfig


def store(**places: str) -> StoreConfig:
    return build_settings(StoreConfig, places, "offline_dqn.toml")


def test_by_default_everything_lies_in_the_workspace() -> None:
    config = PipelineConfig().store
    assert (config.lake, config.snapshots, config.releases) == ("lake", "snapshots", "releases")
    assert (config.lake_address, config.snapshots_address, config.releases_address) == (None, None, None)


def test_each_place_is_chosen_on_its_own() -> None:
    config = store(lake="s3://lakes/autoscaler/", snapshots="frozen/arrays/")
    assert config.lake_address == ObjectAddress("lakes", "autoscaler")
    assert (config.snapshots, config.releases) == ("frozen/arrays", "releases")


@pytest.mark.parametrize("place", ["/big/lake", "../lake", "a/../../lake", "~/lake", ""])
def test_a_folder_outside_the_workspace_is_refused(place: str) -> None:
    with pytest.raises(SettingsError, match="lake: a folder is named relative to the workspace"):
        store(lake=place)


@pytest.mark.parametrize("place", ["logs", "serving/lake", ".prefect", "."])
def test_a_folder_that_holds_something_else_is_refused(place: str) -> None:
    with pytest.raises(SettingsError, match="holds something else in a workspace"):
        store(snapshots=place)


def test_two_in_one_place_are_refused() -> None:
    with pytest.raises(SettingsError, match="lake and releases cannot share a place"):
        store(lake="s3://night", releases="s3://night/releases")
    with pytest.raises(SettingsError, match="snapshots and releases cannot share a place"):
        store(snapshots="releases")


def test_a_wrong_address_names_the_key_and_shows_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "offline_dqn.toml"
    path.write_text('[store]\nreleases = "gs://b"\n')
    with pytest.raises(SettingsError, match=r"store\.releases: 'gs://' is not spoken"):
        read_config(path)
    path.write_text('[store]\nlake = "s3://AKIA123:wJalr/XUtn@lakes/a"\n')
    with pytest.raises(SettingsError) as refused:
        read_config(path)
    said = str(refused.value)
    assert "store.lake: holds a user or a password" in said
    assert "wJalr" not in said
    assert "AKIA123" not in said
