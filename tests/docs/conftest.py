"""The workspace that pages are run in: the one that the pipeline's tests share."""

from tests.pipelines.conftest import first_night

__all__ = ["first_night"]
