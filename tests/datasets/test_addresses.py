"""Addresses of an object store: what they mean, and what is refused before anything is looked up."""

import pytest

from datasets.addresses import ObjectAddress, is_object_address, parse_address


@pytest.mark.parametrize(
    ("text", "bucket", "prefix"),
    [
        ("s3://night-lake", "night-lake", ""),
        ("s3://night-lake/", "night-lake", ""),
        ("s3://night.lake/team/autoscaler/", "night.lake", "team/autoscaler"),
    ],
)
def test_an_address_is_a_bucket_and_a_prefix(text: str, bucket: str, prefix: str) -> None:
    assert parse_address(text) == ObjectAddress(bucket, prefix)
    assert parse_address(str(parse_address(text))) == ObjectAddress(bucket, prefix)


def test_what_lies_in_an_address_is_named_as_with_paths() -> None:
    assert str(ObjectAddress("lakes", "") / "steps" / "a.parquet") == "s3://lakes/steps/a.parquet"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gs://lakes/a", "'gs://' is not spoken here"),
        ("file:///lakes", "'file://' is not spoken here"),
        ("s3://Lakes/a", "'Lakes' is no name of a bucket"),
        ("s3:///a", "'' is no name of a bucket"),
        ("s3://lakes/a/../b", r"'\.\.' cannot stand between the slashes"),
        ("s3://lakes/a//b", "'' cannot stand between the slashes"),
        ("s3://lakes/a'b", "cannot stand between the slashes"),
        ("s3://lakes/a?versionId=1", "cannot stand between the slashes"),
    ],
)
def test_what_is_no_address_is_refused_with_the_part_that_is_wrong(text: str, says: str) -> None:
    assert is_object_address(text)
    with pytest.raises(ValueError, match=says):
        parse_address(text)


def test_a_key_in_an_address_is_refused_and_never_repeated() -> None:
    with pytest.raises(ValueError, match="AWS_SECRET_ACCESS_KEY") as refused:
        parse_address("s3://AKIA123:wJalr/XUtn@lakes/a")
    assert "wJalr" not in str(refused.value)
    assert "AKIA123" not in str(refused.value)
