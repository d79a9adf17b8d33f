"""What takes hours: ``python -m scripts.endurance kills --out DIR`` and ``... soak --out DIR``.

kills: runs of a tiny model on the CPU, each killed with SIGKILL at random moments until it ends, compared with one
that was not killed. soak: one long run, with the memory, file descriptors and threads of every process and the seconds
of every step, early and late. Both go on where they were when they are started again.
"""
