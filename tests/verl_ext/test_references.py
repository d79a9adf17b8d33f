"""The column of the data's own solutions, through veRL's data set as the trainer loads it."""

import pandas as pd
import pytest
from transformers import AutoTokenizer

from srpo_verl.config.schema import parse
from srpo_verl.errors import ConfigError
from srpo_verl.progress import Progress
from srpo_verl.teacher.reference import reference_text
from srpo_verl.verl_ext.trainer import SrpoTrainer
from tests.config import compose
from tests.support import tiny_model, tiny_parquet


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    """Makes a trainer load four rows, of which the third alone has a solution, with a column named."""
    root = tmp_path_factory.mktemp("references")
    path = tiny_parquet(root, 4)
    data = pd.read_parquet(path)
    data["solution"], data["blank"] = ["", None, "2 + 2 is 4", " "], [" ", "", None, "\n"]
    data["extra_info"] = [{"index": row, "steps": f"step {row}"} for row in range(4)]
    data.to_parquet(path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model(root / "model"))
    files = [f"data.{name}_files={path}" for name in ("train", "val")]
    files += ["data.train_batch_size=4", "data.filter_overlong_prompts=false"]
    config = compose("opsd", "platform=cpu", *files, f"+data.cache_dir={root}/cache", "data.max_prompt_length=64")

    def loaded(column):
        trainer = object.__new__(SrpoTrainer)
        config.srpo.demonstration.reference_column = column
        trainer.config, trainer.srpo, trainer.progress = config, parse(config.srpo), Progress()
        trainer.tokenizer, trainer.processor, trainer.trainer_mode = tokenizer, None, "sync"
        trainer.parameter_sync_step = 1
        trainer._init_dataloader()
        return trainer

    return loaded


@pytest.mark.parametrize("column", ["solution", "extra_info.steps", "reward_model.ground_truth"])
def test_a_column_with_a_text_in_some_row(load, column):
    assert len(load(column).train_dataset) == 4


@pytest.mark.parametrize("column", ["answer", "blank", "extra_info.answer", "solution.text"])
def test_a_column_without_any_text_is_refused_before_a_step(load, column):
    with pytest.raises(ConfigError) as error:
        load(column)
    assert error.value.key == "srpo.demonstration.reference_column"
    assert (error.value.value, "no text in any row of data.train_files" in str(error.value)) == (column, True)
    assert all(name in str(error.value) for name in ("solution", "reward_model", "extra_info"))


def test_what_counts_as_a_text():
    row = {"a": {"b": "x"}, "n": 3, "empty": "", "blank": " \n"}
    assert reference_text(row, ["a", "b"]) == "x"
    assert reference_text(row["n"]) == "3"
    assert {reference_text(row, path) for path in (["a", "c"], ["z"], ["empty"], ["blank"], ["n", "x"])} == {""}
