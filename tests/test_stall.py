"""A run that hangs ends, and says why."""

import threading

from srpo_verl.stall import StallWatch, leave_word, take_word


def test_a_stall_is_told_once_with_its_phase():
    told, event = [], threading.Event()
    watch = StallWatch(0.2, lambda phase, seconds: (told.append((phase, seconds)), event.set()))
    watch.start()
    for phase in ("sampling", "the update"):
        watch.progress(phase)
    assert event.wait(10)
    assert told[0][0] == "the update"
    assert told[0][1] > 0.2
    assert not threading.Event().wait(0.5)
    assert len(told) == 1


def test_progress_and_the_end_keep_it_quiet():
    told = []
    watch = StallWatch(0.5, lambda *stall: told.append(stall))
    watch.start()
    for _ in range(10):
        watch.progress("sampling")
        assert not threading.Event().wait(0.1)
    watch.stop()
    assert not threading.Event().wait(0.8)
    assert told == []
    before = threading.active_count()
    StallWatch(None, lambda *stall: None).start()
    assert threading.active_count() == before


def test_last_words_are_read_once(tmp_path, capfd):
    assert take_word(tmp_path) is None
    leave_word(tmp_path / "checkpoints", "nothing has happened")
    err = capfd.readouterr().err
    assert "srpo_verl: nothing has happened" in err
    assert "test_last_words_are_read_once" in err  # what the threads were doing
    assert take_word(tmp_path / "checkpoints") == "nothing has happened"
    assert take_word(tmp_path / "checkpoints") is None
