"""Logs of a run that is started again and again."""

from srpo_verl.attempts import keep_log, log_path


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
    ):
        with monkeypatch.context() as patch:
            for name in ("VERL_FILE_LOGGER_ROOT", "VERL_FILE_LOGGER_PATH"):
                patch.delenv(name, raising=False)
            for name, value in environment.items():
                patch.setenv(name, value)
            logger = FileLogger("project", "experiment")
            logger.finish()
        assert log_path("project", "experiment", environment).samefile(logger.filepath)
