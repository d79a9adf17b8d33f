"""python -m srpo_verl: every command by one name, with examples that name it."""

import re

import pytest

from srpo_verl.__main__ import COMMANDS, main, usage


def test_without_a_command_it_says_which_there_are(capsys):
    assert main([]) == main(["--help"]) == 0
    assert main(["train"]) == 2
    shown = capsys.readouterr()
    assert shown.out == f"{usage()}\n" * 2
    assert shown.err.startswith("srpo_verl: no command 'train'")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_examples_of_itself(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert not ended.value.code
    shown = " ".join(capsys.readouterr().out.split())
    assert re.search(rf"[Ee]xamples?: .*python -m srpo_verl[. ]{name} ", shown)
