"""A task with a tool, and a tiny model that calls it: sums of products, and the calculator of docs/custom_task.md.

The model is trained for some seconds on dialogues of one call and an answer. It makes slips and sometimes guesses
without a call, so that groups hold right and wrong rollouts, of one turn and of two.
"""

import random
import re
from pathlib import Path

import pandas as pd
import torch
from tokenizers import AddedToken
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from recipes.quickstart import task
from tests.support import CHAT_TEMPLATE, tiny_config, tiny_tokenizer

DOCUMENT = Path(__file__).parents[1] / "docs" / "custom_task.md"
CALL, CALLED = '<tool_call>{"name": "calculator", "arguments": {"expression": "', '"}}</tool_call>'
TOOLS_OF_TEMPLATE = (
    "{% if tools %}<|im_start|>tools\n{% for t in tools %}{{ t.function.name }}{% endfor %}<|im_end|>\n{% endif %}"
)
REWARD_FILE = Path(task.__file__)


def tool_file(directory: Path) -> Path:
    """The calculator as the document has it."""
    blocks = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    (source,) = (block for block in blocks if "@function_tool" in block)
    path = directory / "my_tools.py"
    path.write_text(source)
    return path


def tokenizer() -> PreTrainedTokenizerFast:
    """The tests' tokenizer, with a template that shows tools and one token for each half of a call."""
    made = tiny_tokenizer()
    made.chat_template = TOOLS_OF_TEMPLATE + CHAT_TEMPLATE
    made.add_tokens([AddedToken(text, normalized=False) for text in (CALL, CALLED)])
    return made


def write_rows(directory: Path, rows: int) -> Path:
    """A data set of questions such as 3*7+4*8."""
    questions = task.sample_questions("train", rows, 0, products=2)
    records = [
        {
            "prompt": [{"role": "user", "content": question}],
            "data_source": task.DATA_SOURCE,
            "reward_model": {"ground_truth": task.answer(question), "style": "rule"},
            "extra_info": {"index": index},
        }
        for index, question in enumerate(questions)
    ]
    path = directory / "train.parquet"
    pd.DataFrame(records).to_parquet(path)
    return path


def context_of(output: object) -> str:
    """What stands between a call and the next turn of the assistant, by the template."""
    return f"\n<|im_start|>tool\n{output}<|im_end|>\n<|im_start|>assistant\n"


def _example(rng: random.Random) -> tuple[str, list[tuple[str, bool]]]:
    """A question, and the parts of a response: (text, whether the model writes it)."""
    question = task.sample_question("warmup", rng, products=2)
    if rng.random() < 0.15:
        return question, [(f"#{rng.randrange(10)}<|im_end|>", True)]
    result = sum(a * b for a, b in task.parse_question(question))
    digit = rng.randrange(10) if rng.random() < 0.4 else result % 10
    call = f"{CALL}{question}{CALLED}<|im_end|>"
    return question, [(call, True), (context_of(result), False), (f"#{digit}<|im_end|>", True)]


def calling_model(directory: Path, *, steps: int = 160, seed: int = 0) -> Path:
    """Train and save the model with its tokenizer."""
    made = tokenizer()
    prompt_tools = [{"function": {"name": "calculator"}}]
    torch.manual_seed(seed)
    config = tiny_config(made, max_positions=512)
    config.hidden_size, config.intermediate_size = 64, 128
    model = Qwen3ForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    rng = random.Random(seed)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 4e-3 * min(1.0, (step + 1) / 20, 2 * (1 - step / steps))
        rows = []
        for _ in range(32):
            question, parts = _example(rng)
            chat = [{"role": "user", "content": question}]
            prompt = made.apply_chat_template(chat, tools=prompt_tools, add_generation_prompt=True, tokenize=False)
            encoded = [(made(text)["input_ids"], written) for text, written in [(prompt, False), *parts]]
            ids = torch.tensor([index for part, _ in encoded for index in part])
            written = torch.tensor([flag for part, flag in encoded for _ in part])
            rows.append((ids, ids.where(written, -100)))
        ids, labels = (
            torch.nn.utils.rnn.pad_sequence(list(column), batch_first=True, padding_value=padding)
            for column, padding in zip(zip(*rows, strict=True), (made.pad_token_id, -100), strict=True)
        )
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.save_pretrained(directory)
    made.save_pretrained(directory)
    return directory
