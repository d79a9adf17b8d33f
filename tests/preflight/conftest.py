import pytest

from srpo_verl.config.check import check_run
from srpo_verl.preflight.run import examine
from tests.preflight import configure, row, write
from tests.support import tiny_model


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("preflight") / "model")


@pytest.fixture
def look(model, tmp_path):
    """Examine a run; what is not given is in order. The files are train.parquet and val.parquet in tmp_path."""

    def look_at(*overrides, train=None, val=None, name="srpo", path=model):
        train = train if train is not None else [row() for _ in range(4)]
        files = [write(tmp_path / "train.parquet", train), write(tmp_path / "val.parquet", val or [row()])]
        config = configure(path, *files, *overrides, name=name)
        return examine(config, check_run(config))

    return look_at
