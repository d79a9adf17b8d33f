"""Model, tokenizer and chat template: what would end a run inside Ray, or change it silently."""

import json
import shutil

import pytest
from transformers import AutoTokenizer

from srpo_verl.config.check import check_run
from srpo_verl.errors import ConfigError
from srpo_verl.preflight import loading
from srpo_verl.preflight.findings import ERROR
from srpo_verl.preflight.model import ModelFacts, check_model, model_errors
from srpo_verl.preflight.template import argument_findings
from tests.config import compose
from tests.preflight import only_error

DEMONSTRATION, PROMPT = "srpo.demonstration.max_prompt_tokens", "data.max_prompt_length"


@pytest.fixture(scope="module")
def shipped():
    return {name: (config, check_run(config)) for name in ("srpo", "grpo") for config in [compose(name)]}


@pytest.mark.parametrize(
    ("name", "facts", "key", "parts"),
    [
        ("srpo", ModelFacts(99, None), "srpo.distillation.top_k", ("=100: ", "vocabulary of 99", "null")),
        ("srpo", ModelFacts(500, 18431), DEMONSTRATION, ("=10240: ", "8192", "18432 tokens", "18431 positions")),
        ("srpo", ModelFacts(500, None, 501), "actor_rollout_ref.model.tokenizer_path", ("501 tokens", "500")),
        ("grpo", ModelFacts(500, None, 501), "actor_rollout_ref.model.tokenizer_path", ("501 tokens", "500")),
        ("grpo", ModelFacts(500, 10239), PROMPT, ("=2048: ", "10240 tokens", "10239 positions", "lower one")),
    ],
)
def test_a_model_that_is_too_small(shipped, name, facts, key, parts):
    (error,) = model_errors(*shipped[name], facts)
    assert error.key == key
    assert all(part in str(error) for part in parts), str(error)
    with pytest.raises(ConfigError) as raised:
        check_model(*shipped[name], facts)
    assert str(raised.value) == str(error)


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("srpo", ModelFacts(100, None)),
        ("srpo", ModelFacts(500, 18432, 500)),
        ("grpo", ModelFacts(3, 10240, 3)),  # no support, no teacher
    ],
)
def test_a_model_that_is_just_large_enough(shipped, name, facts):
    assert model_errors(*shipped[name], facts) == []


def test_the_full_vocabulary_fits_any():
    config = compose("srpo", "srpo.distillation.top_k=null")
    assert model_errors(config, check_run(config), ModelFacts(3, None)) == []


def test_the_rollout_engine_s_own_limit():
    config = compose("grpo", "actor_rollout_ref.rollout.max_model_len=10239")
    (error,) = model_errors(config, check_run(config), ModelFacts(500, 40960))
    assert error.key == PROMPT
    assert "10239 of actor_rollout_ref.rollout.max_model_len" in str(error)


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("/no/such/model", ("path='/no/such/model': no such folder",)),
        ("./model", ("no such folder",)),
        ("~/model", ("no such folder", "'~' is not expanded")),
        ("two/parts/more", ("no such folder",)),
    ],
)
def test_a_folder_that_does_not_exist(look, path, parts):
    error = only_error(look(f"actor_rollout_ref.model.path={path}"))
    assert error.subject == "model"
    assert all(part in error.message for part in parts), error.message
    assert "give a folder" in error.remedy


def test_a_name_that_the_hub_does_not_answer_for_is_asked_once(look, monkeypatch):
    """transformers would ask six times with growing pauses: 46 s without a network, minutes behind a firewall."""
    asked = []

    def no_network(url, timeout):
        asked.append((url, timeout))
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(loading, "get_hf_file_metadata", no_network)
    error = only_error(look("actor_rollout_ref.model.path=Nobody/Nothing"))
    assert error.message.startswith("actor_rollout_ref.model.path='Nobody/Nothing': neither a folder here nor in")
    assert "Name or service not known" in error.message
    assert [timeout for _, timeout in asked] == [10.0]


def test_a_cached_model_needs_no_hub(look, model, monkeypatch):
    monkeypatch.setattr(loading, "try_to_load_from_cache", lambda name, file: str(model / file))
    monkeypatch.setattr(loading, "get_hf_file_metadata", lambda url, timeout: 1 / 0)
    findings = look("actor_rollout_ref.model.path=Some/Model")
    assert [str(finding) for finding in findings if finding.level == ERROR] == []


def test_a_folder_without_a_model(look, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    error = only_error(look(f"actor_rollout_ref.model.path={empty}"))
    assert error.message.startswith(f"actor_rollout_ref.model.path='{empty}': ")
    assert "config.json" in error.remedy


def test_a_model_elsewhere_is_unchecked(look):
    findings = look("actor_rollout_ref.model.path=hdfs://somewhere/model")
    assert [finding for finding in findings if finding.level == ERROR] == []
    (note,) = (finding for finding in findings if finding.subject == "model")
    assert note.level == "note"
    assert "unchecked" in note.message


def test_the_model_s_limits_reach_the_report(look):
    error = only_error(look("srpo.distillation.top_k=101"))
    assert str(error).startswith("model: srpo.distillation.top_k=101: exceeds the model's vocabulary of 100")


@pytest.fixture
def changed_model(model, tmp_path):
    """A copy of the model with another chat template (None: without)."""

    def change(template):
        path = shutil.copytree(model, tmp_path / "changed")
        tokenizer = AutoTokenizer.from_pretrained(path)
        tokenizer.chat_template = template
        (path / "chat_template.jinja").unlink(missing_ok=True)
        tokenizer.save_pretrained(path)
        return path

    return change


def test_a_tokenizer_without_a_template(look, changed_model):
    error = only_error(look(path=changed_model(None)))
    assert str(error).startswith("chat template: the tokenizer has no chat template; ")
    assert "custom_chat_template" in error.remedy


def test_a_template_that_does_not_take_the_messages(look, changed_model):
    template = "{{ raise_exception('no system message') if messages[0].role == 'system' }}{{ messages[0].content }}"
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1 = ?"}]
    from tests.preflight import row

    train = [row() for _ in range(5)]
    train[3]["prompt"] = system
    error = only_error(look(path=changed_model(template), train=train))
    assert (error.subject, error.row) == ("data.train_files, chat template", 3)
    assert error.file.endswith("train.parquet")
    assert "no system message" in error.message
    assert "correct the messages" in error.remedy


def test_template_arguments():
    template = "{% if enable_thinking %}{% for message in messages %}{{ message.content }}{% endfor %}{% endif %}"
    harmless = {"enable_thinking": False}

    def problems(source, **arguments):
        return [str(finding) for finding in argument_findings(source, arguments, harmless)]

    assert problems(template, enable_thinking=True) == []
    # A model without a switch for thinking does what the default asks for.
    assert problems("{{ messages }}", enable_thinking=False) == []
    (unread,) = problems("{{ messages }}", enable_thinking=True)
    assert "data.apply_chat_template_kwargs.enable_thinking=True: the model's chat template does not read" in unread
    (misspelt,) = problems(template, enable_thinkng=False)
    assert "names the template reads: enable_thinking" in misspelt
    (passed,) = problems(template, tokenize=False)
    assert "tokenize=False: veRL passes this argument itself" in passed
    # transformers' own blocks are no obstacle, and what is no Jinja is not judged.
    generation = "{% generation %}{{ messages }}{{ mood }}{% endgeneration %}"
    assert problems(generation, mood="calm") == []
    assert problems("{% nonsense", mood="calm") == []


def test_template_arguments_reach_the_report(look):
    error = only_error(look("data.apply_chat_template_kwargs.enable_thinkng=true"))
    assert error.subject == "chat template"
    error = only_error(look("data.apply_chat_template_kwargs.tokenize=true"))
    assert "veRL passes this argument itself" in error.message


def test_a_tool_file_that_does_not_load(look, tmp_path):
    error = only_error(look(f"data.tool_config_path={tmp_path}/tools.yaml"))
    assert error.message.startswith(f"data.tool_config_path='{tmp_path}/tools.yaml': ")


def test_tools_are_part_of_the_prompt(look, changed_model, tmp_path):
    """veRL renders their schemas with every prompt, and filters by that length."""
    tool = tmp_path / "tools.yaml"
    schema = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {}}}
    schema["function"]["parameters"] = {"type": "object", "properties": {}, "required": []}
    tool.write_text(
        json.dumps(
            {
                "tools": [
                    {
                        "class_name": "verl.tools.base_tool.BaseTool",
                        "config": {"type": "native"},
                        "tool_schema": schema,
                    }
                ]
            }
        )
    )
    template = "{{ tools }}{% for message in messages %}{{ message.content }}{% endfor %}"
    path = changed_model(template)
    findings = look(f"data.tool_config_path={tool}", path=path)
    assert any(finding.subject == "data.train_files, dropped as too long" for finding in findings)
    wrong = [finding.message[:13] for finding in findings if finding.level == ERROR]
    assert wrong == ["0 usable rows", "no usable row"]
