"""What is printed: lists of rows, the last line, the command, and the end of a real command before Ray."""

import json
import pickle
import re
import time

import pytest
from omegaconf import OmegaConf

from srpo_verl import check
from srpo_verl.errors import ConfigError, RunStopped
from srpo_verl.preflight.failure import in_one_line, root_cause
from srpo_verl.preflight.findings import ERROR, NOTE, OK, Finding, last_line, render, write
from srpo_verl.stall import leave_word
from srpo_verl.start import ConfigCheck
from tests.preflight import configure, row
from tests.preflight import write as write_rows
from tests.support import run_main_ppo


def bad_rows(number, kind="ground truth", file="train.parquet"):
    return [Finding(ERROR, kind, f"wrong {row}", "correct them", file, row) for row in range(number)]


def test_rows_are_listed_by_kind_with_their_number():
    findings = [*bad_rows(3), Finding(OK, "model", "fine"), *bad_rows(1, "prompt"), *bad_rows(22, "length")]
    lines = render(findings).splitlines()
    assert lines[:6] == [
        "error  ground truth: 3 rows; correct them",
        "         train.parquet row 0: wrong 0",
        "         train.parquet row 1: wrong 1",
        "         train.parquet row 2: wrong 2",
        "ok     model: fine",
        "error  prompt: train.parquet row 0: wrong 0; correct them",
    ]
    assert lines[6] == "error  length: 22 rows; correct them"
    assert lines[-2:] == ["         train.parquet row 19: wrong 19", "         ... and 2 more"]


def test_the_last_line_is_one_line():
    assert last_line(bad_rows(1)) == "srpo_verl: ground truth: train.parquet row 0: wrong 0; correct them"
    findings = [Finding(NOTE, "a", "b"), Finding(ERROR, "model", "first\n  second"), *bad_rows(2)]
    assert last_line(findings) == "srpo_verl: model: first second (the first of 3 errors, listed above)"


def test_the_whole_list_goes_into_a_file(tmp_path):
    write(bad_rows(50), tmp_path / "deep" / "list.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "deep" / "list.jsonl").read_text().splitlines()]
    assert [(line["file"], line["row"]) for line in lines] == [("train.parquet", row) for row in range(50)]


@pytest.fixture
def files(tmp_path):
    good = write_rows(tmp_path / "good.parquet", [row()] * 4)
    return good, write_rows(tmp_path / "bad.parquet", [row(), row(answer="E"), row(), row()])


def overrides(model, train, val):
    small = ["data.train_batch_size=4", "data.max_prompt_length=64", "data.max_response_length=16"]
    small += ["actor_rollout_ref.actor.ppo_mini_batch_size=4", "srpo.distillation.top_k=20"]
    files = [f"actor_rollout_ref.model.path={model}", f"data.train_files={train}", f"data.val_files={val}"]
    return ["platform=cpu", *files, *small]


def test_the_command(model, files, tmp_path, capsys):
    good, bad = files
    command = ["--config-path", "pkg://srpo_verl.config", "--config-name", "srpo"]
    limit = "srpo.demonstration.max_prompt_tokens=200"
    assert check.main([*command, *overrides(model, good, good), limit, "hydra.run.dir=/nowhere"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ok     configuration: srpo"
    assert lines[-1] == "srpo_verl: nothing that would stop this run was found"

    out = tmp_path / "list.jsonl"
    assert check.main([*overrides(model, bad, bad), limit, "-cn", "srpo", "--out", str(out)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith(f"srpo_verl: data.train_files, ground truth: {bad} row 1: the answer must be one of")
    assert lines[-1].endswith("(the first of 2 errors, listed above)")
    assert sum('"row": 1' in line for line in out.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("srpo.weighting.beta=-1", "srpo.weighting.beta=-1.*has to be a number"),
        ("data.no_such_key=1", "no_such_key"),
        ("benchmark=nothing", "nothing"),
        ("trainer.total_epochs=[", "total_epochs"),
    ],
)
def test_the_command_on_what_does_not_compose_or_is_refused(model, files, capsys, override, message):
    assert check.main(["--config-name", "srpo", *overrides(model, *files), override]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("srpo_verl: configuration: ")
    assert re.search(message, last)


def test_a_folder_of_configurations_of_one_s_own(tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("srpo: 3\n")
    assert check.main(["--config-path", str(tmp_path), "--config-name", "mine"]) == 1
    assert "srpo=3" in capsys.readouterr().out


def test_verl_s_own_check_is_part_of_it(look):
    """It runs before Ray as well, but ends in a traceback."""
    findings = look("actor_rollout_ref.rollout.temperature=0")
    (finding,) = (finding for finding in findings if finding.subject.startswith("veRL's check"))
    assert finding.level == ERROR
    assert "temperature should be greater than 0" in finding.message


# --- before Ray ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(model, files, monkeypatch, capsys):
    def start(train, switch=None):
        monkeypatch.delenv("SRPO_PREFLIGHT", raising=False)
        if switch is not None:
            monkeypatch.setenv("SRPO_PREFLIGHT", switch)
        ConfigCheck().on_job_start(configure(model, train, files[0]))
        return capsys.readouterr().err

    return start


def test_a_run_in_order_goes_on(run, files):
    assert re.fullmatch(r"srpo_verl: model, data and GPUs checked in \d+\.\d s", run(files[0]).splitlines()[-1])


def test_a_run_with_a_bad_row_ends(run, files):
    with pytest.raises(SystemExit) as raised:
        run(files[1])
    assert str(raised.value.code).startswith(f"srpo_verl: data.train_files, ground truth: {files[1]} row 1: ")


def test_the_switch(run, files):
    assert "SRPO_PREFLIGHT=off: model, data and GPUs are not checked" in run(files[1], "off")
    with pytest.raises(SystemExit, match="SRPO_PREFLIGHT='no': has to be on or off"):
        run(files[0], "no")


def test_a_check_that_fails_itself_says_how_to_go_without(run, files, monkeypatch):
    monkeypatch.setattr("srpo_verl.preflight.run.examine", lambda config, srpo: 1 / 0)
    with pytest.raises(SystemExit, match="SRPO_PREFLIGHT=off leaves out"):
        run(files[0])


def test_the_real_command_ends_before_ray(model, files, tmp_path):
    arguments = ["--config-path", "pkg://srpo_verl.config", "--config-name", "srpo"]
    settings = [*overrides(model, files[1], files[0]), "srpo.demonstration.max_prompt_tokens=200"]
    started = time.monotonic()
    run = run_main_ppo([*arguments, *settings], timeout=120, cwd=tmp_path / "run")
    output = run.stdout.read_text(errors="replace")
    assert run.returncode == 1
    last = output.splitlines()[-1]
    assert last == (
        f"srpo_verl: data.train_files, ground truth: {files[1]} row 1: the answer must be one of A, B, C, D, got 'E'; "
        "correct these rows or leave them out"
    )
    assert "ray init kwargs" not in output  # veRL prints it right before it starts Ray
    assert "Traceback" not in output
    assert time.monotonic() - started < 120


# --- a run that fails all the same -----------------------------------------------------------------------------------


def test_errors_of_the_configuration_survive_the_way_through_ray():
    """Ray pickles what a process raises; what does not unpickle comes out as advice about serialisation."""
    error = pickle.loads(pickle.dumps(ConfigError("srpo.x", 1, "has to be 2")))
    assert (str(error), error.key, error.value, error.remedy) == ("srpo.x=1: has to be 2", "srpo.x", 1, "has to be 2")


def test_the_cause_behind_ray_s_wrappers():
    import ray

    cause = ConfigError("srpo.x", 1, "has to be 2")
    inner = ray.exceptions.RayTaskError("init", "Traceback ...", cause).as_instanceof_cause()
    outer = ray.exceptions.RayTaskError("run", "Traceback ...", inner).as_instanceof_cause()
    assert in_one_line(root_cause(outer)) == "ConfigError: srpo.x=1: has to be 2"
    assert in_one_line(root_cause(RuntimeError("a\n  b"))) == "RuntimeError: a b"
    lost = ray.exceptions.UnserializableException("Traceback ...\n  File ...\nmine.Error: what happened\n")
    assert in_one_line(root_cause(lost)) == "mine.Error: what happened"


def ended_with(error, folder):
    """What the process ends with where a run has failed with this error."""
    from hydra.core.utils import JobReturn, JobStatus

    config = OmegaConf.create({"trainer": {"default_local_dir": str(folder)}})
    with pytest.raises(SystemExit) as raised:
        ConfigCheck().on_job_end(config, JobReturn(_return_value=error, status=JobStatus.FAILED))
    ConfigCheck().on_job_end(config, JobReturn(_return_value=None, status=JobStatus.COMPLETED))
    return raised.value.code


def test_a_failed_run_ends_with_its_cause(capsys, tmp_path):
    assert ended_with(ValueError("what\nhappened"), tmp_path) == "srpo_verl: the run failed: ValueError: what happened"
    assert "ValueError: what" in capsys.readouterr().err  # the traceback
    veRLs = RuntimeError("terminal groups with no materializable trajectories. Enable this and that.")
    assert "the run failed: every rollout of a step failed, for a reward function" in ended_with(veRLs, tmp_path)
    leave_word(tmp_path, "nothing has happened for 120 minutes")
    assert ended_with(ValueError("the actor died"), tmp_path) == (
        "srpo_verl: the run failed: nothing has happened for 120 minutes"
    )


def test_a_stopped_run_ends_with_its_status(capsys, tmp_path):
    assert ended_with(RunStopped("was stopped after step 4", 75), tmp_path) == 75
    err = capsys.readouterr().err
    assert "srpo_verl: the run was stopped after step 4" in err
    assert "Traceback" not in err
