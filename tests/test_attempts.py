"""Logs of a run that is started again and again."""

from pathlib import Path

from omegaconf import OmegaConf

import srpo_verl
from srpo_verl.attempts import RUNS, keep_log, log_path, write_there

CONFIGURATIONS = Path(srpo_verl.__file__).parent / "config"
FOLDER = f"{RUNS}/${{trainer.project_name}}/${{trainer.experiment_name}}"


def test_every_attempt_keeps_its_log(tmp_path):
    log = tmp_path / "srpo" / "srpo.jsonl"
    log.parent.mkdir()
    assert keep_log(log) is None
    for attempt in (1, 2, 3):
        log.write_text(f"attempt {attempt}\n")
        assert keep_log(log) == log.parent / f"attempt-{attempt}" / "srpo.jsonl"
        log.touch()
        assert keep_log(log) is None  # nothing logged: nothing to keep
    assert [path.read_text() for path in sorted(tmp_path.rglob("attempt-*/srpo.jsonl"))] == [
        "attempt 1\n",
        "attempt 2\n",
        "attempt 3\n",
    ]


def test_the_record_goes_with_its_log(tmp_path):
    log, record = tmp_path / "srpo.jsonl", tmp_path / "srpo.run.json"
    log.write_text("x")
    record.write_text("{}")
    aside = keep_log(log)
    assert not record.exists()
    assert aside.with_suffix(".run.json").read_text() == "{}"


def test_the_log_is_where_veRL_writes_it(tmp_path, monkeypatch):
    from verl.utils.tracking import FileLogger

    for environment in (
        {"VERL_FILE_LOGGER_ROOT": str(tmp_path)},
        {"VERL_FILE_LOGGER_PATH": str(tmp_path / "own.jsonl")},
        {},
    ):
        with monkeypatch.context() as patch:
            for name in ("VERL_FILE_LOGGER_ROOT", "VERL_FILE_LOGGER_PATH"):
                patch.setenv(name, "")  # so that whatever the test leaves there is undone
                patch.delenv(name)
            for name, value in environment.items():
                patch.setenv(name, value)
            patch.chdir(tmp_path)
            write_there(log_path("project", "experiment"))
            logger = FileLogger("project", "experiment")
            logger.finish()
            assert log_path("project", "experiment", environment).samefile(logger.filepath)
    assert (tmp_path / "outputs/project/experiment/metrics.jsonl").is_file()


def test_the_configurations_name_the_same_folder():
    for path in CONFIGURATIONS.glob("*.yaml"):
        config = OmegaConf.load(path)
        if "hydra" in config:
            assert config._get_node("hydra").run._get_node("dir")._value().startswith(FOLDER + "/hydra/")
    base = OmegaConf.load(CONFIGURATIONS / "base.yaml")
    assert base.trainer._get_node("default_local_dir")._value() == FOLDER + "/checkpoints"
