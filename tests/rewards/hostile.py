"""A hundred responses that a verifier must survive: sizes, nesting, characters, numbers, half-finished forms."""

MILLION = 1_000_000


def _fill(unit: str) -> str:
    return unit * (MILLION // len(unit))


CHARACTERS = ["a", " ", "\n", "{", "}", "[", '"', "\\", "<", "0", "9", "\0", "\ud800", "\U0001f600", "$", "\u2028"]

UNITS = [
    "<answer>",
    "</answer>",
    "<answer> ",
    "<answer>A</answer>",
    "<answer>A",
    "Action:",
    "Action: ",
    "Action: a\n",
    "Action:\n",
    "Action Input: {",
    'Action Input: {"',
    'Action Input: {"a":',
    'Action Input: {"a": ',
    'Action Input: {"\\',
    'Action Input: {"\\"',
    'Action Input: {":"',
    'Action Input: {"": "',
    "Action Input: {}",
    'Action Input: {"a": 1}',
    'Action Input: {"a": [',
    "Action Input: ",
    "Action Input:\n",
    "Action: a\nAction Input: {",
    "Action: [Optional]",
    "Action: [",
    "\\boxed{",
    "\\boxed{}",
    "\\boxed{1}",
    "\\boxed",
    "\\\\boxed{",
    "{}",
    "\\{",
    "()",
    "\\frac{",
]

PREFIXES = [
    "<answer>",
    "Action:",
    "Action: a\nAction Input: {",
    'Action Input: {"a": "',
    "\\boxed{",
]

BOXED = [
    "10^{10^{10}}",
    "10**10**10",
    "9" * 900,
    "9" * 20_000,
    "1000000000!",
    "((((1!)!)!)!)!",
    "9^{9^{9^{9}}}",
    "(x+1)^{1000000}",
    "(" * 400 + "1" + ")" * 400,
    "(" * 4000 + "1" + ")" * 4000,
    "{" * 400 + "1" + "}" * 400,
    "\\sqrt{" * 150 + "2" + "}" * 150,
    "\\frac{1}{" * 110 + "2" + "}" * 110,
    "\\sum_{n=1}^{10^{9}} \\frac{1}{n^{2}}",
    "\\prod_{n=1}^{1000000} n",
    "\\int_0^1 e^{-x^2 \\sin(x)^{20}} dx",
    "\\begin{pmatrix} 1 & 2 \\\\",
    "1/0",
    "0^{-1}",
    "\\infty - \\infty",
    "NaN",
    "1e999999999",
    "\\text{" + "x" * 900 + "}",
    "__import__('os').abort()",
    "x" * 999,
    "1" + "+1" * 450,
    "1" + "," * 900,
    "\0",
    "\ud800\udfff",
    "%" * 900,
]

JSON = [
    '{"a": ' * 100_000 + "1" + "}" * 100_000,
    '{"a": ' * 990 + "1" + "}" * 990,
    '{"a": ' + "[" * 400_000,
    '{"a": ' + "[" * 900 + "]" * 900 + "}",
    '{"a": ' + "1" * 900_000 + "}",
    '{"a": ' + "1" * 4301 + "}",
    '{"a": 1e400, "b": -Infinity, "c": NaN}',
    '{"a": 1' + "0" * 400 + ".5}",
    '{"a": "\\ud800"}',
    '{"\\u0000": "\0"}',
    '{"a": [' + "1," * 400_000 + "1]}",
    '{"a": [' + "[]," * 300_000 + "[]]}",
    "{" + ",".join(f'"{n}": {n}' for n in range(60_000)) + "}",
    '{"a" ' + " " * 900_000 + ": 1}",
    '{"a": "' + "\\n" * 400_000 + '"}',
]

RESPONSES = [
    *map(_fill, CHARACTERS),
    *map(_fill, UNITS),
    *(prefix + " " * MILLION for prefix in PREFIXES),
    *(f"\\boxed{{{content}}}" for content in BOXED),
    *(f"Action: a\nAction Input: {value}" for value in JSON),
]
